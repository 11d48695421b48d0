"""Values by counting, where states recur and the policy can be asked.

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

Where few visits leave much noise, values differ by chance alone. So where the policy acted they are drawn to their mean
over the log, by the share of their spread that is noise (James & Stein 1961). A world without chance has none, and the
log of another policy is no sample of the states that count.

The log may be any policy's: counts need no importance ratios.

Shape legend: N transitions, S states, A actions, P pairs, Q queries, B bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from gymnasium import spaces
from scipy.linalg import lu_factor, lu_solve

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, batch_size, concatenate, named_leaves, take

MOST_STATES = 2048  # of one dense solve
MOST_DISTINCT = 0.5  # share of the sources; with more of them states do not recur
LEAF_WEIGHT = 0.2  # k: the leaf counts as much as this share of one well-known action
MOST_RATIO = 20.0  # of m
NUM_ASKED = 16  # actions per state of a policy that does not state its probabilities
VARIANCE_VISITS = 2.0  # visits that what a state shows of a pair's variance counts as
PLUG_IN = 1.2  # errors of values over what variances of backups of these same values say; chosen for coverage

Leaf = Callable[[Observations], tuple[np.ndarray, np.ndarray | None]]
LeafAttribution = Callable[[Observations], np.ndarray]


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
    def fit(cls, trajectory: Trajectory, prompt: Prompt, asked: AskedPolicy, *, acted: bool) -> TableWorld | None:
        """Count.

        Args:
            trajectory: the log, of any behaviour.
            prompt: its prompt, for rewards and discounts.
            asked: the policy to be evaluated.
            acted: whether it is the one that acted.

        Returns:
            None where states do not recur or are too many, or the policy's actions are neither discrete nor
            deterministic.

        Raises:
            ValueError: the policy cannot answer at a state of the log.
        """
        goes_on = prompt.discounts > 0
        seen = concatenate([trajectory.observations, take(trajectory.next_observations, goes_on)])
        keys, first, state_C = StateKeys.of(seen)
        sources = state_C[: len(prompt)]
        if len(np.unique(sources)) >= MOST_DISTINCT * len(prompt) or len(first) > MOST_STATES:
            return None
        states = take(seen, first)
        choices = _choices(asked, states, sources, trajectory.actions_for("policy"))
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

    def read(self, observations: Observations, leaf: Leaf) -> tuple[np.ndarray, np.ndarray | None]:
        """Values (Q,) and their standard errors (Q,), both the leaf's own at states that are not in the table.

        The standard error is that of the counts (delta method), of actions that were not seen and of one ending more
        than was seen, and the leaf's as far as the values lean on it, its errors being the same everywhere. A log in
        which no reward differs from 0 says nothing of the rewards elsewhere, and neither does the standard error.

        Args:
            observations: Q raw observations.
            leaf: values and standard errors of raw observations, linear in the rewards; without standard errors (None)
                there are none here.
        """
        rows_Q = self.keys.find(observations)
        leaf_S, leaf_stderr_S = leaf(self.states)
        counted_S = self.values(leaf_S)
        signal = self.signal(counted_S)
        stderr_S = None if leaf_stderr_S is None else self._stderr(counted_S, leaf_stderr_S, signal)
        values_Q = self.drawn_together(counted_S, signal)[rows_Q]
        stderr_Q = None if stderr_S is None else stderr_S[rows_Q]
        elsewhere = np.flatnonzero(rows_Q < 0)
        if len(elsewhere):
            leaf_Q, leaf_stderr_Q = leaf(take(observations, elsewhere))
            values_Q[elsewhere] = leaf_Q
            if stderr_Q is not None:
                assert leaf_stderr_Q is not None
                stderr_Q[elsewhere] = leaf_stderr_Q
        return values_Q, stderr_Q

    def values(self, leaf_S: np.ndarray) -> np.ndarray:
        """Values of the states as counted, (S,), given the leaf's."""
        rewards_S = np.bincount(self.sources, self._shares_N * self.rewards, minlength=len(leaf_S))
        return lu_solve(self._factors, rewards_S + self.leaf_weights * leaf_S)

    def signal(self, counted_S: np.ndarray) -> float:
        """The share in [0, 1] of the spread of counted values over the log that is not noise of the counts; 1 where
        another policy acted.
        """
        if not self.acted:
            return 1.0
        spread = float(self._visits_S @ np.square(counted_S - self._visits_S @ counted_S))
        variance_S = self._backup_variance(self._backups(counted_S))
        noise = float(self._visits_S @ (np.square(self._apart_SS) @ variance_S))
        return 1.0 - noise / spread if noise < spread else float(not noise)

    def drawn_together(self, counted_S: np.ndarray, signal: float) -> np.ndarray:
        """Counted values (S,) drawn to their mean over the log."""
        mean = self._visits_S @ counted_S
        return mean + signal * (counted_S - mean)

    def attribution(self, observations: Observations, leaf_attribution: LeafAttribution) -> np.ndarray:
        """The matrix (Q, N) with values = matrix @ rewards.

        Args:
            observations: Q raw observations.
            leaf_attribution: the leaf's matrix (B, N) at B raw observations.
        """
        rows_Q = self.keys.find(observations)
        found, elsewhere = np.flatnonzero(rows_Q >= 0), np.flatnonzero(rows_Q < 0)
        matrix_QN = np.zeros((len(rows_Q), len(self.rewards)))
        if len(found):
            leaf_SN = leaf_attribution(self.states)
            signal = self.signal(self.values(leaf_SN @ self.rewards))
            reach_FS = self._visits_S @ self._reach_SS + signal * self._apart_SS[rows_Q[found]]
            matrix_QN[found] = reach_FS[:, self.sources] * self._shares_N
            matrix_QN[found] += (reach_FS * self.leaf_weights) @ leaf_SN
        if len(elsewhere):
            matrix_QN[elsewhere] = leaf_attribution(take(observations, elsewhere))
        return matrix_QN

    @cached_property
    def _shares_N(self) -> np.ndarray:
        """Shares of the transitions in their states' values."""
        return (self.weights / self.counts)[self.pairs]

    @cached_property
    def _factors(self) -> tuple[np.ndarray, np.ndarray]:
        """LU factors of I - discounted weights."""
        num_states = len(self.leaf_weights)
        matrix_SS = np.eye(num_states)
        np.add.at(matrix_SS, (self.sources, self.successors), -self._shares_N * self.discounts)
        return lu_factor(matrix_SS)

    @cached_property
    def _reach_SS(self) -> np.ndarray:
        """The inverse: discounted visits of every state from every state."""
        return lu_solve(self._factors, np.eye(len(self.leaf_weights)), trans=1).T

    @cached_property
    def _visits_S(self) -> np.ndarray:
        """Shares of the log that left each state."""
        return np.bincount(self.sources, minlength=len(self.leaf_weights)) / len(self.sources)

    @cached_property
    def _apart_SS(self) -> np.ndarray:
        """Discounted visits less their mean over the log."""
        return self._reach_SS - self._visits_S @ self._reach_SS

    def _backups(self, counted_S: np.ndarray) -> np.ndarray:
        return self.rewards + self.discounts * counted_S[self.successors]

    def _stderr(self, counted_S: np.ndarray, leaf_stderr_S: np.ndarray, signal: float) -> np.ndarray:
        """Standard errors of all states, (S,): of what sets them apart the signal's share, of their mean all."""
        backups_N = self._backups(counted_S)
        variance_S = self._backup_variance(backups_N)
        apart_S, mean = np.square(self._apart_SS) @ variance_S, np.square(self._visits_S @ self._reach_SS) @ variance_S
        leaning_S = self._reach_SS @ (self.leaf_weights * leaf_stderr_S)
        missed_S = self._reach_SS @ self._missed_ending(backups_N)
        return np.sqrt(PLUG_IN**2 * (signal * apart_S + mean) + leaning_S**2 + missed_S**2)

    def _backup_variance(self, backups_N: np.ndarray) -> np.ndarray:
        """Variances of the states' own backups, (S,): noise of the pairs' means, and actions weighed other than by
        the policy.
        """
        mean_P, squares_P = _moments(backups_N, self.pairs, self.counts)
        pooled = squares_P.sum() / max(float((self.counts - 1).sum()), 1.0)
        counts_S = np.bincount(self.sources, minlength=len(self.unseen))
        _, squares_S = _moments(backups_N, self.sources, np.maximum(counts_S, 1))
        state_S = (squares_S + VARIANCE_VISITS * pooled) / (np.maximum(counts_S - 1, 0) + VARIANCE_VISITS)
        # Successors do not tell how far rewards are a matter of chance, least of all where episodes end.
        within = squares_S.sum() / max(float(np.maximum(counts_S - 1, 0).sum()), 1.0)
        share = max(self.noise_share, min(pooled / within, 1.0)) if within > 0 else self.noise_share
        expected_P = share * state_S[self.pair_states]
        noise_P = (squares_P + VARIANCE_VISITS * expected_P) / (self.counts - 1 + VARIANCE_VISITS) / self.counts
        effect = _effect_variance(mean_P, noise_P, self.pair_states)
        variance_P = self.weights**2 * noise_P + (self.weights - self.chances) ** 2 * effect
        return np.bincount(self.pair_states, variance_P, minlength=len(self.unseen)) + self.unseen * effect

    def _missed_ending(self, backups_N: np.ndarray) -> np.ndarray:
        """The loss that one more ending in N + 1 transitions would take from the states' backups, (S,)."""
        lost_N = (backups_N - self.rewards) / (len(self.rewards) + 1)
        return np.bincount(self.sources, self._shares_N * lost_N, minlength=len(self.unseen))


