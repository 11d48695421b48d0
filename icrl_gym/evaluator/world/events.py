"""Whether a transition is an event, the end of an episode above all, as a function of its successor.

Most endings in practice are thresholds: a body leaves a box, falls below a height, tilts too far. So the first model is
a set of *rules*: one coordinate of the successor, or its distance from the origin of the observation, exceeds a
threshold that lies somewhere between the largest value of all other successors and the least of the events that the
rule explains. Where nothing but the seen range is visited, no rule ever gives a false alarm. A distance is preferred
to one side of it where the same events speak for both: the log went less far on the other side. The second is a
logistic function of the successor's coordinates, squares and products, read in the same way where it sets the events
apart. How far the rules are believed is decided by how well each model foretells every event from the others.

A few events leave several explanations, and a threshold leaves a gap. Every member of the world holds one of the
explanations and one place in the gap, in proportion to what speaks for them, so that members disagree where the context
does not tell.

Shape legend: L other successors, E events, D features, J candidate rules, K members, B queries, P terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import expit

BOTH_SIDES = 10.0  # times as likely as one side alone, where the same events speak for both
LEAST_SHARE = 0.02  # of an event that a rule must explain to count
ROUNDS = 50  # of expectation and maximisation
MOST_QUADRATIC = 12  # features with squares and products
LOGISTIC_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # the first that sets the events apart
NEWTON_STEPS = 60
MOST_LEFT_OUT = 8  # events that are left out in turn
SURPRISE = 0.02  # probability of an event that a model has no word for
RULES_FIRST = 1.0  # nats by which rules are preferred
MOST_OTHERS = 2048  # of the other successors stand for all in a likelihood
MOST_ADDED = 256  # of them, nearest to the events, that a likelihood takes in at a time


@dataclass(frozen=True, eq=False)
class Rules:
    """Thresholds on single coordinates.

    Attributes:
        origin_D: features of the observation 0.
        shares_EJ: how likely each candidate (x, -x and |x - origin|) explains each event; 0 where it cannot.
        low_J: largest value of the other successors.
        scores_EJ: values of the events.
    """

    origin_D: np.ndarray
    shares_EJ: np.ndarray
    low_J: np.ndarray
    scores_EJ: np.ndarray

    @classmethod
    def fit(cls, others_LD: np.ndarray, events_ED: np.ndarray, origin_D: np.ndarray) -> Rules:
        """The few rules that explain most events, by expectation and maximisation."""
        low_J = _candidates(others_LD, origin_D).max(axis=0)
        scores_EJ = _candidates(events_ED, origin_D)
        beyond_EJ = scores_EJ > low_J
        usable_J = beyond_EJ.any(axis=0)
        start_J = usable_J * np.repeat([1.0, 1.0, BOTH_SIDES], others_LD.shape[1])
        prior_J, shares_EJ = start_J, np.zeros_like(scores_EJ)
        for _ in range(ROUNDS):
            shares_EJ = beyond_EJ * prior_J
            shares_EJ = shares_EJ / np.maximum(shares_EJ.sum(axis=1, keepdims=True), 1e-12)
            prior_J = shares_EJ.sum(axis=0) + 1e-3 * start_J
            prior_J = prior_J / max(prior_J.sum(), 1e-12)
        shares_EJ = np.where(shares_EJ > LEAST_SHARE, shares_EJ, 0.0)
        return cls(origin_D, shares_EJ / np.maximum(shares_EJ.sum(axis=1, keepdims=True), 1e-12), low_J, scores_EJ)

    @property
    def explained_E(self) -> np.ndarray:
        """Which events some rule explains."""
        return np.asarray(self.shares_EJ.any(axis=1))

    def thresholds(self, explanation: float, place: float) -> tuple[np.ndarray, np.ndarray]:
        """One reading of the context, as a threshold for each candidate (J,), and the least score that is known to be
        beyond it (J,); infinite where it is no rule.

        Args:
            explanation: in [0, 1): which of the explanations of an event, in the order of their cumulated shares.
            place: in [0, 1]: where in the gap the thresholds lie.
        """
        picked_E = (self.shares_EJ.cumsum(axis=1) <= explanation).sum(axis=1).clip(max=len(self.low_J) - 1)
        holds_EJ = (np.arange(len(self.low_J)) == picked_E[:, None]) & (self.shares_EJ > 0)
        high_J = np.where(holds_EJ, self.scores_EJ, np.inf).min(axis=0)
        return np.where(np.isfinite(high_J), self.low_J + place * (high_J - self.low_J), np.inf), high_J

    def foretells(self, successor_D: np.ndarray) -> float:
        """How many of some readings say that this successor is an event, in [0, 1]."""
        score_J = _candidates(successor_D[None], self.origin_D)[0]
        places = (np.arange(8) + 0.5) / 8
        return float(np.mean([(score_J > self.thresholds(p, (5 * p) % 1.0)[0]).any() for p in places]))


@dataclass(frozen=True, eq=False)
class Logistic:
    """A logistic function of coordinates, squares and products.

    Attributes:
        weights_P: coefficients.
        low, high: largest score of the other successors, and least score of an event. Where the events lie apart
            the probability rises linearly in between; else (nan) it is the logistic function.
    """

    weights_P: np.ndarray
    low: float
    high: float

    @classmethod
    def fit(cls, others_LD: np.ndarray, events_ED: np.ndarray) -> Logistic:
        """Maximum likelihood by Newton's method, with the largest ridge that sets the events apart.

        Of many other successors some stand for all, and those most like events are taken in ridge by ridge.
        """
        others_LP, events_EP = _terms(others_LD), _terms(events_ED)
        num_rows, weights_P = len(others_LP), np.zeros(others_LP.shape[1])
        some = np.linspace(0, num_rows - 1, min(num_rows, MOST_OTHERS)).round().astype(int)
        some_L = np.isin(np.arange(num_rows), some)
        taken_L = np.full(num_rows, num_rows <= MOST_OTHERS)  # rows that stand for themselves alone
        for ridge in LOGISTIC_RIDGES:
            standing_L = some_L & ~taken_L
            counts_L = np.where(standing_L, (~taken_L).sum() / max(1, standing_L.sum()), 1.0)
            held_L = some_L | taken_L
            weights_P = _maximum_likelihood(others_LP[held_L], events_EP, ridge, weights_P, counts_L[held_L])
            score_L, high = others_LP @ weights_P, float((events_EP @ weights_P).min())
            low = float(score_L.max())
            if high > low:
                return cls(weights_P, low, high)
            taken_L[np.argsort(np.where(taken_L, -np.inf, score_L))[-MOST_ADDED:]] = True
        return cls(weights_P, math.nan, math.nan)

    def scores(self, states_BD: np.ndarray) -> np.ndarray:
        """Scores (B,) of states."""
        return np.asarray(_terms(states_BD) @ self.weights_P)

    def threshold(self, place: float) -> float:
        """The score beyond which a successor is an event, at this place of the gap; nan where there is none."""
        return self.low + place * (self.high - self.low)

    def foretells(self, successor_D: np.ndarray) -> float:
        """How likely this successor is to be an event, in [0, 1]."""
        score = float((_terms(successor_D[None]) @ self.weights_P)[0])
        return (
            float(expit(score))
            if math.isnan(self.low)
            else min(1.0, max(0.0, (score - self.low) / (self.high - self.low)))
        )


@dataclass(frozen=True, eq=False)
class Limits:
    """What ends the episode of B particles of each member.

    Attributes:
        rules_KBC: thresholds of the few rules that any member holds.
        logistic_KB: thresholds of the logistic function's score.
    """

    rules_KBC: np.ndarray
    logistic_KB: np.ndarray

    def of(self, whose_KA: np.ndarray) -> Limits:
        """Those of some particles."""
        rules_KAC = np.take_along_axis(self.rules_KBC, whose_KA[..., None], axis=1)
        return Limits(rules_KAC, np.take_along_axis(self.logistic_KB, whose_KA, axis=1))


@dataclass(frozen=True, eq=False)
class Events:
    """What each of K members holds of the events.

    Attributes:
        rules, logistic: the models; the second is None where no member holds it.
        rules_share: how far the rules are believed.
        by_rules_K: which members hold the rules.
        thresholds_KJ: their thresholds, infinite for the others.
        beyond_KJ: least score that is known to be beyond each.
        places_K: where in the gap each member's thresholds lie.
    """

    rules: Rules
    logistic: Logistic | None
    rules_share: float
    by_rules_K: np.ndarray
    thresholds_KJ: np.ndarray
    beyond_KJ: np.ndarray
    places_K: np.ndarray

    @classmethod
    def fit(cls, others_LD: np.ndarray, events_ED: np.ndarray, origin_D: np.ndarray, num_members: int) -> Events | None:
        """The members' models of a context's events; None where there are none, or nothing else."""
        if not len(events_ED) or not len(others_LD):
            return None
        rules = Rules.fit(others_LD, events_ED, origin_D)
        share = _rules_share(others_LD, events_ED, origin_D, rules)
        middle_K = (np.arange(num_members) + 0.5) / num_members
        by_rules_K, places_K = middle_K < share, middle_K[::-1]
        read = [rules.thresholds(*one) for one in zip(middle_K, places_K, strict=True)]
        thresholds_KJ, beyond_KJ = (
            np.where(by_rules_K[:, None], np.stack(part), np.inf) for part in zip(*read, strict=True)
        )
        logistic = None if by_rules_K.all() else Logistic.fit(others_LD, events_ED)
        return cls(rules, logistic, share, by_rules_K, thresholds_KJ, beyond_KJ, places_K)

    def of_member(self, member: int) -> Events:
        """What one member holds, as the only one."""
        one = slice(member, member + 1)
        return replace(
            self, by_rules_K=self.by_rules_K[one], thresholds_KJ=self.thresholds_KJ[one],
            beyond_KJ=self.beyond_KJ[one], places_K=self.places_K[one],
        )  # fmt: skip

    def limits(self, alive_KBD: np.ndarray) -> Limits:
        """What ends the episodes that go on at these states.

        A state that lies in the gap beyond a threshold moves it to where an ending is known. One that lies farther than
        that refutes the rule, which then ends nothing.
        """
        scores_KBC, columns = self._scores(alive_KBD), self._columns
        rules_KBC = _moved(scores_KBC, self.thresholds_KJ[:, None, columns], self.beyond_KJ[:, None, columns])
        logistic_KB = np.full(alive_KBD.shape[:2], np.nan)
        if self.logistic is not None:
            for member in np.flatnonzero(~self.by_rules_K):
                threshold = self.logistic.threshold(self.places_K[member])
                scores_B = self.logistic.scores(alive_KBD[member])
                known_B = np.full_like(scores_B, self.logistic.high)
                logistic_KB[member] = _moved(scores_B, np.full_like(scores_B, threshold), known_B)
        return Limits(rules_KBC, logistic_KB)

    def __call__(self, successors_KBD: np.ndarray, limits: Limits | None = None) -> np.ndarray:
        """Probabilities (K, B).

        Args:
            successors_KBD: where each member's particles come to.
            limits: of these particles, or None: those of a state at which nothing is beyond its threshold.
        """
        rules_KBC = self.thresholds_KJ[:, None, self._columns] if limits is None else limits.rules_KBC
        found_KB = np.asarray((self._scores(successors_KBD) > rules_KBC).any(axis=-1), dtype=np.float64)
        if self.logistic is not None:
            for member in np.flatnonzero(~self.by_rules_K):
                scores_B = self.logistic.scores(successors_KBD[member])
                threshold = self.logistic.threshold(self.places_K[member])
                limit = threshold if limits is None else limits.logistic_KB[member]
                found_KB[member] = expit(scores_B) if math.isnan(threshold) else scores_B > limit
        return found_KB

    @cached_property
    def _columns(self) -> np.ndarray:
        """The candidates that are rules for any member: a few."""
        return np.flatnonzero(np.isfinite(self.thresholds_KJ).any(axis=0))

    def _scores(self, states_KBD: np.ndarray) -> np.ndarray:
        """Scores (K, B, C) of states under these."""
        kinds, features = np.divmod(self._columns, states_KBD.shape[-1])
        x_KBC = states_KBD[..., features]
        return np.select([kinds == 0, kinds == 1], [x_KBC, -x_KBC], np.abs(x_KBC - self.rules.origin_D[features]))


def _moved(scores: np.ndarray, thresholds: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Thresholds where nothing ends at these scores."""
    return np.where(scores <= thresholds, thresholds, np.where(scores < beyond, beyond, np.inf))


