"""Draw one picture per family of the prior, and write docs/prior.md with what each family looks like in numbers.

    python scripts/draw_prior.py [--seed 0] [--num-batches 4]

Every row of a picture is one task: its context over time (up to four observed columns, standardised; red lines are
terminations, grey ones time limits), its rewards, and its queries over the context in the two leading principal
components, coloured by their true value. Pictures go to docs/prior/.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.pretraining.prior import FAMILIES, TaskBatch, sample_tasks
from icrl_gym.pretraining.prior.tasks import value_spread

COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49")


@dataclass(frozen=True)
class Config:
    """Sizes of the pictures and tables."""

    seed: int = 0
    """First seed; a batch has one layout, so several seeds show several."""
    num_batches: int = 4
    """Batches per family that the table is computed from."""
    num_tasks: int = 16
    """Tasks per batch."""
    num_transitions: int = 256
    """Length of the contexts."""
    num_queries: int = 32
    """Queries per task."""
    folder: Path = Path("docs")
    """Folder that prior.md and prior/ go into."""
    num_threads: int = 1
    """Threads of torch."""


def standardised(columns_ND: np.ndarray, by_ND: np.ndarray) -> np.ndarray:
    return (columns_ND - by_ND.mean(axis=0)) / np.maximum(by_ND.std(axis=0), 1e-6)


def draw_context(axes: Axes, batch: TaskBatch, task: int) -> None:
    observations = batch.observations[task].numpy()
    varying = np.argsort(observations.std(axis=0) <= 1e-6, kind="stable")[: len(COLOURS)]
    columns = standardised(observations, observations)[:, varying].clip(-4, 4)
    for colour, column in zip(COLOURS, columns.T, strict=False):
        axes.plot(column, color=colour, linewidth=0.8)
    for end in np.flatnonzero(batch.terminated[task].numpy()):
        axes.axvline(float(end), color="#c1121f", linewidth=0.6, alpha=0.7)
    for end in np.flatnonzero(batch.truncated[task].numpy()):
        axes.axvline(float(end), color="0.7", linewidth=0.6)
    axes.set_ylabel(f"{observations.shape[1]} columns", fontsize=7)


def draw_rewards(axes: Axes, batch: TaskBatch, task: int) -> None:
    axes.plot(batch.rewards[task].numpy(), color="0.25", linewidth=0.7)
    axes.set_title(f"rewards, gamma {float(batch.gamma[task]):.4g}", fontsize=7)


def draw_queries(axes: Axes, batch: TaskBatch, task: int) -> None:
    observations, queries = batch.observations[task].numpy(), batch.queries[task].numpy()
    context = standardised(observations, observations)
    directions = np.linalg.svd(context, full_matrices=False)[2][:2].T
    context, queries = context @ directions, standardised(queries, observations) @ directions
    if directions.shape[1] == 1:  # one column: spread over the rows
        context = np.column_stack([context, np.linspace(-1, 1, len(context))])
        queries = np.column_stack([queries, np.linspace(-1, 1, len(queries))])
    values = ((batch.values[task] + batch.values_second[task]) / 2).numpy()
    axes.plot(context[:, 0], context[:, 1], ".", color="0.8", markersize=2)
    points = axes.scatter(queries[:, 0], queries[:, 1], c=values, s=10, cmap="viridis", zorder=2)
    axes.set_title(f"values {values.min():.3g} to {values.max():.3g}", fontsize=7)
    assert axes.figure is not None
    axes.figure.colorbar(points, ax=axes).ax.tick_params(labelsize=6)


def picture(name: str, batches: list[TaskBatch]) -> Figure:
    """One row per batch, its first task."""
    figure = Figure(figsize=(9, 1.7 * len(batches)), layout="constrained")
    axes = figure.subplots(len(batches), 3, squeeze=False, width_ratios=(2.2, 1.6, 1))
    for row, batch in zip(axes, batches, strict=True):
        draw_context(row[0], batch, 0)
        draw_rewards(row[1], batch, 0)
        draw_queries(row[2], batch, 0)
        for one in row:
            one.tick_params(labelsize=6)
    figure.suptitle(f"{name}: {FAMILIES[name].description}", fontsize=9)
    return figure


def statistics(batches: list[TaskBatch]) -> list[str]:
    """Cells of the table for one family."""
    ends = torch.cat([(batch.terminated | batch.truncated).sum(dim=1) for batch in batches]).double()
    terminations = torch.cat([batch.terminated.sum(dim=1) for batch in batches]).double()
    spread = torch.cat([value_spread(batch) for batch in batches])
    size = torch.cat([batch.values.abs().mean(dim=1) for batch in batches])
    error = torch.cat([batch.stderr.square().mean(dim=1).sqrt() for batch in batches])
    columns = sorted({batch.queries.shape[-1] for batch in batches})
    return [
        ", ".join(map(str, columns)),
        f"{float((terminations == 0).double().mean()):.0%}",
        f"{float((terminations == 1).double().mean()):.0%}",
        f"{float(ends.median()):.0f}",
        f"{float((ends == 0).double().mean()):.0%}",
        f"{float((spread / size.clamp(min=1e-9)).median()):.2f}",
        f"{float((error / spread.clamp(min=1e-9)).median()):.2f}",
    ]


HEADER = (
    "family",
    "what it is",
    "weight",
    "truth",
    "columns",
    "no termination seen",
    "one seen",
    "episode ends",
    "no end",
    "std V / mean abs V",
    "error of truth / std V",
)


def table_row(name: str, batches: list[TaskBatch]) -> str:
    family = FAMILIES[name]
    truth = "exact" if family.exact else "rollouts"
    cells = [f"[{name}](#{name})", family.description, f"{family.weight:g}", truth, *statistics(batches)]
    return f"| {' | '.join(cells)} |"


def document(config: Config, rows: list[str]) -> str:
    command = f"python scripts/draw_prior.py --seed {config.seed} --num-batches {config.num_batches}"
    counts = f"{config.num_batches} batches of {config.num_tasks} tasks, {config.num_transitions} transitions"
    pictures = "\n\n".join(f"### {name}\n\n![{name}](prior/{name}.png)" for name in FAMILIES)
    return f"""# The prior

