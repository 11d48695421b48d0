"""Tables and sections as data, and their two forms: Markdown, and HTML whose columns can be sorted."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from icrl_gym.scoring.statistics import Aggregate


@dataclass(frozen=True)
class Entry:
    """One field of a table.

    Attributes:
        text: what is shown.
        order: what the column is sorted by; NaN comes last.
    """

    text: str
    order: float | str


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        title: one line.
        columns: headings.
        rows: one tuple of entries per row, as long as ``columns``.
        note: how to read it; may hold `code`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""

    @property
    def is_numeric(self) -> tuple[bool, ...]:
        """Per column: no entry is sorted as text."""
        return tuple(all(not isinstance(row[i].order, str) for row in self.rows) for i in range(len(self.columns)))


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure under a file name without ending, with a caption that says what it shows."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; paragraphs may hold `code` and **bold**."""

    title: str
    parts: tuple[str | Table | Picture, ...]


MISSING = Entry("-", math.nan)
LINE_LENGTH = 120  # of paragraphs in Markdown


def text(content: str) -> Entry:
    """An entry of words."""
    return Entry(content, content)


def number(value: float | None, form: str = ".2f") -> Entry:
    """An entry of one number, a dash where it is not defined."""
    return MISSING if value is None or not math.isfinite(value) else Entry(format(value, form), float(value))


def interval(figure: Aggregate | None, form: str = ".2f") -> Entry:
    """A figure with its interval, where it has any width."""
    if figure is None:
        return MISSING
    if math.isclose(figure.low, figure.high, rel_tol=1e-9):
        return number(figure.value, form)
    return Entry(f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]", figure.value)


def share(count: int, total: int) -> Entry:
    """So many of so many, sorted by the share."""
    return Entry(f"{count} of {total}", count / total) if total else MISSING


def markdown(sections: Iterable[Section], level: int = 2, pictures: str = "", ending: str = "png") -> str:
    """All sections as Markdown.

    Args:
        sections: in order.
        level: of the headings.
        pictures: path of the pictures' folder as seen from the page, with a slash at its end, or "".
        ending: of the pictures' files.
    """
    blocks = []
    for section in sections:
        blocks.append(f"{'#' * level} {section.title}")
        for part in section.parts:
            if isinstance(part, Table):
                blocks += [f"**{part.title}**", markdown_table(part), *([_wrapped(part.note)] if part.note else [])]
            elif isinstance(part, Picture):
                blocks += [f"![{part.caption}]({pictures}{part.name}.{ending})", _wrapped(part.caption)]
            else:
                blocks.append(part if part.startswith("- ") else _wrapped(part))
    return "\n\n".join(blocks)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, LINE_LENGTH, break_long_words=False, break_on_hyphens=False)


def markdown_table(table: Table) -> str:
    """The rows alone, numbers to the right."""
    rule = ("---:" if numeric else "---" for numeric in table.is_numeric)
    lines = [table.columns, rule, *([entry.text.replace("|", "\\|") for entry in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def html_table(table: Table) -> str:
    """A table whose headings are buttons; `data-order` holds what a column is sorted by."""
    sides = ['class="number"' if numeric else 'class="word"' for numeric in table.is_numeric]
    headings = "".join(
        f'<th scope="col" {side} aria-sort="none"><button type="button">{inline_html(name)}</button></th>'
        for name, side in zip(table.columns, sides, strict=True)
    )
    rows = "\n".join(f"<tr>{_html_row(row, sides)}</tr>" for row in table.rows)
    note = f'<p class="note">{inline_html(table.note)}</p>' if table.note else ""
    return (
        f'<figure class="table"><figcaption>{inline_html(table.title)}</figcaption><div class="scroll"><table>'
        f"<thead><tr>{headings}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}</figure>"
    )


def _html_row(row: Sequence[Entry], sides: Sequence[str]) -> str:
    return "".join(
        f'<td {side} data-order="{escape(_order(entry))}">{escape(entry.text)}</td>'
        for entry, side in zip(row, sides, strict=True)
    )


def _order(entry: Entry) -> str:
    if isinstance(entry.order, str):
        return entry.order
    return "" if math.isnan(entry.order) else repr(float(entry.order))


def inline_html(paragraph: str) -> str:
    """Plain text with `code` and **bold** as HTML."""
    escaped = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(paragraph, quote=False))
    return re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", escaped)