def _rules_share(others_LD: np.ndarray, events_ED: np.ndarray, origin_D: np.ndarray, rules: Rules) -> float:
    if len(events_ED) == 1:
        return float(rules.explained_E.all())
    left_out = np.unique(np.linspace(0, len(events_ED) - 1, min(len(events_ED), MOST_LEFT_OUT)).round().astype(int))
    difference = 0.0
    for index in left_out:
        others_ED, one_D = np.delete(events_ED, index, axis=0), events_ED[index]
        by_rules = Rules.fit(others_LD, others_ED, origin_D).foretells(one_D)
        by_logistic = Logistic.fit(others_LD, others_ED).foretells(one_D)
        difference += math.log(SURPRISE + (1 - SURPRISE) * by_rules) - math.log(SURPRISE + (1 - SURPRISE) * by_logistic)
    return float(expit(difference * len(events_ED) / len(left_out) + RULES_FIRST))


def _candidates(x_BD: np.ndarray, origin_D: np.ndarray) -> np.ndarray:
    return np.concatenate([x_BD, -x_BD, np.abs(x_BD - origin_D)], axis=1)


def _terms(x_BD: np.ndarray) -> np.ndarray:
    parts = [np.ones((len(x_BD), 1)), x_BD]
    if x_BD.shape[1] <= MOST_QUADRATIC:
        i, j = np.triu_indices(x_BD.shape[1])
        parts.append(x_BD[:, i] * x_BD[:, j])
    return np.concatenate(parts, axis=1)


