"""Figures over (runs x tasks) matrices of scores, with stratified bootstrap intervals.

Statistics take one matrix (R, T) or a stack of them (..., R, T), and give one number per matrix. Definitions follow
Agarwal et al. 2021 (*Deep Reinforcement Learning at the Edge of the Statistical Precipice*): runs are resampled with
replacement within each task, tasks are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray], np.ndarray]
PairedStatistic = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Aggregate:
    """A figure with its 95 % percentile interval."""

    value: float
    low: float
    high: float


def interquartile_mean(scores_RT: np.ndarray) -> np.ndarray:
    """Mean of the middle half of all scores."""
    return stats.trim_mean(scores_RT.reshape(*scores_RT.shape[:-2], -1), proportiontocut=0.25, axis=-1)


def median(scores_RT: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median(scores_RT.mean(axis=-2), axis=-1)


def optimality_gap(scores_RT: np.ndarray, target: float = 1.0) -> np.ndarray:
    """Mean shortfall below ``target``, for scores where more is better."""
    return target - np.minimum(scores_RT, target).mean(axis=(-2, -1))


def mean(scores_RT: np.ndarray) -> np.ndarray:
    """Plain mean."""
    return scores_RT.mean(axis=(-2, -1))


def geometric_mean(scores_RT: np.ndarray) -> np.ndarray:
    """Of positive scores, such as errors or ratios of errors."""
    return np.exp(np.log(scores_RT).mean(axis=(-2, -1)))


def performance_profile(scores_RT: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of runs with a score above each threshold, averaged over tasks, (thresholds,)."""
    return (scores_RT[:, :, None] > thresholds).mean(axis=(0, 1))


def probability_of_improvement(ours_RT: np.ndarray, theirs_RT: np.ndarray) -> np.ndarray:
    """P(a run of ours scores above a run of theirs) on a task, ties counted half, averaged over tasks."""
    ours, theirs = ours_RT[..., :, None, :], theirs_RT[..., None, :, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(-3, -2, -1))


def with_interval(statistic: Statistic, scores_RT: np.ndarray, num_resamples: int = 2000, seed: int = 0) -> Aggregate:
    """A statistic with its stratified bootstrap interval.

    Args:
        statistic: of one matrix, or of each in a stack.
        scores_RT: NaN where a task has fewer runs than others; every task weighs the same.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the matrix is empty, holds an infinite number, or a task has no run.
    """
    draws = statistic(_resampled(scores_RT, num_resamples, np.random.default_rng(seed)))
    return _aggregate(statistic(_balanced(scores_RT)), draws)


def with_paired_interval(
    statistic: PairedStatistic, ours_RT: np.ndarray, theirs_RT: np.ndarray, num_resamples: int = 2000, seed: int = 0
) -> Aggregate:
    """A statistic of two matrices over the same tasks, each resampled by itself, with its interval.

    Raises:
        ValueError: as `with_interval`, or the numbers of tasks differ.
    """
    if ours_RT.shape[-1:] != theirs_RT.shape[-1:]:
        raise ValueError(f"both matrices must have the same tasks, got shapes {ours_RT.shape} and {theirs_RT.shape}")
    rng = np.random.default_rng(seed)
    draws = [_resampled(scores_RT, num_resamples, rng) for scores_RT in (ours_RT, theirs_RT)]
    return _aggregate(statistic(_balanced(ours_RT), _balanced(theirs_RT)), statistic(*draws))


def _resampled(scores_RT: np.ndarray, num_resamples: int, rng: np.random.Generator) -> np.ndarray:
    """(num_resamples, R, T): runs drawn with replacement within each task."""
    if scores_RT.ndim != 2 or not scores_RT.size:
        raise ValueError(f"scores must be a non-empty (runs x tasks) matrix, got shape {scores_RT.shape}")
    counts_T = np.isfinite(scores_RT).sum(axis=0)
    if np.isinf(scores_RT).any() or not counts_T.all():
        raise ValueError("scores must be finite, with a run of every task; leave failed tasks out")
    packed_RT = np.sort(scores_RT, axis=0)  # NaN last
    picked = rng.integers(counts_T, size=(num_resamples, *scores_RT.shape))
    return packed_RT[picked, np.arange(scores_RT.shape[1])]


def _balanced(scores_RT: np.ndarray) -> np.ndarray:
    """The runs of each task repeated until all have the same number."""
    columns = [column[np.isfinite(column)] for column in scores_RT.T]
    num_rows = math.lcm(*map(len, columns))
    return np.stack([np.tile(column, num_rows // len(column)) for column in columns], axis=1)


def _aggregate(value: np.ndarray, draws: np.ndarray) -> Aggregate:
    low, high = np.percentile(draws, [2.5, 97.5])
    return Aggregate(float(value), float(low), float(high))
