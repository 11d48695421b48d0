"""The report's further pages as sections: the environments together, suite by suite, how it was run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from icrl_gym.benchmark.cells import CRITIC, Cell
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import comparisons, figures, tables
from icrl_gym.benchmark.report import errors as res
from icrl_gym.benchmark.report.headline import Groups
from icrl_gym.benchmark.suites import SUITES
from icrl_gym.configuration import DEFAULT_ESTIMATOR
from icrl_gym.scoring.document import Picture, Section

MAIN = (DEFAULT_ESTIMATOR, res.REFERENCE, *comparisons.CLASSICAL)


@dataclass(frozen=True)
class Choice:
    """Whom the report is about.

    Attributes:
        subject: the estimator that is compared with every rival.
        shown: estimators in the figures, the subject among them.
    """

    subject: str
    shown: tuple[str, ...]


def choose(records: Sequence[Record], subject: str | None = None, show: Sequence[str] = ()) -> Choice:
    """Settle subject and shown estimators.

    Raises:
        ValueError: a name that no usable record has, or no usable record at all.
    """
    known = [name for name in res.names_of(r for r in records if r.error is None) if name != CRITIC]
    if not known:
        reasons = sorted({record.error for record in records if record.error is not None})
        raise ValueError(f"run: no cell of an estimator succeeded; {len(records)} cells, first error: {reasons[:1]}")
    for name in (*([subject] if subject else []), *show):
        if name not in known:
            raise ValueError(f"subject and show must be among the estimators that were run, {known}, got {name!r}")
    subject = subject or next(name for name in (*MAIN, *known) if name in known)
    chosen = show or [name for name in MAIN if name in known]
    return Choice(subject, tuple(dict.fromkeys((subject, *chosen))))


def together(records: Sequence[Record], choice: Choice) -> Section:
    """All environments together: ratios to every rival, tasks with little spread, choice of policies, tuning."""
    groups, subject = Groups.of(records), choice.subject
    found = [
        comparisons.pooled_table(groups.untouched, subject, "Environments on which nothing was chosen"),
        comparisons.pooled_table(groups.selection, subject, f"The selection set ({', '.join(res.SELECTION)})"),
        comparisons.pooled_table(groups.off_policy, subject, "Contexts in which another policy acted"),
        tables.magnitude_table(records, subject),
        tables.selection_table(groups.untouched + groups.selection, (*choice.shown, CRITIC)),
    ]  # fmt: skip
    parts = [*(table for table in found if table.rows), comparisons.tuning_words(records), *pictures(records, choice)]
    return Section("All environments together", tuple(parts))


def pictures(records: Sequence[Record], choice: Choice) -> list[Picture]:
    """The figures that these records allow, beside the first one."""
    groups = Groups.of(records)
    own = groups.untouched + groups.selection or list(records)
    untouched = groups.untouched or own
    subject, shown = choice.subject, choice.shown
    makers = {
        "performance_profiles": (
            lambda: figures.performance_profiles(untouched, shown, subject),
            "Performance profiles: share of cells whose error is at most so much, on the cells that all drawn have; "
            "further up and left is better. Environments on which nothing was chosen, where there are any.",
        ),
        "coverage_by_environment": (
            lambda: figures.coverage_by_environment(own, subject),
            "Calibration: share of query states whose truth lies in the 90 % interval, by environment; green is the "
            "wanted band of 85 % to 95 %.",
        ),
        "cost_against_accuracy": (
            lambda: figures.cost_against_accuracy(untouched, subject),
            "Cost against accuracy there: seconds and error of the estimators with a result on every task.",
        ),
    }
    return [picture for name, (make, caption) in makers.items() if (picture := _drawn(name, caption, make))]


def _drawn(name: str, caption: str, make: Callable[[], Figure]) -> Picture | None:
    try:
        return Picture(name, caption, make())
    except figures.NothingToDraw:
        return None


def suite_page(suite: str, records: Sequence[Record], choice: Choice) -> Section:
    """One suite: verdicts, accuracy, intervals, cost, and the error against the context's length."""
    subject = choice.subject
    found = [comparisons.verdict_table(records, subject), tables.accuracy_table(records)]
    found += [tables.interval_table(records), tables.cost_table(records)]
    tasks = {record.cell.task for record in records}
    names = ", ".join(sorted(set(res.labels(tasks).values())))
    line = f"{len(tasks)} policies, {len(records):,} cells: {names}. {missing(suite, records, subject)}"
    curves = _drawn(
        f"error_by_context_{suite}",
        f"Error against the length of the context; `{subject}` thick, the critic dashed (it does not see the context), "
        "dotted what the best constant would reach.",
        lambda: figures.error_by_context(figures.context_curves(records, choice.shown), subject),
    )
    parts = [line.strip(), *(table for table in found if table.rows), *([curves] if curves else [])]
    return Section(f"Suite {suite}", tuple(parts))


