"""The tables of a suite: accuracy, comparison, intervals, cost, choice of policies; and of all environments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.policy_selection import PolicyMetrics, policy_metrics
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import results as res
from icrl_gym.scoring import statistics as agg
from icrl_gym.scoring.document import MISSING, Entry, Table, interval, number, share, text

GOOD_ERROR = 0.5  # RMSE / std: half the error of the best constant, the target of the optimality gap
WANTED_COVERAGE = (0.85, 0.95)  # of intervals that promise 90 %
MEBIBYTE = 2**20
TOO_CLOSE = "too close to call"

Rows = list[tuple[Entry, ...]]


def suite_tables(suite: str, records: Sequence[Record]) -> list[Table]:
    """All tables of one suite, without those that have no row."""
    makers = (accuracy_table, comparison_table, interval_table, cost_table)
    return [table for maker in makers if (table := maker(suite, records)).rows]


def accuracy_table(suite: str, records: Sequence[Record]) -> Table:
    """RMSE / std of the estimators that ran on every task of the suite, nearest first."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.complete(part):
            errors = res.figures(part, name)
            scores = res.matrix(errors)
            tuned = res.figures(part, name, tuned=True)
            failed = sum(r.error is not None for r in res.at_length(records, length) if _is(r, name))
            rows.append((
                number(length, ",d"), text(name), number(len(errors), "d"), number(failed, "d"),
                interval(agg.with_interval(agg.geometric_mean, scores)),
                interval(agg.with_interval(agg.interquartile_mean, scores)),
                interval(agg.with_interval(agg.median, scores)),
                interval(agg.with_interval(_excess, scores)),
                interval(res.geometric(tuned)) if _num_settings(part, name) > 1 else MISSING,
                number(_num_settings(part, name), "d"),
            ))  # fmt: skip
        return sorted(rows, key=lambda row: row[4].order)

    columns = (
        "context", "estimator", "cells", "failed", "RMSE / std, default", "IQM", "median", "optimality gap",
        "tuned in hindsight", "settings",
    )  # fmt: skip
    return Table(f"Accuracy, suite {suite}", columns, _by_length(records, rows_at), _accuracy_note(records))


def _excess(errors_RT: np.ndarray) -> np.ndarray:
    return agg.optimality_gap(1 - errors_RT, 1 - GOOD_ERROR)


def _accuracy_note(records: Sequence[Record]) -> str:
    note = (
        "RMSE / std: 0 is perfect, 1 is what the best constant would reach; geometric mean over cells. IQM: mean of "
        "the middle half of the cells. Median: over tasks, of the mean over seeds. Optimality gap: by how much RMSE / "
        f"std exceeds {GOOD_ERROR:g} on average. Brackets: 95 % stratified bootstrap over the contexts of each task. "
        "Tuned in hindsight: the best of the settings for every context separately, chosen by the error itself; an "
        "unfair upper bound for the rivals."
    )
    good = res.usable(records)
    partial = sorted(set(res.names_of(good)) - set(res.complete(good)))
    if partial:
        named = ", ".join(f"`{name}` {_num_tasks(good, name)}" for name in partial)
        note += f" Left out, since they have results on some of the {_num_tasks(good)} tasks only: {named}."
    flat = sorted(
        {res.labels([r.cell.task])[r.cell.task] for r in records if r.error is None and not res.has_spread(r)}
    )
    if flat:
        note += (
            f" Left out, since the truth's spread is within {res.SMALLEST_SPREAD:g} noise floors: {', '.join(flat)}."
        )
    return note


def _num_tasks(records: Sequence[Record], name: str | None = None) -> int:
    return len({r.cell.task for r in records if name is None or r.cell.setting.estimator == name})


def comparison_table(suite: str, records: Sequence[Record]) -> Table:
    """Every estimator against the critic and against the untrained construction, on the cells that both have."""
    against = (CRITIC, res.REFERENCE)

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.names_of(part):
            ours = res.figures(part, name)
            sides = [_comparison(ours, res.figures(part, rival) if rival != name else {}) for rival in against]
            if any(side[0] is not MISSING for side in sides):
                rows.append((number(length, ",d"), text(name), *(entry for side in sides for entry in side)))
        return sorted(rows, key=lambda row: (_order(row[3]), _order(row[6])))

    headings = (f"{what} {rival}" for rival in against for what in ("ahead of", "error ratio to", "P(better than)"))
    columns = ("context", "estimator", *headings)
    note = (
        "On the cells that both have. Ahead: cells with the smaller error. Error ratio: geometric mean, below 1 the "
        "estimator is nearer. P(better): probability that one of its contexts gives the smaller error than one of the "
        "other's on the same task."
    )
    return Table(
        f"Against the critic and `{res.REFERENCE}`, suite {suite}", columns, _by_length(records, rows_at), note
    )


