"""The whole report: sections in reading order, from the answer to the details."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from icrl_gym.benchmark.cells import CRITIC, Task
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import figures, tables
from icrl_gym.benchmark.report import results as res
from icrl_gym.benchmark.report.folder import Budget
from icrl_gym.benchmark.report.ratios import CLASSICAL, ratio_tables, short_ratio_table
from icrl_gym.benchmark.report.words import off_policy_words, who_wins
from icrl_gym.configuration import DEFAULT_ESTIMATOR
from icrl_gym.scoring.document import MISSING, Picture, Section, Table, interval, number, text

MAIN = (DEFAULT_ESTIMATOR, res.REFERENCE, *CLASSICAL)


@dataclass(frozen=True)
class Choice:
    """Whom the report is about.

    Attributes:
        subject: compared with every rival.
        shown: drawn, and given a column; the subject among them.
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


def sections(
    records: Sequence[Record],
    choice: Choice,
    dimensions: Mapping[Task, int] | None = None,
    budgets: Mapping[Task, Budget] | None = None,
    commit: str | None = None,
) -> list[Section]:
    """Everything, from the summary to the failures.

    Args:
        records: of one or more suites.
        choice: whom the report is about.
        dimensions: task -> numbers in an observation, where known.
        budgets: task -> size of its simulated truth, where known.
        commit: of the code that ran last, for records that do not say.
    """
    shown, subject = choice.shown, choice.subject
    on_policy, off_policy = split(records)
    summary = (_legend(records, subject), *summary_tables(on_policy, choice))
    parts = [Section("Summary", summary)]
    if res.usable(records):
        words = [*who_wins(on_policy, subject, dimensions), *off_policy_words(off_policy, subject)]
        whole = [*ratio_tables(on_policy, subject), *ratio_tables(off_policy, subject, "off-policy contexts")[:1]]
        whole.append(tables.environment_table(records, subject, shown))
        parts.append(Section("Who wins where, and why", tuple(words)))
        parts.append(Section("Figures", tuple(pictures(on_policy, choice))))
        parts.append(Section("One estimator against all others", _filled(whole)))
    others = [tables.magnitude_table(records, subject, shown), tables.selection_table(on_policy)]
    others.append(tables.selection_table(off_policy, "off-policy contexts"))
    if _filled(others):
        parts.append(Section("Other views", _filled(others)))
    for suite, part in res.by_suite(records).items():
        found = tables.suite_tables(suite, part)
        if found:
            parts.append(Section(f"Suite {suite}", (_suite_line(part), *found)))
    parts.append(Section("How it was run", (*_provenance(records, budgets or {}, commit), *_failures(records))))
    return parts


