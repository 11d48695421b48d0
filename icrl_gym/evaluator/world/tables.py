"""Values by counting, where states recur.

A value is V(s) = sum_a pi(a|s) q(s, a), where pi is the policy's own and q is read off the counts:
q(s, a) = mean of r + discount V(s') over the n_sa transitions of the pair. Pairs that were hardly ever seen borrow
from the other pairs of their state, and these from the leaf, a value that somebody else gives (softmax TD's). The
weights are those of the best linear prediction under the model

    q_sa = mu_s + effect of the action (variance t),  mean backup of the pair = q_sa + noise (variance v / n_sa),
    leaf of s = mu_s + error (variance t / k),

    W_sa = h_sa (pi_sa + (1 - leaf_s) rest_s / sum_a h_sa),   h_sa = n_sa / (n_sa + m),   m = v / t,
    rest_s = 1 - sum_a pi_sa h_sa,                            leaf_s = k / (k + sum_a h_sa).

The ratio m is measured for values that nobody knows: v and t are within-pair and between-pair variances of a random
function of the successor, which are differences of probabilities that two visits have the same successor. So weights
depend on counts alone, and values are linear in the rewards and in the leaf. In a deterministic world m is nearly 0 and
one visit is enough; where actions hardly matter m is large and the answer is that of certainty equivalence.

Where few visits leave much noise, other states know more. So where the policy acted, counted values are blended with
the leaf's, with additive ones (additive.py) and with their mean (blend.py), by what the noise of the counts is
estimated to do to each. A world without chance has none, and the log of another policy is no sample of the states that
count.

The log may be any policy's: counts need no importance ratios. Where the policy is the one that acted and is not known,
or its actions are too many to count, states alone are counted, as if it had one action.

Shape legend: N transitions, S states, A actions, P pairs, F queries that are in the table, L layers, R draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse import csr_array

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.world.additive import AdditiveValues
from icrl_gym.evaluator.world.blend import Blend, Estimate
from icrl_gym.evaluator.world.state_keys import StateKeys
from icrl_gym.evaluator.world.table_actions import choices_of
from icrl_gym.observations import Observations, concatenate, take

MOST_STATES = 2048  # of one dense solve
MOST_DISTINCT = 0.5  # share of the sources; with more of them states do not recur
LEAF_WEIGHT = 0.2  # k: the leaf counts as much as this share of one well-known action
MOST_RATIO = 20.0  # of m
VARIANCE_VISITS = 2.0  # visits that what a state shows of a pair's variance counts as
PLUG_IN = 1.2  # errors of values over what variances of backups of these same values say; chosen for coverage
DRAWS = 64  # of the noise


@dataclass(frozen=True, eq=False)
class TableValues:
    """Values of all states of a table.

    Attributes:
        by_layer_LS: after each layer of the leaf.
        stderr_S: standard errors, or None where the leaf has none.
        blend: what the values were made of.
    """

    by_layer_LS: np.ndarray
    stderr_S: np.ndarray | None
    blend: Blend


@dataclass(frozen=True, eq=False)
class TableWorld:
    """The counts of a log under a policy, ready for rewards and leaves.

    States are the distinct observations that were left, and those that were entered without ending an episode.

    Attributes:
        keys: finds the states of observations.
        states: their observations (S, ...).
        sources: (N,) states that the transitions leave.
        successors: (N,) states that they enter; never read with weight where the discount is 0.
        pairs: (N,) state-action pairs of the transitions, below P.
        pair_states: (P,) states of the pairs.
        counts: (P,) transitions of the pairs.
        chances: (P,) the policy's probabilities of the pairs.
        weights: (P,) W: shares of the pairs' mean backups in their states' values.
        leaf_weights: (S,) shares of the leaf; 1 for states that were never left.
        unseen: (S,) sum of the squared probabilities of the actions that were not seen; 0 for states never left.
        noise_share: share of noise in the variance of a state's backups, in [0, 1]; the rest is the action's.
        rewards: (N,).
        discounts: (N,).
        acted: whether the policy is the one that acted.
    """

    keys: StateKeys
    states: Observations
    sources: np.ndarray
    successors: np.ndarray
    pairs: np.ndarray
    pair_states: np.ndarray
    counts: np.ndarray
    chances: np.ndarray
    weights: np.ndarray
    leaf_weights: np.ndarray
    unseen: np.ndarray
    noise_share: float
    rewards: np.ndarray
    discounts: np.ndarray
    acted: bool

    @classmethod
    def fit(
        cls, trajectory: Trajectory, prompt: Prompt, asked: AskedPolicy | None, *, acted: bool
    ) -> TableWorld | None:
        """Count.

        Args:
            trajectory: the log, of any behaviour.
            prompt: its prompt, for rewards and discounts.
            asked: the policy to be evaluated, or None: the one that acted.
            acted: whether it is the one that acted.

        Returns:
            None where states do not recur or are too many, or another policy's actions are neither discrete nor
            deterministic.

        Raises:
            ValueError: the policy cannot answer at a state of the log.
        """
        most_distinct = MOST_DISTINCT * len(prompt)
        if len(prompt.first_visits) >= most_distinct:  # features that differ are states that differ
            return None
        goes_on = prompt.discounts > 0
        seen = concatenate([trajectory.observations, take(trajectory.next_observations, goes_on)])
        keys, first, state_C = StateKeys.of(seen)
        sources = state_C[: len(prompt)]
        if len(np.unique(sources)) >= most_distinct or len(first) > MOST_STATES:
            return None
        states = take(seen, first)
        choices = None if asked is None else choices_of(asked, states, sources, trajectory.actions_for("policy"))
        if choices is None and acted:
            choices = np.ones((len(first), 1)), np.zeros(len(sources), dtype=np.int64)
        if choices is None:
            return None
        probability_SA, columns = choices
        successors = sources.copy()
        successors[goes_on] = state_C[len(prompt) :]
        num_states, num_actions = probability_SA.shape
        outcomes = np.where(goes_on, successors, num_states)
        codes, pairs, counts = np.unique(sources * num_actions + columns, return_inverse=True, return_counts=True)
        pair_states, pair_columns = np.divmod(codes, num_actions)
        chances = probability_SA[pair_states, pair_columns]
        pairs = pairs.reshape(-1)
        same_action, other_action = agreements(sources, pairs, outcomes)
        ratio = noise_ratio(same_action, other_action)
        weights, leaf_weights = _shares(pair_states, counts, chances, num_states, ratio)
        left = np.bincount(sources, minlength=num_states) > 0
        seen_S = np.bincount(pair_states, chances**2, minlength=num_states)
        unseen = np.where(left, np.maximum((probability_SA**2).sum(axis=1) - seen_S, 0.0), 0.0)
        return cls(
            keys, states, sources, successors, pairs, pair_states, counts, chances, weights, leaf_weights,
            unseen, (1.0 - same_action) / (1.0 - min(same_action, other_action)), prompt.rewards, prompt.discounts,
            acted,
        )  # fmt: skip

    def solve(
        self,
        leaf_LS: np.ndarray,
        leaf_stderr_S: np.ndarray | None,
        leaf_of_rewards: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> TableValues:
        """Values of the states, and their standard errors.

        The standard error is that of the counts and of what was blended into them, of actions that were not seen and of
        one ending more than was seen, and the leaf's as far as the values lean on it, its errors being the same
        everywhere. A log in which no reward differs from 0 says nothing of the rewards elsewhere, and neither does the
        standard error.

        Args:
            leaf_LS: the leaf's values of the states after each of its layers.
            leaf_stderr_S: its standard errors; None: there are none here either.
            leaf_of_rewards: its values (S, R) under R other reward functions (N, R); None: it has no share but where
                counts are few.
        """
        counted_SL = self.values_of(self.rewards[:, None], leaf_LS.T)
        draws_NR = self._noise(counted_SL[:, -1])
        known = leaf_of_rewards is not None
        leaf_SR = leaf_of_rewards(draws_NR) if known else np.zeros((len(counted_SL), DRAWS))
        noise_SR, blend = self.values_of(draws_NR, leaf_SR), Blend(self._visits_S)
        added_SL, added_SR = self._added(self.rewards[:, None], leaf_LS.T), self._added(draws_NR, leaf_SR)
        if self.acted:
            leaf = Estimate(leaf_LS[-1] if known else np.zeros(len(counted_SL)), leaf_SR)
            counted, additive = Estimate(counted_SL[:, -1], noise_SR), Estimate(added_SL[:, -1], added_SR)
            blend = Blend.best(self._visits_S, counted, leaf, additive)
        stderr_S = None
        if leaf_stderr_S is not None:
            variance_S = np.square(blend(noise_SR, leaf_SR, added_SR)).mean(axis=1) + blend.misfit
            stderr_S = np.sqrt(PLUG_IN**2 * variance_S + self._leaned(counted_SL[:, -1], leaf_stderr_S))
        return TableValues(blend(counted_SL, leaf_LS.T, added_SL).T, stderr_S, blend)

    def values(self, leaf_S: np.ndarray) -> np.ndarray:
        """Values of the states as counted, (S,), given the leaf's."""
        return self.values_of(self.rewards[:, None], leaf_S[:, None])[:, 0]

    def values_of(self, rewards_NR: np.ndarray, leaf_SR: np.ndarray) -> np.ndarray:
        """Values of the states as counted under R reward functions, (S, R), given the leaf's."""
        return lu_solve(self._factors, self._one_step(rewards_NR, leaf_SR))

    def attribution(self, states_F: np.ndarray, leaf_SN: np.ndarray, blend: Blend) -> np.ndarray:
        """The matrix (F, N) with values = matrix @ rewards.

        Args:
            states_F: states of the table.
            leaf_SN: the leaf's matrix at all states of the table.
            blend: what the values are made of.
        """
        apart_FS = np.eye(len(self.leaf_weights))[states_F] - self._visits_S
        counted_FS = self._visits_S + blend.counts * apart_FS
        reach_FS = lu_solve(self._factors, counted_FS.T, trans=1).T
        if self._additive is not None:
            reach_FS = reach_FS + blend.additive * self._additive.reach(apart_FS)
        return reach_FS @ self._gather_SN + (reach_FS * self.leaf_weights + blend.leaf * apart_FS) @ leaf_SN

    @property
    def _shares_N(self) -> np.ndarray:
        """Shares of the transitions in their states' values."""
        return (self.weights / self.counts)[self.pairs]

    @cached_property
    def _gather_SN(self) -> csr_array:
        """The same as a matrix, which sums over each state's transitions."""
        shape, rows_N = (len(self.leaf_weights), len(self.sources)), np.arange(len(self.sources))
        return csr_array((self._shares_N, (self.sources, rows_N)), shape=shape)

    def _one_step(self, rewards_NR: np.ndarray, leaf_SR: np.ndarray) -> np.ndarray:
        """What the states' equations have on their right, (S, R): rewards, and the leaf where little was counted."""
        return self._gather_SN @ rewards_NR + self.leaf_weights[:, None] * leaf_SR

    @cached_property
    def _equations_SS(self) -> np.ndarray:
        """I - discounted weights: equations @ values = one step."""
        matrix_SS = np.eye(len(self.leaf_weights))
        np.add.at(matrix_SS, (self.sources, self.successors), -self._shares_N * self.discounts)
        return matrix_SS

    @cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        return lu_factor(self._equations_SS)

    @cached_property
    def _additive(self) -> AdditiveValues | None:
        """None where the log is another policy's, or where there is nothing to add."""
        return AdditiveValues.of(self.states, self._visits_S, self._equations_SS) if self.acted else None

    def _added(self, rewards_NR: np.ndarray, leaf_SR: np.ndarray) -> np.ndarray:
        """Additive values (S, R), or zeros."""
        one_step_SR = self._one_step(rewards_NR, leaf_SR)
        return np.zeros_like(one_step_SR) if self._additive is None else self._additive(one_step_SR)

    @cached_property
    def _visits_S(self) -> np.ndarray:
        """Shares of the log that left each state."""
        return np.bincount(self.sources, minlength=len(self.leaf_weights)) / len(self.sources)

    def _backups(self, counted_S: np.ndarray) -> np.ndarray:
        return self.rewards + self.discounts * counted_S[self.successors]

    def _noise(self, counted_S: np.ndarray) -> np.ndarray:
        """Draws of rewards (N, R) that do to values what chance did: each transition's own, and its action's effect,
        whose mean over the policy's actions is taken off in every state. Same table, same draws.
        """
        variance_P, effect = self._backup_variance(self._backups(counted_S))
        generator, num_states = np.random.default_rng(0), len(self.unseen)
        effects_PR = np.sqrt(effect) * generator.standard_normal((len(self.counts), DRAWS))
        mean_SR = np.sqrt(self.unseen * effect)[:, None] * generator.standard_normal((num_states, DRAWS))
        np.add.at(mean_SR, self.pair_states, self.chances[:, None] * effects_PR)
        own_NR = np.sqrt(variance_P)[self.pairs, None] * generator.standard_normal((len(self.sources), DRAWS))
        return own_NR + effects_PR[self.pairs] - mean_SR[self.sources]

    def _backup_variance(self, backups_N: np.ndarray) -> tuple[np.ndarray, float]:
        """Variances of the pairs' single backups, (P,), and of the effects of actions."""
        mean_P, squares_P = _moments(backups_N, self.pairs, self.counts)
        pooled = squares_P.sum() / max(float((self.counts - 1).sum()), 1.0)
        counts_S = np.bincount(self.sources, minlength=len(self.unseen))
        _, squares_S = _moments(backups_N, self.sources, np.maximum(counts_S, 1))
        state_S = (squares_S + VARIANCE_VISITS * pooled) / (np.maximum(counts_S - 1, 0) + VARIANCE_VISITS)
        # Successors do not tell how far rewards are a matter of chance, least of all where episodes end.
        within = squares_S.sum() / max(float(np.maximum(counts_S - 1, 0).sum()), 1.0)
        share = max(self.noise_share, min(pooled / within, 1.0)) if within > 0 else self.noise_share
        expected_P = share * state_S[self.pair_states]
        variance_P = (squares_P + VARIANCE_VISITS * expected_P) / (self.counts - 1 + VARIANCE_VISITS)
        return variance_P, _effect_variance(mean_P, variance_P / self.counts, self.pair_states)

    def _leaned(self, counted_S: np.ndarray, leaf_stderr_S: np.ndarray) -> np.ndarray:
        """Squares (S,) of what the leaf's standard errors do to the states' values, and of the loss that one more
        ending in N + 1 transitions would be.
        """
        lost_N = (self._backups(counted_S) - self.rewards) / (len(self.rewards) + 1)
        both_S2 = np.stack([self.leaf_weights * leaf_stderr_S, self._gather_SN @ lost_N], axis=1)
        return np.square(lu_solve(self._factors, both_S2)).sum(axis=1)


