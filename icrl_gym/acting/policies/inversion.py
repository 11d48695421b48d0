"""Random actions as functions of given uniform numbers, by inversion of the cumulative distribution."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces


def index_by_inversion(probability_BA: np.ndarray, uniform_B: np.ndarray) -> np.ndarray:
    """One index per row of (B, A), in [0, A); an index of probability zero is never drawn."""
    cumulative_BA = np.cumsum(probability_BA, axis=1)
    threshold_B1 = uniform_B[:, None] * cumulative_BA[:, -1:]
    last_B = probability_BA.shape[1] - 1 - (probability_BA[:, ::-1] > 0).argmax(axis=1)
    return np.minimum((threshold_B1 >= cumulative_BA).sum(axis=1), last_B)


def normal_quantiles(uniform: np.ndarray) -> np.ndarray:
    """Quantiles of the standard normal distribution, float64, in the shape of ``uniform``."""
    return torch.special.ndtri(torch.as_tensor(uniform, dtype=torch.float64)).numpy()


def numbers_in_action(space: spaces.Space) -> int:
    """How many numbers an action of this space is.

    Raises:
        ValueError: an action of this space is no array.
    """
    if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Box)):
        raise ValueError(f"policy: actions must be arrays, the action space is {space}")
    return int(np.prod(space.shape or ()))


def action_by_inversion(space: spaces.Space, noise_BU: np.ndarray) -> np.ndarray:
    """Actions (B,) + shape, distributed as those of ``space.sample``, from U = `numbers_in_action` uniforms each."""
    assert space.shape is not None
    noise = noise_BU.reshape(len(noise_BU), *space.shape)
    if isinstance(space, spaces.Discrete):
        return space.start + np.minimum((noise * space.n).astype(np.int64), space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + np.minimum(np.floor(noise * space.nvec), space.nvec - 1)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return (noise >= 0.5).astype(space.dtype)
    assert isinstance(space, spaces.Box)
    return _in_box(space, noise)


def _in_box(space: spaces.Box, noise: np.ndarray) -> np.ndarray:
    """Uniform between two bounds, exponential from one, normal without; integers are rounded down, as in `sample`."""
    real = space.dtype.kind == "f"
    low, high = space.low.astype(np.float64), space.high.astype(np.float64) + (0.0 if real else 1.0)
    below, above = space.bounded_below, space.bounded_above
    first, last = np.where(below, low, 0.0), np.where(above, high, 0.0)
    drawn = np.where(below & above, first + noise * (last - first), normal_quantiles(noise))
    exponential = -np.log1p(-noise)
    drawn = np.where(below & ~above, first + exponential, drawn)
    drawn = np.where(~below & above, last - exponential, drawn)
    if real:
        return drawn.astype(space.dtype)
    return np.clip(np.floor(drawn), space.low, space.high).astype(space.dtype)