def _comparison(ours: res.Figures, theirs: res.Figures) -> tuple[Entry, Entry, Entry]:
    """Cells ahead, ratio of errors, probability of improvement."""
    mine, other = res.shared(ours, theirs)
    if not mine:
        return MISSING, MISSING, MISSING
    better = agg.with_paired_interval(agg.probability_of_improvement, -res.matrix(mine), -res.matrix(other))
    ahead = sum(mine[key] < other[key] for key in mine)
    return share(ahead, len(mine)), interval(res.geometric(res.ratios(mine, other))), interval(better)


def interval_table(suite: str, records: Sequence[Record]) -> Table:
    """Coverage and width of the 90 % intervals, of the estimators that give any."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.names_of(part):
            coverage = res.figures(part, name, "coverage")
            if not coverage:
                continue
            widths = [_width(r) for r in part if _is(r, name)]
            within = sum(WANTED_COVERAGE[0] <= value <= WANTED_COVERAGE[1] for value in coverage.values())
            rows.append((
                number(length, ",d"), text(name), number(len(coverage), "d"),
                interval(agg.with_interval(agg.mean, res.matrix(coverage))), number(min(coverage.values())),
                share(within, len(coverage)), number(_median(widths)),
            ))  # fmt: skip
        return rows

    low, high = WANTED_COVERAGE
    columns = ("context", "estimator", "cells", "coverage", "lowest", f"cells in {low:.2f}-{high:.2f}", "width / std")
    note = (
        "Share of query states whose truth lies in the 90 % interval (the truth's own noise accounted for), mean over "
        f"cells; {low:.0%} to {high:.0%} is wanted. Width: median over cells, in standard deviations of the truth."
    )
    return Table(f"90 % intervals, suite {suite}", columns, _by_length(records, rows_at), note)


def _width(record: Record) -> float:
    width, spread = record.scores.get("width"), record.scores.get("truth_std")
    return width / spread if width is not None and spread else math.nan


def cost_table(suite: str, records: Sequence[Record]) -> Table:
    """Medians of environment steps, seconds and memory."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.names_of(part):
            mine = [r for r in part if _is(r, name)]
            memory = [
                number(
                    None if math.isnan(peak := _median([_megabytes(getattr(r, field)) for r in mine])) else peak, ".3g"
                )
                for field in ("peak_memory_fit", "peak_memory_predict")
            ]
            rows.append((
                number(length, ",d"), text(name), number(len(mine), "d"),
                number(_median([_or_nan(res.environment_steps(r)) for r in mine]), ",.0f"),
                number(_median([r.seconds_fit for r in mine]), ".2g"),
                number(_median([r.seconds_predict for r in mine]), ".2g"), *memory,
            ))  # fmt: skip
        return rows

    columns = ("context", "estimator", "cells", "environment steps", "fit, s", "predict, s", "fit, MiB", "predict, MiB")
    note = "Medians over cells, default settings. Memory is the peak above what was resident before, where recorded."
    return Table(f"Cost, suite {suite}", columns, _by_length(records, rows_at), note)


def environment_table(records: Sequence[Record], subject: str, shown: Sequence[str]) -> Table:
    """Error per environment of the main estimators, who is nearest of all, and whether the subject or a rival wins."""
    main = [subject, *(name for name in (CRITIC, res.REFERENCE, *shown) if name != subject)]
    main = list(dict.fromkeys(main))
    rows: Rows = []
    for label, mine in res.by_environment(res.usable(records)).items():
        for length in res.lengths_of(mine):
            part = res.at_length(mine, length)
            errors = {name: res.figures(part, name) for name in dict.fromkeys((*main, *res.complete(part)))}
            ranked = ranking(part)
            verdict, ratio = judge(part, subject)
            rows.append((
                text(label), number(length, ",d"), number(len(next((e for e in errors.values() if e), {})), "d"),
                *(_value(res.geometric(errors[name])) for name in main),
                text(ranked[0][0]) if ranked else MISSING, interval(ratio), text(verdict),
            ))  # fmt: skip
    columns = ("environment", "context", "cells", *main, "nearest of all", f"{subject} / best rival", "verdict")
    note = (
        "RMSE / std under default settings, geometric mean over policies and contexts. The best rival is the nearest "
        "of all other estimators, the critic included, chosen for each row by the error itself. Verdict: the winner "
        f"where the 95 % interval of the ratio leaves 1 out, else {TOO_CLOSE}."
    )
    return Table("Environment by environment", columns, tuple(rows), note)


def _value(figure: agg.Aggregate | None) -> Entry:
    return MISSING if figure is None else number(figure.value)


