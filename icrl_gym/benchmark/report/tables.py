"""Tables about all estimators of a suite: accuracy, intervals, cost; tasks with little spread; choice of policies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.policy_selection import PolicyMetrics, policy_metrics
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.benchmark.report.comparisons import Rows, against, tuned_errors
from icrl_gym.scoring.document import MISSING, Field, Table, interval, number, share, text
from icrl_gym.scoring.statistics import interquartile_mean

SMALLEST_RATIO = 1e-3  # of interval scores
WANTED_COVERAGE = (0.85, 0.95)  # where intervals that promise 90 % should lie
MEBIBYTE = 2**20


def accuracy_table(records: Sequence[Record]) -> Table:
    """RMSE / std of every estimator that ran on all tasks, nearest first, and how it compares with critic and
    construction."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.complete(part):
            errors, tuned = res.figures(part, name), tuned_errors(part, name)
            failed = sum(r.error is not None for r in res.at_length(records, length) if _is(r, name))
            sides = [
                MISSING if rival == name else against(errors, res.figures(part, rival))
                for rival in (CRITIC, res.REFERENCE)
            ]
            rows.append((
                number(length, ",d"), text(name), number(len(errors), "d"), number(failed, "d"),
                interval(res.geometric(errors)), number(interquartile_mean(list(errors.values()))),
                interval(res.geometric(tuned)) if len(tuned) == len(errors) else MISSING, *sides,
            ))  # fmt: skip
        return sorted(rows, key=lambda row: row[4].order)

    columns = (
        "context", "estimator", "cells", "failed", "RMSE / std", "IQM", "tuned in hindsight", f"over {CRITIC}",
        f"over {res.REFERENCE}",
    )  # fmt: skip
    return Table("Accuracy", columns, _by_length(records, rows_at), _accuracy_note(records))


def _accuracy_note(records: Sequence[Record]) -> str:
    note = (
        "RMSE / std: 0 is perfect, 1 is what the best constant would reach; geometric mean over policies and contexts "
        "with a 95 % t interval over contexts. IQM: mean of the middle half of the cells. Tuned in hindsight: the best "
        "setting of the grid for every context separately, chosen by the error itself; an upper bound, not a method. "
        "Over critic, over constructed: ratio of errors on the cells that both have, below 1 the row is nearer."
    )
    good = res.usable(records)
    partial = sorted(set(res.names_of(good)) - set(res.complete(good)))
    if partial:
        note += f" Left out, since they have results on some of the tasks only: {', '.join(partial)}."
    flat = sorted({_label(r) for r in records if r.error is None and not res.has_spread(r)})
    if flat:
        note += f" Left out, since the truth's spread is within two noise floors: {', '.join(flat)}."
    return note


def _label(record: Record) -> str:
    return res.labels([record.cell.task])[record.cell.task]


def interval_table(records: Sequence[Record]) -> Table:
    """Coverage and width of the 90 % intervals, of the estimators that give any."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.names_of(part):
            coverage = res.figures(part, name, "coverage")
            if not coverage:
                continue
            means = [float(group.mean()) for group in _by_environment(coverage).values()]
            widths = [_width(r) for r in part if _is(r, name)]
            ratios = res.figures(part, name, "interval_score_ratio")
            within = sum(WANTED_COVERAGE[0] <= value <= WANTED_COVERAGE[1] for value in means)
            rows.append((
                number(length, ",d"), text(name), number(len(coverage), "d"), number(float(np.mean(means))),
                number(min(means)), share(within, len(means)), number(_median(widths)),
                number(mean_over_environments(ratios)),
            ))  # fmt: skip
        return rows

    low, high = WANTED_COVERAGE
    columns = (
        "context", "estimator", "cells", "coverage", "least", f"environments in {low:.2f}-{high:.2f}", "width / std",
        "interval score",
    )  # fmt: skip
    note = (
        "Share of query states whose truth lies in the 90 % interval (the truth's own noise accounted for): mean over "
        f"environments, and the environment with the least; {low:.0%} to {high:.0%} is wanted. Width: median over "
        "cells, in standard deviations of the truth. Interval score: over that of the best constant one, geometric "
        "mean over environments; below 1 the intervals say more."
    )
    return Table("90 % intervals", columns, _by_length(records, rows_at), note)


def mean_over_environments(ratios: res.Figures) -> float | None:
    """Geometric mean over contexts, then over environments; None of nothing."""
    by_environment = _by_environment({key: np.log(max(value, SMALLEST_RATIO)) for key, value in ratios.items()})
    return float(np.exp(np.mean([group.mean() for group in by_environment.values()]))) if ratios else None


def _by_environment(figures: res.Figures) -> dict[str, np.ndarray]:
    label = res.labels({task for task, _ in figures})
    names = sorted(set(label.values()))
    return {name: np.array([v for (task, _), v in figures.items() if label[task] == name]) for name in names}


def _width(record: Record) -> float:
    width, spread = record.scores.get("width"), record.scores.get("truth_std")
    return width / spread if width is not None and spread else math.nan


def cost_table(records: Sequence[Record]) -> Table:
    """Medians of environment steps, seconds and memory."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.names_of(part):
            mine = [r for r in part if _is(r, name)]
            rows.append((
                number(length, ",d"), text(name), number(len(mine), "d"),
                number(_median([_or_nan(res.environment_steps(r)) for r in mine]), ",.0f"),
                number(_median([r.seconds_fit for r in mine]), ".2g"),
                number(_median([r.seconds_predict for r in mine]), ".2g"),
                number(_median([_or_nan(r.peak_memory_fit) / MEBIBYTE for r in mine]), ".3g"),
            ))  # fmt: skip
        return rows

    columns = ("context", "estimator", "cells", "environment steps", "fit, s", "predict, s", "fit, MiB")
    note = "Medians over cells, default settings. Memory is the peak above what was resident before, where recorded."
    return Table("Cost", columns, _by_length(records, rows_at), note)


