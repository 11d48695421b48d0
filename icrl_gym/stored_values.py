"""`ValueEstimates` as files: arrays and a JSON header without pickle. What an evaluator says of itself is not kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from icrl_gym.observations import Observations, named_leaves
from icrl_gym.runs import read_archive, write_archive
from icrl_gym.values import Estimand, ValueEstimates

SCHEMA_VERSION = 2


def save_values(path: Path, estimates: ValueEstimates) -> None:
    """Write values, standard errors if there are any, observations, estimand and notes, atomically."""
    header = {
        "schema_version": SCHEMA_VERSION,
        "estimand": asdict(estimates.estimand),
        "notes": list(estimates.notes),
        "structure": _structure(estimates.observations, "observations"),
    }
    arrays = {"values": estimates.values, **dict(named_leaves(estimates.observations, "observations"))}
    if estimates.stderr is not None:
        arrays["stderr"] = estimates.stderr
    write_archive(path, header, arrays)


def load_values(path: Path) -> ValueEstimates:
    """Read what `save_values` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, a damaged one, or one of another version.
    """
    header, arrays = read_archive(path)
    if header.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema_version must be {SCHEMA_VERSION}, got {header.get('schema_version')!r}")
    observations = _structured(arrays, header["structure"])
    estimand, notes = Estimand(**header["estimand"]), tuple(header["notes"])
    return ValueEstimates(arrays["values"], observations, estimand, arrays.get("stderr"), notes=notes)


def _structure(observations: Observations, name: str) -> Any:
    """The tree of observations with the names of the leaves in place of their arrays, as JSON."""
    if isinstance(observations, dict):
        return {key: _structure(part, f"{name}[{key!r}]") for key, part in observations.items()}
    if isinstance(observations, tuple):
        return [_structure(part, f"{name}[{i}]") for i, part in enumerate(observations)]
    return name


def _structured(arrays: dict[str, np.ndarray], structure: Any) -> Observations:
    if isinstance(structure, dict):
        return {key: _structured(arrays, part) for key, part in structure.items()}
    if isinstance(structure, list):
        return tuple(_structured(arrays, part) for part in structure)
    return arrays[structure]