def missing(suite: str, records: Sequence[Record], subject: str) -> str:
    """A sentence on the suite's own contexts that have no record of the subject, "" if all have one."""
    if suite not in SUITES:
        return ""
    wanted = [
        (task, length, seed)
        for task in SUITES[suite].tasks
        for length in SUITES[suite].context_lengths
        for seed in SUITES[suite].seeds
    ]
    have = {_context(r.cell) for r in records if r.cell.variant.estimator == subject and r.error is None}
    lacking = [context for context in wanted if context not in have]
    if not lacking:
        return ""
    envs = sorted({task.env.rpartition(":")[2] for task, _, _ in lacking})
    return f"Missing: {len(lacking)} of {len(wanted)} contexts of `{subject}` ({', '.join(envs)})."


def _context(cell: Cell) -> tuple[object, int, int]:
    return cell.task, cell.context_length, cell.seed


def provenance(records: Sequence[Record]) -> Section:
    """Commands, sizes of the truths, commits, and what failed."""
    lines: list[str] = ["Commands (finished cells are kept, so that a second call goes on where the first stopped):"]
    lines.append("\n".join(f"- `{command}`" for command in commands(records)))
    sizes = Counter(_size(record) for record in records if record.cell.conditions.num_rollouts)
    if sizes:
        each = " or ".join(f"{queries} query states with {n} continuations each" for queries, n in sorted(sizes))
        lines.append(f"Simulated truths: {each}. Exact truths: every state that is not terminal.")
    counts = Counter(record.commit or "an installed package" for record in records)
    lines.append(f"Code: {'; '.join(f'`{commit}` ({count:,} cells)' for commit, count in sorted(counts.items()))}.")
    return Section("How it was run", (*lines, *_failures(records)))


def _size(record: Record) -> tuple[int, int]:
    return record.cell.conditions.num_queries, record.cell.conditions.num_rollouts


def commands(records: Sequence[Record]) -> list[str]:
    """Commands that make these records, suite by suite: first the estimators that were tuned, then the others."""
    found = []
    for suite, part in res.by_suite(records).items():
        if suite == res.OTHER:
            continue
        sizes = sorted({_size(r) for r in part if r.cell.conditions.num_rollouts}) or [(_size(part[0])[0], 0)]
        for size in sizes:
            mine = [r for r in part if not r.cell.conditions.num_rollouts or _size(r) == size]
            envs = sorted({r.cell.task.env for r in mine}) if len(sizes) > 1 else []
            found += _suite_commands(mine, " ".join([f"--suite {suite}", *(["--envs", *envs] if envs else [])]), size)
    return found


def _suite_commands(part: Sequence[Record], chosen: str, size: tuple[int, int]) -> list[str]:
    tuned = {r.cell.variant.estimator for r in part if not r.cell.variant.is_default}
    plain = set(res.names_of(part)) - tuned
    lengths = " ".join(map(str, res.lengths_of(part)))
    seeds = " ".join(map(str, sorted({record.cell.seed for record in part})))
    ending = f"--context-lengths {lengths} --seeds {seeds} --num-queries {size[0]}"
    ending += f" --num-rollouts {size[1]}" if size[1] else ""
    trust = " --trust-model" if any(r.cell.task.snapshots for r in part) else ""
    return [
        f"icrl-gym benchmark {chosen}{flag}{trust} --estimators {' '.join(sorted(names))} {ending}"
        for flag, names in ((" --tune", tuned), ("", plain))
        if names
    ]


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record.error is not None]
    if not failed:
        return ["No cell failed."]
    counts = Counter(
        f"{res.labels([r.cell.task])[r.cell.task]}, `{r.cell.variant.estimator}`: {r.error}" for r in failed
    )
    lines = [f"- {line} ({count} cells)" for line, count in sorted(counts.items())]
    return [f"{len(failed)} of {len(records):,} cells failed:", "\n".join(lines)]
