"""The subject against its rivals: verdicts by environment, ratios over all environments, and who was tuned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.registry import estimators, tuning_grid
from icrl_gym.scoring.document import MISSING, Field, Table, interval, number, text
from icrl_gym.scoring.statistics import Aggregate, interval_over_groups
from icrl_gym.scoring.verdict import Verdict, by_group, error_ratio, judge

CLASSICAL = ("lstd", "kbrl", "softmax_td", "nadaraya_watson")  # who is tuned in hindsight, together
HINDSIGHT = "best in hindsight"
FQE = "fqe"
# Other forms of the subject: earlier, without the policy, without walks. They are compared with, and are no rivals.
SUBJECT, BEFORE = "generalist", "generalist_before"
FORMS = (BEFORE, "generalist_from_log", "generalist_at_rest", "generalist_expected")
PARTS = (
    ("the policy's action in expectation", "generalist_expected", "generalist_at_rest"),
    ("walks in the world beside it", "generalist", "generalist_expected"),
    ("walks, the policy known by its log alone", "generalist_from_log", "generalist_at_rest"),
    ("to be told the policy", "generalist", "generalist_from_log"),
    ("ten heads in place of one", "generalist_at_rest", res.REFERENCE),
    ("all changes since the last version", SUBJECT, BEFORE),
    ("the same, without the policy", "generalist_from_log", BEFORE),
)

Rows = list[tuple[Field, ...]]


def verdict_of(part: Sequence[Record], subject: str) -> Verdict:
    """The subject against the nearest of all other estimators at their defaults, the critic included."""
    rivals = {name: res.figures(part, name) for name in res.names_of(part) if name not in (subject, *FORMS)}
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
                against(errors, critics), text(verdict.rival or "-"), _value(rival), interval(verdict.ratio),
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
    names = (CRITIC, *FORMS, res.REFERENCE, FQE, *CLASSICAL)
    rivals = {name: res.figures(good, name) for name in names if name != subject}
    rivals[HINDSIGHT] = hindsight(good)
    ours = res.figures(good, subject)
    found = {name: _pooled(res.ratios(ours, theirs)) for name, theirs in rivals.items()}
    return {name: ratio for name, ratio in found.items() if ratio is not None}


def parts_table(groups: dict[str, Sequence[Record]]) -> Table:
    """The worth of each part of the generalist, on groups of environments and at every length.

    Args:
        groups: records by the group's name.
    """
    lengths = sorted({length for records in groups.values() for length in res.lengths_of(records)})
    rows: Rows = []
    for words, with_it, without in PARTS:
        found = [
            _pooled(res.ratios(res.figures(part, with_it), res.figures(part, without)))
            for records in groups.values()
            for part in (res.usable(res.at_length(records, length)) for length in lengths)
        ]
        if any(found):
            rows.append((text(words), *map(_short, found)))
    columns = ("part", *(f"{name}, {length:,}" for name in groups for length in lengths))
    note = (
        "Error with the part over error without it, on the cells that both have: geometric mean over environments, "
        "each of equal weight, with a 95 % t interval over environments; in how many of them the mean error is "
        "smaller with it. No part of the values is trained; pretraining makes the error bars of softmax TD."
    )
    return Table("Error with the part over error without it", columns, tuple(rows), note)


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
    tuned = [tuned_errors(part, name) for name in CLASSICAL]
    together = res.shared(*tuned)
    return {key: min(errors[key] for errors in together) for key in together[0]}


def tuned_errors(part: Sequence[Record], name: str) -> res.Figures:
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
    return bool(_grid(name)) and all(res.figures(p, name).keys() == tuned_errors(p, name).keys() for p in parts)


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


def against(ours: res.Figures, theirs: res.Figures) -> Field:
    return interval(error_ratio(ours, theirs)) if any(key in theirs for key in ours) else MISSING
