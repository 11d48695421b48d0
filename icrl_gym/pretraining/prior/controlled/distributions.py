"""Random numbers that parameters are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def log_uniform(rng: np.random.Generator, low: float, high: float, size: Any = None) -> Any:
    """Numbers whose logarithm is uniform between those of ``low`` and ``high``; a float without ``size``."""
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


def chance(rng: np.random.Generator, probability: float) -> bool:
    """True with this probability."""
    return bool(rng.random() < probability)


def pick(rng: np.random.Generator, options: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """One of the options, each as likely or by weight."""
    shares = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)
    return options[int(rng.choice(len(options), p=shares))]


def subset(rng: np.random.Generator, size: int, most: int) -> np.ndarray:
    """Between one and ``most`` distinct indices below ``size``, sorted."""
    count = int(rng.integers(1, min(size, most) + 1))
    return np.sort(rng.permutation(size)[:count])
