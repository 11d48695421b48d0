"""Observation spaces as JSON, so that a log on disk says what it holds without pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces


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
        return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _compact(space.low),
            "high": _compact(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    supported = "Box, Discrete, MultiDiscrete, MultiBinary, Dict, Tuple"
    raise TypeError(
        f"observation space {space} has no array form; supported: {supported} (icrl_gym.ArrayObservations leaves such "
        "parts of a Dict or Tuple out)"
    )


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
