"""Wrappers that record every transition as a `Trajectory`."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.recorder import Recorder, batch_of_one, reset_mask
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import stack


class _Recording:
    """The methods of the recording wrappers beside ``reset`` and ``step``."""

    _recorder: Recorder

    @property
    def trajectory(self) -> Trajectory:
        """Everything recorded so far; raises ValueError before the first transition."""
        return self._recorder.trajectory()

    def prompt(self, gamma: float) -> Prompt:
        """The record so far as a `Prompt`, for a discount in [0, 1)."""
        return Prompt.from_trajectory(self.trajectory, gamma)


class RecordTrajectory(_Recording, gymnasium.Wrapper, RecordConstructorArgs):
    """Records every transition of an environment; nothing that the agent sees is changed.

    A reset in the middle of an episode ends that episode in the record, neither terminated nor truncated. Steps after
    an end and before the next reset are not recorded.

    Args:
        env: the environment.

    Raises:
        TypeError: observations or actions of ``env`` have no array form.

    Example:
        >>> env = RecordTrajectory(gymnasium.make("CartPole-v1"))
        >>> _ = env.reset(seed=0)
        >>> for _ in range(3):
        ...     _ = env.step(0)
        >>> len(env.trajectory)
        3
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._recorder = Recorder(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an episode that was running ends in the record."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._recorder.reset(stack([observation]))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment and record the transition."""
        outcome = self.env.step(action)
        self._recorder.step(stack([action]), *batch_of_one(*outcome))
        return outcome


class VectorRecordTrajectory(_Recording, VectorWrapper, RecordConstructorArgs):
    """Records every transition of a vector environment, in all three autoreset modes.

    The trajectory holds one environment's stream after another; the steps in which an environment was only reset are
    left out, and the successor at an episode's end is the true one. A masked reset ends the episodes that it cuts.

    Args:
        env: the vector environment.

    Raises:
        TypeError: observations or actions of ``env`` have no array form.
    """

    def __init__(self, env: VectorEnv) -> None:
        RecordConstructorArgs.__init__(self)
        VectorWrapper.__init__(self, env)
        self._recorder = Recorder(env)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in ``options["reset_mask"]``."""
        mask = reset_mask(options)
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._recorder.reset(observations, mask)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments and record the transitions."""
        outcome = self.env.step(actions)
        self._recorder.step(actions, *outcome)
        return outcome
