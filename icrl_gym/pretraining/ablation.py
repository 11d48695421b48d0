"""What the pretraining is worth: the trained error bars beside their untrained rivals, on tasks they never saw.

All are error bars of the same values, the mixture's. A rival is something that the evaluator computes anyway, times one
constant, which is fitted to the training tasks by the very score that is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QUERY_STATISTICS
from icrl_gym.pretraining.shards import Examples
from icrl_gym.pretraining.training import LEVEL
from icrl_gym.pretraining.validation import half_widths, spread_of_truth, standard_errors, values_vary

DISAGREEMENT = QUERY_STATISTICS.index("disagreement")
LARGEST_FACTOR = 100.0  # by which a rival may be stretched, or shrunk
PRETRAINED = "pretrained network"

Errors = Callable[[Examples], np.ndarray]  # standard errors (B, Q) in units of the value scale


@dataclass(frozen=True, eq=False)
class Intervals:
    """How good one sort of 90 % intervals is on B tasks.

    Attributes:
        factor: what the standard errors were multiplied by; NaN for none.
        covered_B: share of the queries whose true value is inside.
        score_B: mean interval score over the queries, in standard deviations of the true values.
    """

    factor: float
    covered_B: np.ndarray
    score_B: np.ndarray


def compare(spread: SpreadHead, training: Examples, held_out: Examples) -> dict[str, Intervals]:
    """The pretrained error bars first, then their rivals, by name, on the held-out tasks whose values vary.

    Args:
        spread: the trained network.
        training: tasks that the rivals' constants are fitted to.
        held_out: tasks that neither was fitted to.

    Raises:
        ValueError: of either no task can be compared.
    """
    training, held_out = (comparable(examples) for examples in (training, held_out))
    found = {PRETRAINED: intervals(standard_errors(spread, held_out), held_out)}
    found["sampling error of the first head"] = intervals(held_out.sampling_error, held_out)
    for name, errors in RIVALS.items():
        factor = best_factor(errors(training), training)
        found[f"{name}, times {factor:.2f}"] = intervals(factor * errors(held_out), held_out, factor)
    return found


def comparable(examples: Examples) -> Examples:
    """The tasks whose values vary, and whose first head has a sampling error.

    Raises:
        ValueError: there is none.
    """
    kept_B = values_vary(examples) & np.isfinite(examples.sampling_error).all(axis=1)
    if not kept_B.any():
        raise ValueError(f"examples: in none of {len(examples)} tasks the true values spread beyond their noise")
    return examples.select(kept_B)


def disagreement(examples: Examples) -> np.ndarray:
    """Standard deviation of the heads' values at each query."""
    return np.exp(examples.query_statistics[..., DISAGREEMENT].astype(np.float64))


RIVALS: dict[str, Errors] = {
    "sampling error of the first head": lambda examples: examples.sampling_error,
    "disagreement of the heads": disagreement,
    "both in quadrature": lambda examples: np.hypot(examples.sampling_error, disagreement(examples)),
    "standard deviation of the context's values": lambda examples: np.ones_like(examples.sampling_error),
}


def intervals(stderr_BQ: np.ndarray, examples: Examples, factor: float = math.nan) -> Intervals:
    """Coverage and score of the intervals that these standard errors make."""
    half_BQ, error_BQ = half_widths(stderr_BQ, examples), np.abs(examples.mixed - examples.truth)
    score_B = interval_score(half_BQ, error_BQ).mean(axis=1) / spread_of_truth(examples)
    return Intervals(factor, (error_BQ <= half_BQ).mean(axis=1), score_B)


def interval_score(half: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Winkler's score of intervals at `LEVEL`: width, and 2 / (1 - level) times by how much the truth is outside."""
    return 2 * half + 2 / (1 - LEVEL) * (error - half).clip(min=0)


def best_factor(stderr_BQ: np.ndarray, examples: Examples) -> float:
    """The constant that makes the mean score of these standard errors the least."""
    bound = math.log(LARGEST_FACTOR)
    found = minimize_scalar(
        lambda log: float(intervals(math.exp(log) * stderr_BQ, examples).score_B.mean()),
        bounds=(-bound, bound),
        method="bounded",
    )
    return math.exp(found.x)  # type: ignore[attr-defined]
