"""One measurement of speed, what came of it, and the plan of all of them; a finished one is a JSON file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from icrl_gym.runs import write_json

SCHEMA_VERSION = 1
TOLD, FROM_LOG, CONSTRUCTED = "generalist, told the policy", "generalist, from the log", "constructed"
EVALUATORS = (TOLD, FROM_LOG, CONSTRUCTED)


@dataclass(frozen=True)
class Measurement:
    """What is measured.

    Attributes:
        topic: a key of `icrl_gym.benchmark.scale.measurements.TOPICS`.
        method: whose cost it is.
        size: transitions in the context.
        log: name of the process whose log it is, or of an environment.
    """

    topic: str
    method: str
    size: int
    log: str = "walker"

    @property
    def file_name(self) -> str:
        """Name of the file of its row."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.topic} {self.method} {self.log} n{self.size}".lower()) + ".json"


@dataclass(frozen=True)
class Row:
    """What a measurement gave; what is not known or does not apply is None.

    Attributes:
        measurement: what was measured.
        seconds: wall time of the call.
        peak_memory: bytes above what was resident before the call.
        reference_seconds: wall time of what the topic compares with, in the same process.
        products: multiplications and additions in torch's matrix products.
        products_float32, products_float64: seconds that these products would take at the speed of this process.
        error: how far the values are from those that the topic compares with, in their standard deviations.
        note: what else is to be said, in words.
        reason: why there is no figure; "" where there is one.
        commit: of the checkout that ran.
    """

    measurement: Measurement
    seconds: float | None = None
    peak_memory: int | None = None
    reference_seconds: float | None = None
    products: float | None = None
    products_float32: float | None = None
    products_float64: float | None = None
    error: float | None = None
    note: str = ""
    reason: str = ""
    commit: str | None = None

    @property
    def ratio(self) -> float | None:
        """Seconds over those of what the topic compares with."""
        if self.seconds is None or not self.reference_seconds:
            return None
        return self.seconds / self.reference_seconds


def write_row(out: Path, row: Row) -> None:
    """Keep a finished measurement."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / row.measurement.file_name, {"schema_version": SCHEMA_VERSION, **asdict(row)})


def read_row(path: Path) -> Row:
    """Read one finished measurement.

    Raises:
        ValueError: the file is damaged or of another version; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {version}")
        return Row(Measurement(**content.pop("measurement")), **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"row {path} cannot be read ({error}); remove it, and it is measured again") from error


def finished_row(out: Path, measurement: Measurement, retry: bool = False) -> Row | None:
    """The row of a measurement, None where it is still to be measured; with ``retry`` also where it failed."""
    path = out / measurement.file_name
    if not path.exists():
        return None
    row = read_row(path)
    return None if retry and row.reason else row


def plan(sizes: Sequence[int], middle: int, largest: bool, quick: bool) -> list[Measurement]:
    """All measurements, short ones first within each topic.

    Args:
        sizes: transitions of the curve of cost.
        middle: transitions where finite depth, streaming and the rivals are compared.
        largest: also a million transitions, and 100,000 in eight layers.
        quick: only what takes seconds at small sizes.
    """
    sizes = sorted({*sizes, *([1_000_000] if largest else [])})
    small, medium = (256, 512) if quick else (512, 2_048)
    found = [Measurement("cost", name, n, log) for n in sizes for log in ("walker", "pole") for name in EVALUATORS]
    streams = [middle] if quick else [middle, *(n for n in sizes if n == 100_000)]
    found += [Measurement("streaming", name, n) for n in streams for name in (TOLD, CONSTRUCTED)]
    found += [Measurement("depth", f"24 layers, {dtype}", middle) for dtype in ("float64", "float32")]
    found += [Measurement("depth", "8 layers, float64", 100_000)] if largest else []
    found += [Measurement("queries", name, small) for name in EVALUATORS]
    found += [Measurement("rewards", name, medium) for name in EVALUATORS]
    found += [Measurement("attribution", name, medium) for name in EVALUATORS]
    found += [Measurement("prompts", name, 256) for name in ("generalist, without walks", CONSTRUCTED)]
    return found + [Measurement("rivals", name, n, "CartPole-v1") for name, n in _rivals(middle)]


def _rivals(middle: int) -> list[tuple[str, int]]:
    names = ("lstd", "kernel ridge on returns", "gptd", "fitted_value_network", "fqe", "PPO's critic")
    smaller = [("gptd", middle // 4)]  # which it can always do
    return [*((name, middle) for name in EVALUATORS), *smaller, *((name, middle) for name in names)]


def check_sizes(sizes: Sequence[int], middle: int) -> None:
    """Refuse sizes that cannot be measured.

    Raises:
        ValueError: a size is too small.
    """
    for name, size in (*(("sizes", size) for size in sizes), ("middle", middle)):
        if size < 128 or not math.isfinite(size):
            raise ValueError(f"{name} must be at least 128 transitions, got {size}")
    if not sizes:
        raise ValueError("sizes must name at least one number of transitions, got none")
