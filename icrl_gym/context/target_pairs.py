"""Columns of state-action pairs whose next action is another policy's: fitted Q evaluation as attention.

All n logged pairs (S_k, A_k) are sources, whoever acted. Where a transition does not terminate, its successor is an end
column of its own: the state S'_k with the target's actions there, in expectation where the target states probabilities,
else the mean over a few actions that it takes under fixed noise. A column that is only read can be such a mixture. The
equilibrium is regularised kernel LSTD-Q, a sample form of expected SARSA / fitted Q evaluation (Le, Voloshin & Yue
2019); the softmax kernel, the sink and the mixtures are this project's own. No importance ratios are needed, and no
trace may pass, since the next logged action is not the target's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from scipy.spatial.distance import cdist

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.features import FeatureMap
from icrl_gym.context.pairs import StateActionFeatures
from icrl_gym.context.prompt import EndMixtures, Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, batch_size, take
from icrl_gym.values import Estimand, check_gamma

MOST_ACTIONS = 32  # discrete actions that an expectation is summed over
NUM_DRAWS = 8  # actions asked per state where it is not
MOST_PARTS = 32768  # parts of the end columns of a prompt, where actions are drawn
DISCRETE_SCALE = 1.5  # feature of a discrete action
LEAST_SPREAD = 1e-6  # of logged actions, relative to their size
_NOISE_STREAM = 0x7A26


@dataclass(frozen=True, eq=False)
class WeightedActions:
    """Actions of a policy in B states, M in each.

    Attributes:
        actions: (B, M) + action shape.
        weights_BM: weights; a row sums to 1.
    """

    actions: np.ndarray
    weights_BM: np.ndarray


@dataclass(frozen=True, eq=False)
class ActionLikeness:
    """How like the logged actions others are, in [0, 1].

    Of discrete components the share that are equal; of numbers exp(-d^2 / 2), with d^2 the mean squared difference in
    standard deviations of the log.

    Attributes:
        space: the action space.
        logged_NX: the logged actions, flat.
    """

    space: spaces.Space
    logged_NX: np.ndarray

    @classmethod
    def of(cls, space: spaces.Space, actions: np.ndarray) -> ActionLikeness:
        """Likeness to the actions (N,) + shape of a log."""
        return cls(space, np.asarray(actions, dtype=np.float64).reshape(len(actions), -1))

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Likeness (B, N) of actions (B,) + shape to each logged one."""
        actions_BX = np.asarray(actions, dtype=np.float64).reshape(len(actions), self.logged_NX.shape[1])
        if not isinstance(self.space, spaces.Box):
            return (actions_BX[:, None] == self.logged_NX).mean(axis=2)
        spread_X = np.maximum(self.logged_NX.std(axis=0), LEAST_SPREAD * (1.0 + np.abs(self.logged_NX).max(axis=0)))
        scaled_BX, scaled_NX = actions_BX / spread_X, self.logged_NX / spread_X
        return np.exp(-cdist(scaled_BX, scaled_NX, "sqeuclidean") / (2 * len(spread_X)))


def expected_actions(policy: AskedPolicy, observations: Observations, num_draws: int = NUM_DRAWS) -> WeightedActions:
    """The target's actions in B states, every one with its probability or some asked with the same fixed noise.

    A state's actions do not depend on the other states.

    Args:
        policy: the target.
        observations: B raw observations.
        num_draws: actions asked of a policy that does not state its probabilities.

    Raises:
        ValueError: the policy fails, see `AskedPolicy`.
    """
    stated = _stated(policy, observations)
    if stated is not None:
        return stated
    noise_MU = stratified_noise(1, num_draws, policy.num_noise)[:, 0]
    return _asked(policy, observations, np.repeat(noise_MU[:, None], batch_size(observations), axis=1))


