"""Tables made of records: verdicts by environment, all environments together, accuracy, intervals and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.policy_selection import PolicyMetrics, policy_metrics
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.registry import estimators, tuning_grid
from icrl_gym.scoring.document import MISSING, Field, Table, interval, number, share, text
from icrl_gym.scoring.statistics import Aggregate, interquartile_mean, interval_over_groups
from icrl_gym.scoring.verdict import Verdict, by_group, error_ratio, judge

CLASSICAL = ("lstd", "kbrl", "softmax_td", "nadaraya_watson")  # who is tuned in hindsight, together
HINDSIGHT = "best in hindsight"
WANTED_COVERAGE = (0.85, 0.95)  # where intervals that promise 90 % should lie
MEBIBYTE = 2**20

Rows = list[tuple[Field, ...]]


def verdict_of(part: Sequence[Record], subject: str) -> Verdict:
    """The subject against the nearest of all other estimators at their defaults, the critic included."""
    rivals = {name: res.figures(part, name) for name in res.names_of(part) if name != subject}
    return judge(res.figures(part, subject), rivals)


def verdict_table(records: Sequence[Record], subject: str, title: str = "Environment by environment") -> Table:
    """One row per environment and context length: the subject, the critic, the best rival, who wins."""
    rows: Rows = []
    for label, mine in res.by_environment(res.usable(records)).items():
        for length in res.lengths_of(mine):
            part = res.at_length(mine, length)
            errors, critics = res.figures(part, subject), res.figures(part, CRITIC)
            if not errors:
                continue
            verdict = verdict_of(part, subject)
            rival = None if verdict.rival is None else res.geometric(_on(part, verdict.rival, subject))
            rows.append((
                text(label), number(length, ",d"), interval(res.geometric(errors)), _value(res.geometric(critics)),
                _against(errors, critics), text(verdict.rival or "-"), _value(rival), interval(verdict.ratio),
                text(verdict.in_words(subject)),
            ))  # fmt: skip
    columns = (
        "environment", "context", subject, CRITIC, f"over {CRITIC}", "best rival", "its error", "over best rival",
        "verdict",
    )  # fmt: skip
    return Table(title, columns, tuple(rows), _verdict_note(records, subject))


def _on(part: Sequence[Record], name: str, subject: str) -> res.Figures:
    """A rival's errors on the subject's cells."""
    return res.shared(res.figures(part, name), res.figures(part, subject))[0]


def _value(figure: Aggregate | None) -> Field:
    return MISSING if figure is None else number(figure.value)


def _verdict_note(records: Sequence[Record], subject: str) -> str:
    note = (
        "RMSE / std at default settings, geometric mean over policies and contexts; 0 is perfect, 1 the best constant. "
        f"Over critic, over best rival: the error of `{subject}` over theirs; below 1 `{subject}` is nearer. The best "
        "rival has the least error of all other estimators on the same cells. Brackets are 95 % t intervals over "
        f"contexts ({_num_cells(records, subject)} cells a row), given policies, query states and truth; the one of "
        "the best rival holds for all rivals together (Bonferroni). The verdict names a winner where that interval "
        "leaves 1 out, and never on fewer than three cells."
    )
    left_out = sorted({
        name for part in res.by_environment(res.usable(records)).values() for length in res.lengths_of(part)
        for name in verdict_of(res.at_length(part, length), subject).left_out
    })  # fmt: skip
    return note + (f" Not on all cells somewhere, and left out there: {', '.join(left_out)}." if left_out else "")


def _num_cells(records: Sequence[Record], subject: str) -> str:
    """How many cells of the subject stand behind a row, such as "5 or 10"."""
    counts = {
        len(res.figures(res.at_length(part, length), subject))
        for part in res.by_environment(res.usable(records)).values()
        for length in res.lengths_of(part)
    }
    return " or ".join(map(str, sorted(counts - {0})))


def pooled_table(records: Sequence[Record], subject: str, title: str) -> Table:
    """One row per rival, one column per context length: the ratio of errors over all environments."""
    compared = {length: pooled_ratios(res.at_length(records, length), subject) for length in res.lengths_of(records)}
    names = list(dict.fromkeys(name for found in compared.values() for name in found))
    rows = tuple((text(name), *(_short(found.get(name)) for found in compared.values())) for name in names)
    columns = ("rival", *(f"{length:,} transitions" for length in compared))
    note = (
        f"RMSE of `{subject}` over the rival's at default settings, on the cells that both have: geometric mean over "
        "environments, each of equal weight, with a 95 % t interval over environments, so it speaks of environments "
        "like these. Behind it: environments in which the subject's mean error is the smaller. "
        f"{HINDSIGHT.capitalize()}: the least error of {', '.join(CLASSICAL)} with all their settings, chosen for "
        "every cell by the error itself, which nobody without the truth can do; on cells where all of them were tuned."
    )
    return Table(title, columns, rows, note)


def pooled_ratios(part: Sequence[Record], subject: str) -> dict[str, tuple[Aggregate, int, int]]:
    """Per rival the ratio over environments, the environments in which the subject is ahead, and all of them."""
    good = res.usable(part)
    rivals = {name: res.figures(good, name) for name in (CRITIC, res.REFERENCE, *CLASSICAL) if name != subject}
    rivals[HINDSIGHT] = hindsight(good)
    ours = res.figures(good, subject)
    found = {name: _pooled(res.ratios(ours, theirs)) for name, theirs in rivals.items()}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def _pooled(ratios: res.Figures) -> tuple[Aggregate, int, int] | None:
    if not ratios:
        return None
    label = res.labels({task for task, _ in ratios})
    groups = by_group({(label[task], (task, seed)): math.log(ratio) for (task, seed), ratio in ratios.items()})
    ahead = sum(group.mean() < 0 for group in groups)
    return interval_over_groups(groups).exponentiated(), ahead, len(groups)


def _short(found: tuple[Aggregate, int, int] | None) -> Field:
    if found is None:
        return MISSING
    ratio, ahead, total = found
    return Field(f"{interval(ratio).text}, {ahead} of {total}", ratio.value)


def hindsight(part: Sequence[Record]) -> res.Figures:
    """Least error of each context over the classical methods and all their settings, where all of them were tuned."""
    tuned = [_tuned(part, name) for name in CLASSICAL]
    together = res.shared(*tuned)
    return {key: min(errors[key] for errors in together) for key in together[0]}


def _tuned(part: Sequence[Record], name: str) -> res.Figures:
    """Least errors over the whole grid, of the contexts on which the whole grid was run."""
    run: dict[res.Key, int] = {}
    for record in part:
        if record.cell.variant.estimator == name and not record.cell.variant.is_default:
            key = record.cell.task, record.cell.seed
            run[key] = run.get(key, 0) + 1
    size = len(_grid(name))
    if not size:
        return {}
    return {key: v for key, v in res.figures(part, name, tuned=True).items() if run.get(key, 0) == size}


def _grid(name: str) -> list[dict[str, Any]]:
    """The settings of an estimator beside its default; none for the critic and for what this version does not know."""
    return [options for options in tuning_grid(name) if options] if name in estimators() else []


def _is_tuned(records: Sequence[Record], name: str) -> bool:
    """Whether the whole grid was run on every context that the estimator has a result on."""
    parts = [res.at_length(records, length) for length in res.lengths_of(records)]
    return bool(_grid(name)) and all(res.figures(p, name).keys() == _tuned(p, name).keys() for p in parts)


def tuning_words(records: Sequence[Record]) -> str:
    """Which estimators were tuned everywhere they ran, which not, and which did not run."""
    known = set(estimators())
    ran = [name for name in res.names_of(records) if name in known]
    tuned = [name for name in ran if _is_tuned(records, name)]
    fixed = [name for name in ran if not _grid(name)]
    others = [name for name in ran if name not in tuned and name not in fixed]
    never = sorted(known - set(ran))
    parts = [f"Tuned (every setting of their grids was run): {', '.join(tuned) or 'none'}."]
    parts.append(f"Nothing to tune: {', '.join(fixed)}." if fixed else "")
    parts.append(f"Not tuned, or not everywhere: {', '.join(others) or 'none'}.")
    parts.append(f"Not run: {', '.join(never)}." if never else "")
    return " ".join(filter(None, parts))


def accuracy_table(records: Sequence[Record]) -> Table:
    """RMSE / std of every estimator that ran on all tasks, nearest first, and how it compares with critic and
    construction."""

    def rows_at(length: int, part: Sequence[Record]) -> Rows:
        rows = []
        for name in res.complete(part):
            errors, tuned = res.figures(part, name), _tuned(part, name)
            failed = sum(r.error is not None for r in res.at_length(records, length) if _is(r, name))
            sides = [
                MISSING if rival == name else _against(errors, res.figures(part, rival))
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


def _against(ours: res.Figures, theirs: res.Figures) -> Field:
    return interval(error_ratio(ours, theirs)) if any(key in theirs for key in ours) else MISSING


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
            within = sum(WANTED_COVERAGE[0] <= value <= WANTED_COVERAGE[1] for value in means)
            rows.append((
                number(length, ",d"), text(name), number(len(coverage), "d"), number(float(np.mean(means))),
                number(min(means)), share(within, len(means)), number(_median(widths)),
            ))  # fmt: skip
        return rows

    low, high = WANTED_COVERAGE
    columns = (
        "context", "estimator", "cells", "coverage", "least", f"environments in {low:.2f}-{high:.2f}", "width / std",
    )  # fmt: skip
    note = (
        "Share of query states whose truth lies in the 90 % interval (the truth's own noise accounted for): mean over "
        f"environments, and the environment with the least; {low:.0%} to {high:.0%} is wanted. Width: median over "
        "cells, in standard deviations of the truth."
    )
    return Table("90 % intervals", columns, _by_length(records, rows_at), note)


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


def selection_table(records: Sequence[Record]) -> Table:
    """How well start values rank the policies of an environment; means over the seeds of the contexts."""
    groups: dict[tuple[str, int, str], list[PolicyMetrics]] = {}
    for metrics in policy_metrics([record for record in records if record.error is None]):
        if metrics.num_policies > 2:
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