def agreements(sources: np.ndarray, pairs: np.ndarray, outcomes: np.ndarray) -> tuple[float, float]:
    """How likely two visits of a state have the same outcome: by the same action, and by different ones.

    Without such visits the first is one half, and the second 0: other actions lead elsewhere.

    Args:
        sources: (N,) states.
        pairs: (N,) state-action pairs.
        outcomes: (N,) successors, or one number for all endings.
    """
    num_outcomes = int(outcomes.max()) + 1
    of_pairs, of_states = _twins(pairs), _twins(sources)
    same_pair, same_state = _twins(pairs * num_outcomes + outcomes), _twins(sources * num_outcomes + outcomes)
    return (same_pair + 1.0) / (of_pairs + 2.0), (same_state - same_pair) / max(of_states - of_pairs, 1.0)


def noise_ratio(same_action: float, other_action: float) -> float:
    """m: within-pair over between-pair variance of a random function of the outcome, from the agreements."""
    if same_action <= other_action:
        return MOST_RATIO
    return min((1.0 - same_action) / (same_action - other_action), MOST_RATIO)


def _twins(groups: np.ndarray) -> float:
    """Number of ordered pairs of different rows in one group."""
    counts = np.unique(groups, return_counts=True)[1].astype(float)
    return float((counts * (counts - 1.0)).sum())


