"""`Trajectory`: logged experience of one policy, checked once, stored on disk without pickle.

Row k is the transition (S_k, A_k, R_{k+1}, S_{k+1}). ``next_observations`` is always the TRUE successor: at an episode's end
the final observation, never the one after a reset. ``terminated`` and ``truncated`` are the environment's own flags; the cut
at the end of a log is an ``episode_end`` without either flag. Streams of a vector environment are stored one after another.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.observations import (
    Observations,
    as_batch,
    batch_size,
    check_finite,
    concatenate,
    infer_space,
    map_leaves,
    named_leaves,
    rows_equal,
    take,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True, eq=False, init=False)
class Trajectory:
    """n transitions of one policy in one environment.

    Args:
        observations: (n,) + observation shape; Discrete is int (n,); Dict / Tuple spaces keep their structure.
        actions: (n,) + action shape.
        rewards: (n,) float.
        next_observations: like ``observations``: the true successors.
        terminated: (n,) bool.
        truncated: (n,) bool.
        episode_ends: (n,) bool, True where the next row does not continue this one. Default: terminated | truncated |
            last row | next_observations[k] != observations[k + 1].
        observation_space: default: 1-D integers are Discrete(max + 1), all else is an unbounded Box.
        env_id: environment identity for the estimand, or None if unknown.
        policy: policy identity for the estimand, or None if unknown.

    Raises:
        ValueError: empty, lengths or shapes disagree, a value is NaN or infinite (field and first index are named), or
            ``episode_ends`` denies an end that the flags state.
        TypeError: an array has the wrong kind or structure.
    """

    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: Observations
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ends: np.ndarray
    observation_space: spaces.Space
    env_id: str | None
    policy: str | None

    def __init__(
        self,
        observations: Any,
        actions: Any,
        rewards: Any,
        next_observations: Any,
        terminated: Any,
        truncated: Any,
        episode_ends: Any = None,
        observation_space: spaces.Space | None = None,
        env_id: str | None = None,
        policy: str | None = None,
    ) -> None:
        if observation_space is None:
            joined = map_leaves(lambda a, b: np.concatenate([np.asarray(a), np.asarray(b)]), observations, next_observations)
            observation_space = infer_space(joined)
        observations = as_batch(observations, observation_space, "observations")
        next_observations = as_batch(next_observations, observation_space, "next_observations")
        n = batch_size(observations)
        if n == 0:
            raise ValueError("observations: the trajectory is empty; at least one transition is needed")
        actions = np.asarray(actions)
        rewards = np.asarray(rewards, dtype=np.float64)
        if rewards.ndim != 1:
            raise ValueError(f"rewards must have shape (n,), got {rewards.shape}")
        terminated = _flags(terminated, "terminated")
        truncated = _flags(truncated, "truncated")
        lengths = {
            "observations": n,
            "actions": len(np.atleast_1d(actions)),
            "rewards": len(rewards),
            "next_observations": batch_size(next_observations),
            "terminated": len(terminated),
            "truncated": len(truncated),
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"all fields must have one length, got {lengths}")
        for name, tree in (("observations", observations), ("next_observations", next_observations)):
            for path, leaf in named_leaves(tree, name):
                check_finite(leaf, path)
        check_finite(rewards, "rewards")
        if episode_ends is None:
            ends = _default_episode_ends(observations, next_observations, terminated | truncated)
        else:
            ends = _flags(episode_ends, "episode_ends")
            if len(ends) != n:
                raise ValueError(f"episode_ends must have length {n}, got {len(ends)}")
            stated = terminated | truncated
            stated[-1] = True
            if (stated & ~ends).any():
                index = int(np.flatnonzero(stated & ~ends)[0])
                raise ValueError(f"episode_ends[{index}] is False but a flag is set there or the log stops")
        values = (observations, actions, rewards, next_observations, terminated, truncated, ends)
        for name, value in zip(_ARRAYS, values, strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "observation_space", observation_space)
        object.__setattr__(self, "env_id", env_id)
        object.__setattr__(self, "policy", policy)

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def num_transitions(self) -> int:
        """Number of transitions, n."""
        return len(self.rewards)

    @property
    def num_complete_episodes(self) -> int:
        """Number of episodes that end with a flag of the environment's own."""
        return int((self.terminated | self.truncated).sum())

    def __getitem__(self, rows: slice) -> Trajectory:
        """A contiguous stretch; its last row becomes an episode end (not marked truncated)."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"a trajectory is indexed by a slice of step 1, got {rows!r}")
        ends = self.episode_ends[rows].copy()
        if not len(ends):
            raise ValueError(f"the slice {rows.start}:{rows.stop} of a trajectory of {len(self)} transitions is empty")
        ends[-1] = True
        return Trajectory(
            take(self.observations, rows),
            self.actions[rows],
            self.rewards[rows],
            take(self.next_observations, rows),
            self.terminated[rows],
            self.truncated[rows],
            ends,
            self.observation_space,
            self.env_id,
            self.policy,
        )

    def append(self, more: Trajectory) -> Trajectory:
        """This log followed by another of the same environment and policy.

        The first row of ``more`` continues the last row of this one only if no flag is set there and the states agree.

        Raises:
            ValueError: the observation spaces, environments or policies differ.
        """
        for name in ("observation_space", "env_id", "policy"):
            mine, theirs = getattr(self, name), getattr(more, name)
            if mine != theirs and mine is not None and theirs is not None:
                raise ValueError(f"append: {name} differs: {mine!r} against {theirs!r}")
        continues = bool(rows_equal(take(self.next_observations, slice(-1, None)), take(more.observations, slice(1)))[0])
        ends = np.concatenate([self.episode_ends, more.episode_ends])
        ends[len(self) - 1] = bool(self.terminated[-1] or self.truncated[-1] or not continues)
        return Trajectory(
            concatenate([self.observations, more.observations]),
            np.concatenate([self.actions, more.actions]),
            np.concatenate([self.rewards, more.rewards]),
            concatenate([self.next_observations, more.next_observations]),
            np.concatenate([self.terminated, more.terminated]),
            np.concatenate([self.truncated, more.truncated]),
            ends,
            self.observation_space,
            self.env_id or more.env_id,
            self.policy or more.policy,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one ``.npz`` file (arrays plus a JSON header, no pickle), atomically. Returns the path written."""
        path = Path(path).with_suffix(".npz")
        header = {
            "schema_version": SCHEMA_VERSION,
            "env_id": self.env_id,
            "policy": self.policy,
            "observation_space": space_to_json(self.observation_space),
        }
        arrays: dict[str, np.ndarray] = {"header": np.array(json.dumps(header))}
        for name in _ARRAYS:
            for leaf_path, leaf in named_leaves(getattr(self, name), name):
                arrays[leaf_path] = leaf
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a trajectory file, or one of another schema version.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
            header = json.loads(str(arrays.pop("header")))
            version = header["schema_version"]
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} is not a trajectory file: {error}") from error
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema version {version}, this version reads {SCHEMA_VERSION}")
        space = space_from_json(header["observation_space"])
        tree = {name: _collect(arrays, name, space) for name in ("observations", "next_observations")}
        plain = {name: arrays[name] for name in _ARRAYS if name not in tree}
        return cls(**tree, **plain, observation_space=space, env_id=header["env_id"], policy=header["policy"])


