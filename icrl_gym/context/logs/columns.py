"""Named columns of a log, and which of them hold which field of a transition."""

from __future__ import annotations

import difflib
import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

# Each field of a transition, and the column names that are taken for it without being told, in any case of letters.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs", "states", "state"),
    "actions": ("actions", "action", "act"),
    "rewards": ("rewards", "reward"),
    "next_observations": (
        "next_observations", "next_observation", "next_obs", "next_states", "next_state", "new_obs",
    ),
    "terminated": ("terminated", "terminations", "termination", "terminals", "terminal"),
    "truncated": ("truncated", "truncations", "truncation", "timeouts", "timeout"),
    "done": ("done", "dones"),
    "episode": ("episode", "episodes", "episode_id", "episode_index", "trajectory_id", "traj_id"),
    "importance_ratios": ("importance_ratios", "importance_ratio"),
    "target_probability": ("target_probability", "target_probabilities"),
    "behaviour_probability": (
        "behaviour_probability", "behaviour_probabilities", "behavior_probability", "behavior_probabilities",
    ),
}  # fmt: skip
VECTORS = frozenset(
    {"observations", "actions", "next_observations", "target_probability", "behaviour_probability"}
)  # fields that several numbered columns may hold together
_WORDS = {"true": 1.0, "false": 0.0}
_SHOWN = 12  # column names in a message

ColumnMapping = Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of one log as they were found.

    Attributes:
        source: the log's name in messages.
        by_name: column name -> n entries: an array whose first axis is the row, or a list of cells.
    """

    source: str
    by_name: Mapping[str, Any]

    def field(self, name: str, stated: ColumnMapping) -> np.ndarray | None:
        """The values of one field, (n,) or (n, D), or None where no column holds it.

        Args:
            name: one of `FIELDS`.
            stated: field -> column, pattern such as "obs_*", or columns side by side, as the user maps them.

        Raises:
            ValueError: a column that is not there, without numbers, or with a missing value.
        """
        names = self._stated(name, stated[name]) if name in stated else self._found(name)
        if not names:
            return None
        if name == "episode":  # any words will do
            return np.unique(np.asarray(self.by_name[names[0]]).astype(str), return_inverse=True)[1]
        gaps = name == "next_observations"
        parts = [self._numbers(column, gaps) for column in names]
        if len(parts) == 1 and not (name in VECTORS and self._numbered(name, names[0])):
            return parts[0]
        try:
            return np.column_stack(parts)
        except ValueError as error:
            raise ValueError(f"{self.source}: columns {_listed(names)} have different lengths") from error

    def reading(self, stated: ColumnMapping) -> str:
        """Which columns are read as what, in words."""
        found = {name: self._stated(name, stated[name]) if name in stated else self._found(name) for name in FIELDS}
        return ", ".join(f"{name} = {_span(names)}" for name, names in found.items() if names)

    def known(self) -> str:
        """The names of the columns, for messages."""
        return _listed(list(self.by_name))

    def _stated(self, field: str, columns: str | Sequence[str]) -> list[str]:
        names = [columns] if isinstance(columns, str) else list(columns)
        found: list[str] = []
        for name in names:
            matches = [name] if name in self.by_name else sorted(fnmatch.filter(self.by_name, name), key=_natural)
            if not matches:
                near = difflib.get_close_matches(name, self.by_name, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"columns: {field} is to be column {name!r}, which {self.source} does not have among "
                    f"{self.known()}{hint}"
                )
            found += matches
        return found

    def _found(self, field: str) -> list[str]:
        """Columns that are called as the field is: one of that name, else numbered ones."""
        lowered = {name.lower(): name for name in self.by_name}
        for alias in FIELDS[field]:
            if alias in lowered:
                return [lowered[alias]]
        if field in VECTORS:
            for alias in FIELDS[field]:
                numbered = [name for name in self.by_name if _number(name, alias) is not None]
                if numbered:
                    return sorted(numbered, key=_natural)
        return []

    @staticmethod
    def _numbered(field: str, name: str) -> bool:
        return any(_number(name, alias) is not None for alias in FIELDS[field])

    def _numbers(self, name: str, gaps: bool) -> np.ndarray:
        """One column as numbers, NaN where a value is missing and ``gaps`` are allowed."""
        if not len(self.by_name[name]):
            raise ValueError(f"{self.source} holds no transition")
        values = _parsed(self.by_name[name], f"{self.source}: column {name!r}")
        if values.dtype.kind == "f" and not gaps:
            rows = np.flatnonzero(np.isnan(values.reshape(len(values), -1)).any(axis=1))
            if len(rows):
                raise ValueError(
                    f"{self.source}: column {name!r} has no value in row {rows[0]}, rows counted from 0 "
                    f"({len(rows)} of {len(values)} rows have none)"
                )
        return values


def column_mapping(words: Sequence[str]) -> ColumnMapping:
    """The mapping that the command line states: one JSON object, or pairs FIELD=COLUMN or FIELD=COLUMN,COLUMN,...

    Raises:
        ValueError: neither of the two, a field that a log does not have, or one that is stated twice.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            stated = json.loads(words[0])
        except json.JSONDecodeError as error:
            raise ValueError(
                f"columns must be a JSON object or FIELD=COLUMN pairs, got {words[0]!r}: {error}"
            ) from None
        return checked_mapping(stated)
    stated = {}
    for word in words:
        field, separator, columns = word.partition("=")
        if not separator or not columns:
            raise ValueError(f"columns must be a JSON object or FIELD=COLUMN pairs, got {word!r}")
        if field in stated:
            raise ValueError(f"columns: {field} is stated twice")
        stated[field] = columns.split(",") if "," in columns else columns
    return checked_mapping(stated)