def split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Contexts of the policy itself, and contexts in which somebody else acted; all are the former if none is."""
    own = [record for record in records if record.cell.task.behaviour is None]
    if not res.usable(own):
        return list(records), []
    return own, [record for record in records if record.cell.task.behaviour is not None]


def _filled(found: Sequence[Table]) -> tuple[Table, ...]:
    return tuple(table for table in found if table.rows)


def summary_tables(records: Sequence[Record], choice: Choice) -> list[Table]:
    """Two small tables: the ratios to each rival, and the environments at the longest context."""
    good = res.usable(records)
    if not good:
        return []
    return [short_ratio_table(records, choice.subject), _short_environments(good, choice.subject)]


def _short_environments(good: Sequence[Record], subject: str) -> Table:
    longest = res.main_lengths(good)[-1]
    rows = []
    for env, part in res.by_environment(res.at_length(good, longest)).items():
        verdict, _ = tables.judge(part, subject)
        errors = {name: res.geometric(res.figures(part, name)) for name in (subject, CRITIC)}
        rivals = [(name, error) for name, error in tables.ranking(part) if name not in (subject, CRITIC)]
        name, error = rivals[0] if rivals else ("-", None)
        rows.append((
            text(env), interval(errors[subject]), interval(errors[CRITIC]), text(name),
            MISSING if error is None else number(error), text(verdict),
        ))  # fmt: skip
    columns = ("environment", subject, CRITIC, "best other estimator", "its error", "verdict")
    note = (
        "RMSE / std under default settings, geometric mean over policies and contexts with 95 % intervals; 0 is "
        "perfect, 1 is what the best constant would reach. The verdict names the winner, the subject or its best rival "
        "(the critic included), where the interval of the ratio of their errors leaves 1 out."
    )
    return Table(f"Each environment at {longest:,} transitions", columns, tuple(rows), note)


def pictures(records: Sequence[Record], choice: Choice) -> list[Picture]:
    """The figures that these records allow."""
    subject, shown = choice.subject, choice.shown
    makers = {
        "error_by_context": (
            lambda: figures.error_by_context(figures.context_curves(records, shown), subject),
            f"Error against the length of the context, environment by environment; `{subject}` thick, the critic "
            "dashed (it does not see the context), dotted what the best constant would reach.",
        ),
        "performance_profiles": (
            lambda: figures.performance_profiles(records, shown, subject),
            "Performance profiles: share of cells whose error is at most so much, on the cells that all drawn have; "
            "further up and left is better. Bands: 95 % intervals.",
        ),
        "coverage_by_environment": (
            lambda: figures.coverage_by_environment(records, subject),
            "Calibration: share of query states whose truth lies in the 90 % interval, by environment; green is the "
            "wanted band of 85 % to 95 %.",
        ),
        "cost_against_accuracy": (
            lambda: figures.cost_against_accuracy(records, shown, subject),
            "Cost against accuracy. Left: seconds of estimators with a result on every task. Right: environment steps "
            "seen, on the cells that all drawn have at every length.",
        ),
    }
    found = []
    for name, (make, caption) in makers.items():
        try:
            found.append(Picture(name, caption, make()))
        except figures.NothingToDraw:
            continue
    return found


def _legend(records: Sequence[Record], subject: str) -> str:
    done = [record for record in records if record.error is None]
    tasks = {record.cell.task for record in done}
    seeds = {record.cell.seed for record in done}
    lengths = ", ".join(f"{length:,}" for length in res.lengths_of(done))
    return (
        f"An estimator sees one stretch of a policy's experience (the context, {lengths} transitions) and says what "
        "states are worth under that policy. A cell is one estimator under one setting on one context of one policy in "
        "one environment, scored at the same query states against the truth (solved exactly, or simulated). "
        f"`{CRITIC}` is the value function of the very agent, as Stable-Baselines3 trained it. Contexts in which "
        "somebody else than the policy acted are judged apart. "
        f"This report is about `{subject}`: {len(done):,} finished cells, {len(tasks)} policies in "
        f"{len({task.env for task in tasks})} environments, {len(seeds)} contexts each."
    )


def _suite_line(part: Sequence[Record]) -> str:
    done = [record for record in part if record.error is None]
    tasks = {record.cell.task for record in done}
    envs = ", ".join(sorted(set(res.labels(tasks).values())))
    return f"{len(tasks)} policies, {len(done):,} finished cells: {envs}."


def _provenance(records: Sequence[Record], budgets: Mapping[Task, Budget], commit: str | None) -> list[str]:
    lines = ["Commands (finished cells are kept, so that a second call goes on where the first stopped):"]
    lines.append("\n".join(f"- `{command}`" for command in commands(records, budgets)))
    sizes = sorted({budgets[record.cell.task] for record in records if record.cell.task in budgets})
    if sizes:
        each = " or ".join(f"{b.num_queries} query states with {b.num_rollouts} continuations each" for b in sizes)
        lines.append(f"Simulated truths: {each}. Exact truths: every state that is not terminal.")
    counts = Counter(record.commit for record in records)
    unnamed = counts.pop(None, 0)
    commits = [f"`{commit}` ({count:,} cells)" for commit, count in sorted(counts.items())]
    if unnamed and commit:
        commits.append(f"{unnamed:,} cells do not name theirs; the last sweep of the folder ran at `{commit}`")
    return [*lines, f"Code: {'; '.join(commits)}."] if commits else lines


def commands(records: Sequence[Record], budgets: Mapping[Task, Budget]) -> list[str]:
    """What makes these records, suite by suite: first the estimators that were tuned, then the others."""
    found = []
    for suite, part in res.by_suite(records).items():
        if suite == res.OTHER:
            continue
        sizes = {budgets[record.cell.task] for record in part if record.cell.task in budgets}
        if len(sizes) < 2:
            found += _suite_commands(part, f"--suite {suite}", *sizes)
            continue
        for size in sorted(sizes):  # truths of several sizes: a command each
            mine = [record for record in part if budgets.get(record.cell.task) == size]
            envs = " ".join(sorted({record.cell.task.env for record in mine}))
            found += _suite_commands(mine, f"--suite {suite} --envs {envs}", size)
    return found


def _suite_commands(part: Sequence[Record], chosen: str, size: Budget | None = None) -> list[str]:
    tuned = {r.cell.setting.estimator for r in part if not r.cell.setting.is_default}
    plain = set(res.names_of(part)) - tuned
    lengths = " ".join(map(str, res.lengths_of(part)))
    seeds = " ".join(map(str, sorted({record.cell.seed for record in part})))
    ending = f"--context-lengths {lengths} --seeds {seeds}"
    if size is not None:
        ending += f" --num-queries {size.num_queries} --num-rollouts {size.num_rollouts}"
    return [
        f"icrl-gym benchmark {chosen}{flag} --estimators {' '.join(sorted(names))} {ending}"
        for flag, names in ((" --tune", tuned), ("", plain))
        if names
    ]


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record.error is not None]
    if not failed:
        return ["No cell failed."]
    counts: dict[str, int] = {}
    for record in failed:
        envs = {r.cell.setting.estimator for r in failed if r.cell.task == record.cell.task and r.error == record.error}
        who = f"`{record.cell.setting.estimator}`" if len(envs) == 1 else f"{len(envs)} estimators"
        line = f"- {res.labels([record.cell.task])[record.cell.task]}, {who}: {record.error}"
        counts[line] = counts.get(line, 0) + 1
    lines = [f"{line} ({count} cells)" for line, count in sorted(counts.items())]
    return [f"{len(failed)} of {len(records):,} cells failed:", "\n".join(lines)]
