"""What makes an environment evaluable whose observations or rewards are not arrays and numbers as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class ArrayObservations(gymnasium.ObservationWrapper, RecordConstructorArgs):
    """Leaves the parts of a Dict or Tuple observation out that are no arrays: Text, Graph, Sequence, OneOf, ...

    `collect`, `monte_carlo_values` and ``icrl-gym evaluate`` put it around where it is needed, so that MiniGrid's
    missions, say, do not stand in the way. Values are then functions of what is left.

    Args:
        env: the environment.

    Raises:
        TypeError: nothing is left.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.ObservationWrapper.__init__(self, env)
        left = _array_part(env.observation_space)
        if left is None:
            raise TypeError(f"observation space {env.observation_space} has no part that is an array")
        self.observation_space = left

    def observation(self, observation: Any) -> Any:
        """The observation without what is no array."""
        return _array_part_of(observation, self.env.observation_space)


class WeightedReward(gymnasium.Wrapper, RecordConstructorArgs):
    """Makes one number of a vector of rewards: their weighted sum.

    Args:
        env: the environment, whose ``step`` returns as many rewards as there are weights.
        weights: one number per reward.

    Raises:
        ValueError: the weights are no finite numbers; in ``step``: the environment gives another number of rewards.
    """

    def __init__(self, env: gymnasium.Env, weights: Sequence[float]) -> None:
        RecordConstructorArgs.__init__(self, weights=[float(weight) for weight in weights])
        gymnasium.Wrapper.__init__(self, env)
        self._weights = np.asarray(weights, dtype=np.float64)
        if self._weights.ndim != 1 or not len(self._weights) or not np.isfinite(self._weights).all():
            raise ValueError(f"reward_weights must be finite numbers, one per reward, got {list(weights)}")

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the environment; the reward is the weighted sum."""
        observation, rewards, terminated, truncated, info = self.env.step(action)
        found = np.atleast_1d(np.asarray(rewards, dtype=np.float64))
        if found.shape != self._weights.shape:
            raise ValueError(
                f"reward_weights are {len(self._weights)} numbers, but the environment's reward has {found.size}"
            )
        return observation, float(found @ self._weights), bool(terminated), bool(truncated), info


def adapted(env: gymnasium.Env) -> gymnasium.Env:
    """The environment, in `ArrayObservations` where some but not all parts of its observations are no arrays."""
    space = env.observation_space
    if next(_left_out(space), None) is None or _array_part(space) is None:
        return env
    return ArrayObservations(env)


def left_out_parts(env: gymnasium.Env) -> tuple[str, ...]:
    """The parts of observations that the environment's `ArrayObservations` leaves out, as in "['mission'] (Text)"."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, ArrayObservations):
            return tuple(_left_out(env.env.observation_space))
        env = env.env
    return ()


def one_reward(reward: Any) -> float:
    """The reward of a step as a number.

    Raises:
        ValueError: it is a vector; the message says how to weigh it.
    """
    numbers = np.ravel(reward) if isinstance(reward, (np.ndarray, list, tuple)) else (reward,)
    if len(numbers) != 1:
        example = ",".join(["1"] + ["0"] * (len(numbers) - 1))
        raise ValueError(
            f"the environment's reward is a vector of {len(numbers)} numbers, and a value needs one: weigh them with "
            f"--reward-weights {example} (in Python: icrl_gym.WeightedReward(env, [{example}]))"
        )
    return float(numbers[0])


def _left_out(space: spaces.Space, path: str = "") -> Iterator[str]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _left_out(part, f"{path}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _left_out(part, f"{path}[{index}]")
    elif not isinstance(space, ARRAYS):
        yield f"{path} ({type(space).__name__})"


def _array_part(space: spaces.Space) -> spaces.Space | None:
    """The space without what is no array; None if nothing is left."""
    if isinstance(space, spaces.Dict):
        parts = {key: _array_part(part) for key, part in space.spaces.items()}
        kept = {key: part for key, part in parts.items() if part is not None}
        return spaces.Dict(kept) if kept else None
    if isinstance(space, spaces.Tuple):
        left = [part for part in map(_array_part, space.spaces) if part is not None]
        return spaces.Tuple(left) if left else None
    return space if isinstance(space, ARRAYS) else None


def _array_part_of(observation: Any, space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        kept = {key: part for key, part in space.spaces.items() if _array_part(part) is not None}
        return {key: _array_part_of(observation[key], part) for key, part in kept.items()}
    if isinstance(space, spaces.Tuple):
        pairs = zip(observation, space.spaces, strict=True)
        return tuple(_array_part_of(one, part) for one, part in pairs if _array_part(part) is not None)
    return observation
