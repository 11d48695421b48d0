"""Means with intervals that cover what they say, and the few other figures over many scores.

Scores come in groups: a group is one policy in one environment, its scores are those of the contexts. Contexts are
drawn at random, policies are the ones listed; so an interval of `mean_interval` is about these policies and other
contexts of theirs. What is said of environments in general is said by `interval_over_groups`, where the environments
are the sample. Both are Student's, since the few contexts of a policy (five, say) make percentile bootstrap intervals
too narrow: tests/test_statistics.py measures the coverage.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

LEVEL = 0.95


@dataclass(frozen=True)
class Aggregate:
    """A figure with its interval; the ends are NaN where the scores do not allow one."""

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def exponentiated(self) -> Aggregate:
        """The same of the exponentials: a mean of logarithms becomes a geometric mean."""
        return Aggregate(math.exp(self.value), _exp(self.low), _exp(self.high))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def mean_interval(groups: Sequence[np.ndarray], level: float = LEVEL) -> Aggregate:
    """The mean over groups of the groups' means, with an interval over the scores inside the groups.

    The variance of that mean is sum_g s_g^2 / n_g / G^2, its degrees of freedom are Welch and Satterthwaite's. Where a
    group holds a single score, the spread inside it is not known, and all scores count as one sample, so that the
    spread between the groups widens the interval. A single score has no interval.

    Args:
        groups: one array of finite scores per group, none empty.
        level: coverage of the interval, in (0, 1).
    """
    sizes, means = np.array([len(group) for group in groups]), np.array([group.mean() for group in groups])
    value = float(means.mean())
    if sizes.min() < 2:
        return _student(value, np.concatenate(groups), level)
    parts = np.array([group.var(ddof=1) for group in groups]) / sizes / len(groups) ** 2
    total = float(parts.sum())
    if total == 0:
        return Aggregate(value, value, value)
    freedom = total**2 / float((parts**2 / (sizes - 1)).sum())
    return _around(value, math.sqrt(total), freedom, level)


def interval_over_groups(groups: Sequence[np.ndarray], level: float = LEVEL) -> Aggregate:
    """The same mean with an interval over the groups: what another draw of groups (environments, say) would give.

    One group has no such interval.
    """
    means = np.array([group.mean() for group in groups])
    return _student(float(means.mean()), means, level)


def _student(value: float, sample: np.ndarray, level: float) -> Aggregate:
    if len(sample) < 2:
        return Aggregate(value, math.nan, math.nan)
    return _around(value, float(sample.std(ddof=1)) / math.sqrt(len(sample)), len(sample) - 1, level)


def _around(value: float, standard_error: float, freedom: float, level: float) -> Aggregate:
    half_width = standard_error * float(special.stdtrit(freedom, 0.5 + level / 2))
    return Aggregate(value, value - half_width, value + half_width)


def geometric_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Geometric mean of positive scores, such as errors or ratios of errors."""
    return float(stats.gmean(np.asarray(scores, dtype=np.float64)))


def interquartile_mean(scores: Sequence[float] | np.ndarray) -> float:
    """Mean of the middle half of all scores (Agarwal et al. 2021)."""
    return float(stats.trim_mean(np.asarray(scores, dtype=np.float64), proportiontocut=0.25))


def performance_profile(scores_GU: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Share of scores of at most each threshold, every group of equal weight, (thresholds,) (Agarwal et al. 2021)."""
    return np.mean([(scores[:, None] <= thresholds).mean(axis=0) for scores in scores_GU], axis=0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation, ties with their mean rank; NaN where one side is constant or a single number."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    correlation: Any = stats.spearmanr(a, b)
    return float(correlation.statistic)


def bootstrap_interval(
    samples: np.ndarray,
    statistic: Callable[..., np.ndarray] = np.mean,
    *,
    level: float = LEVEL,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent samples.

    Args:
        samples: (N, ...), resampled along the first axis; N >= 2.
        statistic: takes ``axis`` and reduces that axis.
        level: coverage of the interval, in (0, 1).
        num_resamples: number of bootstrap resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Returns:
        Low and high end; both are the statistic itself where all samples are equal.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (samples,), statistic, axis=0, confidence_level=level, n_resamples=num_resamples, method="percentile",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
