"""What a run's folder holds: records, and beside them the truths that they were scored against."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from icrl_gym.benchmark.cells import Task
from icrl_gym.benchmark.records import Record, load_record


class Budget(NamedTuple):
    """Size of a simulated truth."""

    num_queries: int
    num_rollouts: int


def read_records(run: Path) -> list[Record]:
    """All finished cells of a run's folder.

    Raises:
        ValueError: no folder, no finished cell, or a record that cannot be read or that a newer version wrote.
    """
    if not run.is_dir():
        raise ValueError(f"run: {str(run)!r} is not a folder; `icrl-gym benchmark --out {run}` makes one")
    paths = sorted((run / "records").glob("*.json"))
    if not paths:
        raise ValueError(f"run: {str(run)!r} holds no finished cell (records/*.json); `icrl-gym benchmark` makes them")
    return [_read(path) for path in paths]


def _read(path: Path) -> Record:
    try:
        return load_record(path)
    except json.JSONDecodeError as error:
        raise ValueError(f"run: {path} is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"run: {path} is not the record of a benchmark's cell: {error!r}") from error


def observation_sizes(run: Path, tasks: Iterable[Task]) -> dict[Task, int]:
    """Numbers in an observation of each task, read off its truth; tasks without a readable truth are left out."""
    found = {}
    for task in set(tasks):
        for path in _truths(run, task)[:1]:
            try:
                with np.load(path, allow_pickle=False) as stored:
                    names = [name for name in stored.files if name.startswith("observations")]
                    found[task] = sum(int(np.prod(stored[name].shape[1:])) for name in names)
            except (OSError, ValueError, zipfile.BadZipFile):
                continue
    return found


def truth_budgets(run: Path, tasks: Iterable[Task]) -> dict[Task, Budget]:
    """Query states and continuations of each task's simulated truth; with several, of the largest."""
    found = {}
    for task in set(tasks):
        sizes = [re.search(r"-q(\d+)-r(\d+)$", path.stem) for path in _truths(run, task)]
        if task.truth == "monte_carlo" and any(sizes):
            found[task] = max(Budget(int(size[1]), int(size[2])) for size in sizes if size)
    return found


def last_commit(run: Path) -> str | None:
    """Of the code that ran the last sweep into this folder, None if it does not say."""
    try:
        return json.loads((run / "versions.json").read_text())["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _truths(run: Path, task: Task) -> list[Path]:
    return sorted((run / "truth").glob(f"{task.target.id}*.npz"))