def magnitude_table(records: Sequence[Record], subject: str) -> Table:
    """RMSE over mean |V|, where the truth's spread is within its noise."""
    flat = [record for record in records if record.error is None and not res.has_spread(record)]
    rows: Rows = []
    for label, mine in res.by_environment(flat).items():
        for length in res.lengths_of(mine):
            part = res.at_length(mine, length)
            found = [
                res.geometric(res.figures(part, n, "rmse_over_magnitude")) for n in (subject, CRITIC, res.REFERENCE)
            ]
            floors = [r.scores["noise_floor"] or 0.0 for r in part]
            spreads = [r.scores["truth_std"] or 0.0 for r in part]
            magnitudes = [r.scores["truth_magnitude"] or math.nan for r in part]
            rows.append((
                text(label), number(length, ",d"), number(len({(r.cell.task, r.cell.seed) for r in part}), "d"),
                number(_median(np.divide(spreads, magnitudes)), ".2%"),
                number(_median(np.divide(floors, magnitudes)), ".2%"),
                *(MISSING if error is None else number(error.value, ".2%") for error in found),
            ))  # fmt: skip
    columns = (
        "environment", "context", "cells", "spread / mean |V|", "noise / mean |V|", subject, CRITIC, res.REFERENCE,
    )  # fmt: skip
    note = (
        f"Tasks whose truth varies by less than {res.SMALLEST_SPREAD:g} noise floors over the query states. RMSE / std "
        "would compare noise there, so this is RMSE over the mean magnitude of the values: geometric mean, default "
        "settings."
    )
    return Table("Tasks whose values hardly vary", columns, tuple(rows), note)


def selection_table(records: Sequence[Record], shown: Sequence[str]) -> Table:
    """How well start values rank the policies of an environment; means over the seeds of the contexts."""
    groups: dict[tuple[str, int, str], list[PolicyMetrics]] = {}
    for metrics in policy_metrics([record for record in records if record.error is None]):
        if metrics.num_policies > 2 and metrics.estimator in shown:
            groups.setdefault((metrics.env, metrics.context_length, metrics.estimator), []).append(metrics)
    rows = []
    for (env, length, name), group in sorted(groups.items()):
        means = [
            _mean([getattr(metrics, field) for metrics in group])
            for field in ("absolute_error", "value_range", "rank_correlation", "regret_at_1", "regret_at_k")
        ]
        rows.append((
            text(env.rpartition(":")[2]), number(length, ",d"), text(name),
            number(max(metrics.num_policies for metrics in group), "d"), number(len(group), "d"),
            *(number(value, ".3g" if i < 2 else ".2f") for i, value in enumerate(means)),
        ))  # fmt: skip
    columns = (
        "environment", "context", "estimator", "policies", "seeds", "absolute error of the start value",
        "range of truths", "rank correlation", "regret@1", "regret@3",
    )  # fmt: skip
    note = (
        "Start value: mean over start states. Error and range in units of the environment's reward. Regret@k: what is "
        "lost by taking the best of the k policies ranked highest, as a share of the range; 0 is best. Environments "
        "with at least three policies."
    )
    return Table("Choice of policies", columns, tuple(rows), note)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _by_length(
    records: Sequence[Record], rows_at: Callable[[int, Sequence[Record]], Rows]
) -> tuple[tuple[Field, ...], ...]:
    good = res.usable(records)
    return tuple(row for length in res.lengths_of(good) for row in rows_at(length, res.at_length(good, length)))


def _is(record: Record, name: str) -> bool:
    return record.cell.variant.estimator == name and record.cell.variant.is_default


def _median(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else math.nan


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