def checked_mapping(stated: ColumnMapping | None) -> ColumnMapping:
    """The mapping, {} for None; raises ValueError or TypeError where it is none from fields to names of columns."""
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        raise TypeError(f"columns must map fields to names of columns, got {type(stated).__name__}")
    for field, columns in stated.items():
        if field not in FIELDS:
            raise ValueError(f"columns: there is no field {field!r}; fields are {', '.join(FIELDS)}")
        names = [columns] if isinstance(columns, str) else columns
        if not isinstance(names, Sequence) or not names or not all(isinstance(name, str) for name in names):
            raise TypeError(f"columns: {field} must be the name of a column or a list of names, got {columns!r}")
        if field not in VECTORS and len(names) > 1:
            raise ValueError(f"columns: {field} is one column, got {list(names)}")
    return stated


def _number(name: str, alias: str) -> int | None:
    """The number of a column called ``alias_3``, ``alias.3``, ``alias[3]`` or ``alias3``, else None."""
    found = re.fullmatch(rf"{alias}[_.\[]?(\d+)\]?", name, flags=re.IGNORECASE)
    return int(found[1]) if found else None


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Order in which obs_2 comes before obs_10."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more


def _span(names: Sequence[str]) -> str:
    return _listed(names) if len(names) < 4 else f"{names[0]} ... {names[-1]} ({len(names)} columns)"


def _parsed(cells: Any, name: str) -> np.ndarray:
    """Cells as a numeric array with the row first; raises ValueError where one is neither number nor vector."""
    array = cells if isinstance(cells, np.ndarray) else np.asarray(cells, dtype=object)
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind in "Mm":
        raise ValueError(f"{name} holds times, not numbers")
    cells = array.tolist() if array.ndim == 1 else list(array)
    if all(isinstance(cell, str) for cell in cells):
        for dtype in (np.int64, np.float64):  # the plain case, quickly
            with suppress(ValueError, OverflowError):
                return np.array(cells, dtype=dtype)
    if all(isinstance(cell, bool | np.bool_) for cell in cells):
        return np.array(cells, dtype=bool)
    values = [_cell(cell, row, name) for row, cell in enumerate(cells)]
    width = next((value.shape for value in values if value.ndim), ())
    values = [np.full(width, np.nan) if value.ndim == 0 and width and np.isnan(value) else value for value in values]
    if any(value.shape != width for value in values):
        row = next(row for row, value in enumerate(values) if value.shape != width)
        raise ValueError(f"{name} must hold vectors of one length, {width}: row {row} has {values[row].shape}")
    joined = np.array(values)
    whole = all(_is_whole(cell) for cell in cells) and np.isfinite(joined).all()
    return joined.astype(np.int64) if whole else joined


def _cell(cell: Any, row: int, name: str) -> np.ndarray:
    """One number, or a vector: a list, an array, or text such as "[0.1, 0.2]"; NaN where there is none."""
    if cell is None or type(cell).__name__ == "NAType" or (isinstance(cell, str) and not cell.strip()):  # pandas' NA
        return np.array(np.nan)
    try:
        if not isinstance(cell, str):
            return np.asarray(cell, dtype=np.float64)
        word = cell.strip()
        if word.lower() in _WORDS:
            return np.array(_WORDS[word.lower()])
        if word[0] in "[(":
            return np.array(word.strip("[]()").replace(",", " ").split(), dtype=np.float64)
        return np.array(float(word))
    except (ValueError, TypeError):
        raise ValueError(f"{name} must hold numbers or vectors of numbers: row {row} is {str(cell)[:40]!r}") from None


def _is_whole(cell: Any) -> bool:
    """Whether a cell is written as an integer, so that a column of such cells holds ids."""
    if isinstance(cell, str):
        return cell.strip().lstrip("+-").isdigit()
    return isinstance(cell, int | np.integer) and not isinstance(cell, bool | np.bool_)