def spread_actions(policy: AskedPolicy, observations: Observations, least_draws: int = 1) -> WeightedActions:
    """The policy's actions in B states of a log; where they are asked, the noise is stratified over all of them.

    Args:
        policy: the policy.
        observations: B raw observations.
        least_draws: actions in each state, however many states there are.

    Raises:
        ValueError: the policy fails, see `AskedPolicy`.
    """
    stated = _stated(policy, observations)
    if stated is not None:
        return stated
    num_states = batch_size(observations)
    num_draws = int(np.clip(MOST_PARTS // max(1, num_states), least_draws, NUM_DRAWS))
    return _asked(policy, observations, stratified_noise(num_states, num_draws, policy.num_noise))


def stratified_noise(num_rows: int, num_draws: int, num_noise: int) -> np.ndarray:
    """Fixed uniform numbers (M, B, U) in (0, 1): each 1 / (B M) of the unit interval once, each 1 / M once per row."""
    rng = np.random.default_rng(_NOISE_STREAM)
    shape = (num_draws, num_rows, num_noise)
    within_MBU = rng.permuted(np.broadcast_to(np.arange(num_rows)[:, None], shape), axis=1)
    stratum_M11 = np.arange(num_draws)[:, None, None]
    return rng.permuted((stratum_M11 + (within_MBU + 0.5) / max(1, num_rows)) / num_draws, axis=0)


def target_pair_prompt(trajectory: Trajectory, gamma: float, states: FeatureMap, policy: AskedPolicy) -> Prompt:
    """The prompt of a log's pairs under the target.

    Args:
        trajectory: n transitions of any behaviour; its importance ratios are not used.
        gamma: discount in [0, 1).
        states: fitted feature map of the states.
        policy: the target.

    Raises:
        ValueError: gamma is outside [0, 1), or the policy fails, see `AskedPolicy`.
    """
    gamma, n = check_gamma(gamma), len(trajectory)
    logged = trajectory.actions_for("policy: evaluating a given policy")
    open_rows = np.flatnonzero(~trajectory.terminated)
    following = take(trajectory.next_observations, open_rows)
    drawn = spread_actions(policy, following)
    actions_MEX = np.moveaxis(drawn.actions, 1, 0)
    pair_space = spaces.Tuple((trajectory.observation_space, policy.action_space))
    likeliest = drawn.actions[np.arange(len(open_rows)), drawn.weights_BM.argmax(axis=1)]
    both = np.concatenate([logged, likeliest])
    features = StateActionFeatures(states, pair_space, both, DISCRETE_SCALE)
    following_ED = states(following)
    mixtures = EndMixtures(
        np.stack([features.beside(following_ED, actions) for actions in actions_MEX]), drawn.weights_BM.T
    )
    successors = np.arange(n)
    successors[open_rows] = n + np.arange(len(open_rows))
    return Prompt(
        source_features=features((trajectory.observations, logged)),
        end_features=mixtures.mean_ED,
        rewards=trajectory.rewards,
        discounts=gamma * (1.0 - trajectory.terminated),
        successors=successors,
        trace_links=np.zeros(n, dtype=bool),
        gamma=gamma,
        feature_map=features,
        estimand=Estimand(trajectory.env_id, policy.identity, gamma),
        end_mixtures=mixtures,
    )


def _stated(policy: AskedPolicy, observations: Observations) -> WeightedActions | None:
    """All discrete actions with the probabilities that the target states, or None."""
    space = policy.action_space
    if not isinstance(space, spaces.Discrete) or space.n > MOST_ACTIONS:
        return None
    probability_BA = policy.probabilities(observations)
    if probability_BA is None:
        return None
    actions_A = np.arange(space.start, space.start + space.n)
    weights_BA = probability_BA / probability_BA.sum(axis=1, keepdims=True)
    return WeightedActions(np.broadcast_to(actions_A, probability_BA.shape), weights_BA)


def _asked(policy: AskedPolicy, observations: Observations, noise_MBU: np.ndarray) -> WeightedActions:
    """Actions asked with noise (M, B, U), equally weighted."""
    actions = np.stack([policy.actions(observations, noise_BU) for noise_BU in noise_MBU], axis=1)
    if (actions == actions[:, :1]).all():  # chance has no part in them
        actions = actions[:, :1]
    return WeightedActions(actions, np.full(actions.shape[:2], 1.0 / actions.shape[1]))
