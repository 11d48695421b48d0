"""Logs by name: a file of ours, a table, a dataset of D4RL's or Minari's, as a trajectory with what was assumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from icrl_gym.context.logs.assembly import assembled
from icrl_gym.context.logs.columns import ColumnMapping, Columns
from icrl_gym.context.logs.minari_datasets import minari_log
from icrl_gym.context.logs.tables import csv_columns, hdf5_columns, parquet_columns
from icrl_gym.context.trajectory import Trajectory

MINARI = "minari:"
_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": csv_columns,
    ".parquet": parquet_columns,
    ".hdf5": hdf5_columns,
    ".h5": hdf5_columns,
}
FORMATS = f"{', '.join(['.npz', *_READERS])} or {MINARI}DATASET"


@dataclass(frozen=True, eq=False)
class Log:
    """Logged experience, and what reading it took.

    Attributes:
        trajectory: the transitions.
        assumptions: sentences on what the log did not say and what was taken in its place.
        reading: which columns were read as what, or "".
    """

    trajectory: Trajectory
    assumptions: tuple[str, ...] = ()
    reading: str = ""


def read_log(source: str | os.PathLike[str], columns: ColumnMapping | None = None) -> Log:
    """Read a log of any known format.

    Args:
        source: a trajectory file of ours (.npz), a table (.csv, .parquet), D4RL's names in HDF5 (.hdf5, .h5), or
            "minari:" with the id of a dataset on this machine.
        columns: field -> column, pattern such as "obs_*", or columns side by side, where tables use other names than
            `icrl_gym.context.logs.columns.FIELDS` knows.

    Raises:
        FileNotFoundError: no such file or dataset.
        ValueError, TypeError: an unknown format, or a log that cannot be read as transitions; the message names it.
        ImportError: the format needs a package of the extra "logs".
    """
    name = os.fspath(source)
    if name.startswith(MINARI):
        _refuse_columns(columns, name)
        found = minari_log(name.removeprefix(MINARI))
        return Log(Trajectory.of_arrays(found), found.assumptions, found.reading)
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"log {name!r}: no such file (a log is a file ending in {FORMATS})")
    if path.suffix.lower() == ".npz":
        _refuse_columns(columns, name)
        return Log(Trajectory.load(path))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"log {name!r}: the format is told by the ending, which must be {FORMATS}")
    found = assembled(reader(path), columns)
    return Log(Trajectory.of_arrays(found), found.assumptions, found.reading)


def _refuse_columns(columns: ColumnMapping | None, name: str) -> None:
    if columns:
        raise ValueError(f"columns: {name!r} has fields of its own; names are mapped in tables only")
