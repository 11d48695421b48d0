"""The worth of the pretraining as Markdown tables, and their place in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from icrl_gym.pretraining.ablation import PRETRAINED, Intervals
from icrl_gym.scoring.document import Field, Table, markdown_table, text
from icrl_gym.scoring.statistics import bootstrap_interval

BEGIN, END, PLACE = "<!-- begin tables -->", "<!-- end tables -->", "<!-- tables -->"


def interval_table(groups: Mapping[str, Mapping[str, Intervals]]) -> str:
    """Markdown: coverage, score, and score over that of the pretrained error bars, on every group of tasks.

    Args:
        groups: what `ablation.compare` found, by the group's name; all with the same rivals.
    """
    columns, lines = ["error bars"], [[name] for name in next(iter(groups.values()))]
    for group, found in groups.items():
        columns += [f"{group}: coverage", "score", "over pretrained"]
        ours = found[PRETRAINED].score_B
        for line, (name, one) in zip(lines, found.items(), strict=True):
            line += [f"{one.covered_B.mean():.3f}", f"{one.score:.2f}"]
            line.append("" if name == PRETRAINED else _ratio(one.score_B, ours))
    return _markdown(columns, lines)


def _ratio(theirs_B: np.ndarray, ours_B: np.ndarray) -> str:
    """Geometric mean over tasks of score over score, with its 95 % bootstrap interval over tasks."""
    logs_B = np.log(theirs_B / ours_B)
    value = math.exp(logs_B.mean())
    if len(logs_B) < 2:
        return f"{value:.3f}"
    low, high = np.exp(bootstrap_interval(logs_B))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def card_table(validation: Mapping[str, Mapping[str, float | None]]) -> str:
    """Markdown of the validation errors in a checkpoint's card."""
    columns = ("error", "constructed", "ratio", "worst_ratio", "coverage")
    lines = [
        (name, f"{row['tasks']:.0f}", *("" if row[c] is None else f"{row[c]:.3f}" for c in columns))
        for name, row in sorted(validation.items(), key=lambda item: (item[0] == "all", item[0]))
    ]
    return _markdown(("family", "tasks", "error", "constructed", "ratio", "worst ratio", "coverage"), lines)


def insert_tables(page: str, tables: str) -> str:
    """The page with the tables between its markers, or at its placeholder; all other text stays.

    Raises:
        ValueError: the page has neither, or its markers are out of order.
    """
    if page.count(BEGIN) == page.count(END) == 1 and page.index(BEGIN) < page.index(END):
        before, after = page[: page.index(BEGIN)], page[page.index(END) + len(END) :]
    elif page.count(PLACE) == 1:
        before, after = page.split(PLACE)
    else:
        raise ValueError(f"page must hold one {PLACE}, or one {BEGIN} before one {END}")
    return f"{before}{BEGIN}\n\n{tables.strip()}\n\n{END}{after}"


def _markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ((text(first), *(Field(cell, math.nan) for cell in others)) for first, *others in lines)
    return markdown_table(Table("", tuple(names), tuple(rows)))
