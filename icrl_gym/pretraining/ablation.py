"""What the pretraining is worth: the trained error bars beside their untrained rivals, on tasks they never saw.

All are error bars of the same values, the mixture's. A rival is something that the evaluator computes anyway, times one
constant that is fitted to the training tasks: so that nine tenths of their true values are inside, which is what the
network was trained for, or by the very score that is reported. By the latter the network gets a constant too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.optimize import minimize_scalar

from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QUERY_STATISTICS
from icrl_gym.pretraining.shards import Examples
from icrl_gym.pretraining.training import LEVEL, Z_LEVEL
from icrl_gym.pretraining.validation import half_widths, spread_of_truth, standard_errors, values_vary

DISAGREEMENT = QUERY_STATISTICS.index("disagreement")
LARGEST_FACTOR = 100.0  # by which error bars may be stretched, or shrunk
PRETRAINED = "pretrained network"
SAMPLING = "sampling error of the first head"

Errors = Callable[[Examples], np.ndarray]  # standard errors (B, Q) in units of the value scale


@dataclass(frozen=True, eq=False)
class Intervals:
    """How good one sort of 90 % intervals is on B tasks.

    Attributes:
        covered_B: share of the queries whose true value is inside.
        score_B: mean interval score over the queries, in standard deviations of the true values.
    """

    covered_B: np.ndarray
    score_B: np.ndarray

    @property
    def score(self) -> float:
        """Geometric mean over tasks: those of little spread, where scores are huge, would decide any other mean."""
        return math.exp(np.log(self.score_B).mean())


def compare(spread: SpreadHead, training: Examples, held_out: Examples) -> dict[str, Intervals]:
    """The pretrained error bars first, then their rivals, by name, on the held-out tasks whose values vary.

    Args:
        spread: the trained network.
        training: tasks that constants are fitted to.
        held_out: tasks that nothing was fitted to.

    Raises:
        ValueError: of either no task can be compared.
    """
    training, held_out = (comparable(examples) for examples in (training, held_out))
    pretrained = partial(standard_errors, spread)
    found = {PRETRAINED: intervals(pretrained(held_out), held_out)}
    found[SAMPLING] = intervals(held_out.sampling_error, held_out)
    for name, errors in RIVALS.items():
        factor = covering_factor(errors(training), training)
        found[f"{name}, times {factor:.2f} to cover"] = intervals(factor * errors(held_out), held_out)
    for name, errors in {PRETRAINED: pretrained, **RIVALS}.items():
        factor = scoring_factor(errors(training), training)
        found[f"{name}, times {factor:.2f} to score"] = intervals(factor * errors(held_out), held_out)
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
    SAMPLING: lambda examples: examples.sampling_error,
    "disagreement of the heads": disagreement,
    "both in quadrature": lambda examples: np.hypot(examples.sampling_error, disagreement(examples)),
}


def intervals(stderr_BQ: np.ndarray, examples: Examples) -> Intervals:
    """Coverage and score of the intervals that these standard errors make."""
    half_BQ, error_BQ = half_widths(stderr_BQ, examples), np.abs(examples.mixed - examples.truth)
    score_B = interval_score(half_BQ, error_BQ).mean(axis=1) / spread_of_truth(examples)
    return Intervals((error_BQ <= half_BQ).mean(axis=1), score_B)


def interval_score(half: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Winkler's score of intervals at `LEVEL`: width, and 2 / (1 - level) times by how much the truth is outside."""
    return 2 * half + 2 / (1 - LEVEL) * (error - half).clip(min=0)


def covering_factor(stderr_BQ: np.ndarray, examples: Examples) -> float:
    """The constant by which these standard errors hold `LEVEL` of all true values."""
    square_BQ = np.square((examples.mixed - examples.truth) / Z_LEVEL) - np.square(examples.truth_stderr)
    return float(np.quantile(np.sqrt(square_BQ.clip(min=0)) / stderr_BQ, LEVEL))


def scoring_factor(stderr_BQ: np.ndarray, examples: Examples) -> float:
    """The constant that makes the score of these standard errors the least."""
    bound = math.log(LARGEST_FACTOR)
    found = minimize_scalar(
        lambda log: intervals(math.exp(log) * stderr_BQ, examples).score, bounds=(-bound, bound), method="bounded"
    )
    return math.exp(found.x)  # type: ignore[attr-defined]
