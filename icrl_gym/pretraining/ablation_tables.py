"""The ablations' errors as Markdown tables, and their place in a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from icrl_gym.pretraining.ablation import REFERENCE, left_out
from icrl_gym.scoring.document import Field, Table, markdown_table, text
from icrl_gym.scoring.statistics import bootstrap_interval

BEGIN, END, PLACE = "<!-- begin tables -->", "<!-- end tables -->", "<!-- tables -->"


def ratio_with_interval(logs_RT: np.ndarray) -> tuple[float, float, float]:
    """exp of the mean over R seeds and T tasks, with its 95 % bootstrap interval over tasks; NaN for one task."""
    logs_T = logs_RT.mean(axis=0)
    low, high = bootstrap_interval(logs_T) if len(logs_T) > 1 else (math.nan, math.nan)
    return math.exp(logs_T.mean()), math.exp(low), math.exp(high)


def ablation_table(rows: Mapping[str, np.ndarray]) -> str:
    """Markdown: error by row against the constructed evaluator and against the small recipe."""
    reference = rows[REFERENCE.label].mean(axis=0)
    lines = []
    for label, logs_RT in rows.items():
        paired = _figure(logs_RT - reference) if label != REFERENCE.label else ""
        seeds = " / ".join(f"{np.exp(logs_T.mean()):.3f}" for logs_T in logs_RT)
        lines.append((label, _figure(logs_RT), paired, seeds, f"{np.exp(logs_RT.mean(axis=0).max()):.2f}"))
    return _markdown(("changed", "error / constructed", "error / small recipe", "by seed", "worst task"), lines)


def family_table(
    rows: Mapping[str, np.ndarray], reference: np.ndarray, families_T: np.ndarray, families: Sequence[str]
) -> str:
    """Markdown: on each family, gates trained without it beside those trained with it; over all, each on its own.

    Args:
        rows: log ratios of `left_out`, (seeds, tasks) by label.
        reference: those of the small recipe with all families, at the same seeds.
        families_T: name of every task's family.
        families: names in the order of the table; one without a task says so.
    """
    lines, unseen = [], np.full_like(reference, np.nan)
    for name, ablation in zip(families, left_out(families), strict=True):
        own_T = families_T == name
        if not own_T.any():
            lines.append((name, "0", "no validation task", "", ""))
            continue
        unseen[:, own_T] = rows[ablation.label][:, own_T]
        lines.append((name, *_compare(unseen[:, own_T], reference[:, own_T])))
    lines.append(("all", *_compare(unseen, reference)))
    names = ("family", "tasks", "trained without it", "trained with it", "without / with")
    return _markdown(names, lines)


def _compare(without_RT: np.ndarray, with_RT: np.ndarray) -> tuple[str, str, str, str]:
    paired = _figure(without_RT - with_RT.mean(axis=0))
    return str(with_RT.shape[1]), _figure(without_RT), _figure(with_RT), paired


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


def _figure(logs_RT: np.ndarray) -> str:
    value, low, high = ratio_with_interval(logs_RT)
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _markdown(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = ((text(first), *(Field(cell, math.nan) for cell in others)) for first, *others in lines)
    return markdown_table(Table("", tuple(names), tuple(rows)))
