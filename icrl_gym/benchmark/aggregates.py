"""Figures over a (runs x tasks) matrix of scores, with stratified bootstrap intervals.

Definitions follow Agarwal et al. 2021 (*Deep Reinforcement Learning at the Edge of the Statistical Precipice*): runs
are resampled with replacement within each task, tasks are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Aggregate:
    """A figure with its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores_RT: np.ndarray) -> float:
    """Mean of the middle half of all scores."""
    return float(stats.trim_mean(scores_RT.ravel(), proportiontocut=0.25))


def median(scores_RT: np.ndarray) -> float:
    """Median over tasks of the mean over runs."""
    return float(np.median(scores_RT.mean(axis=0)))


def optimality_gap(scores_RT: np.ndarray, target: float = 1.0) -> float:
    """Mean shortfall below ``target``, for scores where more is better."""
    return float(target - np.minimum(scores_RT, target).mean())


def geometric_mean(scores_RT: np.ndarray) -> float:
    """Of positive scores, such as errors or ratios of errors."""
    return float(np.exp(np.log(scores_RT).mean()))


def performance_profile(scores_RT: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs with a score above each threshold, averaged over tasks, (thresholds,)."""
    return (scores_RT[:, :, None] > thresholds).mean(axis=(0, 1))


def probability_of_improvement(ours_RT: np.ndarray, theirs_RT: np.ndarray) -> float:
    """P(a run of ours scores above a run of theirs) on a task, ties counted half, averaged over tasks."""
    above = ours_RT[:, None, :] > theirs_RT[None, :, :]
    equal = ours_RT[:, None, :] == theirs_RT[None, :, :]
    return float((above + 0.5 * equal).mean())


def with_interval(statistic: Statistic, scores_RT: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> Aggregate:
    """A statistic with its stratified bootstrap interval.

    Raises:
        ValueError: the matrix is empty or holds a number that is not finite.
    """
    if scores_RT.ndim != 2 or not scores_RT.size:
        raise ValueError(f"scores must be a non-empty (runs x tasks) matrix, got shape {scores_RT.shape}")
    if not np.isfinite(scores_RT).all():
        raise ValueError("scores must be finite; leave failed cells out or give them a stated worst score")
    rng = np.random.default_rng(seed)
    num_runs, num_tasks = scores_RT.shape
    columns = np.arange(num_tasks)
    draws = [statistic(scores_RT[rng.integers(num_runs, size=scores_RT.shape), columns]) for _ in range(num_resamples)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Aggregate(statistic(scores_RT), float(low), float(high))
