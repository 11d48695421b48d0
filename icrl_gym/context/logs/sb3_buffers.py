"""The buffers of Stable-Baselines3, known by their attributes and never imported.

T steps are held of each of B environments side by side; transitions come out environment by environment in order of
time. Observations and rewards of a `ReplayBuffer` are raw. Those of a `RolloutBuffer` are as the network saw them: if
the model trains in a VecNormalize, normalised.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.logs.logged_arrays import LoggedArrays
from icrl_gym.observations import Observations, map_leaves, take


def replay_log(buffer: Any) -> LoggedArrays:
    """The transitions of a ReplayBuffer or DictReplayBuffer, oldest first in each environment.

    Raises:
        TypeError: not a replay buffer.
        ValueError: it is empty.
    """
    if not all(hasattr(buffer, name) for name in ("observations", "dones", "timeouts", "pos", "full")):
        raise TypeError(f"buffer must be a ReplayBuffer of Stable-Baselines3, got {type(buffer).__name__}")
    if not buffer.full and buffer.pos == 0:
        raise ValueError("buffer is empty: no transition was added to it")
    shared = bool(getattr(buffer, "optimize_memory_usage", False))  # the next row's observation is this row's successor
    steps = np.arange(buffer.pos)
    if buffer.full:
        steps = np.roll(np.arange(buffer.buffer_size), -buffer.pos)
        steps = steps[1:] if shared else steps  # the oldest observation was overwritten by the newest successor
    if not len(steps):
        raise ValueError("buffer holds no whole transition")
    done, timeout = _streams(buffer.dones, steps) > 0, _streams(buffer.timeouts, steps) > 0
    notes = []
    following = (steps + 1) % buffer.buffer_size
    next_observations = buffer.observations if shared else buffer.next_observations
    successors = _observations(next_observations, following if shared else steps, buffer)
    observations = _observations(buffer.observations, steps, buffer)
    ends = _borders(len(steps), buffer.n_envs) | done
    if not buffer.handle_timeout_termination:
        notes.append("the buffer does not know time limits (handle_timeout_termination=False): every end terminates")
    if shared and done.any():  # the start of the next episode was written over the state that the episode ended in
        successors = _with_rows(successors, observations, done)
        notes.append(
            "the buffer shares its observations: where an episode ended, its last state stands for the successor"
        )
    return LoggedArrays(
        observations, _replayed_actions(_streams(buffer.actions, steps), buffer.action_space),
        _streams(buffer.rewards, steps).astype(np.float64), successors, done & ~timeout, done & timeout, ends,
        observation_space=buffer.observation_space, assumptions=tuple(notes),
    )  # fmt: skip


def rollout_log(buffer: Any, truncated: Any = None, vec_normalize: Any = None) -> LoggedArrays:
    """The transitions of a RolloutBuffer or DictRolloutBuffer; see `Trajectory.from_rollouts`.

    Raises:
        TypeError: not a rollout buffer.
        ValueError: it holds fewer than two steps of each environment, or ``truncated`` does not fit it.
    """
    if not all(hasattr(buffer, name) for name in ("observations", "episode_starts", "log_probs", "pos", "full")):
        raise TypeError(f"buffer must be a RolloutBuffer of Stable-Baselines3, got {type(buffer).__name__}")
    length = buffer.buffer_size if buffer.full else buffer.pos
    if length < 2:
        raise ValueError(f"buffer must hold at least 2 steps of each environment, got {length}")
    steps, last = np.arange(length - 1), np.arange(1, length)  # where the last step of all led is not in the buffer
    flat = bool(getattr(buffer, "generator_ready", False))  # after an update of the network
    done = _unflattened(buffer.episode_starts, False, buffer, last) > 0
    observations = _rollout_observations(buffer, flat, steps)
    successors = _with_rows(_rollout_observations(buffer, flat, last), observations, done)
    actions = _unflattened(buffer.actions, flat, buffer, steps)
    rewards = _unflattened(buffer.rewards, False, buffer, steps).astype(np.float64)
    if vec_normalize is not None:
        observations, successors = map(vec_normalize.unnormalize_obs, (observations, successors))
        rewards = np.asarray(vec_normalize.unnormalize_reward(rewards), dtype=np.float64)
    cut, notes = _cut(truncated, done, (length, buffer.n_envs))
    kept = ~cut
    ends = (_borders(length - 1, buffer.n_envs) | done | np.append(cut[1:], False))[kept]
    return LoggedArrays(
        take(observations, kept), _rolled_actions(actions[kept], buffer.action_space), rewards[kept],
        take(successors, kept), done[kept], np.zeros(int(kept.sum()), dtype=bool), ends,
        observation_space=buffer.observation_space, assumptions=notes,
    )  # fmt: skip


def _cut(truncated: Any, done: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which transitions are left out since a time limit stopped them, and what is assumed."""
    notes = ["at ends the last state stands for the successor, which the buffer does not hold"] if done.any() else []
    if truncated is None:
        if done.any():
            notes.append(
                "ends by a time limit are taken to terminate: their rewards hold the critic's own value of what was "
                "beyond; give truncated, and they are left out"
            )
        return np.zeros(len(done), dtype=bool), tuple(notes)
    array = np.asarray(truncated, dtype=bool)
    if array.shape != shape:
        raise ValueError(f"truncated must have shape (steps, environments), {shape}, got {array.shape}")
    return array[:-1].T.reshape(-1) & done, tuple(notes)


