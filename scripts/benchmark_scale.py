"""Measure time and memory as contexts grow, beside the machine's speed and what people use: docs/performance.md.

    python scripts/benchmark_scale.py                # sizes up to 100,000
    python scripts/benchmark_scale.py --quick        # small sizes, to try it
    python scripts/benchmark_scale.py --largest      # a million transitions too, and 100,000 in eight layers
    python scripts/benchmark_scale.py --report-only

Every measurement is a process of its own with a limit of time, and its row a file below --out, so that an interrupted
call goes on where it stopped. Rows that are there are not measured again, whatever the code or the machine is now (each
says its commit): a new measurement takes a new --out. --before FOLDER shows the rows of an earlier version beside.
Measure on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from icrl_gym.benchmark.isolation import isolated
from icrl_gym.benchmark.scale.machine import Machine, measured_machine
from icrl_gym.benchmark.scale.measurements import measured_row
from icrl_gym.benchmark.scale.page import write_page
from icrl_gym.benchmark.scale.rivals import make_shared
from icrl_gym.benchmark.scale.rows import Measurement, Row, check_sizes, finished_row, plan, read_row, write_row
from icrl_gym.runs import write_json

QUICK_SIZES, QUICK_MIDDLE = (256, 512), 512


@dataclass(frozen=True)
class Config:
    """What to measure, and where things are kept."""

    sizes: tuple[int, ...] = (512, 2_048, 8_192, 32_768, 100_000)
    """Transitions of the curve of cost."""
    middle: int = 8_192
    """Transitions where finite depth, streaming and the rivals are compared."""
    topics: tuple[str, ...] = ()
    """Measure these topics only: cost, streaming, depth, queries, rewards, attribution, prompts, rivals."""
    largest: bool = False
    """A million transitions too, and 100,000 in eight layers."""
    quick: bool = False
    """Small sizes everywhere: sizes and middle are not read."""
    num_queries: int = 48
    """States of the rivals' truth."""
    num_rollouts: int = 32
    """Simulated continuations of each."""
    num_threads: int = os.cpu_count() or 1
    """Threads of torch."""
    limit: float = 1_800.0
    """Seconds after which a measurement has failed."""
    retry: bool = False
    """Measure again what failed before."""
    report_only: bool = False
    """Write the page from the rows that are there."""
    out: Path = Path("runs/scale")
    """Folder of the rows, the rivals' log and their truth."""
    before: Path | None = None
    """Folder of an earlier version's rows."""
    page: Path = Path("docs/performance.md")
    """The page; its figure goes to the folder beside it."""


def chosen(config: Config) -> list[Measurement]:
    """The measurements of these flags.

    Raises:
        ValueError: a flag is out of range.
    """
    sizes, middle = (QUICK_SIZES, QUICK_MIDDLE) if config.quick else (config.sizes, config.middle)
    check_sizes(sizes, middle)
    if config.num_threads < 1 or config.limit <= 0:
        raise ValueError(f"num_threads and limit must be positive, got {config.num_threads} and {config.limit:g}")
    if config.before is not None and not config.before.is_dir():
        raise ValueError(f"before must be the folder of an earlier measurement, got {config.before}")
    measurements = plan(sizes, middle, config.largest, config.quick)
    topics = list(dict.fromkeys(each.topic for each in measurements))
    unknown = [topic for topic in config.topics if topic not in topics]
    if unknown:
        raise ValueError(f"topics must be among {', '.join(topics)}, got {', '.join(unknown)}")
    return [each for each in measurements if not config.topics or each.topic in config.topics]


def shown_command() -> str:
    """The command as the page shows it: without the flags that change no figure."""
    flags = [flag for flag in sys.argv[1:] if flag not in ("--report-only", "--retry")]
    return shlex.join(["python", "scripts/benchmark_scale.py", *flags])


def say(line: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def machine_of(config: Config) -> Machine:
    """The machine, measured once per folder."""
    path = config.out / "machine.json"
    if not path.exists():
        config.out.mkdir(parents=True, exist_ok=True)
        outcome = isolated(measured_machine, config.num_threads, seconds=config.limit)
        if outcome.reason:
            raise RuntimeError(f"the machine could not be measured: {outcome.reason}")
        write_json(path, asdict(outcome.result))
    return Machine(**json.loads(path.read_text(encoding="utf-8")))


def row_of(config: Config, measurement: Measurement) -> Row:
    """The row of a measurement, measured where it is not there."""
    rows = config.out / "rows"
    found = finished_row(rows, measurement, config.retry)
    if found is not None:
        return found
    outcome = isolated(measured_row, measurement, config.out / "rivals", config.num_threads, seconds=config.limit)
    row = outcome.result or Row(measurement, reason=outcome.reason)
    write_row(rows, row)
    shown = row.reason or f"{row.seconds:.3g} s" + ("" if row.ratio is None else f", ratio {row.ratio:.3g}")
    say(f"{measurement.topic}, {measurement.method}, {measurement.log}, n = {measurement.size:,}: {shown}")
    return row


def main(config: Config) -> None:
    """Measure and write the page."""
    measurements = chosen(config)
    machine = machine_of(config)
    if config.report_only:
        rows = [row for each in measurements if (row := finished_row(config.out / "rows", each)) is not None]
    else:
        for size in sorted({each.size for each in measurements if each.topic == "rivals"}):
            make_shared(config.out / "rivals", size, config.num_queries, config.num_rollouts)
        rows = [row_of(config, each) for each in measurements]
    earlier = (
        [] if config.before is None else [read_row(path) for path in sorted((config.before / "rows").glob("*.json"))]
    )
    write_page(config.page, machine, rows, earlier, shown_command())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
