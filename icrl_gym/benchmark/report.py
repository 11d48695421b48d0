"""Tables of a benchmark run: who is near the truth, at which context length, with intervals, rivals that win too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.benchmark.aggregates import Aggregate, geometric_mean, interquartile_mean, with_interval
from icrl_gym.benchmark.cells import CRITIC, Task
from icrl_gym.benchmark.runner import Record
from icrl_gym.figures import error_by_context

METRIC = "rmse_over_std"
SMALLEST_SPREAD = 2.0  # truths whose standard deviation is below this many noise floors say nothing about spread

Errors = dict[tuple[Task, int], list[float]]  # (task, seed) -> RMSE / std of every setting tried


def benchmark_tables(records: Sequence[Record]) -> str:
    """Markdown: one table per context length, then failures and tasks left out."""
    lengths = sorted({record.cell.context_length for record in records})
    parts = [f"### Context of {length:,} transitions\n\n{_table(records, length)}" for length in lengths]
    flat = sorted({record.cell.task.env for record in records if record.error is None and not _has_spread(record)})
    if flat:
        parts.append(
            f"Left out, since the truth's spread is within {SMALLEST_SPREAD:g} noise floors: {', '.join(flat)}."
        )
    failed = [record for record in records if record.error is not None]
    if failed:
        reasons = sorted({f"- {r.cell.task.env}, {r.cell.setting.estimator}: {r.error}" for r in failed})
        parts.append(f"{len(failed)} cells failed:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)


def context_figure(records: Sequence[Record], shown: Sequence[str]) -> Figure:
    """Error against context length, one panel per environment, critics as horizontal lines.

    Args:
        records: of one or more suites.
        shown: estimators to draw, under their default settings.

    Raises:
        ValueError: no usable record of these estimators.
    """
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for record in records:
        setting, error = record.cell.setting, record.scores.get(METRIC)
        drawn = setting.is_default and setting.estimator in (*shown, CRITIC)
        if drawn and error is not None and _has_spread(record):
            curves = panels.setdefault(record.cell.task.env.rpartition(":")[2], {})
            curves.setdefault(setting.estimator, {}).setdefault(record.cell.context_length, []).append(error)
    if not panels:
        raise ValueError(f"no usable record of {list(shown)}")
    means = {
        env: {
            name: {length: float(np.exp(np.mean(np.log(errors)))) for length, errors in sorted(by_length.items())}
            for name, by_length in curves.items()
        }
        for env, curves in panels.items()
    }
    return error_by_context(means, CRITIC)


def _has_spread(record: Record) -> bool:
    spread, floor = record.scores.get("truth_std"), record.scores.get("noise_floor")
    return spread is not None and floor is not None and spread > 0 and spread >= SMALLEST_SPREAD * floor


def _table(records: Sequence[Record], length: int) -> str:
    usable = [r for r in records if r.cell.context_length == length and r.error is None and _has_spread(r)]
    default = {name: _errors(usable, name, tuned=False) for name in sorted({r.cell.setting.estimator for r in usable})}
    tuned = {name: _errors(usable, name, tuned=True) for name in default}
    lines = [
        "| estimator | cells | RMSE / std, default | IQM | tuned in hindsight | ahead of critic | fit + predict, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = []
    for name, errors in default.items():
        if not errors:
            continue
        scores = _matrix(errors)
        figure = with_interval(geometric_mean, scores)
        best = _cell(with_interval(geometric_mean, _matrix(tuned[name]))) if _was_tuned(tuned[name]) else "-"
        seconds = np.median([r.seconds_fit + r.seconds_predict for r in usable if r.cell.setting.estimator == name])
        cells = [
            name, str(sum(map(len, errors.values()))), _cell(figure), _cell(with_interval(interquartile_mean, scores)),
            best, "-" if name == CRITIC else _ahead(errors, default.get(CRITIC, {})), f"{seconds:.2g}",
        ]  # fmt: skip
        rows.append((figure.value, "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows))])


def _errors(records: Sequence[Record], name: str, *, tuned: bool) -> Errors:
    """Best error of each (task, seed) over the default setting alone, or over the default and the whole grid."""
    found: Errors = {}
    for record in records:
        setting, error = record.cell.setting, record.scores.get(METRIC)
        if setting.estimator == name and error is not None and (tuned or setting.is_default):
            found.setdefault((record.cell.task, record.cell.seed), []).append(error)
    return {key: [min(errors)] if not tuned else errors for key, errors in found.items()}


def _was_tuned(errors: Errors) -> bool:
    return any(len(tried) > 1 for tried in errors.values())


def _matrix(errors: Errors) -> np.ndarray:
    """(seeds x tasks): the least error of each; tasks with fewer seeds than others are cut to the common number."""
    by_task: dict[Task, list[float]] = {}
    for (task, _), tried in sorted(errors.items(), key=lambda item: item[0][1]):
        by_task.setdefault(task, []).append(min(tried))
    num_runs = min(map(len, by_task.values()))
    return np.array([values[:num_runs] for values in by_task.values()]).T


def _ahead(ours: Errors, critic: Errors) -> str:
    shared = [key for key in ours if key in critic]
    if not shared:
        return "-"
    ahead = sum(min(ours[key]) < min(critic[key]) for key in shared)
    return f"{ahead} of {len(shared)}"


def _cell(figure: Aggregate) -> str:
    return f"{figure.value:.2f} [{figure.low:.2f}, {figure.high:.2f}]"
