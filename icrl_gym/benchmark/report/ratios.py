"""One estimator against each rival: geometric-mean ratios of errors, shares of cells ahead, the worst cell."""

from __future__ import annotations

from collections.abc import Sequence

from icrl_gym.benchmark.cells import CRITIC, Task
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import results as res
from icrl_gym.scoring.document import MISSING, Entry, Table, interval, number, share, text

CLASSICAL = ("lstd", "kbrl", "softmax_td", "nadaraya_watson")
SELECTION = ("CartPole-v1", "Acrobot-v1", "Pendulum-v1")  # what architectures may be chosen on
PENDULUM = "Pendulum-v1"  # whose critic is poor
HINDSIGHT = "best in hindsight"
MOST_LENGTHS = 4  # columns of the short table


def ratio_tables(records: Sequence[Record], subject: str, whole: str = "all environments") -> list[Table]:
    """The subject's error over each rival's: on all environments, named ``whole``, and on parts of them."""
    compared: dict[str, dict[tuple[int, str], res.Figures]] = {}
    for (length, rival), against in _compared(records, subject).items():
        for group, kept in _groups(against, whole).items():
            compared.setdefault(group, {})[length, rival] = kept
    return [
        Table(
            f"`{subject}` against each rival, {group}",
            ("context", "rival", "cells", "error ratio", "ahead", "worst ratio", "worst cell"),
            tuple(_row(length, rival, kept) for (length, rival), kept in by_rival.items()),
            _note(subject),
        )
        for group, by_rival in compared.items()
    ]


def short_ratio_table(records: Sequence[Record], subject: str) -> Table:
    """One row per rival, one column per context length (at most four of them): ratio of errors, and cells ahead."""
    compared = _compared(records, subject)
    lengths = res.main_lengths(res.usable(records), MOST_LENGTHS)
    rows = []
    for rival in dict.fromkeys(name for length, name in compared if length in lengths):
        entries = [_short(compared.get((length, rival), {})) for length in lengths]
        rows.append((text(rival), *entries))
    columns = ("rival", *(f"{length:,} transitions" for length in lengths))
    note = f"{_note(subject)} Behind the ratio: cells in which `{subject}` is ahead."
    return Table(f"Error of `{subject}` over the error of each rival", columns, tuple(rows), note)


def _short(kept: res.Figures) -> Entry:
    figure = res.geometric(kept)
    if figure is None:
        return MISSING
    ahead = sum(ratio < 1 for ratio in kept.values())
    return Entry(f"{interval(figure).text}, {ahead} of {len(kept)}", figure.value)


def _compared(records: Sequence[Record], subject: str) -> dict[tuple[int, str], res.Figures]:
    """(length, rival) -> ratios of errors by context."""
    found = {}
    for length in res.lengths_of(records):
        part = res.usable(res.at_length(records, length))
        ours = res.figures(part, subject)
        for rival, theirs in _rivals(part, subject).items():
            found[length, rival] = res.ratios(ours, theirs)
    return found


def _row(length: int, rival: str, kept: res.Figures) -> tuple[Entry, ...]:
    worst = max(kept, key=lambda key: kept[key])
    return (
        number(length, ",d"), text(rival), number(len(kept), "d"), interval(res.geometric(kept)),
        share(sum(ratio < 1 for ratio in kept.values()), len(kept)), number(kept[worst]), text(_cell_name(*worst)),
    )  # fmt: skip


def _cell_name(task: Task, seed: int) -> str:
    policy = task.policy.rpartition("/")[0].rpartition("/")[2] or task.policy
    return f"{res.labels([task])[task]}, {policy}, context {seed}"


def _note(subject: str) -> str:
    return (
        f"RMSE of `{subject}` over the rival's, geometric mean over the cells that both have; below 1 `{subject}` is "
        "nearer. Brackets: 95 % stratified bootstrap over the contexts of each task; they do not speak of other "
        f"environments or policies. {HINDSIGHT.capitalize()}: the least error of {', '.join(CLASSICAL)} and all their "
        "settings, method and setting chosen for every cell by the error itself, which nobody without the truth can "
        "do. All others at their defaults."
    )


def _rivals(part: Sequence[Record], subject: str) -> dict[str, res.Figures]:
    """Errors of the rivals by name, without those that have none."""
    rivals = {name: res.figures(part, name) for name in (CRITIC, res.REFERENCE) if name != subject}
    rivals[HINDSIGHT] = hindsight(part)
    rivals |= {name: res.figures(part, name) for name in CLASSICAL if name != subject}
    ours = res.figures(part, subject)
    return {name: errors for name, errors in rivals.items() if any(key in ours for key in errors)}


def hindsight(part: Sequence[Record]) -> res.Figures:
    """Least error of each context over the classical methods and all their settings; contexts that all have.

    Nothing if no setting but the defaults was run, which would be no choice of settings.
    """
    if all(record.cell.setting.is_default for record in part if record.cell.setting.estimator in CLASSICAL):
        return {}
    tuned = [res.figures(part, name, tuned=True) for name in CLASSICAL]
    together = res.shared(*tuned)
    return {key: min(errors[key] for errors in together) for key in together[0]}


def _groups(ratios: res.Figures, whole: str) -> dict[str, res.Figures]:
    """The cells of all environments, and of parts of them that are neither empty nor all."""

    def where(keep: bool, envs: Sequence[str]) -> res.Figures:
        return {key: ratio for key, ratio in ratios.items() if (_env(key[0]) in envs) == keep}

    parts = {
        f"without {PENDULUM}": where(False, (PENDULUM,)),
        f"without {', '.join(SELECTION)}": where(False, SELECTION),
    }
    return {whole: ratios} | {name: kept for name, kept in parts.items() if 0 < len(kept) < len(ratios)}


def _env(task: Task) -> str:
    return task.env.rpartition(":")[2]
