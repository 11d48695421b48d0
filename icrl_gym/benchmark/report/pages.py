"""The report's pages as sections: the results in one screen, the environments together, suite by suite, how it was run.

Every sentence is computed from the records; where they do not support one, it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.benchmark.cells import CRITIC, Cell
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.benchmark.report import figures, tables
from icrl_gym.benchmark.suites import SUITES
from icrl_gym.configuration import DEFAULT_ESTIMATOR
from icrl_gym.scoring.document import Picture, Section, Table, interval
from icrl_gym.scoring.statistics import Aggregate
from icrl_gym.scoring.verdict import Call

MAIN = (DEFAULT_ESTIMATOR, res.REFERENCE, *tables.CLASSICAL)
# Panels of the first figure, one or two of each suite; fixed here, so that no outcome chooses them.
PANELS = (
    "FrozenLake-v1 (ppo)", "MountainCar-v0", "LunarLander-v3", "Hopper-v5", "HalfCheetah-v5", "MiniGrid-Empty-5x5-v0",
)  # fmt: skip


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


@dataclass(frozen=True)
class Groups:
    """Records by what may be concluded from them.

    Attributes:
        untouched: environments on which nothing was chosen; all of the policy's own contexts if there is no other.
        selection: the environments on which the design was chosen.
        off_policy: contexts in which somebody else than the policy acted.
    """

    untouched: list[Record]
    selection: list[Record]
    off_policy: list[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Groups:
        """Sort records into the groups."""
        own = [record for record in records if record.cell.task.behaviour is None]
        chosen = [record for record in own if record.cell.task.env in res.SELECTION]
        return cls(
            [record for record in own if record.cell.task.env not in res.SELECTION], chosen,
            [record for record in records if record.cell.task.behaviour is not None],
        )  # fmt: skip


def results(records: Sequence[Record], subject: str) -> list[Section]:
    """What fits on one screen: the claim, one figure, one table, where it loses, contexts of another policy."""
    groups = Groups.of(records)
    main = groups.untouched or groups.selection or groups.off_policy
    parts: list[str | Table | Picture] = [claim(main, subject)]
    if picture := first_picture(main, subject):
        parts.append(picture)
    found = [Section("In short", tuple(parts))]
    found.append(Section("Who wins where", (tables.verdict_table(main, subject, "Nothing was chosen on these"),)))
    found.append(Section("Where it loses, and why", (losses(main, subject),)))
    if groups.selection and groups.untouched:
        table = tables.verdict_table(groups.selection, subject, "The design was chosen on these")
        short = Table(table.title, table.columns, table.rows)
        found.append(Section("The environments that chose the design", (claim(groups.selection, subject), short)))
    if groups.off_policy:
        words = tally(groups.off_policy, subject)
        found.append(Section("Contexts in which another policy acted", (words,)))
    return [section for section in found if any(section.parts)]


def claim(records: Sequence[Record], subject: str) -> str:
    """The subject against the critic and against the classical methods, at every context length."""
    sentences = []
    for length in res.lengths_of(res.usable(records)):
        part = res.at_length(records, length)
        found = tables.pooled_ratios(part, subject)
        known = {
            CRITIC: f"that of the policy's own SB3 critic{_trained(part)}",
            res.REFERENCE: "that of the same network with nothing trained (`constructed`)",
            tables.HINDSIGHT: "that of the best classical method and setting, chosen for every cell in hindsight",
        }
        phrases = [_times(words, *found[name]) for name, words in known.items() if name in found]
        if phrases:
            sentences.append(f"From {length:,} transitions the error of `{subject}` is {_listed(phrases)}.")
    return " ".join(sentences)


def _times(words: str, ratio: Aggregate, ahead: int, total: int) -> str:
    return f"{interval(ratio).text} times {words} (ahead in {ahead} of {total} environments)"


def _trained(part: Sequence[Record]) -> str:
    steps = [res.environment_steps(r) for r in part if r.cell.variant.estimator == CRITIC and r.error is None]
    known = [count for count in steps if count is not None]
    return f", which saw {np.median(known):,.0f} steps (median)" if known else ""


def _listed(phrases: Sequence[str]) -> str:
    *first, last = phrases
    return f"{', '.join(first)} and {last}" if first else last


def first_picture(records: Sequence[Record], subject: str) -> Picture | None:
    """Error against environment steps on the fixed panels, or on whatever environments there are."""
    have = list(res.by_environment(res.usable(records)))
    panels = [env for env in PANELS if env in have] or have[:6]
    try:
        figure = figures.error_by_steps(records, panels, subject)
    except figures.NothingToDraw:
        return None
    caption = (
        f"Error against the environment steps seen: `{subject}` from one context (blue), the SB3 critic of the same "
        "policy after its training (star). The dotted line is the best constant; bars are 95 % intervals over contexts."
    )
    return Picture("error_by_steps", caption, figure)


def tally(records: Sequence[Record], subject: str) -> str:
    """How often the verdicts call the subject or a rival, by context length, with the names of the losses."""
    sentences = []
    for length in res.lengths_of(res.usable(records)):
        ahead, behind, total = _called(records, length, subject)
        losses = f" ({_listed([f'{env} to `{rival}`' for env, rival in behind])})" if behind else ""
        wins = f" ({_listed(ahead)})" if ahead else ""
        sentences.append(
            f"At {length:,} transitions `{subject}` is ahead of its best rival on {len(ahead)} of {total} "
            f"environments{wins} and behind on {len(behind)}{losses}; the others are too close to call."
        )
    return " ".join(sentences)


def _called(records: Sequence[Record], length: int, subject: str) -> tuple[list[str], list[tuple[str, str]], int]:
    """Environments won, environments lost with the winner, and how many there are."""
    ahead, behind = [], []
    environments = res.by_environment(res.at_length(res.usable(records), length))
    for env, part in environments.items():
        verdict = tables.verdict_of(part, subject)
        if verdict.call is Call.AHEAD:
            ahead.append(env)
        elif verdict.call is Call.BEHIND:
            behind.append((env, str(verdict.rival)))
    return ahead, behind, len(environments)


def losses(records: Sequence[Record], subject: str) -> str:
    """Where the subject loses and what goes with it, in at most five sentences."""
    good = res.usable(records)
    longest = res.at_length(good, res.lengths_of(good)[-1]) if good else []
    found = [
        tally(records, subject), _nearer_critics(longest, subject), _hopeless(longest), _level(longest, subject),
        _coverage(longest, subject),
    ]  # fmt: skip
    return " ".join(sentence for sentence in found if sentence)


def _nearer_critics(longest: Sequence[Record], subject: str) -> str:
    nearer = []
    for env, part in res.by_environment(longest).items():
        ratio = res.geometric(res.ratios(res.figures(part, subject), res.figures(part, CRITIC)))
        if ratio is not None and ratio.has_interval and ratio.low > 1:
            nearer.append(env)
    if not nearer:
        return ""
    length = longest[0].cell.context_length
    return (
        f"Against the critic alone it is behind on {_listed(nearer)}: large bodies and noisy outcomes, where "
        f"{length:,} transitions are few beside what a critic saw."
        if len(nearer) > 1
        else f"Against the critic alone it is behind on {nearer[0]}."
    )


def _hopeless(longest: Sequence[Record]) -> str:
    hopeless = []
    for env, part in res.by_environment(longest).items():
        errors = [res.geometric(res.figures(part, name)) for name in res.complete(part)]
        if errors and min(error.value for error in errors if error is not None) >= 1:
            hopeless.append(env)
    return f"Nobody beats a constant on {_listed(hopeless)}, so who is nearest there says little." if hopeless else ""


def _level(longest: Sequence[Record], subject: str) -> str:
    """How much of the squared error is a wrong level of all values, in contexts with and without an ending."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for record in longest:
        bias, rmse, ends = record.scores.get("bias"), record.scores.get("rmse"), record.context_terminations
        ours = record.cell.variant.estimator == subject and record.cell.variant.is_default
        if ours and bias is not None and rmse and ends is not None:
            shares[ends > 0].append(min(bias**2 / rmse**2, 1.0))
    if not (shares[True] and shares[False]):
        return ""
    return (
        "What it gets wrong is the level of all values where a context saw no episode terminate "
        f"({np.mean(shares[False]):.0%} of the squared error, {np.mean(shares[True]):.0%} where one did); "
        "the rest is shape."
    )


