"""Trajectory files: arrays and a JSON header in one ``.npz`` file without pickle."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gymnasium import spaces

from icrl_gym.context.logs.logged_arrays import LoggedArrays
from icrl_gym.context.space_description import space_from_json, space_to_json
from icrl_gym.observations import Observations, named_leaves
from icrl_gym.runs import read_archive, write_archive

SCHEMA_VERSION = 1
RATIOS_SCHEMA_VERSION = 2  # of files that hold importance ratios, which a reader must not overlook
NO_ACTIONS_SCHEMA_VERSION = 3  # of files without actions, with importance ratios or without


@dataclass(frozen=True, eq=False)
class StoredLog:
    """The content of a trajectory file: the arrays, and whether their space was inferred when they were logged."""

    arrays: LoggedArrays
    space_inferred: bool


def write_log(path: str | os.PathLike[str], log: LoggedArrays, space_inferred: bool) -> Path:
    """Write one file, atomically. Returns the path written, which ends in ".npz"."""
    path = _with_npz(path)
    version = SCHEMA_VERSION if log.importance_ratios is None else RATIOS_SCHEMA_VERSION
    assert log.observation_space is not None
    header = {
        "schema_version": NO_ACTIONS_SCHEMA_VERSION if log.actions is None else version,
        "env_id": log.env_id,
        "policy": log.policy,
        "observation_space": space_to_json(log.observation_space),
        "space_inferred": space_inferred,
    }
    arrays: dict[str, np.ndarray] = {}
    for name in ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "episode_ends"):
        if getattr(log, name) is not None:
            arrays |= dict(named_leaves(getattr(log, name), name))
    if log.importance_ratios is not None:
        arrays["importance_ratios"] = log.importance_ratios
    write_archive(path, header, arrays)
    return path


def stored_log(path: str | os.PathLike[str]) -> StoredLog:
    """Read what `write_log` wrote.

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
        log = LoggedArrays(
            observations=_collect(arrays, "observations", space),
            actions=None if version == NO_ACTIONS_SCHEMA_VERSION else arrays["actions"],
            next_observations=_collect(arrays, "next_observations", space),
            observation_space=space,
            env_id=header["env_id"],
            policy=header["policy"],
            importance_ratios=_ratios(arrays, version),
            rewards=arrays["rewards"],
            terminated=arrays["terminated"],
            truncated=arrays["truncated"],
            episode_ends=arrays["episode_ends"],
        )
        return StoredLog(log, header["space_inferred"])
    except Exception as error:
        raise ValueError(f"{path} is not a trajectory file that can be read: {error}") from error


def _ratios(arrays: dict[str, np.ndarray], version: int) -> np.ndarray | None:
    if version == NO_ACTIONS_SCHEMA_VERSION:
        return arrays.get("importance_ratios")
    return arrays["importance_ratios"] if version == RATIOS_SCHEMA_VERSION else None


def _with_npz(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")


def _collect(arrays: dict[str, np.ndarray], name: str, space: spaces.Space) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: _collect(arrays, f"{name}[{key!r}]", part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_collect(arrays, f"{name}[{i}]", part) for i, part in enumerate(space.spaces))
    return arrays[name]
