"""`Record`: what is kept of a finished cell, one JSON file each, written whole or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from icrl_gym.benchmark.cells import Cell, Setting, Task
from icrl_gym.runs import write_json


@dataclass(frozen=True)
class Record:
    """A finished cell.

    Attributes:
        cell: what was run.
        scores: figures of `icrl_gym.score` by name, empty if it failed.
        seconds_fit, seconds_predict: wall time; nan if it failed.
        error: why it failed, or None.
        peak_memory_fit, peak_memory_predict: bytes above what was resident before; see `resources`.
        environment_steps: transitions that the estimator saw; for the critic those that it was trained on.
        context_episodes, context_terminations: ends of the context that truncated or terminated; that terminated.
        start_value: mean of the estimates over start states of the environment.
        start_value_truth: mean of the truth over the same states.
        start_value_truth_stderr: standard error of that mean, given the states; 0 if exact.
        commit: of the checkout that ran, "+changes" if it was edited.

    What is not known is None: a failed cell, an installed package, a record of an older version.
    """

    cell: Cell
    scores: dict[str, float | None] = field(default_factory=dict)
    seconds_fit: float = float("nan")
    seconds_predict: float = float("nan")
    error: str | None = None
    peak_memory_fit: int | None = None
    peak_memory_predict: int | None = None
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
    write_json(path, asdict(record))


def load_record(path: Path) -> Record:
    """Read one record.

    Raises:
        ValueError: it holds a field that this version does not know.
    """
    stored = json.loads(path.read_text())
    task, setting = stored["cell"]["task"], stored["cell"]["setting"]
    _check_known(path, Record, stored)
    _check_known(path, Task, task)
    task["env_kwargs"] = tuple(tuple(pair) for pair in task["env_kwargs"])
    options = tuple((name, value) for name, value in setting["options"])
    cell = stored["cell"]
    rebuilt = Cell(Task(**task), Setting(setting["estimator"], options), cell["context_length"], cell["seed"])
    seconds = {name: math.nan for name in ("seconds_fit", "seconds_predict") if stored[name] is None}
    return Record(**{**stored, "cell": rebuilt, **seconds})


def _check_known(path: Path, kind: type, stored: dict[str, Any]) -> None:
    unknown = sorted(set(stored) - {known.name for known in fields(kind)})
    if unknown:
        raise ValueError(f"{path}: {kind.__name__} has unknown fields {unknown}; a newer version of icrl-gym wrote it")


def load_records(out: Path) -> list[Record]:
    """All finished cells below a benchmark's folder, in id order."""
    return [load_record(path) for path in sorted((out / "records").glob("*.json"))]
