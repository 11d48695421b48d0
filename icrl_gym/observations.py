"""Batches of observations: one array, or a dict / tuple of arrays that share their first axis.

The structure follows the observation space (Dict -> dict, Tuple -> tuple); leaves are NumPy arrays with the batch axis
first. Everything that has to work on "observations of any space" goes through these few functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

Observations = Any  # an ndarray, or a (nested) dict or tuple of ndarrays, batch axis first


def map_leaves(function: Callable[..., Any], first: Observations, *others: Observations) -> Observations:
    """Apply ``function`` to the corresponding leaves of trees with one structure."""
    if isinstance(first, dict):
        return {key: map_leaves(function, first[key], *(other[key] for other in others)) for key in first}
    if isinstance(first, tuple):
        return tuple(map_leaves(function, *parts) for parts in zip(first, *others, strict=True))
    return function(first, *others)


def named_leaves(observations: Observations, name: str) -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)``; the path starts with ``name``, as in ``observations['goal'][0]``."""
    if isinstance(observations, dict):
        for key, part in observations.items():
            yield from named_leaves(part, f"{name}[{key!r}]")
    elif isinstance(observations, tuple):
        for index, part in enumerate(observations):
            yield from named_leaves(part, f"{name}[{index}]")
    else:
        yield name, observations


def batch_size(observations: Observations) -> int:
    """Length of the batch axis."""
    return len(next(named_leaves(observations, ""))[1])


def take(observations: Observations, index: Any) -> Observations:
    """Index the batch axis of every leaf (an integer array, a mask or a slice)."""
    return map_leaves(lambda leaf: leaf[index], observations)


def concatenate(parts: list[Observations]) -> Observations:
    """Join batches along the batch axis."""
    return map_leaves(lambda *leaves: np.concatenate(leaves), *parts)


def stack(single: list[Observations]) -> Observations:
    """Make a batch of single (unbatched) observations."""
    return map_leaves(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *single)


def rows_equal(first: Observations, second: Observations) -> np.ndarray:
    """Which rows of two batches are equal in every leaf, (B,) bool."""
    leaves = map_leaves(lambda a, b: np.all(a == b, axis=tuple(range(1, a.ndim))), first, second)
    equal = np.ones(batch_size(first), dtype=bool)
    for _, rows in named_leaves(leaves, ""):
        equal &= rows
    return equal


def infer_space(observations: Observations) -> spaces.Space:
    """The space of logged arrays: 1-D integers are Discrete(max + 1), everything else is an unbounded Box."""
    if isinstance(observations, dict):
        return spaces.Dict({key: infer_space(part) for key, part in observations.items()})
    if isinstance(observations, tuple):
        return spaces.Tuple([infer_space(part) for part in observations])
    if observations.ndim == 1 and np.issubdtype(observations.dtype, np.integer):
        return spaces.Discrete(int(observations.max(initial=0)) + 1)
    return spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float64)


def as_batch(observations: Any, space: spaces.Space, name: str) -> Observations:
    """Check raw observations against a space and return them as arrays with a batch axis.

    Args:
        observations: (B,) + space.shape; Discrete is int (B,); Dict and Tuple keep their structure.
        space: the observation space.
        name: the argument's name in errors.

    Raises:
        TypeError: the structure is not the space's, a leaf is not numeric, or ids of a Discrete space are no integers.
        ValueError: a leaf has the wrong shape, or batch lengths disagree.

    Ids beyond a Discrete space pass: an id that was never seen is for the features to judge.
    """
    batch = _as_arrays(observations, space, name)
    lengths = {path: len(leaf) for path, leaf in named_leaves(batch, name)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: batch lengths disagree: {lengths}")
    return batch


def _as_arrays(observations: Any, space: spaces.Space, name: str) -> Observations:
    if isinstance(space, spaces.Dict):
        if not isinstance(observations, dict) or set(observations) != set(space.spaces):
            got = sorted(observations) if isinstance(observations, dict) else type(observations).__name__
            raise TypeError(f"{name} must be a dict with keys {sorted(space.spaces)}, got {got}")
        return {key: _as_arrays(observations[key], part, f"{name}[{key!r}]") for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        if not isinstance(observations, tuple) or len(observations) != len(space.spaces):
            raise TypeError(f"{name} must be a tuple of {len(space.spaces)} batches, got {type(observations).__name__}")
        parts = zip(observations, space.spaces, strict=True)
        return tuple(_as_arrays(part, sub, f"{name}[{i}]") for i, (part, sub) in enumerate(parts))
    if isinstance(observations, (dict, tuple)):
        raise TypeError(f"{name} must be one array for {space}, got a {type(observations).__name__}")
    return _as_array(observations, space, name)


def _as_array(observations: Any, space: spaces.Space, name: str) -> np.ndarray:
    array = as_numeric(observations, name)
    shape = () if space.shape is None else tuple(space.shape)
    if array.ndim == 0 or array.shape[1:] != shape:
        wanted = "(B,)" if not shape else f"(B, {', '.join(map(str, shape))})"
        raise ValueError(f"{name} must have shape {wanted} for {space}, got {array.shape}")
    if isinstance(space, spaces.Discrete) and array.size and not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers for {space}, got dtype {array.dtype}")
    return array


def as_numeric(values: Any, name: str) -> np.ndarray:
    """One numeric or boolean array.

    Raises:
        TypeError: some entries are no numbers.
        ValueError: the rows have different lengths.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be one array, got rows of different shapes") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be numeric, got dtype {array.dtype}")
    return array


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise ValueError naming the field and the first index that is NaN or infinite."""
    bad = ~np.isfinite(array)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name} must be finite: {name}{list(index)} is {array[index]}")
