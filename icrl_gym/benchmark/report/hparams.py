"""A benchmark for TensorBoard's HParams tab: one entry per estimator and setting, metrics aggregated over its cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icrl_gym.benchmark.cells import Variant
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.scoring.statistics import geometric_mean, interquartile_mean
from icrl_gym.tracking import open_writer


def write_hparams(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write one event folder per estimator and setting below ``folder``; returns them.

    An entry holds the estimator's name and options, and per context length the geometric mean of RMSE / std, the
    interquartile mean, coverage where there is any, the seconds of fit and predict, and the number of cells.
    """
    by_variant: dict[Variant, list[Record]] = {}
    for record in res.usable(records):
        by_variant.setdefault(record.cell.variant, []).append(record)
    written = []
    for variant, mine in by_variant.items():
        path = folder / variant_name(variant)
        with open_writer(path) as writer:
            writer.add_hparams({"estimator": variant.estimator, **dict(variant.options)}, variant_metrics(mine))
        written.append(path)
    return written


def variant_name(variant: Variant) -> str:
    """A folder's name, such as "lstd-ridge=0.1"."""
    words = [variant.estimator, *(f"{name}={value}" for name, value in variant.options)]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join(words))


def variant_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Aggregates of one setting's cells, by name and context length."""
    metrics: dict[str, float] = {}
    for length in res.lengths_of(records):
        part = res.at_length(records, length)
        errors = {(r.cell.task, r.cell.seed): value for r in part if (value := r.scores.get(res.METRIC)) is not None}
        if not errors:
            continue
        coverage = [value for r in part if (value := r.scores.get("coverage")) is not None]
        scores = [max(error, res.SMALLEST_ERROR) for error in errors.values()]
        metrics[f"rmse_over_std/{length}"] = geometric_mean(scores)
        metrics[f"iqm/{length}"] = interquartile_mean(scores)
        metrics[f"cells/{length}"] = float(len(errors))
        metrics[f"seconds/{length}"] = float(np.median([r.seconds_fit + r.seconds_predict for r in part]))
        if coverage:
            metrics[f"coverage/{length}"] = float(np.mean(coverage))
    return metrics
