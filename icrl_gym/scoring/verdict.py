"""Who is nearer to the truth: the one rule by which every table, figure and sentence of a report calls a winner.

A verdict compares the errors of one estimator with those of its rivals on the cells that all of them have, in
logarithms, and calls a winner only where an interval leaves "equal" out. The rival named is the nearest of several,
picked by these very errors; so the interval is that of Bonferroni over all rivals: among K rivals as good as the
subject, some rival is called the winner with probability at most 5 %.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from icrl_gym.scoring.statistics import LEVEL, Aggregate, mean_interval

FEWEST_CELLS = 3  # policies times contexts; below, nothing is called

Key = tuple[Any, Any]  # (group, unit): a policy, and one of its contexts
Errors = Mapping[Key, float]  # positive


class Call(StrEnum):
    """What a verdict says of the subject."""

    AHEAD = "ahead"
    BEHIND = "behind"
    OPEN = "too close to call"
    NONE = "no verdict"


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison.

    Attributes:
        call: what the interval says.
        rival: the nearest rival, or None without rivals.
        ratio: geometric mean of the subject's error over that rival's, with the interval that decides.
        num_cells: cells that the subject and all rivals have.
        num_rivals: how many rivals the nearest was picked from.
        left_out: rivals that lack a cell of the subject's, and so were not compared.
    """

    call: Call
    rival: str | None
    ratio: Aggregate | None
    num_cells: int
    num_rivals: int
    left_out: tuple[str, ...] = ()

    def in_words(self, subject: str) -> str:
        """The winner's name, or why there is none."""
        if self.call is Call.NONE:
            return f"{Call.NONE} ({self.num_cells} cells)"
        return {Call.AHEAD: subject, Call.BEHIND: str(self.rival), Call.OPEN: str(Call.OPEN)}[self.call]


def judge(ours: Errors, rivals: Mapping[str, Errors]) -> Verdict:
    """Compare an estimator with the nearest of its rivals.

    Args:
        ours: the subject's errors by (policy, context).
        rivals: those of each rival; a rival that lacks one of the subject's cells is left out and named.
    """
    complete = {name: errors for name, errors in rivals.items() if ours and ours.keys() <= errors.keys()}
    left_out = tuple(sorted(name for name in rivals if name not in complete))
    if not complete:
        return Verdict(Call.NONE, None, None, len(ours), 0, left_out)
    nearest = min(complete, key=lambda name: np.mean([np.log(complete[name][key]) for key in ours]))
    ratio = error_ratio(ours, complete[nearest], 1.0 - (1.0 - LEVEL) / len(complete))
    return Verdict(_call(ratio, len(ours)), nearest, ratio, len(ours), len(complete), left_out)


def _call(ratio: Aggregate, num_cells: int) -> Call:
    if num_cells < FEWEST_CELLS or not ratio.has_interval:
        return Call.NONE
    if ratio.high < 1:
        return Call.AHEAD
    return Call.BEHIND if ratio.low > 1 else Call.OPEN


def error_ratio(ours: Errors, theirs: Errors, level: float = LEVEL) -> Aggregate:
    """Geometric mean over policies of our error over theirs, on the cells that both have, with its interval.

    Raises:
        ValueError: no cell in common.
    """
    common = [key for key in ours if key in theirs]
    if not common:
        raise ValueError("ours and theirs must have a cell in common, got none")
    return mean_interval(by_group({key: np.log(ours[key] / theirs[key]) for key in common}), level).exponentiated()


def by_group(figures: Mapping[Key, float]) -> list[np.ndarray]:
    """The figures of each group as an array, groups and units in the order of their names."""
    groups: dict[object, list[float]] = {}
    for (group, _), figure in sorted(figures.items(), key=lambda item: (str(item[0][0]), str(item[0][1]))):
        groups.setdefault(group, []).append(figure)
    return [np.array(group) for group in groups.values()]
