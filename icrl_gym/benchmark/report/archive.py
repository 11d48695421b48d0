"""All records of a report in one compressed CSV, from which every page can be made again without running anything.

One row per record, in the order of the cells' ids, figures to six significant digits; the same records give the same
bytes.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from icrl_gym.benchmark.cells import Cell, Conditions, Task, Variant
from icrl_gym.benchmark.records import Record, check_unmixed
from icrl_gym.runs import replacing
from icrl_gym.scoring.score import Score

DIGITS = 6
SCORES = tuple(known.name for known in fields(Score) if known.name != "notes")
_CELL = ("env", "policy", "gamma", "wrapper", "env_kwargs", "truth", "extra", "behaviour", "features")
_PLACE = ("estimator", "options", "context_length", "seed")
_CONDITIONS = tuple(known.name for known in fields(Conditions))
_REST = tuple(known.name for known in fields(Record) if known.name not in ("cell", "scores"))
COLUMNS = (*_CELL, *_PLACE, *_CONDITIONS, *_REST, *SCORES)
_TEXT = {"env", "policy", "wrapper", "truth", "extra", "behaviour", "features", "estimator", "error", "commit"}
_TEXT |= {name for name in _CONDITIONS if name.endswith("sha256")}
_JSON = {"env_kwargs", "options"}


def write_archive_of(records: Sequence[Record], path: Path) -> None:
    """Write records as a compressed CSV.

    Raises:
        ValueError: a record does not come from committed code, or two answer one question under different conditions.
    """
    check_unmixed(list(records))
    for record in records:
        if record.commit is None or record.commit.endswith("+changes"):
            raise ValueError(
                f"record {record.cell.id} comes from uncommitted code (commit {record.commit!r}); "
                "commit, and run its cell again"
            )
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_row(record) for record in sorted(records, key=lambda record: record.cell.id))
    with replacing(path) as unfinished:
        unfinished.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def read_archive_of(path: Path) -> list[Record]:
    """The records of a compressed CSV.

    Raises:
        ValueError: the file cannot be read, or its columns are those of another version.
    """
    try:
        rows = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode(), newline="")))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"records {path}: cannot be read: {error}") from error
    if not rows or tuple(rows[0]) != COLUMNS:
        raise ValueError(f"records {path}: the columns must be those of this version, {COLUMNS}")
    return [_record(dict(zip(COLUMNS, row, strict=True))) for row in rows[1:]]


def _row(record: Record) -> list[str]:
    cell = record.cell
    content: dict[str, Any] = {name: getattr(cell.task, name) for name in _CELL}
    content |= {"estimator": cell.variant.estimator, "options": cell.variant.options}
    content |= {"context_length": cell.context_length, "seed": cell.seed}
    content |= {name: getattr(cell.conditions, name) for name in _CONDITIONS}
    content |= {name: getattr(record, name) for name in _REST}
    content |= {name: record.scores.get(name) for name in SCORES}
    return [_text_of(name, content[name]) for name in COLUMNS]


def _text_of(name: str, value: Any) -> str:
    if name in _JSON:
        return json.dumps(value)
    if value is None or value != value:
        return ""
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)


def _record(row: dict[str, str]) -> Record:
    known = {name: _value_of(name, content) for name, content in row.items()}
    task = Task(**{name: known[name] for name in _CELL if name != "extra"}, extra=known["extra"] or "")
    cell = Cell(
        task, Variant(known["estimator"], known["options"]), known["context_length"], known["seed"],
        Conditions(**{name: known[name] for name in _CONDITIONS}),
    )  # fmt: skip
    rest: dict[str, Any] = {name: known[name] for name in _REST}
    rest |= {name: math.nan for name in ("seconds_fit", "seconds_predict") if rest[name] is None}
    scores = {} if rest["error"] is not None else {name: known[name] for name in SCORES}
    return Record(cell, scores, **rest)


def _value_of(name: str, content: str) -> Any:
    if name in _JSON:
        return tuple((key, value) for key, value in json.loads(content))
    if name in _TEXT:
        return content or None
    if not content:
        return None
    return float(content) if name in _FLOATS else int(content)


_FLOATS = {"gamma", "seconds_fit", "seconds_predict", "start_value", "start_value_truth", "start_value_truth_stderr"}
_FLOATS |= set(SCORES) - {"n"}
