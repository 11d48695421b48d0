"""Data frames as `Columns`, whatever library they are of.

pandas, polars and pyarrow agree on two things: the names of the columns, and that a column becomes an array. Nothing
more is used, so that none of them is imported here. (The dataframe interchange protocol is gone from polars 2 and
deprecated in pandas 3.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from icrl_gym.context.logs.columns import Columns


def frame_columns(frame: Any, source: str = "frame") -> Columns:
    """The columns of a pandas or polars DataFrame, a pyarrow Table, or a mapping from names to arrays.

    Args:
        frame: the frame; a column may hold a list or an array per row, all of one length.
        source: the frame's name in messages.

    Raises:
        TypeError: none of these.
    """
    if isinstance(frame, Mapping):
        names = list(frame)
    else:
        names = getattr(frame, "column_names", None)
        names = getattr(frame, "columns", None) if names is None else names
    if names is None or not hasattr(frame, "__getitem__"):
        raise TypeError(
            f"{source} must be a pandas or polars DataFrame, a pyarrow Table or a mapping from names to arrays, got "
            f"{type(frame).__name__}"
        )
    return Columns(source, {str(name): _cells(frame[name]) for name in names})


def _cells(column: Any) -> Any:
    """An array, or the cells as they are where rows are lists of different lengths."""
    try:
        return np.asarray(column)
    except ValueError:
        return list(column)