def _shares(
    pair_states: np.ndarray, counts: np.ndarray, chances: np.ndarray, num_states: int, ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the pairs (P,) and of the leaf (S,) in the states' values; they sum to 1 in every state."""
    known_P = counts / (counts + ratio)
    known_S = np.bincount(pair_states, known_P, minlength=num_states)
    rest_S = 1.0 - np.bincount(pair_states, chances * known_P, minlength=num_states)
    borrowed_S = rest_S / (LEAF_WEIGHT + known_S)  # (1 - leaf_s) rest_s / sum_a h_sa
    return known_P * (chances + borrowed_S[pair_states]), LEAF_WEIGHT * borrowed_S


def _moments(backups_N: np.ndarray, groups: np.ndarray, counts_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of groups (G,), and sums of squared distances from them (G,)."""
    mean_G = np.bincount(groups, backups_N, minlength=len(counts_G)) / counts_G
    return mean_G, np.bincount(groups, (backups_N - mean_G[groups]) ** 2, minlength=len(counts_G))


def _effect_variance(mean_P: np.ndarray, noise_P: np.ndarray, pair_states: np.ndarray) -> float:
    """Variance of the actions' effects: that of the pairs' means in one state less their noise; 0 if none can be
    told.
    """
    num_S = np.bincount(pair_states).astype(float)
    centre_S = np.bincount(pair_states, mean_P) / np.maximum(num_S, 1.0)
    squares = float(((mean_P - centre_S[pair_states]) ** 2).sum())
    freedom_P = 1.0 - 1.0 / num_S[pair_states]
    freedom = float(freedom_P.sum())
    return max(squares - float((freedom_P * noise_P).sum()), 0.0) / freedom if freedom else 0.0