@dataclass(frozen=True, eq=False)
class StateKeys:
    """Distinct observations as strings of bytes, in order.

    Attributes:
        keys_S: (S,) void, sorted.
        dtypes: those of the leaves that the keys were made of.
    """

    keys_S: np.ndarray
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, observations: Observations) -> tuple[StateKeys, np.ndarray, np.ndarray]:
        """Keys, the first row of each (S,), and the rows' states (C,)."""
        dtypes = tuple(leaf.dtype for leaf in _leaves(observations))
        bytes_C, _ = _bytes(observations, dtypes)
        keys_S, first_S, state_C = np.unique(bytes_C, return_index=True, return_inverse=True)
        return cls(keys_S, dtypes), first_S, state_C.reshape(-1)

    def find(self, observations: Observations) -> np.ndarray:
        """States (Q,) of observations, -1 for those that are none."""
        bytes_Q, fits_Q = _bytes(observations, self.dtypes)
        joined_C = np.concatenate([self.keys_S, bytes_Q])
        _, first_U, unique_C = np.unique(joined_C, return_index=True, return_inverse=True)
        state_Q = first_U[unique_C.reshape(-1)][len(self.keys_S) :]  # the first is a key's, if any
        return np.where(fits_Q & (state_Q < len(self.keys_S)), state_Q, -1)


