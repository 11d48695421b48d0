"""Measure error against the length of the context, beside the critic's error at its training steps.

    python scripts/measure_context_length.py                    # seven test environments, 512 to 65,536 transitions
    python scripts/measure_context_length.py --prepare-only     # train, measure truths, run contexts; evaluate nothing
    python scripts/measure_context_length.py --development --lengths 512 2048 --page runs/context_length.md
    python scripts/measure_context_length.py --report-only

Agents that are not below --critics are trained first. Truths, contexts and cells are files below --out, so that an
interrupted call goes on where it stopped; every cell runs in a process of its own. A cell that is there is never run
again, whatever the code is now (its record says the commit): a new measurement takes a new --out; truths can be copied
to it. The page, docs/context_length.md, is written from all cells that the flags name and that are there.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from icrl_gym.benchmark.cells import Cell
from icrl_gym.benchmark.context_length.measurements import (
    Place,
    cells_of,
    context_file,
    run_missing,
    trained,
    truth_of,
)
from icrl_gym.benchmark.context_length.page import write_page
from icrl_gym.benchmark.context_length.subjects import Subject, subjects
from icrl_gym.benchmark.records import Record, load_record, record_path


@dataclass(frozen=True)
class Config:
    """What to measure, and where things are kept."""

    lengths: tuple[int, ...] = (512, 2_048, 8_192, 32_768, 65_536)
    """Transitions in a context."""
    seeds: tuple[int, ...] = (0, 1)
    """One context per seed; a shorter one is the beginning of the longest."""
    envs: tuple[str, ...] = ()
    """Environments of the set; none means all."""
    development: bool = False
    """Measure the environments that a design may be chosen on, instead of the test environments."""
    num_queries: int = 48
    """States that are scored; at most 32 of Ant and Humanoid."""
    num_rollouts: int = 12
    """Simulated continuations of each; at most 6 of Ant and Humanoid, four times as many of HalfCheetah."""
    num_threads: int = 1
    """Threads of torch."""
    limit: float = 1_800.0
    """Seconds after which a cell has failed."""
    retry: bool = False
    """Run cells again that failed before."""
    prepare_only: bool = False
    """Train, measure truths and run contexts, but evaluate nothing and write no page."""
    report_only: bool = False
    """Write the page from the cells that are there."""
    out: Path = Path("runs/context_length")
    """Folder of truths, contexts and records."""
    critics: Path = Path("runs/critics")
    """Folder of the trained agents."""
    page: Path = Path("docs/context_length.md")
    """The page; its figure goes to the folder beside it."""


def check(config: Config) -> tuple[Subject, ...]:
    """The subjects of these flags.

    Raises:
        ValueError: a flag is out of range.
    """
    if not config.lengths or min(config.lengths) < 2:
        raise ValueError(f"lengths must name contexts of at least 2 transitions, got {config.lengths}")
    if not config.seeds or min(config.seeds) < 0:
        raise ValueError(f"seeds must name integers of at least 0, got {config.seeds}")
    if config.num_threads < 1 or config.limit <= 0:
        raise ValueError(f"num_threads and limit must be positive, got {config.num_threads} and {config.limit:g}")
    if config.prepare_only and config.report_only:
        raise ValueError("prepare_only and report_only exclude each other")
    return subjects(config.development, config.envs, config.num_queries, config.num_rollouts)


def shown_command() -> str:
    """The command as the page shows it: without the flags that change no figure."""
    flags = [flag for flag in sys.argv[1:] if flag not in ("--report-only", "--retry")]
    return shlex.join(["python", "scripts/measure_context_length.py", *flags])


def say(line: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def prepare(place: Place, cells: list[Cell]) -> None:
    """The truth and the contexts of a subject."""
    truth_of(place, cells[0])
    say(f"{cells[0].task.env}: truth at hand")
    longest = max(cell.context_length for cell in cells[1:])
    for cell in {cell.seed: cell for cell in cells[1:]}.values():
        context_file(place, cell, longest)
        say(f"{cell.task.env}: context of {longest:,} transitions, seed {cell.seed}, at hand")


def measure(config: Config, place: Place, chosen: tuple[Subject, ...]) -> None:
    """Run what is missing, one subject after the other."""
    for subject in chosen:
        trained(place, subject, shown_command())
        cells = cells_of(place, subject, sorted(config.lengths), config.seeds)
        if config.prepare_only:
            prepare(place, cells)
            continue
        for record in run_missing(place, cells, config.num_threads, config.limit, config.retry):
            say(line_of(record))


def line_of(record: Record) -> str:
    """What became of a cell."""
    cell, error = record.cell, record.scores.get("rmse_over_std_corrected")
    outcome = record.error or ("no spread" if error is None else f"{error:.3f}")
    return f"{cell.task.env} {cell.variant.estimator} n {cell.context_length} seed {cell.seed}: {outcome}"


def finished(config: Config, place: Place, chosen: tuple[Subject, ...]) -> list[Record]:
    """Records of these flags that are there."""
    paths = [
        record_path(place.out, cell)
        for subject in chosen
        if (place.critics / subject.task.policy).is_file()
        for cell in cells_of(place, subject, sorted(config.lengths), config.seeds)
    ]
    return [load_record(path) for path in paths if path.exists()]


def main(config: Config) -> None:
    """Measure and write the page."""
    chosen = check(config)
    torch.set_num_threads(config.num_threads)
    place = Place(config.out, config.critics)
    if not config.report_only:
        measure(config, place, chosen)
    if not config.prepare_only:
        write_page(config.page, finished(config, place, chosen), shown_command())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