def _coverage(longest: Sequence[Record], subject: str) -> str:
    coverage = {
        env: float(np.mean(list(found.values())))
        for env, part in res.by_environment(longest).items()
        if (found := res.figures(part, subject, "coverage"))
    }
    if not coverage:
        return ""
    least = min(coverage, key=lambda env: coverage[env])
    return (
        f"Its 90 % intervals hold {np.mean(list(coverage.values())):.0%} of the true values, mean over environments, "
        f"and as little as {coverage[least]:.0%} on {least}."
    )


def together(records: Sequence[Record], choice: Choice) -> Section:
    """All environments together: ratios to every rival, tasks with little spread, choice of policies, tuning."""
    groups, subject = Groups.of(records), choice.subject
    found = [
        tables.pooled_table(groups.untouched, subject, "Environments on which nothing was chosen"),
        tables.pooled_table(groups.selection, subject, f"The selection set ({', '.join(res.SELECTION)})"),
        tables.pooled_table(groups.off_policy, subject, "Contexts in which another policy acted"),
        tables.magnitude_table(records, subject), tables.selection_table(groups.untouched + groups.selection),
    ]  # fmt: skip
    parts = [*(table for table in found if table.rows), tables.tuning_words(records), *pictures(records, choice)]
    return Section("All environments together", tuple(parts))


def pictures(records: Sequence[Record], choice: Choice) -> list[Picture]:
    """The figures that these records allow, beside the first one."""
    own = [record for record in records if record.cell.task.behaviour is None] or list(records)
    subject, shown = choice.subject, choice.shown
    makers = {
        "performance_profiles": (
            lambda: figures.performance_profiles(own, shown, subject),
            "Performance profiles: share of cells whose error is at most so much, on the cells that all drawn have; "
            "further up and left is better.",
        ),
        "coverage_by_environment": (
            lambda: figures.coverage_by_environment(own, subject),
            "Calibration: share of query states whose truth lies in the 90 % interval, by environment; green is the "
            "wanted band of 85 % to 95 %.",
        ),
        "cost_against_accuracy": (
            lambda: figures.cost_against_accuracy(own, subject),
            "Cost against accuracy: seconds and error of the estimators with a result on every task.",
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
    found = [tables.verdict_table(records, subject), tables.accuracy_table(records)]
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
    """What of the suite's own contexts has no record of the subject, "" if nothing."""
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
    """What makes these records, suite by suite: first the estimators that were tuned, then the others."""
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
