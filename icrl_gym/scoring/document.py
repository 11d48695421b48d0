"""Documents as data (sections of paragraphs, tables and pictures), and their two forms: Markdown and one HTML page."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from icrl_gym.scoring.statistics import Aggregate


@dataclass(frozen=True)
class Field:
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
    rows: tuple[tuple[Field, ...], ...]
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


MISSING = Field("-", math.nan)
LINE_LENGTH = 120  # at most, in Markdown
PIXELS_PER_INCH = 98  # of figures, at most


def text(content: str) -> Field:
    """A field of words."""
    return Field(content, content)


def number(value: float | None, form: str = ".2f") -> Field:
    """A field of one number, a dash where it is not defined."""
    return MISSING if value is None or not math.isfinite(value) else Field(format(value, form), float(value))


def interval(figure: Aggregate | None, form: str = ".2f") -> Field:
    """A figure with its interval, where it has one of any width."""
    if figure is None:
        return MISSING
    if not figure.has_interval or math.isclose(figure.low, figure.high, rel_tol=1e-9):
        return number(figure.value, form)
    return Field(f"{figure.value:{form}} [{figure.low:{form}}, {figure.high:{form}}]", figure.value)


def share(count: int, total: int) -> Field:
    """So many of so many, sorted by the share."""
    return Field(f"{count} of {total}", count / total) if total else MISSING


def markdown(sections: Iterable[Section], level: int = 2, pictures: str = "", ending: str = "png") -> str:
    """All sections as Markdown.

    Args:
        sections: in order.
        level: level of the headings.
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
                blocks += [f"![{part.name.replace('_', ' ')}]({pictures}{part.name}.{ending})", _wrapped(part.caption)]
            else:
                blocks.append(part if part.startswith("- ") else _wrapped(part))
    return "\n\n".join(blocks)


def _wrapped(paragraph: str) -> str:
    return textwrap.fill(paragraph, LINE_LENGTH, break_long_words=False, break_on_hyphens=False)


def markdown_table(table: Table) -> str:
    """The rows alone, numbers to the right; a bar in a heading or a field is escaped, since it would end the field."""
    rule = ["---:" if numeric else "---" for numeric in table.is_numeric]
    lines = [[_escaped(name) for name in table.columns], rule]
    lines += [[_escaped(field.text) for field in row] for row in table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(content: str) -> str:
    return content.replace("|", "\\|")


def html_page(sections: Sequence[Section], title: str, subject: str) -> str:
    """One self-contained page: styles, script and figures inline, and a policy that forbids every request.

    Args:
        sections: in order.
        title: title of the page.
        subject: the estimator whose rows stand out.
    """
    loader = jinja2.PackageLoader("icrl_gym.scoring", "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"inline": inline_html, "svg": svg, "order": _order, "anchor": _anchor, "kind": _kind}
    return environment.get_template("page.html.jinja").render(sections=sections, title=title, subject=subject)


def _kind(part: str | Table | Picture) -> str:
    if isinstance(part, str):
        return "list" if part.startswith("- ") else "paragraph"
    return "table" if isinstance(part, Table) else "picture"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _order(field: Field) -> str:
    """The attribute of a field that its column is sorted by; empty comes last."""
    if isinstance(field.order, str):
        return field.order
    return "" if math.isnan(field.order) else repr(float(field.order))


def inline_html(paragraph: str) -> Markup:
    """Plain text with `code`, **bold** and [links](to) as HTML."""
    escaped = re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(paragraph, quote=False))
    escaped = re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r'<a href="\2">\1</a>', escaped)
    return Markup(re.sub(r"\*\*([^*]*)\*\*", r"<strong>\1</strong>", escaped))


def svg(picture: Picture) -> Markup:
    """The figure as an inline element: letters as outlines, ids of its own, no metadata, the same bytes every time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": picture.name}):
        picture.figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    drawing = re.sub(r'\bid="', f'id="{picture.name}-', drawing)
    drawing = re.sub(r'href="#', f'href="#{picture.name}-', drawing)
    drawing = re.sub(r"url\(#", f"url(#{picture.name}-", drawing)
    label = escape(picture.caption.replace("`", ""))
    width = round(PIXELS_PER_INCH * picture.figure.get_figwidth())
    return Markup(drawing.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width: {width}px"', 1))
