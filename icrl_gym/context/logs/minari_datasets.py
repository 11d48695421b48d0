"""Minari's datasets, read and written. Their episodes hold every state, the last one too, so nothing is assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.context.logs.logged_arrays import LoggedArrays, missing_package
from icrl_gym.observations import concatenate, infer_space, map_leaves, take


def minari_log(dataset: Any) -> LoggedArrays:
    """The transitions of a dataset, one episode after another.

    Args:
        dataset: a ``minari.MinariDataset``, or the id of one that is on this machine; nothing is downloaded.

    Raises:
        ImportError: minari is not installed.
        FileNotFoundError: there is no dataset of this id here.
        ValueError: it holds no transition.
        TypeError: its actions are no arrays.
    """
    dataset = _loaded(dataset) if isinstance(dataset, str) else dataset
    if not hasattr(dataset, "iterate_episodes"):
        raise TypeError(f"dataset must be a MinariDataset or the id of one, got {type(dataset).__name__}")
    if not isinstance(dataset.action_space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise TypeError(f"minari dataset {dataset.id}: its actions have no array form: {dataset.action_space}")
    episodes = [episode for episode in dataset.iterate_episodes() if len(episode.rewards)]
    if not episodes:
        raise ValueError(f"minari dataset {dataset.id} holds no transition")
    lengths = np.array([len(episode.rewards) for episode in episodes])
    ends = np.zeros(lengths.sum(), dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    terminated = np.concatenate([np.asarray(episode.terminations, dtype=bool) for episode in episodes])
    truncated = np.concatenate([np.asarray(episode.truncations, dtype=bool) for episode in episodes])
    observations = [map_leaves(np.asarray, episode.observations) for episode in episodes]
    return LoggedArrays(
        concatenate([take(states, slice(-1)) for states in observations]),
        np.concatenate([np.asarray(episode.actions) for episode in episodes]),
        np.concatenate([np.asarray(episode.rewards, dtype=np.float64) for episode in episodes]),
        concatenate([take(states, slice(1, None)) for states in observations]),
        terminated,
        truncated & ~terminated,
        ends,
        observation_space=dataset.observation_space,
        env_id=_identity(dataset.env_spec),
        reading=f"minari dataset {dataset.id}, {len(episodes)} episodes",
    )


def _loaded(dataset_id: str) -> Any:
    try:
        import minari
    except ImportError as error:
        raise missing_package("minari", f"minari dataset {dataset_id!r}: reading it") from error
    try:
        return minari.load_dataset(dataset_id)
    except FileNotFoundError:
        here = sorted(minari.list_local_datasets())
        among = f"here are {', '.join(here)}" if here else "there is none here"
        raise FileNotFoundError(
            f"minari dataset {dataset_id!r} is not on this machine ({among}): minari download {dataset_id}"
        ) from None


def _identity(spec: Any) -> str | None:
    """The environment's name as the library writes it; arguments that are the defaults are named all the same."""
    if spec is None:
        return None
    arguments = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    return spec.id + (f" {json.dumps(arguments, sort_keys=True, default=str)}" if arguments else "")


def write_minari(
    log: LoggedArrays, dataset_id: str, action_space: spaces.Space | None = None, **description: Any
) -> Any:
    """Make a Minari dataset of a log, one episode per stretch; see `Trajectory.to_minari`.

    Raises:
        ImportError: minari is not installed.
        ValueError: the log has no actions, or minari refuses it (the id is taken or malformed).
    """
    try:
        from minari import create_dataset_from_buffers
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise missing_package("minari", "to_minari") from error
    if log.actions is None:
        raise ValueError("to_minari needs the logged actions, and this trajectory has actions=None")
    buffers = [
        EpisodeBuffer(id=number, **_episode(log, rows)) for number, rows in enumerate(_stretches(log.episode_ends))
    ]
    return create_dataset_from_buffers(
        dataset_id, buffers, observation_space=log.observation_space, jpeg_encoding=False,
        action_space=infer_space(log.actions) if action_space is None else action_space, **description,
    )  # fmt: skip


def _stretches(ends: np.ndarray) -> Iterator[slice]:
    """The rows of each stretch."""
    first = 0
    for last in np.flatnonzero(ends).tolist():
        yield slice(first, last + 1)
        first = last + 1


def _episode(log: LoggedArrays, rows: slice) -> dict[str, Any]:
    """The fields of Minari's buffer of one episode, the state that it ended in among its observations."""
    final = take(log.next_observations, slice(rows.stop - 1, rows.stop))
    assert log.actions is not None
    return {
        "observations": concatenate([take(log.observations, rows), final]),
        "actions": log.actions[rows],
        "rewards": log.rewards[rows],
        "terminations": log.terminated[rows],
        "truncations": log.truncated[rows],
        "infos": {},
    }
