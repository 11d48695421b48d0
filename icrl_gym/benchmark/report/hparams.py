"""A benchmark for TensorBoard's HParams tab: one entry per estimator and setting, metrics aggregated over its cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from icrl_gym.benchmark.cells import Setting
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import results as res
from icrl_gym.scoring import statistics as agg
from icrl_gym.tracking import open_writer


def write_hparams(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write one event folder per estimator and setting below ``folder``; returns them.

    An entry holds the estimator's name and options, and per context length the geometric mean of RMSE / std, the
    interquartile mean, coverage where there is any, the seconds of fit and predict, and the number of cells.
    """
    by_setting: dict[Setting, list[Record]] = {}
    for record in res.usable(records):
        by_setting.setdefault(record.cell.setting, []).append(record)
    written = []
    for setting, mine in by_setting.items():
        path = folder / setting_name(setting)
        with open_writer(path) as writer:
            writer.add_hparams({"estimator": setting.estimator, **dict(setting.options)}, setting_metrics(mine))
        written.append(path)
    return written


def setting_name(setting: Setting) -> str:
    """A folder's name, such as "lstd-ridge=0.1"."""
    words = [setting.estimator, *(f"{name}={value}" for name, value in setting.options)]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "_", "-".join(words))


def setting_metrics(records: Sequence[Record]) -> dict[str, float]:
    """Aggregates of one setting's cells, by name and context length."""
    metrics: dict[str, float] = {}
    for length in res.lengths_of(records):
        part = res.at_length(records, length)
        errors = {(r.cell.task, r.cell.seed): value for r in part if (value := r.scores.get(res.METRIC)) is not None}
        if not errors:
            continue
        coverage = [value for r in part if (value := r.scores.get("coverage")) is not None]
        scores = np.array([[max(error, res.SMALLEST_ERROR)] for error in errors.values()])
        metrics[f"rmse_over_std/{length}"] = float(agg.geometric_mean(scores))
        metrics[f"iqm/{length}"] = float(agg.interquartile_mean(scores))
        metrics[f"cells/{length}"] = float(len(errors))
        metrics[f"seconds/{length}"] = float(np.median([r.seconds_fit + r.seconds_predict for r in part]))
        if coverage:
            metrics[f"coverage/{length}"] = float(np.mean(coverage))
    return metrics
