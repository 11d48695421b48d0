"""`score`: how near an estimate is to the truth, with the truth's own noise accounted for.

With estimate u_i, observed truth t_i = V_i + noise_i and the truth's standard error s_i (0 for an exact solve),
e_i = u_i - t_i and i = 1..n over the queries, all weighted alike, in units of the environment's reward:

    noise_floor = sqrt(mean s^2)                     the RMSE that a perfect estimate is expected to show
    rmse        = sqrt(mean e^2)                     rmse_corrected      = sqrt(max(rmse^2 - noise_floor^2, 0))
    truth_std   = population std of t                truth_std_corrected = sqrt(max(truth_std^2 - c, 0))
                                                     c = (1 - 1/n) noise_floor^2, the noise's share of a variance
    rmse_over_std       = rmse / truth_std           ..._corrected = rmse_corrected / truth_std_corrected
    rmse_over_magnitude = rmse / mean |t|            ..._corrected = rmse_corrected / mean |t|
    bias                = mean e                     unbiased as it is; bias_noise = noise_floor / sqrt(n) is the part
                                                     of its standard error that the truth alone causes
    explained_variance  = 1 - var e / truth_std^2    ..._corrected = 1 - max(var e - c, 0) / truth_std_corrected^2
    spearman            = rank correlation of u, t   ..._corrected = spearman * truth_std / truth_std_corrected,
                                                     clipped to [-1, 1] (correction for attenuation)
    coverage            = share of queries whose t lies in the estimate's 90 % interval, each side of it widened by
                          z s_i in quadrature; width = mean width of the estimate's own interval
    interval_score_ratio = interval score of these widened intervals over that of the best constant interval, the one
                          between the truth's own 5 % and 95 % quantiles; the interval score (Gneiting & Raftery 2007)
                          is the mean of width + (2 / .1) * how far t_i lies outside

The corrections assume that noise is independent between queries, has mean zero and does not depend on the estimate.
A figure that is not defined (no spread, one query, no interval) is NaN, and ``notes`` says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np

from icrl_gym.observations import Observations, check_finite, named_leaves
from icrl_gym.scoring.statistics import rank_correlation
from icrl_gym.tracking import ScalarWriter
from icrl_gym.values import ValueEstimates

INTERVAL_LEVEL = 0.9
_ROUNDING = 1e-12  # a spread below this share of the largest magnitude is rounding, not spread


@dataclass(frozen=True)
class Score:
    """An estimate judged against a truth; the module's docstring defines every figure.

    NaN stands for "not defined", with the reason in ``notes``.
    """

    n: int
    rmse: float
    rmse_over_std: float
    rmse_over_magnitude: float
    bias: float
    explained_variance: float
    spearman: float
    coverage: float
    width: float
    interval_score_ratio: float
    noise_floor: float
    bias_noise: float
    truth_std: float
    truth_magnitude: float
    rmse_corrected: float
    truth_std_corrected: float
    rmse_over_std_corrected: float
    rmse_over_magnitude_corrected: float
    explained_variance_corrected: float
    spearman_corrected: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, ``notes`` as a list; undefined figures are NaN."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**record, "notes": list(self.notes)}

    def log(self, writer: ScalarWriter, step: int, prefix: str = "score") -> None:
        """Write each defined figure as the scalar ``<prefix>/<name>`` to a TensorBoard writer."""
        for name, figure in self.as_dict().items():
            if name != "notes" and math.isfinite(figure):
                writer.add_scalar(f"{prefix}/{name}", figure, step)


def score(estimate: ValueEstimates, truth: ValueEstimates) -> Score:
    """Judge ``estimate`` against ``truth``, query by query.

    Args:
        estimate: values at n queries; its ``interval`` is judged where it has a standard error.
        truth: values at the same n queries in the same order; ``stderr`` None means that they are exact.

    Raises:
        ValueError: the estimands differ, the lengths differ, there is no query, the queries are not the same states, or
            a value or standard error is NaN or infinite.
    """
    estimate.estimand.check_matches(truth.estimand)
    _check_same_queries(estimate, truth)
    noise = np.zeros(len(truth)) if truth.stderr is None else np.asarray(truth.stderr, dtype=np.float64)
    for name, array in (("estimate.values", estimate.values), ("truth.values", truth.values), ("truth.stderr", noise)):
        check_finite(np.asarray(array), name)
    spread = _spread_figures(estimate.values, truth.values, float(np.sqrt(np.mean(noise**2))))
    intervals = _interval_figures(estimate, truth.values, noise)
    return Score(n=len(truth), notes=_notes(estimate, truth, spread), **intervals, **spread)


def _spread_figures(values: np.ndarray, truth: np.ndarray, noise_floor: float) -> dict[str, float]:
    """Every figure that does not concern intervals."""
    n = len(truth)
    error = values - truth
    noise_variance = (1 - 1 / n) * noise_floor**2
    rmse = float(np.sqrt(np.mean(error**2)))
    truth_std, magnitude = _std(truth), float(np.mean(np.abs(truth)))
    rmse_corrected = math.sqrt(max(rmse**2 - noise_floor**2, 0.0))
    std_corrected = math.sqrt(max(truth_std**2 - noise_variance, 0.0))
    error_variance = float(np.var(error))
    spearman = _spearman(values, truth)
    return {
        "rmse": rmse,
        "rmse_over_std": _ratio(rmse, truth_std),
        "rmse_over_magnitude": _ratio(rmse, magnitude),
        "bias": float(np.mean(error)),
        "explained_variance": 1 - _ratio(error_variance, truth_std**2),
        "spearman": spearman,
        "noise_floor": noise_floor,
        "bias_noise": noise_floor / math.sqrt(n),
        "truth_std": truth_std,
        "truth_magnitude": magnitude,
        "rmse_corrected": rmse_corrected,
        "truth_std_corrected": std_corrected,
        "rmse_over_std_corrected": _ratio(rmse_corrected, std_corrected),
        "rmse_over_magnitude_corrected": _ratio(rmse_corrected, magnitude),
        "explained_variance_corrected": 1 - _ratio(max(error_variance - noise_variance, 0.0), std_corrected**2),
        "spearman_corrected": float(np.clip(spearman * _ratio(truth_std, std_corrected), -1.0, 1.0)),
    }


def _std(values: np.ndarray) -> float:
    """Population standard deviation; exactly zero where the spread is no more than rounding."""
    constant = np.ptp(values) <= _ROUNDING * np.max(np.abs(values))
    return 0.0 if constant else float(np.std(values))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan


def _spearman(values: np.ndarray, truth: np.ndarray) -> float:
    if _std(values) == 0 or _std(truth) == 0:
        return math.nan
    return rank_correlation(values, truth)


def _interval_figures(estimate: ValueEstimates, truth: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """Every figure that concerns intervals, NaN without them."""
    if estimate.stderr is None:
        return dict.fromkeys(("coverage", "width", "interval_score_ratio"), math.nan)
    low, high = estimate.interval(INTERVAL_LEVEL)
    check_finite(high - low, "estimate.interval")
    margin = NormalDist().inv_cdf(0.5 + INTERVAL_LEVEL / 2) * noise
    wider_low = estimate.values - np.hypot(estimate.values - low, margin)
    wider_high = estimate.values + np.hypot(high - estimate.values, margin)
    least, most = (float(np.quantile(truth, 0.5 + side * INTERVAL_LEVEL / 2)) for side in (-1, 1))
    spread = 0.0 if _std(truth) == 0 else _interval_score(least, most, truth)
    return {
        "coverage": float(np.mean((truth >= wider_low) & (truth <= wider_high))),
        "width": float(np.mean(high - low)),
        "interval_score_ratio": _ratio(_interval_score(wider_low, wider_high, truth), spread),
    }


def _interval_score(low: np.ndarray | float, high: np.ndarray | float, truth: np.ndarray) -> float:
    """Mean width, and what lies outside at 2 over the share that may."""
    outside = np.maximum(low - truth, 0.0) + np.maximum(truth - high, 0.0)
    return float(np.mean(high - low + 2.0 / (1.0 - INTERVAL_LEVEL) * outside))


def _notes(estimate: ValueEstimates, truth: ValueEstimates, figures: dict[str, float]) -> tuple[str, ...]:
    notes = []
    if figures["truth_std"] == 0:
        reason = "there is one query" if len(truth) == 1 else "the truth is constant"
        notes.append(f"{reason}: RMSE / std, explained variance and Spearman are not defined")
    elif figures["truth_std_corrected"] <= figures["noise_floor"]:
        notes.append("the truth's spread is no larger than its noise: judge by RMSE / mean magnitude")
    elif _std(estimate.values) == 0:
        notes.append("the estimate is constant: Spearman is not defined")
    if figures["truth_magnitude"] == 0:
        notes.append("the truth is zero everywhere: RMSE / mean magnitude is not defined")
    if estimate.stderr is None:
        notes.append("the estimate has no standard error: coverage, width and interval score are not defined")
    return tuple(notes)


def _check_same_queries(estimate: ValueEstimates, truth: ValueEstimates) -> None:
    if np.shape(estimate.values) != np.shape(truth.values) or np.ndim(truth.values) != 1:
        shapes = f"estimate {np.shape(estimate.values)}, truth {np.shape(truth.values)}"
        raise ValueError(f"estimate and truth must both have values of one shape (Q,), got {shapes}")
    if len(truth) == 0:
        raise ValueError("estimate and truth have no query; at least one is needed")
    for name, side in (("estimate", estimate), ("truth", truth)):
        if side.stderr is not None and np.shape(side.stderr) != np.shape(side.values):
            raise ValueError(f"{name}.stderr must have shape {np.shape(side.values)}, got {np.shape(side.stderr)}")
    mine, theirs = _leaves(estimate.observations), _leaves(truth.observations)
    if {name: np.shape(leaf) for name, leaf in mine.items()} != {name: np.shape(leaf) for name, leaf in theirs.items()}:
        raise ValueError("estimate and truth are not about the same queries: their observations differ in shape")
    for name, leaf in mine.items():
        _check_same_rows(leaf, theirs[name], name)


def _leaves(observations: Observations) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(observations, "observations")}


def _check_same_rows(mine: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Equality in the coarser of two floating-point types, so that a float32 copy of a query is the same query."""
    if mine.dtype.kind == theirs.dtype.kind == "f":
        coarser = min(mine.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
        mine, theirs = mine.astype(coarser), theirs.astype(coarser)
    different = np.flatnonzero((mine != theirs).reshape(len(mine), -1).any(axis=1))
    if len(different):
        raise ValueError(
            f"estimate and truth are not about the same queries: {name} differ first at row {different[0]}"
        )