Generated by `{command}`;
the numbers are those of the code that this file is versioned with, over
{counts} and {config.num_queries} queries each, seeds {config.seed} to {config.seed + config.num_batches - 1}.

Every task is a Markov reward process with the policy folded into its dynamics. Dynamics, rewards, termination, time
limit, observation map, noise and discount are drawn independently of each other; a short pilot run tells where the
dynamics go, so that borders are crossed and hazards strike as often as wanted. The context begins at a reset and is
what a log would hold. Queries are steps of other episodes of the same process. True values are exact for tables and
grids; elsewhere they are means of rollouts without time limit, with a standard error. Tasks whose values hardly vary
(less than 0.5 % of their magnitude or 1.5 standard errors of the truth) are mostly dropped.

Medians over tasks, or shares of tasks:

| {" | ".join(HEADER)} |
|{"---|" * len(HEADER)}
{chr(10).join(rows)}

In the pictures each row is one task: up to four observed columns over time (red: terminations, grey: time limits), the
rewards, and the queries over the context (grey) in its two leading principal components, coloured by true value.

{pictures}
"""


def replace_file(path: Path, write) -> None:
    """Let ``write`` fill a temporary file, then put it in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def draw_batches(config: Config, name: str) -> list[TaskBatch]:
    return [
        sample_tasks(
            name,
            num_tasks=config.num_tasks,
            num_transitions=config.num_transitions,
            num_queries=config.num_queries,
            seed=config.seed + index,
        )
        for index in range(config.num_batches)
    ]


def main(config: Config) -> None:
    torch.set_num_threads(config.num_threads)
    rows = []
    for name in FAMILIES:
        batches = draw_batches(config, name)
        rows.append(table_row(name, batches))
        figure = picture(name, batches)
        replace_file(config.folder / "prior" / f"{name}.png", lambda path, figure=figure: figure.savefig(path, dpi=80))
        print(rows[-1], flush=True)
    text = document(config, rows)
    replace_file(config.folder / "prior.md", lambda path: path.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main(tyro.cli(Config))