def _borders(num_steps: int, num_envs: int) -> np.ndarray:
    """(B T,) the last row of each environment's stream."""
    ends = np.zeros((num_envs, num_steps), dtype=bool)
    ends[:, -1] = True
    return ends.reshape(-1)


def _streams(array: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(T, B, ...) as (B T, ...): some steps of each environment, one environment after another."""
    return np.asarray(array)[steps].swapaxes(0, 1).reshape(-1, *array.shape[2:])


def _unflattened(array: np.ndarray, flat: bool, buffer: Any, steps: np.ndarray) -> np.ndarray:
    """The same of an array that Stable-Baselines3 has put environment by environment already."""
    if not flat:
        return _streams(array, steps)
    return (
        np.asarray(array)
        .reshape(buffer.n_envs, buffer.buffer_size, *array.shape[1:])[:, steps]
        .reshape(-1, *array.shape[1:])
    )


def _observations(stored: Any, steps: np.ndarray, buffer: Any) -> Observations:
    return _shaped(map_leaves(lambda leaf: _streams(leaf, steps), stored), buffer.observation_space)


def _rollout_observations(buffer: Any, flat: bool, steps: np.ndarray) -> Observations:
    rows = map_leaves(lambda leaf: _unflattened(leaf, flat, buffer, steps), buffer.observations)
    return _shaped(rows, buffer.observation_space)


def _shaped(observations: Observations, space: spaces.Space) -> Observations:
    """Rows in the shape of the space: a buffer keeps ids of Discrete spaces as (n, 1)."""
    if isinstance(space, spaces.Dict):
        return {key: _shaped(observations[key], part) for key, part in space.spaces.items()}
    return observations.reshape(len(observations), *(space.shape or ()))


def _with_rows(into: Observations, source: Observations, rows: np.ndarray) -> Observations:
    """A copy of ``into`` with some rows from ``source``."""
    mask = lambda leaf: rows.reshape(-1, *[1] * (leaf.ndim - 1))  # noqa: E731
    return map_leaves(lambda leaf, other: np.where(mask(leaf), other, leaf), into, source)


def _replayed_actions(stored: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions as the environment got them; algorithms store those of Box spaces scaled to [-1, 1]."""
    actions = stored.reshape(len(stored), *(space.shape or ()))
    if not isinstance(space, spaces.Box) or not space.is_bounded() or np.abs(actions).max() > 1 + 1e-5:
        return actions
    return (space.low + 0.5 * (actions + 1.0) * (space.high - space.low)).astype(space.dtype)


def _rolled_actions(stored: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions as the environment got them; what is drawn outside of a Box is clipped before it acts."""
    actions = stored.reshape(len(stored), *(space.shape or ()))
    return np.clip(actions, space.low, space.high) if isinstance(space, spaces.Box) else actions