def _leaves(observations: Observations) -> list[np.ndarray]:
    """Leaves in the order of their names, which is not always that of a dict."""
    return [leaf for _, leaf in sorted(named_leaves(observations, ""), key=lambda named: named[0])]


def _bytes(observations: Observations, dtypes: tuple[np.dtype, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All leaves of each row as one void (B,), and whether they are numbers of these dtypes, (B,) bool.

    Real numbers are rounded to theirs; -0 is 0.
    """
    batch = batch_size(observations)
    fits, parts = np.ones(batch, dtype=bool), []
    for leaf, dtype in zip(_leaves(observations), dtypes, strict=True):
        flat = leaf.reshape(batch, int(np.prod(leaf.shape[1:])))
        with np.errstate(invalid="ignore", over="ignore"):
            cast = flat.astype(dtype)
        if dtype.kind == "f":
            cast = cast + dtype.type(0)
        else:
            fits &= (cast == flat).all(axis=1)
        parts.append(np.ascontiguousarray(cast).view(np.uint8))
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1]))).reshape(batch), fits


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


def _choices(
    asked: AskedPolicy, states: Observations, sources: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (S, A) of actions, and the columns (N,) of the logged ones, or None (see `TableWorld.fit`)."""
    space = asked.action_space
    probability_SA = asked.probabilities(states)
    if probability_SA is not None:
        assert isinstance(space, spaces.Discrete)
        return probability_SA, actions.astype(np.int64) - int(space.start)
    num_states = batch_size(states)
    drawn = np.stack([asked.actions(states, np.tile(noise_U, (num_states, 1))) for noise_U in _noises(asked.num_noise)])
    drawn_KSC = drawn.reshape(NUM_ASKED, num_states, -1)
    logged_NC = actions.reshape(len(actions), -1)
    if isinstance(space, spaces.Box):
        return _its_own_or_another(drawn_KSC, sources, logged_NC)
    everything = np.concatenate([drawn_KSC.reshape(NUM_ASKED * num_states, -1), logged_NC])
    distinct, columns = np.unique(everything, axis=0, return_inverse=True)
    columns = columns.reshape(-1)
    probability_SA = np.zeros((num_states, len(distinct)))
    np.add.at(probability_SA, (np.tile(np.arange(num_states), NUM_ASKED), columns[: -len(actions)]), 1.0 / NUM_ASKED)
    return probability_SA, columns[-len(actions) :]


def _its_own_or_another(
    drawn_KSC: np.ndarray, sources: np.ndarray, logged_NC: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Two columns for real actions: the policy's own, which has probability 1, and all others; None if it has several.

    Networks round differently in different batches, so equal is what is as near as rounding.
    """
    own_SC = drawn_KSC[0]
    if not np.allclose(drawn_KSC, own_SC, rtol=1e-4, atol=1e-5):
        return None
    same_N = np.isclose(logged_NC, own_SC[sources], rtol=1e-4, atol=1e-5).all(axis=1)
    return np.tile([1.0, 0.0], (len(own_SC), 1)), np.where(same_N, 0, 1)


def _noises(num_noise: int) -> np.ndarray:
    """Fixed noise (NUM_ASKED, num_noise): each number takes the same equally spaced values, in orders of its own."""
    spaced_K = (np.arange(NUM_ASKED) + 0.5) / NUM_ASKED
    generator = np.random.default_rng(0)
    return np.stack([spaced_K[generator.permutation(NUM_ASKED)] for _ in range(num_noise)], axis=1)
