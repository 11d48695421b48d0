"""`Trajectory`: logged experience of one policy, checked once, stored on disk without pickle.

Row k is the transition (S_k, A_k, R_{k+1}, S_{k+1}). ``next_observations`` is always the TRUE successor: at an
episode's end the final observation, never the one after a reset. ``terminated`` and ``truncated`` are the environment's
own flags; the cut at the end of a log is an ``episode_end`` without either flag. Streams of a vector environment are
stored one after another.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.space_description import space_from_json, space_to_json
from icrl_gym.observations import (
    Observations,
    as_batch,
    as_numeric,
    batch_size,
    check_finite,
    concatenate,
    infer_space,
    map_leaves,
    named_leaves,
    rows_equal,
    take,
)
from icrl_gym.runs import read_archive, write_archive

SCHEMA_VERSION = 1
RATIOS_SCHEMA_VERSION = 2  # of files that hold importance ratios, which a reader must not overlook
NO_ACTIONS_SCHEMA_VERSION = 3  # of files without actions, with importance ratios or without


@dataclass(frozen=True, eq=False, init=False)
class Trajectory:
    """n transitions of one policy in one environment.

    Args:
        observations: (n,) + observation shape; Discrete is int (n,); Dict / Tuple spaces keep their structure.
        actions: (n,) + action shape; None where the log does not hold them: values of states need none.
        rewards: (n,) float.
        next_observations: like ``observations``: the true successors.
        terminated: (n,) bool.
        truncated: (n,) bool.
        episode_ends: (n,) bool, True where the next row does not continue this one. Default: terminated | truncated |
            last row | next_observations[k] != observations[k + 1].
        observation_space: default: 1-D integers are Discrete(max + 1), all else is an unbounded Box.
        env_id: environment identity for the estimand, or None if unknown.
        policy: policy identity for the estimand, or None if unknown.
        importance_ratios: (n,) pi / mu of the logged actions where another policy mu acted than the ``policy`` pi whose
            values are asked for (`icrl_gym.reweight` makes them); None: ``policy`` itself acted.

    Raises:
        ValueError: empty, lengths or shapes disagree, a value is NaN or infinite (field and first index are named),
            ``episode_ends`` denies an end that the flags state, or a ratio is negative.
        TypeError: an array has the wrong kind or structure.
    """

    observations: Observations
    actions: np.ndarray | None
    rewards: np.ndarray
    next_observations: Observations
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ends: np.ndarray
    observation_space: spaces.Space
    env_id: str | None
    policy: str | None
    importance_ratios: np.ndarray | None
    _space_inferred: bool = field(init=False, repr=False)

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
        importance_ratios: Any = None,
    ) -> None:
        inferred = observation_space is None
        if observation_space is None:
            observation_space = _common_space(observations, next_observations)
        observations = as_batch(observations, observation_space, "observations")
        next_observations = as_batch(next_observations, observation_space, "next_observations")
        actions = None if actions is None else as_numeric(actions, "actions")
        rewards = as_numeric(rewards, "rewards").astype(np.float64)
        terminated, truncated = _flags(terminated, "terminated"), _flags(truncated, "truncated")
        fields_given = (observations, actions, rewards, next_observations, terminated, truncated)
        _check_lengths(dict(zip(_ARRAYS, fields_given, strict=False)))
        _check_values(observations, observation_space, "observations")
        _check_values(next_observations, observation_space, "next_observations")
        check_finite(rewards, "rewards")
        stated = terminated | truncated
        ends = (
            _default_episode_ends(observations, next_observations, stated)
            if episode_ends is None
            else _checked_episode_ends(episode_ends, stated)
        )
        for name, value in zip(_ARRAYS, (*fields_given, ends), strict=True):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "observation_space", observation_space)
        object.__setattr__(self, "env_id", env_id)
        object.__setattr__(self, "policy", policy)
        object.__setattr__(self, "importance_ratios", _checked_ratios(importance_ratios, len(rewards)))
        object.__setattr__(self, "_space_inferred", inferred)

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

    @property
    def space_inferred(self) -> bool:
        """Whether the observation space was inferred from the arrays, not stated."""
        return self._space_inferred

    def __getitem__(self, rows: slice) -> Trajectory:
        """A contiguous stretch; its last row becomes an episode end (not marked truncated)."""
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"a trajectory is indexed by a slice of step 1, got {rows!r}")
        ends = self.episode_ends[rows].copy()
        if not len(ends):
            raise ValueError(f"the slice {rows.start}:{rows.stop} of a trajectory of {len(self)} transitions is empty")
        ends[-1] = True
        stretch = replace(
            self,
            observations=take(self.observations, rows),
            actions=None if self.actions is None else self.actions[rows],
            rewards=self.rewards[rows],
            next_observations=take(self.next_observations, rows),
            terminated=self.terminated[rows],
            truncated=self.truncated[rows],
            episode_ends=ends,
            importance_ratios=None if self.importance_ratios is None else self.importance_ratios[rows],
        )
        return stretch._with_space_inferred(self._space_inferred)

    def actions_for(self, purpose: str) -> np.ndarray:
        """The actions (n,) + action shape; ``purpose`` begins the ValueError of a log without them."""
        if self.actions is None:
            raise ValueError(f"{purpose} needs the logged actions, and this trajectory has actions=None")
        return self.actions

    def append(self, more: Trajectory) -> Trajectory:
        """This log followed by another of the same environment and policy.

        The first row of ``more`` continues the last row of this one only if no flag is set there and the states agree.
        An observation space that was only inferred from the arrays gives way to one that was stated; two that were
        inferred are inferred anew. Beside a log with importance ratios one without has ratios of 1.

        Raises:
            TypeError: the observations have different structures.
            ValueError: stated observation spaces, environments or policies differ, or one log alone has actions.
        """
        for name in ("env_id", "policy"):
            mine, theirs = getattr(self, name), getattr(more, name)
            if mine != theirs and mine is not None and theirs is not None:
                raise ValueError(f"append: {name} differs: {mine!r} against {theirs!r}")
        space = self._appended_space(more)
        last, first = take(self.next_observations, slice(-1, None)), take(more.observations, slice(1))
        continues = bool(rows_equal(last, first)[0])
        ends = np.concatenate([self.episode_ends, more.episode_ends])
        ends[len(self) - 1] = bool(self.terminated[-1] or self.truncated[-1] or not continues)
        joined = Trajectory(
            concatenate([self.observations, more.observations]),
            self._appended_actions(more),
            np.concatenate([self.rewards, more.rewards]),
            concatenate([self.next_observations, more.next_observations]),
            np.concatenate([self.terminated, more.terminated]),
            np.concatenate([self.truncated, more.truncated]),
            ends,
            space,
            self.env_id or more.env_id,
            self.policy or more.policy,
            self._appended_ratios(more),
        )
        return joined._with_space_inferred(self._space_inferred and more._space_inferred)

    def with_importance_ratios(self, ratios: Any, policy: str | None) -> Trajectory:
        """The same transitions as evidence about ``policy``, (n,) ratios pi / mu of the logged actions."""
        weighted = replace(self, policy=policy, importance_ratios=ratios)
        return weighted._with_space_inferred(self._space_inferred)

    def _appended_actions(self, more: Trajectory) -> np.ndarray | None:
        if self.actions is None and more.actions is None:
            return None
        return np.concatenate([part.actions_for("append: a log beside one with actions") for part in (self, more)])

    def _appended_ratios(self, more: Trajectory) -> np.ndarray | None:
        parts = (self, more)
        if all(part.importance_ratios is None for part in parts):
            return None
        return np.concatenate([
            np.ones(len(part)) if part.importance_ratios is None else part.importance_ratios for part in parts
        ])  # fmt: skip

    def _appended_space(self, more: Trajectory) -> spaces.Space:
        mine, theirs = self.observation_space, more.observation_space
        if not (self._space_inferred or more._space_inferred) and mine != theirs:
            raise ValueError(f"append: observation_space differs: {mine!r} against {theirs!r}")
        as_batch(more.observations, mine, "append: observations")
        if self._space_inferred and more._space_inferred:
            return _larger_space(mine, theirs)
        return theirs if self._space_inferred else mine

    def _with_space_inferred(self, inferred: bool) -> Trajectory:
        object.__setattr__(self, "_space_inferred", inferred)
        return self

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one ``.npz`` file (arrays plus a JSON header, no pickle), atomically. Returns the path written."""
        path = _with_npz(path)
        version = SCHEMA_VERSION if self.importance_ratios is None else RATIOS_SCHEMA_VERSION
        header = {
            "schema_version": NO_ACTIONS_SCHEMA_VERSION if self.actions is None else version,
            "env_id": self.env_id,
            "policy": self.policy,
            "observation_space": space_to_json(self.observation_space),
            "space_inferred": self._space_inferred,
        }
        arrays: dict[str, np.ndarray] = {}
        for name in _ARRAYS:
            if getattr(self, name) is not None:
                arrays |= dict(named_leaves(getattr(self, name), name))
        if self.importance_ratios is not None:
            arrays["importance_ratios"] = self.importance_ratios
        write_archive(path, header, arrays)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a trajectory file, a damaged one, or one of another schema version.
        """
        path = _with_npz(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no trajectory file {path}")
        try:
            header, arrays = read_archive(path)
            version = header["schema_version"]
            if version not in (SCHEMA_VERSION, RATIOS_SCHEMA_VERSION, NO_ACTIONS_SCHEMA_VERSION):
                raise ValueError(
                    f"schema version {version}, this version reads {SCHEMA_VERSION} to {NO_ACTIONS_SCHEMA_VERSION}"
                )
            space = space_from_json(header["observation_space"])
            tree = {name: _collect(arrays, name, space) for name in ("observations", "next_observations")}
            plain = {name: arrays[name] for name in _ARRAYS if name not in (*tree, "actions")}
            actions = None if version == NO_ACTIONS_SCHEMA_VERSION else arrays["actions"]
            labels = {"env_id": header["env_id"], "policy": header["policy"]}
            ratios = arrays["importance_ratios"] if version == RATIOS_SCHEMA_VERSION else None
            if version == NO_ACTIONS_SCHEMA_VERSION:
                ratios = arrays.get("importance_ratios")
            stored = cls(**tree, actions=actions, **plain, **labels, observation_space=space, importance_ratios=ratios)
            return stored._with_space_inferred(header["space_inferred"])
        except Exception as error:
            raise ValueError(f"{path} is not a trajectory file that can be read: {error}") from error


_ARRAYS = tuple(f.name for f in fields(Trajectory))[:7]


def _flags(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {array.shape}")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array.astype(bool)


def _checked_ratios(ratios: Any, length: int) -> np.ndarray | None:
    """Float ratios (n,), or None for none."""
    if ratios is None:
        return None
    ratios = as_numeric(ratios, "importance_ratios").astype(np.float64)
    if ratios.shape != (length,):
        raise ValueError(f"importance_ratios must have shape ({length},), got {ratios.shape}")
    check_finite(ratios, "importance_ratios")
    if (ratios < 0).any():
        index = int(np.flatnonzero(ratios < 0)[0])
        raise ValueError(f"importance_ratios must be at least 0: importance_ratios[{index}] is {ratios[index]}")
    return ratios


def _with_npz(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")


def _common_space(observations: Any, next_observations: Any) -> spaces.Space:
    """The space of logged arrays, the successors included."""

    def inferred(tree: Any, name: str) -> spaces.Space:
        return infer_space(map_leaves(lambda leaf: as_numeric(leaf, name), tree))

    return _larger_space(inferred(observations, "observations"), inferred(next_observations, "next_observations"))


def _larger_space(first: spaces.Space, second: spaces.Space) -> spaces.Space:
    """The first space with the larger number of ids of the two wherever both are Discrete."""
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict) and set(first) == set(second):
        return spaces.Dict({key: _larger_space(first[key], second[key]) for key in first.spaces})
    if isinstance(first, spaces.Tuple) and isinstance(second, spaces.Tuple):
        pairs = zip(first.spaces, second.spaces, strict=False)
        return first if len(first) != len(second) else spaces.Tuple([_larger_space(*pair) for pair in pairs])
    if isinstance(first, spaces.Discrete) and isinstance(second, spaces.Discrete):
        return spaces.Discrete(max(int(first.n), int(second.n)))
    return first


def _check_lengths(columns: dict[str, Any]) -> None:
    """Every field (n,) or longer along its other axes, with one n above 0."""
    columns = {name: column for name, column in columns.items() if name != "actions" or column is not None}
    for name in ("actions", "rewards"):
        if name not in columns:
            continue
        if columns[name].ndim == 0 or (name == "rewards" and columns[name].ndim > 1):
            raise ValueError(f"{name} must have shape (n,{' ...' * (name == 'actions')}), got {columns[name].shape}")
    lengths = {name: batch_size(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all fields must have one length, got {lengths}")
    if lengths["rewards"] == 0:
        raise ValueError("observations: the trajectory is empty; at least one transition is needed")


def _check_values(observations: Observations, space: spaces.Space, name: str) -> None:
    """Everything finite, and ids of Discrete spaces within them."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            _check_values(observations[key], part, f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            _check_values(observations[index], part, f"{name}[{index}]")
    else:
        check_finite(observations, name)
        if isinstance(space, spaces.Discrete):
            _check_ids(observations, space, name)


def _check_ids(ids: np.ndarray, space: spaces.Discrete, name: str) -> None:
    outside = (ids < space.start) | (ids >= space.start + space.n)
    if outside.any():
        index = int(np.flatnonzero(outside)[0])
        raise ValueError(f"{name} must lie in {space}: {name}[{index}] is {ids[index]}")


def _checked_episode_ends(episode_ends: Any, stated: np.ndarray) -> np.ndarray:
    ends = _flags(episode_ends, "episode_ends")
    if len(ends) != len(stated):
        raise ValueError(f"episode_ends must have length {len(stated)}, got {len(ends)}")
    denied = stated & ~ends
    denied[-1] |= not ends[-1]
    if denied.any():
        index = int(np.flatnonzero(denied)[0])
        raise ValueError(f"episode_ends[{index}] is False but a flag is set there or the log stops")
    return ends


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
