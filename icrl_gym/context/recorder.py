"""`Recorder`: the one place where resets and steps become transitions.

A step is a transition only if it was taken inside an episode. With autoreset NEXT_STEP the step after an end is the
reset and is left out; with SAME_STEP the true successor is ``infos["final_obs"]``; with DISABLED (and for a single
environment) somebody calls reset. B is the number of environments side by side, T the number of steps held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from icrl_gym.acting.adapters import one_reward
from icrl_gym.acting.environments import environment_identity
from icrl_gym.context.space_description import space_to_json
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, map_leaves, stack, take

_ARRAY_ACTIONS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_FIRST_ALLOCATION = 64  # steps


@dataclass(frozen=True, eq=False)
class Stretch:
    """Successive transitions of one environment as they came; columns are made of them when they are asked for.

    Attributes:
        rows: (observation, action, reward, next observation, terminated, truncated), the oldest first.
        observation_space: space of the observations.
        env_id: identity of the environment.
    """

    rows: Sequence[tuple[Any, ...]]
    observation_space: spaces.Space
    env_id: str

    def trajectory(self) -> Trajectory:
        """The transitions as a `Trajectory`; an episode ends where the next row does not go on from its successor.

        Raises:
            ValueError: there is no transition yet.
        """
        if not self.rows:
            raise ValueError("no transition has been recorded yet")
        observations, actions, rewards, successors, terminated, truncated = zip(*self.rows, strict=True)
        goes_on = [successors[k] is observations[k + 1] for k in range(len(observations) - 1)]
        terminated, truncated = np.array(terminated, dtype=bool), np.array(truncated, dtype=bool)
        return Trajectory(
            observations=stack(list(observations)),
            actions=np.stack(actions),
            rewards=np.array(rewards, dtype=np.float64),
            next_observations=stack(list(successors)),
            terminated=terminated,
            truncated=truncated,
            episode_ends=terminated | truncated | ~np.array([*goes_on, False]),
            observation_space=self.observation_space,
            env_id=self.env_id,
        )

    def rows_after(self, earlier: Stretch) -> Stretch | None:
        """The rows after an earlier stretch of the same tape, or None where its last row is not in this one."""
        for count, row in enumerate(reversed(self.rows)):
            if row is earlier.rows[-1]:
                return replace(self, rows=self.rows[len(self.rows) - count :])
        return None


class Tape:
    """The latest transitions of one environment that its caller resets, at the least cost per step.

    It holds what a `Recorder` of this capacity holds; nothing is put into columns until they are asked for.

    Args:
        env: the environment that is stepped, for its spaces and identity.
        capacity: number of transitions held, at least 1.

    Attributes:
        current: the observation that the environment showed last, a copy that nobody writes into; None before a reset.

    Raises:
        TypeError: observations or actions of this environment have no array form.
    """

    def __init__(self, env: gymnasium.Env, capacity: int) -> None:
        Recorder(env)  # whose checks are these
        self.current: Any = None
        self._finished = True
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=capacity)
        self._space, self._env_id = env.observation_space, environment_identity(env)

    def reset(self, observation: Any) -> None:
        """The environment was reset; an episode that was running ends there, without a flag."""
        self.current, self._finished = map_leaves(np.array, observation), False

    def step(self, action: Any, observation: Any, reward: Any, terminated: bool, truncated: bool) -> None:
        """One step, with what it was given and what it returned; after an end it is not recorded until the reset.

        Raises:
            RuntimeError: nothing was reset before.
        """
        if self.current is None:
            raise RuntimeError("a step was recorded before the first reset")
        seen = map_leaves(np.array, observation)
        if not self._finished:
            self._rows.append((self.current, np.array(action), reward, seen, terminated, truncated))
            self._finished = bool(terminated or truncated)
        self.current = seen

    def stretch(self) -> Stretch:
        """The transitions held now, whatever happens later."""
        return Stretch(tuple(self._rows), self._space, self._env_id)


class Recorder:
    """Turns the resets and steps of B environments into a `Trajectory`.

    Args:
        env: the environment or vector that is stepped, for its spaces, size, autoreset mode and identity.
        policy: identity of the acting policy, or None if unknown.
        capacity: hold only the latest transitions, this many; None holds all.

    Attributes:
        started: (B,) bool, whether the current observation of each environment begins an episode.

    Raises:
        TypeError: observations or actions of this environment have no array form.
        ValueError: ``capacity`` is not positive.
    """

    def __init__(self, env: gymnasium.Env | VectorEnv, policy: str | None = None, capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"capacity must be at least 1 transition, got {capacity}")
        vector = isinstance(env, VectorEnv)
        self._observation_space = env.single_observation_space if vector else env.observation_space
        space_to_json(self._observation_space)
        action_space = env.single_action_space if vector else env.action_space
        if not isinstance(action_space, _ARRAY_ACTIONS):
            raise TypeError(f"action space {action_space} has no array form; its actions cannot be recorded")
        self._mode = autoreset_mode(env)
        self._env_id = environment_identity(env)
        self._policy = policy
        self._capacity = capacity
        num_envs = env.num_envs if vector else 1
        self.started = np.ones(num_envs, dtype=bool)
        self._finished = np.ones(num_envs, dtype=bool)  # between an end and the reset that follows it
        self._latest = np.full(num_envs, -1)  # step at which each environment made its latest transition
        self._current: Observations | None = None
        self._columns: Any = None  # a tree of arrays (allocated steps, B, ...); rows _begin to _end are in use
        self._begin = self._end = 0
        self._num_transitions = 0

    def __len__(self) -> int:
        """Number of transitions held."""
        return self._num_transitions

    @property
    def current(self) -> Observations:
        """(B,) + shape, the observations that the environments showed last: a copy that nobody writes into.

        Raises:
            RuntimeError: nothing was reset before.
        """
        if self._current is None:
            raise RuntimeError("there is no observation before the first reset")
        return self._current

    @property
    def waiting(self) -> np.ndarray:
        """(B,) bool, which environments must be reset by the caller before their next step."""
        if self._mode is AutoresetMode.DISABLED:
            return self._finished.copy()
        return np.zeros_like(self._finished)

    def reset(self, observations: Observations, mask: np.ndarray | None = None) -> None:
        """Environments in ``mask`` (default all) were reset; an episode that was running ends there, without a flag."""
        chosen = np.ones(len(self.started), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        held = chosen & (self._latest >= self._begin)
        if held.any():
            self._columns["ends"][self._latest[held], held] = True
        if self._current is None:
            self._current = map_leaves(np.array, observations)
        else:
            self._current = map_leaves(lambda old, new: _replaced(old, new, chosen), self._current, observations)
        self.started |= chosen
        self._finished &= ~chosen

    def step(
        self,
        actions: np.ndarray,
        observations: Observations,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        infos: Mapping[str, Any],
    ) -> None:
        """One step of all environments, with what ``step`` returned; every argument has B rows.

        Raises:
            RuntimeError: nothing was reset before.
        """
        if self._current is None:
            raise RuntimeError("a step was recorded before the first reset")
        inside = ~self._finished
        done = np.asarray(terminated, dtype=bool) | np.asarray(truncated, dtype=bool)
        same_step = self._mode is AutoresetMode.SAME_STEP
        seen = map_leaves(np.array, observations)
        self._append(
            {
                "observations": self._current,
                "actions": np.asarray(actions),
                "rewards": np.asarray(rewards, dtype=np.float64),
                "next_observations": _with_final(seen, infos, done) if same_step else seen,
                "terminated": np.asarray(terminated, dtype=bool),
                "truncated": np.asarray(truncated, dtype=bool),
                "ends": done,
                "inside": inside,
            },
            inside,
        )
        self._current = seen
        self._follow(done, inside)

    def _follow(self, done: np.ndarray, inside: np.ndarray) -> None:
        """Which environments stand at a start now, and which wait for their reset."""
        if self._mode is AutoresetMode.SAME_STEP:
            self.started = done.copy()
        elif self._mode is AutoresetMode.NEXT_STEP:
            self.started, self._finished = ~inside, done & inside
        else:
            self.started, self._finished = np.zeros_like(done), self._finished | done

    def trajectory(self, first: int | None = None) -> Trajectory:
        """The transitions held, environment by environment; only the oldest ``first`` transitions if given.

        Raises:
            ValueError: there is no transition yet.
        """
        if not self._num_transitions:
            raise ValueError("no transition has been recorded yet")
        columns = take(self._columns, slice(self._begin, self._end))
        order = np.flatnonzero(columns["inside"])
        kept = order[-self._capacity :] if self._capacity else order[:first]
        steps, envs = np.divmod(kept, len(self.started))
        by_env = np.lexsort((steps, envs))
        rows = map_leaves(lambda column: column[steps[by_env], envs[by_env]], columns)
        ends = rows["ends"]
        ends[np.append(np.flatnonzero(np.diff(envs[by_env])), -1)] = True
        names = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")
        return Trajectory(
            **{name: rows[name] for name in names},
            episode_ends=ends,
            observation_space=self._observation_space,
            env_id=self._env_id,
            policy=self._policy,
        )

    def _append(self, row: dict[str, Any], inside: np.ndarray) -> None:
        if self._columns is None:
            self._columns = map_leaves(lambda leaf: _allocated(leaf, _FIRST_ALLOCATION), row)
        elif self._end == len(self._columns["inside"]):
            self._make_room()
        for name, part in row.items():
            column = self._columns[name]
            if isinstance(part, np.ndarray) and part.dtype == column.dtype:  # as nearly always: this is the hot path
                column[self._end] = part
            else:
                self._columns[name] = map_leaves(lambda one, leaf: _written(one, leaf, self._end), column, part)
        self._latest[inside] = self._end
        self._end += 1
        self._num_transitions += int(inside.sum())
        if self._capacity is not None:
            self._drop_oldest(self._capacity)

    def _drop_oldest(self, capacity: int) -> None:
        """Let go of whole steps that the latest ``capacity`` transitions do not need."""
        oldest = int(self._columns["inside"][self._begin].sum())
        while self._num_transitions - oldest >= capacity:
            self._num_transitions -= oldest
            self._begin += 1
            oldest = int(self._columns["inside"][self._begin].sum())

    def _make_room(self) -> None:
        """Move the rows in use to the front if at least half of the rows are free, else allocate twice as many."""
        in_use = self._end - self._begin
        size = max(len(self._columns["inside"]), 2 * in_use)
        self._columns = map_leaves(lambda column: _moved(column, self._begin, self._end, size), self._columns)
        self._latest -= self._begin
        self._begin, self._end = 0, in_use


def autoreset_mode(env: gymnasium.Env | VectorEnv) -> AutoresetMode:
    """The autoreset mode: of a single environment DISABLED, a vector that does not say, NEXT_STEP (as Gymnasium)."""
    if not isinstance(env, VectorEnv):
        return AutoresetMode.DISABLED
    return AutoresetMode(env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP))


def _replaced(old: np.ndarray, new: np.ndarray, rows: np.ndarray) -> np.ndarray:
    result = np.array(new)
    result[~rows] = old[~rows]
    return result


def _with_final(observations: Observations, infos: Mapping[str, Any], done: np.ndarray) -> Observations:
    """The true successors under SAME_STEP, where ``observations`` shows starts already."""
    if not done.any():
        return observations
    final = stack([infos["final_obs"][index] for index in np.flatnonzero(done)])

    def put(leaf: np.ndarray, final_leaf: np.ndarray) -> np.ndarray:
        result = np.array(leaf)
        result[done] = final_leaf
        return result

    return map_leaves(put, observations, final)


def _allocated(leaf: np.ndarray, steps: int) -> np.ndarray:
    array = np.asarray(leaf)
    return np.empty((steps, *array.shape), array.dtype)


def _written(column: np.ndarray, leaf: np.ndarray, step: int) -> np.ndarray:
    dtype = np.result_type(column, leaf)
    if dtype != column.dtype:
        column = column.astype(dtype)
    column[step] = leaf
    return column


def _moved(column: np.ndarray, begin: int, end: int, size: int) -> np.ndarray:
    result = column if size == len(column) else np.empty((size, *column.shape[1:]), column.dtype)
    result[: end - begin] = column[begin:end]
    return result


def batch_of_one(
    observation: Any, reward: Any, terminated: bool, truncated: bool, info: dict[str, Any]
) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """The values that ``step`` of one environment returned, as a vector of one would have returned them.

    Raises:
        ValueError: the reward is a vector.
    """
    rewards = np.array([one_reward(reward)])
    observations = map_leaves(lambda leaf: np.asarray(leaf)[None], observation)
    return observations, rewards, np.array([terminated], dtype=bool), np.array([truncated], dtype=bool), info


def reset_mask(options: Mapping[str, Any] | None) -> np.ndarray | None:
    """Which environments ``VectorEnv.reset(options=...)`` resets, None for all; to be read before the call, which may
    take the mask out of the options."""
    mask = (options or {}).get("reset_mask")
    return None if mask is None else np.array(mask, dtype=bool)
