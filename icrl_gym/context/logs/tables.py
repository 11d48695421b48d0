"""Files of columns: .csv, .parquet, and .hdf5 or .h5 as D4RL writes them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from icrl_gym.context.logs.columns import Columns
from icrl_gym.context.logs.frames import frame_columns
from icrl_gym.context.logs.logged_arrays import missing_package

DELIMITERS = ",;\t"


def csv_columns(path: Path) -> Columns:
    """A text table whose first line names the columns, separated by comma, semicolon or tab.

    Raises:
        ValueError: not such a table; the message names the file and the line.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            rows = list(csv.reader(file, delimiter=max(DELIMITERS, key=first.count)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a table of text: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{path}: a line with the names of the columns and a line per transition are needed")
    names, *cells = ([cell.strip() for cell in rows[0]], *(row for row in rows[1:] if row))
    if names and all(re.fullmatch(r"[-+0-9.eE]+", name) for name in names):
        raise ValueError(f"{path}: the first line must name the columns, got numbers: {','.join(names)[:60]!r}")
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise ValueError(f"{path}: columns must have different names, got {doubles[0]!r} twice")
    for line, row in enumerate(cells, start=2):
        if len(row) != len(names):
            raise ValueError(f"{path}: row {line} has {len(row)} cells, the first has {len(names)}")
    return Columns(str(path), dict(zip(names, map(list, zip(*cells, strict=True)), strict=True)))


def parquet_columns(path: Path) -> Columns:
    """A parquet file; a column may hold a vector per row.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: not a parquet file.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise missing_package("pyarrow", f"{path}: reading parquet") from error
    try:
        return frame_columns(parquet.read_table(path), str(path))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file that can be read: {str(error).splitlines()[0]}") from error


def hdf5_columns(path: Path) -> Columns:
    """The arrays at the top of an HDF5 file; groups such as ``infos`` and ``metadata`` are left out.

    Raises:
        ImportError: h5py is not installed.
        ValueError: not an HDF5 file.
    """
    try:
        import h5py
    except ImportError as error:
        raise missing_package("h5py", f"{path}: reading HDF5") from error
    try:
        with h5py.File(path, "r") as file:
            return Columns(str(path), {k: np.asarray(v) for k, v in file.items() if isinstance(v, h5py.Dataset)})
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file that can be read: {str(error).splitlines()[0]}") from error