def _maximum_likelihood(
    others_LP: np.ndarray, events_EP: np.ndarray, ridge: float, weights_P: np.ndarray, counts_L: np.ndarray
) -> np.ndarray:
    """Coefficients by Newton's method with backtracking, from a start; all zero starts at the rate of events.

    A row of the others counts as ``counts_L`` rows.
    """
    terms_BP = np.concatenate([others_LP, events_EP])
    event_B = np.concatenate([np.zeros(len(others_LP)), np.ones(len(events_EP))])
    counts_B = np.concatenate([counts_L, np.ones(len(events_EP))])
    penalty_P = np.full(terms_BP.shape[1], ridge)
    penalty_P[0] = 1e-3 * ridge
    if not weights_P.any():
        weights_P = np.eye(len(weights_P))[0] * -math.log((counts_L.sum() + 0.5) / (len(events_EP) + 0.5))

    def loss(candidate_P: np.ndarray) -> float:
        score_B = terms_BP @ candidate_P
        likelihood = (counts_B * np.logaddexp(0.0, score_B)).sum() - score_B[len(others_LP) :].sum()
        return float(likelihood + 0.5 * (penalty_P * candidate_P**2).sum())

    least = loss(weights_P)
    for _ in range(NEWTON_STEPS):
        probability_B = expit(terms_BP @ weights_P)
        curvature_B = counts_B * probability_B * (1.0 - probability_B)
        hessian_PP = (terms_BP * curvature_B[:, None]).T @ terms_BP + np.diag(penalty_P + 1e-9)
        gradient_P = terms_BP.T @ (counts_B * (probability_B - event_B)) + penalty_P * weights_P
        step_P = np.linalg.solve(hessian_PP, gradient_P)
        rate = 1.0
        while rate > 1e-4 and (tried := loss(weights_P - rate * step_P)) > least:
            rate /= 2
        if rate <= 1e-4 or least - tried < 1e-6:
            break
        weights_P, least = weights_P - rate * step_P, tried
    return weights_P
