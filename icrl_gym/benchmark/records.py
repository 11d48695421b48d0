"""`Record`: what is kept of a finished cell, one JSON file each, written whole or not at all and checked when read."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from icrl_gym.benchmark.cells import Cell, Conditions, Task, Variant
from icrl_gym.runs import standard_json, write_json

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Record:
    """A finished cell.

    Attributes:
        cell: what was run.
        scores: figures of `icrl_gym.score` by name, empty if it failed; None where a figure is not defined.
        seconds_fit, seconds_predict: wall time; nan if it failed.
        error: why it failed, or None.
        peak_memory_fit: bytes above what was resident before; see `resources`.
        environment_steps: transitions that the estimator saw; for the critic those that it was trained on.
        context_episodes, context_terminations: ends of the context that truncated or terminated; that terminated.
        start_value: mean of the estimates over start states of the environment.
        start_value_truth: mean of the truth over the same states.
        start_value_truth_stderr: standard error of that mean, given the states; 0 if exact.
        commit: commit of the checkout that ran, "+changes" if it was edited; None for an installed package.

    What is not known is None.
    """

    cell: Cell
    scores: dict[str, float | None] = field(default_factory=dict)
    seconds_fit: float = math.nan
    seconds_predict: float = math.nan
    error: str | None = None
    peak_memory_fit: int | None = None
    environment_steps: int | None = None
    context_episodes: int | None = None
    context_terminations: int | None = None
    start_value: float | None = None
    start_value_truth: float | None = None
    start_value_truth_stderr: float | None = None
    commit: str | None = None


def record_path(out: Path, cell: Cell) -> Path:
    """Where the record of a cell is, or will be, below a benchmark's folder."""
    return out / "records" / f"{cell.id}.json"


def write_record(out: Path, record: Record) -> None:
    """Keep a finished cell."""
    path = record_path(out, record.cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = standard_json(asdict(record))
    write_json(path, {"schema_version": SCHEMA_VERSION, "sha256": _checksum(content), "record": content})


def load_record(path: Path) -> Record:
    """Read one record.

    Raises:
        ValueError: the file is damaged, was changed, or was written by another version; the message names it.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"record {path} is not JSON ({error}); remove it, and the cell runs again") from error
    version = stored.get("schema_version", 1) if isinstance(stored, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"record {path} has schema_version {version!r}, this version reads {SCHEMA_VERSION}; "
            "records of another version are not mixed: give another folder, and the cells run again"
        )
    content: Any = stored.get("record")
    if stored.get("sha256") != _checksum(content):
        raise ValueError(f"record {path} was changed after it was written; remove it, and the cell runs again")
    return record_of(content)


def record_of(content: dict[str, Any]) -> Record:
    """A record from the JSON object that it was stored as."""
    stored = dict(content)
    cell = stored.pop("cell")
    task = {**cell["task"], "env_kwargs": tuple(tuple(pair) for pair in cell["task"]["env_kwargs"])}
    options = tuple((name, value) for name, value in cell["variant"]["options"])
    rebuilt = Cell(
        Task(**task), Variant(cell["variant"]["estimator"], options), cell["context_length"], cell["seed"],
        Conditions(**cell["conditions"]),
    )  # fmt: skip
    rest: dict[str, Any] = {known.name: stored[known.name] for known in fields(Record)[1:]}
    rest |= {name: math.nan for name in ("seconds_fit", "seconds_predict") if rest[name] is None}
    return Record(rebuilt, **rest)


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def load_records(out: Path) -> list[Record]:
    """All finished cells below a benchmark's folder, in id order.

    Raises:
        ValueError: as `load_record`, or two records answer one question under different conditions.
    """
    records = [load_record(path) for path in sorted((out / "records").glob("*.json"))]
    check_unmixed(records)
    return records


def check_unmixed(records: list[Record]) -> None:
    """Raise ValueError if two records answer one question, measured under different conditions."""
    seen: dict[Any, Record] = {}
    for record in records:
        other = seen.setdefault(record.cell.question, record)
        if other is not record:
            cell = record.cell
            raise ValueError(
                f"records of different conditions are in one folder: {cell.variant.estimator} on {cell.task.env}, "
                f"{cell.context_length} transitions, seed {cell.seed}, measured with {other.cell.conditions} and with "
                f"{cell.conditions}; keep sweeps of different conditions in folders of their own"
            )
