"""`Evaluation`: what one run of the main job found, its verdict in words, and its tables on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icrl_gym.configuration import EvaluateConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.runs import write_csv
from icrl_gym.scoring.score import INTERVAL_LEVEL, Score
from icrl_gym.values import ValueEstimates


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The findings of one run.

    Attributes:
        config: the flags of the run.
        gamma: the discount that was used.
        trajectory: the context.
        truth: true values at the queries; their standard error is None where they are exact.
        estimates: name -> values at the same queries; the in-context estimator first, then the critic if there is one.
        scores: name -> figures of each against the truth.
        steps: name -> environment steps that it learned from, or None if unknown.
        notes: remarks that belong beside the numbers.
        run_dir: folder of the run.
    """

    config: EvaluateConfig
    gamma: float
    trajectory: Trajectory
    truth: ValueEstimates
    estimates: Mapping[str, ValueEstimates]
    scores: Mapping[str, Score]
    steps: Mapping[str, int | None]
    notes: tuple[str, ...]
    run_dir: Path

    @property
    def ours(self) -> str:
        """Name of the in-context estimator."""
        return next(iter(self.scores))

    @property
    def verdict(self) -> str:
        """One plain sentence on who was nearer to the truth."""
        ours, *others = self.scores
        return _compared(ours, others[0], self) if others else _alone(ours, self.scores[ours])


def save_tables(evaluation: Evaluation, folder: Path) -> None:
    """Write trajectory.npz, estimates.csv (a row per query) and scores.csv (a row per estimator)."""
    evaluation.trajectory.save(folder / "trajectory.npz")
    truth = evaluation.truth
    columns: dict[str, Any] = {"query": range(len(truth)), "truth": truth.values, "truth_stderr": truth.stderr}
    for name, estimate in evaluation.estimates.items():
        low, high = (None, None) if estimate.stderr is None else estimate.interval(INTERVAL_LEVEL)
        columns |= {name: estimate.values, f"{name}_stderr": estimate.stderr, f"{name}_low": low, f"{name}_high": high}
    cells = [[None] * len(truth) if column is None else [_number(x) for x in column] for column in columns.values()]
    write_csv(folder / "estimates.csv", list(columns), list(zip(*cells, strict=True)))
    rows = [
        {"estimator": name, "environment_steps": steps, **result.as_dict(), "notes": "; ".join(result.notes)}
        for (name, result), steps in zip(evaluation.scores.items(), evaluation.steps.values(), strict=True)
    ]
    write_csv(folder / "scores.csv", list(rows[0]), [list(row.values()) for row in rows])


def _number(value: Any) -> int | float:
    return value if isinstance(value, int) else float(value)


def _alone(name: str, result: Score) -> str:
    if math.isnan(result.rmse_over_std):
        return f"{name} is off by {result.rmse:.3g} (RMSE); this truth has no spread to measure that against."
    return (
        f"{name} is off by {result.rmse:.3g} (RMSE), {result.rmse_over_std:.2g} of the truth's standard deviation; "
        "1 is what the best constant would reach."
    )


def _compared(ours: str, other: str, evaluation: Evaluation) -> str:
    """Who is nearer; only if the mean difference of squared errors is twice its standard error over the queries."""
    squared = {n: (e.values - evaluation.truth.values) ** 2 for n, e in evaluation.estimates.items()}
    difference = squared[ours] - squared[other]
    n = len(difference)
    margin = 2 * float(np.std(difference, ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    rmse = {name: evaluation.scores[name].rmse for name in (ours, other)}
    numbers = f"RMSE {rmse[ours]:.3g} for {_named(ours, evaluation)}, {rmse[other]:.3g} for {_named(other, evaluation)}"
    if abs(float(np.mean(difference))) <= margin:
        return f"Too close to call on {n} {'query' if n == 1 else 'queries'}: {numbers}."
    return f"{min(rmse, key=lambda name: rmse[name])} is nearer to the truth: {numbers}."


def _named(name: str, evaluation: Evaluation) -> str:
    steps = evaluation.steps.get(name)
    return f"{name} ({steps:,} environment steps)" if steps else name
