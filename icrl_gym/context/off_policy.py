"""Logs of one policy about the values of another: importance ratios, and behaviours made from a target."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations


class UniformMixture:
    """A policy that acts at random with probability ``epsilon`` and as another one otherwise.

    Any function of this library that takes a policy takes it.

    Args:
        policy: one that can state its action probabilities.
        epsilon: probability of acting at random, in [0, 1].

    Raises:
        ValueError: epsilon is out of range.
    """

    def __init__(self, policy: ActingPolicy, epsilon: float) -> None:
        if not isinstance(epsilon, (int, float, np.number)) or not 0.0 <= epsilon <= 1.0:
            raise ValueError(f"epsilon must be a number in [0, 1], got {epsilon!r}")
        self._policy, self._epsilon = policy, float(epsilon)
        self.identity = f"{policy.identity} mixed with {self._epsilon:g} uniform"

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        """(B, A); ValueError where the policy cannot say."""
        own_BA = self._policy.action_probabilities(observations)
        return (1.0 - self._epsilon) * own_BA + self._epsilon / own_BA.shape[1]


def reweight(
    trajectory: Trajectory, target: Any, behaviour: Any, action_space: spaces.Space | None = None
) -> Trajectory:
    """The log of a behaviour policy mu as evidence about a target policy pi: with ratios pi / mu of its actions.

    The result's policy is the target, so values estimated from it are the target's.

    Args:
        trajectory: log of ``behaviour``.
        target, behaviour: policies with discrete actions whose probabilities can be stated: "random", an (S, A) table,
            an SB3 model, an object with ``action_probabilities``.
        action_space: Discrete; None takes that of an SB3 model among the two, or as many actions as a table has.

    Raises:
        ValueError: the log has no actions, or ratios already, a policy cannot state its probabilities, a logged action
            has probability 0 under the behaviour or is none of the action space, the log names another policy, or the
            action space is not Discrete or not known.
        TypeError: not a trajectory, or not a policy.
    """
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
    if trajectory.importance_ratios is not None:
        raise ValueError("trajectory has importance_ratios already; reweight the log as it was collected")
    logged = trajectory.actions_for("reweight")
    space = discrete_action_space(action_space, target, behaviour)
    acting = {
        name: as_policy(policy, space, trajectory.observation_space)
        for name, policy in (("target", target), ("behaviour", behaviour))
    }
    if trajectory.policy not in (None, acting["behaviour"].identity):
        raise ValueError(f"behaviour is {acting['behaviour'].identity!r}, but the log is of {trajectory.policy!r}")
    column_N = _columns(logged, space)
    rows_N = np.arange(len(trajectory))
    probability = {
        name: policy.action_probabilities(trajectory.observations)[rows_N, column_N] for name, policy in acting.items()
    }
    never = np.flatnonzero(probability["behaviour"] <= 0)
    if len(never):
        raise ValueError(f"behaviour gives the logged action actions[{never[0]}] = {logged[never[0]]} probability 0")
    ratios_N = probability["target"] / probability["behaviour"]
    return trajectory.with_importance_ratios(ratios_N, acting["target"].identity)


def discrete_action_space(action_space: spaces.Space | None, *policies: Any) -> spaces.Discrete:
    """The space, or the one that the first of the policies to have one states.

    Raises:
        ValueError: it is not Discrete, or nobody states one.
    """
    for policy in policies:
        if action_space is None:
            action_space = getattr(policy, "action_space", None)
        if action_space is None and isinstance(policy, (np.ndarray, list)):
            action_space = spaces.Discrete(np.asarray(policy).shape[-1])
    if action_space is None:
        raise ValueError("action_space is needed: no policy states one")
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"action_space must be Discrete, as probabilities of actions are needed, got {action_space}")
    return action_space


def _columns(actions: np.ndarray, space: spaces.Discrete) -> np.ndarray:
    """Indices (N,) of logged actions."""
    if actions.ndim != 1 or not (np.issubdtype(actions.dtype, np.integer) or (actions == np.floor(actions)).all()):
        raise ValueError(f"actions must be integers of shape (n,), got {actions.dtype} of shape {actions.shape}")
    column_N = actions.astype(np.int64) - int(space.start)
    outside = np.flatnonzero((column_N < 0) | (column_N >= space.n))
    if len(outside):
        raise ValueError(f"actions must lie in {space}: actions[{outside[0]}] is {actions[outside[0]]}")
    return column_N
