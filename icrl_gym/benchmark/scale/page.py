"""docs/performance.md: what is measured of time and memory, as tables and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.benchmark.scale.machine import GIGA, Machine
from icrl_gym.benchmark.scale.rows import EVALUATORS, TOLD, Row
from icrl_gym.runs import replacing, write_text
from icrl_gym.scoring.document import MISSING, Field, Picture, Section, Table, markdown, number, text
from icrl_gym.scoring.figures import COLOURS, GREY, MARKERS

MEGABYTE, GIGABYTE = 2**20, 2**30
MOST_LOAD = 0.7  # load average of a machine that counts as doing nothing else
# What the issue that this page answers wants of the generalist's fit and 64 queries: seconds and bytes, at most.
WANTED_COST = {32_768: (10.0, 1.5 * GIGABYTE), 100_000: (30.0, 2 * GIGABYTE), 1_000_000: (480.0, 4 * GIGABYTE)}
LOGS = {"walker": "walker: 17 features, 6 actions", "pole": "pole: 4 features, endings"}


@dataclass(frozen=True)
class Topic:
    """One table of the page.

    Attributes:
        title: of the table.
        ratio: heading of the column of seconds over the reference's.
        wanted: what the issue asks of that ratio, in words; "" where it asks nothing.
        note: how the figures are made.
        error: heading of the column of errors; "" where there is none.
    """

    title: str
    ratio: str
    wanted: str
    note: str
    error: str = ""


TOPICS: dict[str, Topic] = {
    "streaming": Topic(
        "`update` with 256 new transitions", "over a fresh fit", "",
        "The fresh fit chooses the statistics of its features anew, so values differ by that too: the largest "
        "difference over 64 queries, in standard deviations of the values.", "difference",
    ),
    "depth": Topic(
        "Finite depth: fit and 64 queries of `constructed`", "over a plain attention pass",
        "24 layers: 3; 8 layers at n = 100,000: under 2,048 MiB",
        "A plain pass is `softmax(x x^T) v` over as many columns, in the same number format and the same process, in "
        "turn.",
    ),
    "queries": Topic("1,000 queries of a fitted context", "over the fit", "0.1", "The two take turns."),
    "rewards": Topic(
        "A fit and values under 100 reward functions", "over a fit and one", "3", "64 queries each; the two take turns."
    ),
    "attribution": Topic(
        "Attribution of 64 queries", "over the fit", "1",
        "The difference is that of `attribution @ rewards` from the values, in their standard deviations.",
        "difference",
    ),
    "prompts": Topic(
        "1,000 prompts of 256 transitions at once", "over one by one", "0.2",
        "One by one is extrapolated from 50 prompts; one query each.",
    ),
}  # fmt: skip
RIVALS_NOTE = """One log of CartPole-v1 under the policy that ships with the package, and one truth: RMSE / std at
states on the policy's path, the truth's own noise subtracted; an error that this noise cannot tell from zero counts as
the smallest that it could tell. The ratio is to the generalist that is told the policy, in the same process. Networks
are trained from scratch with 500, 1,000, 2,000, ... steps until they are as near as the generalist, or two doublings do
not help; the seconds are those of that training alone. Kernel ridge (scikit-learn) regresses the returns that the log
shows to their end, up to 5 % of their weight; its width and ridge are chosen by cross-validation over whole episodes on
2,048 rows, which counts. PPO's critic, the fitted value network and FQE are wanted to take at least 100 times as
long."""
COST_NOTE = """Each row is a process of its own: the seconds of `fit` and `predict` at 64 states of the log, and the
peak of resident memory above what was resident before, the log included there. The last column is the time over that
of the same matrix products alone, at the speed of float64 measured in the same process; products are those that torch
is asked for, so NumPy's and the solution of linear systems are not in them. Logs are synthetic, of the sizes of
HalfCheetah and CartPole."""


def write_page(page: Path, machine: Machine, rows: Sequence[Row], before: Sequence[Row], command: str) -> None:
    """Write the page, and its figure to the folder beside it.

    Args:
        page: file.
        machine: as measured.
        rows: finished measurements.
        before: those of an earlier version on the same machine, or none.
        command: that made them, as the page shows it.
    """
    folder = page.parent / page.stem
    picture = cost_picture(rows)
    if picture is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / f"{picture.name}.png") as unfinished:
            picture.figure.savefig(unfinished, format="png", dpi=110, metadata={"Software": None})
    body = markdown(sections(machine, rows, before, picture), pictures=f"{folder.name}/")
    write_text(page, introduction(rows, command) + body + "\n")


def cost_picture(rows: Sequence[Row]) -> Picture | None:
    """The figure with its caption, None without rows of cost."""
    if not of_topic(rows, "cost"):
        return None
    return Picture(
        "cost_by_length",
        "Seconds of `fit` and 64 queries against transitions, both logarithmic. The band is the time that the matrix "
        "products of the generalist that is told the policy would take alone, from float64 (upper edge) to float32; "
        "the dotted line grows as the number of transitions.",
        figure(rows),
    )


def introduction(rows: Sequence[Row], command: str) -> str:
    """Heading, command and commits."""
    commits = ", ".join(f"`{commit}`" for commit in sorted({(row.commit or "unknown")[:12] for row in rows}))
    return (
        "# What costs what\n\nTime and memory of the evaluators, and of what people use in their place. Generated by\n"
        f"`{command}`,\nmeasured at {commits}; not edited by hand.\n\n"
    )


def sections(
    machine: Machine, rows: Sequence[Row], before: Sequence[Row], picture: Picture | None
) -> tuple[Section, ...]:
    """The body of the page; topics without rows are left out."""
    parts: list[Section] = [Section("The machine", (machine_table(machine),))]
    if picture is not None:
        tables = (cost_table(rows, before, log) for log in LOGS)
        parts.append(Section("Context length", (picture, COST_NOTE, *(table for table in tables if table.rows))))
    small = tuple(topic_table(rows, name) for name in TOPICS if of_topic(rows, name))
    if small:
        parts.append(Section("Streams, depth, queries, rewards", small))
    if of_topic(rows, "rivals"):
        parts.append(Section("Against what people use", (RIVALS_NOTE, rivals_table(rows))))
    return tuple(parts)


def of_topic(rows: Sequence[Row], topic: str) -> list[Row]:
    """Rows of a topic."""
    return [row for row in rows if row.measurement.topic == topic]


def machine_table(machine: Machine) -> Table:
    """The table of the machine: cores, memory, threads and speed of matrix products."""
    memory = "-" if machine.memory is None else f"{machine.memory / GIGABYTE:.1f} GiB"
    entries = (
        ("cores", str(machine.cores)), ("memory", memory), ("threads of torch", str(machine.threads)),
        ("load before", "-" if machine.load is None else f"{machine.load:.1f}"),
        ("matrix products, float32", f"{machine.gflops_float32:.1f} GFLOP/s"),
        ("matrix products, float64", f"{machine.gflops_float64:.1f} GFLOP/s"),
        ("copies in memory", f"{machine.bandwidth / GIGA:.1f} GB/s"),
        ("system, torch", f"{machine.platform}, {machine.torch}"),
    )  # fmt: skip
    busy = machine.load is not None and machine.load > MOST_LOAD
    note = "The machine did other work at the same time: only ratios say something." if busy else ""
    return Table("As measured", ("what", "figure"), tuple((text(name), text(value)) for name, value in entries), note)


def cost_table(rows: Sequence[Row], before: Sequence[Row], log: str) -> Table:
    """Seconds and memory by method and size on one log."""
    earlier = {row.measurement: row for row in before}
    columns = ("method", "n", "s", "peak, MiB", "wanted, at most", "over the products alone")
    entries = []
    for row in of_topic(rows, "cost"):
        if row.measurement.log != log:
            continue
        fields = (
            text(row.measurement.method), number(row.measurement.size, ",d"), _seconds(row), _memory(row),
            _wanted(row), number(row.ratio, ".1f"),
        )  # fmt: skip
        entries.append((*fields, _seconds(earlier.get(row.measurement))) if before else fields)
    return Table(f"Fit and 64 queries, {LOGS[log]}", (*columns, "before, s") if before else columns, tuple(entries))


def _wanted(row: Row) -> Field:
    if row.measurement.method not in EVALUATORS[:2] or row.measurement.size not in WANTED_COST:
        return MISSING
    seconds, memory = WANTED_COST[row.measurement.size]
    return text(f"{seconds:.0f} s, {memory / MEGABYTE:,.0f} MiB")


def topic_table(rows: Sequence[Row], topic: str) -> Table:
    """Seconds and ratio of each measurement of a topic."""
    about = TOPICS[topic]
    columns = ("method", "n", "s", "peak, MiB", about.ratio, *([about.error] if about.error else []))
    entries = [
        (
            text(row.measurement.method), number(row.measurement.size, ",d"), _seconds(row), _memory(row),
            number(row.ratio, ".3f"), *([number(row.error, ".1e")] if about.error else []),
        )
        for row in of_topic(rows, topic)
    ]  # fmt: skip
    wanted = f" Wanted, at most: {about.wanted}." if about.wanted else ""
    return Table(about.title, columns, tuple(entries), about.note + wanted)


def rivals_table(rows: Sequence[Row]) -> Table:
    """Everybody on the same data."""
    entries = [
        (
            text(row.measurement.method), number(row.measurement.size, ",d"), _seconds(row), number(row.ratio, ".1f"),
            number(row.error, ".3f"), text(row.note or "-"),
        )
        for row in of_topic(rows, "rivals")
    ]  # fmt: skip
    return Table(
        "The same data",
        ("method", "n", "s", "times the generalist's", "RMSE / std", "note"),
        tuple(entries),
    )


def _seconds(row: Row | None) -> Field:
    if row is None:
        return MISSING
    return text(row.reason) if row.seconds is None else number(row.seconds, ".3g" if row.seconds < 100 else ",.0f")


def _memory(row: Row) -> Field:
    return number(None if row.peak_memory is None else row.peak_memory / MEGABYTE, ",.0f")


def figure(rows: Sequence[Row]) -> Figure:
    """Cost against n, one panel for each log that has rows; there must be one."""
    logs = [log for log in LOGS if any(row.measurement.log == log for row in of_topic(rows, "cost"))]
    drawn = Figure(figsize=(4.6 * len(logs), 3.6), layout="constrained")
    panels = drawn.subplots(1, len(logs), squeeze=False, sharey=True)[0]
    for axes, log in zip(panels, logs, strict=False):
        _draw(axes, [row for row in of_topic(rows, "cost") if row.measurement.log == log])
        axes.set_title(LOGS[log], fontsize=10)
        axes.set_xlabel("transitions")
    panels[0].set_ylabel("seconds")
    panels[0].legend(frameon=False, fontsize=8)
    return drawn


def _draw(axes: Axes, rows: list[Row]) -> None:
    for name, colour, marker in zip(EVALUATORS, COLOURS, MARKERS, strict=False):
        own = [row for row in rows if row.measurement.method == name and row.seconds is not None]
        axes.plot(
            [row.measurement.size for row in own], [row.seconds or np.nan for row in own], color=colour, marker=marker,
            ms=4, label=name,
        )  # fmt: skip
        if name == TOLD and own:
            _draw_yardsticks(axes, own)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.25)


def _draw_yardsticks(axes: Axes, rows: list[Row]) -> None:
    """The products' own time, and linear growth from the first point."""
    counted = [row for row in rows if row.products_float32 is not None and row.products_float64 is not None]
    low, high = ([getattr(row, name) for row in counted] for name in ("products_float32", "products_float64"))
    axes.fill_between(
        [row.measurement.size for row in counted], low, high, color=GREY, alpha=0.3, lw=0, label="matrix products alone"
    )
    sizes = np.array([row.measurement.size for row in rows])
    linear = (rows[0].seconds or np.nan) * sizes / sizes[0]
    axes.plot(sizes, linear, color=GREY, ls=":", lw=1, label="linear growth")
