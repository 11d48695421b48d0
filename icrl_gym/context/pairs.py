"""Action values of the logged policy: the same network on columns of state-action pairs.

The pairs (S_k, A_k) of a policy's experience form a Markov reward process whose values are Q^pi, so weighted softmax TD
on them is an in-context SARSA. The successor of (S_k, A_k) is (S_{k+1}, A_{k+1}); where a stretch ends without
terminating, the next action is not known, so its last transition is no source: its pair is the destination-only column
in which the stretch ends, and its reward is not used. Given the first action, only the next one can be another
policy's: the importance ratio of a transition between pairs is that of the next action, and 1 where the episode
terminates. [LL26] does this with linear attention; with softmax attention, the ends and the ratios, it is this
project's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.features import LONE_DISCRETE_SCALE, FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, as_batch, batch_size, infer_space, take


class StateActionFeatures(FeatureMap):
    """Features of pairs: those of the states, already fitted, beside those of the actions.

    Different discrete actions are put as far apart as different discrete states, so that actions do not borrow from one
    another, unless a smaller scale is given; continuous ones are standardised by the context.

    Args:
        states: fitted feature map of the states.
        pair_space: Tuple of observation and action space.
        actions: (N,) + action shape, the context's, to fit on.
        discrete_scale: feature of a discrete action; two different ones are sqrt(2) times that apart.
    """

    def __init__(
        self,
        states: FeatureMap,
        pair_space: spaces.Tuple,
        actions: np.ndarray,
        discrete_scale: float = LONE_DISCRETE_SCALE,
    ) -> None:
        self.space = pair_space
        discrete = isinstance(pair_space.spaces[1], spaces.Discrete)
        self._factor = discrete_scale / LONE_DISCRETE_SCALE if discrete else 1.0
        self._states, self._actions = states, FeatureMap(pair_space.spaces[1]).fit(actions)

    def fit(self, observations: Observations) -> FeatureMap:
        """Fit the part of the actions anew on pairs (N,). Returns self."""
        self._actions.fit(observations[1])
        return self

    def __call__(self, observations: Observations) -> np.ndarray:
        """Features (B, D) of B pairs."""
        states, actions = observations
        return self.beside(self._states(states), actions)

    def beside(self, states_BD: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Features (B, D) of pairs, given the features of B states and B actions."""
        return np.concatenate([states_BD, self._factor * self._actions(actions)], axis=1)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the states' features."""
        return self._states.notes

    @property
    def effective_dimension(self) -> int:
        """Varying coordinates of states and actions together."""
        return self._states.effective_dimension + self._actions.effective_dimension


def pair_process(env: str | None) -> str | None:
    """Identity of the process of pairs in an environment; None where the environment is unknown."""
    return None if env is None else f"{env} (state-action pairs)"


def known_successors(trajectory: Trajectory) -> np.ndarray:
    """(n,) bool: rows whose successor's action was logged, or that terminated."""
    return trajectory.terminated | ~trajectory.episode_ends


def state_action_trajectory(trajectory: Trajectory) -> Trajectory:
    """The log as transitions between pairs, in a Tuple space (observation, action).

    Raises:
        ValueError: the log has no actions, or no transition terminated and none is followed by another.
    """
    actions, kept = trajectory.actions_for("predict_q"), known_successors(trajectory)
    if not kept.any():
        raise ValueError("predict_q: the context holds no transition that terminated or whose next action is known")
    next_actions = np.concatenate([actions[1:], actions[-1:]])
    ends = trajectory.episode_ends | np.append(~kept[1:], True)
    pair_space = spaces.Tuple((trajectory.observation_space, infer_space(actions)))
    return Trajectory(
        (take(trajectory.observations, kept), actions[kept]),
        actions[kept],
        trajectory.rewards[kept],
        (take(trajectory.next_observations, kept), next_actions[kept]),
        trajectory.terminated[kept],
        np.zeros(int(kept.sum()), dtype=bool),
        ends[kept],
        observation_space=pair_space,
        env_id=pair_process(trajectory.env_id),
        policy=trajectory.policy,
        importance_ratios=None if trajectory.importance_ratios is None else next_action_ratios(trajectory)[kept],
    )


def next_action_ratios(trajectory: Trajectory) -> np.ndarray:
    """Importance ratios (n,) of the transitions between pairs; meaningful where the next action is known."""
    if trajectory.importance_ratios is None:
        return np.ones(len(trajectory))
    return np.where(trajectory.terminated, 1.0, np.append(trajectory.importance_ratios[1:], 1.0))


def state_action_prompt(pairs: Trajectory, gamma: float, states: FeatureMap) -> Prompt:
    """The prompt of `state_action_trajectory`, with the states' features as they were fitted."""
    assert isinstance(pairs.observation_space, spaces.Tuple)
    features = StateActionFeatures(states, pairs.observation_space, pairs.observations[1])
    return Prompt.from_trajectory(pairs, gamma, features)


def as_pairs(observations: Any, actions: Any, space: spaces.Space) -> tuple[Observations, np.ndarray]:
    """Checked pairs of raw observations (Q,) + shape and actions (Q,) + action shape.

    Raises:
        TypeError, ValueError: one of them does not fit ``space``, a Tuple of the two spaces, or their numbers differ.
    """
    assert isinstance(space, spaces.Tuple)
    observations = as_batch(observations, space.spaces[0], "observations")
    actions = as_batch(actions, space.spaces[1], "actions")
    if len(actions) != batch_size(observations):
        raise ValueError(f"actions must be as many as observations ({batch_size(observations)}), got {len(actions)}")
    return observations, actions