def ranking(part: Sequence[Record]) -> list[tuple[str, float]]:
    """(estimator, geometric-mean error) under default settings, nearest first; those with a result on every task."""
    errors = ((name, res.geometric(res.figures(part, name))) for name in res.complete(part))
    return sorted(((name, error.value) for name, error in errors if error is not None), key=lambda pair: pair[1])


def judge(part: Sequence[Record], subject: str) -> tuple[str, agg.Aggregate | None]:
    """Who wins, the subject or its best rival, with the ratio of their errors."""
    rivals = [name for name, _ in ranking(part) if name != subject]
    ours = res.figures(part, subject)
    ratio = res.geometric(res.ratios(ours, res.figures(part, rivals[0]))) if rivals else None
    if ratio is None:
        return "-", None
    if ratio.high < 1:
        return subject, ratio
    return (rivals[0] if ratio.low > 1 else TOO_CLOSE), ratio


def magnitude_table(records: Sequence[Record], subject: str, shown: Sequence[str]) -> Table:
    """RMSE over mean |V|, where the truth's spread is within its noise."""
    flat = [record for record in records if record.error is None and not res.has_spread(record)]
    main = list(dict.fromkeys((subject, CRITIC, res.REFERENCE, *shown)))
    rows: Rows = []
    for label, mine in res.by_environment(flat).items():
        for length in res.lengths_of(mine):
            part = res.at_length(mine, length)
            errors = [res.geometric(res.figures(part, name, "rmse_over_magnitude")) for name in main]
            floors = [r.scores["noise_floor"] or 0.0 for r in part]
            spreads = [r.scores["truth_std"] or 0.0 for r in part]
            magnitudes = [r.scores["truth_magnitude"] or math.nan for r in part]
            rows.append((
                text(label), number(length, ",d"), number(len({(r.cell.task, r.cell.seed) for r in part}), "d"),
                number(_median(np.divide(spreads, magnitudes)), ".2%"),
                number(_median(np.divide(floors, magnitudes)), ".2%"),
                *(MISSING if error is None else number(error.value, ".2%") for error in errors),
            ))  # fmt: skip
    columns = ("environment", "context", "cells", "spread / mean |V|", "noise / mean |V|", *main)
    note = (
        f"Tasks whose truth varies by less than {res.SMALLEST_SPREAD:g} noise floors over the query states. RMSE / std "
        "would compare noise there, so this is RMSE over the mean magnitude of the values: geometric mean, default "
        "settings."
    )
    return Table("Tasks whose values hardly vary", columns, tuple(rows), note)


def selection_table(records: Sequence[Record], whose: str = "own contexts") -> Table:
    """How well start values rank the policies of an environment; means over the seeds of the contexts."""
    groups: dict[tuple[str, int, str], list[PolicyMetrics]] = {}
    for metrics in policy_metrics([record for record in records if record.error is None]):
        if metrics.num_policies > 1:
            groups.setdefault((metrics.env, metrics.context_length, metrics.estimator), []).append(metrics)
    rows = []
    for (env, length, name), group in sorted(groups.items()):
        num = max(metrics.num_policies for metrics in group)
        means = [
            _mean([getattr(metrics, field) for metrics in group])
            for field in ("absolute_error", "value_range", "rank_correlation", "regret_at_1", "regret_at_k")
        ]
        rows.append((
            text(env.rpartition(":")[2]), number(length, ",d"), text(name), number(num, "d"), number(len(group), "d"),
            *(number(value, ".3g" if i < 2 else ".2f") for i, value in enumerate(means)),
        ))  # fmt: skip
    columns = (
        "environment", "context", "estimator", "policies", "seeds", "|start value error|", "range of truths",
        "rank correlation", "regret@1", "regret@3",
    )  # fmt: skip
    note = (
        "Start value: mean over start states. Error and range in units of the environment's reward. Regret@k: what is "
        "lost by taking the best of the k policies ranked highest, as a share of the range; 0 is best."
    )
    return Table(f"Choice of policies, {whose}", columns, tuple(rows), note)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _by_length(
    records: Sequence[Record], rows_at: Callable[[int, Sequence[Record]], Rows]
) -> tuple[tuple[Entry, ...], ...]:
    good = res.usable(records)
    return tuple(row for length in res.lengths_of(good) for row in rows_at(length, res.at_length(good, length)))


def _is(record: Record, name: str) -> bool:
    return record.cell.setting.estimator == name and record.cell.setting.is_default


def _num_settings(records: Sequence[Record], name: str) -> int:
    return len({r.cell.setting for r in records if r.cell.setting.estimator == name})


def _median(values: Sequence[float] | np.ndarray) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(np.median(known)) if len(known) else math.nan


def _order(entry: Entry) -> float:
    assert isinstance(entry.order, float)
    return math.inf if math.isnan(entry.order) else entry.order


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _megabytes(size: int | None) -> float:
    return math.nan if size is None else size / MEBIBYTE