_ARRAYS = tuple(f.name for f in fields(Trajectory))[:7]


def _flags(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {array.shape}")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array.astype(bool)


def _default_episode_ends(observations: Observations, next_observations: Observations, flags: np.ndarray) -> np.ndarray:
    ends = flags.copy()
    ends[-1] = True
    ends[:-1] |= ~rows_equal(take(next_observations, slice(-1)), take(observations, slice(1, None)))
    return ends


def _collect(arrays: dict[str, np.ndarray], name: str, space: spaces.Space) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: _collect(arrays, f"{name}[{key!r}]", part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_collect(arrays, f"{name}[{i}]", part) for i, part in enumerate(space.spaces))
    return arrays[name]


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A JSON description of an observation space.

    Raises:
        TypeError: the space has no array form (Text, Graph, Sequence, OneOf).
    """
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": {key: space_to_json(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(part) for part in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape)}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _compact(space.low),
            "high": _compact(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    raise TypeError(f"observation space {space} has no array form; supported: Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple")


def _compact(bound: np.ndarray) -> Any:
    """One number where all entries agree, else nested lists; infinities as strings so that the JSON is standard."""
    if bound.size and (bound == bound.flat[0]).all():
        return repr(bound.flat[0].item())
    return [repr(value.item()) for value in bound.flat]


def _bound(stored: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    def number(text: str) -> float | int:
        return int(text) if np.issubdtype(dtype, np.integer) else float(text)

    if isinstance(stored, str):
        return np.full(shape, number(stored), dtype=dtype)
    return np.array([number(text) for text in stored], dtype=dtype).reshape(shape)


def space_from_json(stored: dict[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`."""
    match stored["type"]:
        case "Dict":
            return spaces.Dict({key: space_from_json(part) for key, part in stored["spaces"].items()})
        case "Tuple":
            return spaces.Tuple([space_from_json(part) for part in stored["spaces"]])
        case "Discrete":
            return spaces.Discrete(stored["n"], start=stored["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(np.array(stored["nvec"]), start=np.array(stored["start"]))
        case "MultiBinary":
            return spaces.MultiBinary(stored["n"])
        case "Box":
            shape, dtype = tuple(stored["shape"]), np.dtype(stored["dtype"])
            low, high = (_bound(stored[name], shape, dtype) for name in ("low", "high"))
            return spaces.Box(low, high, shape, dtype.type)
        case other:
            raise ValueError(f"unknown observation space type {other!r}")
