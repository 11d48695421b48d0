"""Fields of a logged trajectory: what each must be, which space holds the observations, and where episodes end."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.observations import (
    Observations,
    as_numeric,
    batch_size,
    check_finite,
    infer_space,
    map_leaves,
    rows_equal,
    take,
)


def flags(values: Any, name: str) -> np.ndarray:
    """Booleans (n,); raises ValueError for another shape and TypeError for anything but True, False, 1 and 0."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have shape (n,), got {array.shape}")
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array.astype(bool)


def checked_ratios(ratios: Any, length: int) -> np.ndarray | None:
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


def common_space(observations: Any, next_observations: Any) -> spaces.Space:
    """The space of logged arrays, the successors included."""

    def inferred(tree: Any, name: str) -> spaces.Space:
        return infer_space(map_leaves(lambda leaf: as_numeric(leaf, name), tree))

    return larger_space(inferred(observations, "observations"), inferred(next_observations, "next_observations"))


def larger_space(first: spaces.Space, second: spaces.Space) -> spaces.Space:
    """The first space with the larger number of ids of the two wherever both are Discrete."""
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict) and set(first) == set(second):
        return spaces.Dict({key: larger_space(first[key], second[key]) for key in first.spaces})
    if isinstance(first, spaces.Tuple) and isinstance(second, spaces.Tuple):
        pairs = zip(first.spaces, second.spaces, strict=False)
        return first if len(first) != len(second) else spaces.Tuple([larger_space(*pair) for pair in pairs])
    if isinstance(first, spaces.Discrete) and isinstance(second, spaces.Discrete):
        return spaces.Discrete(max(int(first.n), int(second.n)))
    return first


def check_lengths(columns: dict[str, Any]) -> None:
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


def check_values(observations: Observations, space: spaces.Space, name: str) -> None:
    """Everything finite, and ids of Discrete spaces within them."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            check_values(observations[key], part, f"{name}[{key!r}]")
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            check_values(observations[index], part, f"{name}[{index}]")
    else:
        check_finite(observations, name)
        if isinstance(space, spaces.Discrete):
            _check_ids(observations, space, name)


def _check_ids(ids: np.ndarray, space: spaces.Discrete, name: str) -> None:
    outside = (ids < space.start) | (ids >= space.start + space.n)
    if outside.any():
        index = int(np.flatnonzero(outside)[0])
        raise ValueError(f"{name} must lie in {space}: {name}[{index}] is {ids[index]}")


def checked_episode_ends(episode_ends: Any, stated: np.ndarray) -> np.ndarray:
    """Ends (n,) as somebody gave them; raises ValueError where they deny an end that the flags (n,) ``stated``."""
    ends = flags(episode_ends, "episode_ends")
    if len(ends) != len(stated):
        raise ValueError(f"episode_ends must have length {len(stated)}, got {len(ends)}")
    denied = stated & ~ends
    denied[-1] |= not ends[-1]
    if denied.any():
        index = int(np.flatnonzero(denied)[0])
        raise ValueError(f"episode_ends[{index}] is False but a flag is set there or the log stops")
    return ends


def default_episode_ends(observations: Observations, next_observations: Observations, stated: np.ndarray) -> np.ndarray:
    """Ends (n,): those that the flags ``stated``, the last row, and rows that the next observation does not succeed."""
    ends = stated.copy()
    ends[-1] = True
    ends[:-1] |= ~rows_equal(take(next_observations, slice(-1)), take(observations, slice(1, None)))
    return ends
