"""One self-contained HTML page: styles, script and figures inline, and a policy that forbids every request."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape

import matplotlib

from icrl_gym.scoring.document import Picture, Section, Table, html_table, inline_html

# The browser itself refuses to load anything: the page can only show what is in it.
SECURITY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

PIXELS_PER_INCH = 98  # of figures, at most

STYLE = """
:root { color-scheme: light; --ink: #1c2330; --soft: #5b6472; --line: #d9dee6; --accent: #0072b2; --band: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: var(--ink);
  background: #fff; }
header, main { max-width: 92rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 2.5rem; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p, ul { max-width: 52rem; }
nav ul { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
code { font: .9em ui-monospace, "DejaVu Sans Mono", Menlo, monospace; background: var(--band); padding: .05em .3em;
  border-radius: 3px; overflow-wrap: anywhere; }
.controls { position: sticky; top: 0; z-index: 3; background: #fff; border-bottom: 1px solid var(--line);
  padding: .5rem 0; margin-top: 1rem; display: flex; gap: 1.5rem; flex-wrap: wrap; align-items: center;
  font-size: .9rem; }
select, input { font: inherit; padding: .15rem .4rem; border: 1px solid var(--line); border-radius: 4px;
  background: #fff; }
figure { margin: 1.5rem 0 2.25rem; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
figure.picture figcaption { font-weight: 400; color: var(--soft); font-size: .92rem; max-width: 52rem;
  margin: .4rem 0 0; }
figure.picture svg { width: 100%; height: auto; display: block; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
th { position: sticky; top: 0; background: var(--band); border-bottom: 1px solid var(--line); padding: 0; z-index: 1; }
th button { all: unset; display: block; width: 100%; padding: .45rem .55rem; cursor: pointer; font-weight: 600;
  box-sizing: border-box; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
th button::after { content: " \\2195"; color: #aab2bf; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: var(--accent); }
th[aria-sort=descending] button::after { content: " \\2193"; color: var(--accent); }
td { padding: .3rem .55rem; border-bottom: 1px solid #eef1f5; white-space: nowrap; }
tbody tr:hover { background: #eaf3fa; }
.number { text-align: right; }
.word { text-align: left; }
.note { color: var(--soft); font-size: .86rem; margin: .5rem 0 0; max-width: 64rem; }
tr.subject td { background: #e6f1f8; font-weight: 600; }
tr.critic td { background: #f1f1f1; font-style: italic; }
@media print { .controls, nav { display: none; } .scroll { max-height: none; overflow: visible; } }
"""

SCRIPT = """
"use strict";
const compare = (a, b) => {
  if (a === "" || b === "") return (a === "") - (b === "");
  const x = Number(a), y = Number(b);
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
};
function sortBy(heading) {
  const table = heading.closest("table"), column = heading.cellIndex;
  const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows), order = row => row.cells[column].dataset.order;
  const missing = (a, b) => order(a) === "" || order(b) === "";  // always last
  rows.sort((a, b) => (missing(a, b) ? 1 : sign) * compare(order(a), order(b)));
  table.tBodies[0].append(...rows);
}
for (const heading of document.querySelectorAll("th")) {
  heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
const lengthBox = document.getElementById("length"), wordsBox = document.getElementById("words");
function columnOf(table, name) {
  return Array.from(table.tHead.rows[0].cells).findIndex(cell => cell.textContent === name);
}
function filter() {
  const length = lengthBox.value, wanted = wordsBox.value.trim().toLowerCase();
  for (const table of document.querySelectorAll("table")) {
    const column = columnOf(table, "context");
    for (const row of table.tBodies[0].rows) {
      const fits = length === "" || column < 0 || Number(row.cells[column].dataset.order) === Number(length);
      row.hidden = !fits || (wanted !== "" && !row.textContent.toLowerCase().includes(wanted));
    }
  }
}
const lengths = new Set();
for (const table of document.querySelectorAll("table")) {
  const column = columnOf(table, "context");
  const subject = document.body.dataset.subject;
  for (const row of table.tBodies[0].rows) {
    if (column >= 0) lengths.add(Number(row.cells[column].dataset.order));
    const name = columnOf(table, "estimator");
    if (name >= 0 && row.cells[name].textContent === subject) row.classList.add("subject");
    if (name >= 0 && row.cells[name].textContent === "critic") row.classList.add("critic");
  }
}
for (const value of Array.from(lengths).sort((a, b) => a - b)) {
  lengthBox.add(new Option(value.toLocaleString("en"), value));
}
lengthBox.addEventListener("change", filter);
wordsBox.addEventListener("input", filter);
document.documentElement.dataset.ready = "yes";
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{security}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body data-subject="{subject}">
<header><h1>{title}</h1><nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
<div class="controls"><label>Context <select id="length"><option value="">all lengths</option></select></label>
<label>Rows with <input id="words" type="search" placeholder="estimator, environment"></label>
<span>Click a heading to sort.</span></div>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def html_page(sections: Sequence[Section], title: str, subject: str) -> str:
    """The page.

    Args:
        sections: in order.
        title: of the page.
        subject: the estimator whose rows stand out.
    """
    anchors = [re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") for section in sections]
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    body = "\n".join(
        f'<section id="{anchor}"><h2>{escape(section.title)}</h2>\n{_parts(section)}</section>'
        for anchor, section in zip(anchors, sections, strict=True)
    )
    return PAGE.format(
        security=SECURITY, title=escape(title), style=STYLE, subject=escape(subject), links=links, body=body,
        script=SCRIPT,
    )  # fmt: skip


def _parts(section: Section) -> str:
    return "\n".join(_part(part) for part in section.parts)


def _part(part: str | Table | Picture) -> str:
    if isinstance(part, Table):
        return html_table(part)
    if isinstance(part, Picture):
        return f'<figure class="picture">{svg(part)}<figcaption>{inline_html(part.caption)}</figcaption></figure>'
    if part.startswith("- "):
        items = "".join(f"<li>{inline_html(line.removeprefix('- '))}</li>" for line in part.splitlines())
        return f"<ul>{items}</ul>"
    return f"<p>{inline_html(part)}</p>"


def svg(picture: Picture) -> str:
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
    return drawing.replace("<svg", f'<svg role="img" aria-label="{label}" style="max-width: {width}px"', 1)
