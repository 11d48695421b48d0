"""Truth computed once per task and kept: arrays as npz without pickle, read back as `ValueEstimates`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import named_leaves
from icrl_gym.runs import replacing
from icrl_gym.values import Estimand, ValueEstimates


class TruthCache:
    """A folder of truths by key.

    Args:
        folder: made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str, measure: Callable[[], ValueEstimates], space_of: Trajectory) -> ValueEstimates:
        """The truth of this key; ``measure`` is called only if it is not there yet.

        Args:
            key: a task's id together with the settings of the measurement.
            measure: makes the truth.
            space_of: any log of the same environment, for the structure of its observations.
        """
        path = self.folder / f"{key}.npz"
        if not path.exists():
            self._save(path, measure())
        return self._load(path, space_of)

    def _save(self, path: Path, truth: ValueEstimates) -> None:
        stderr = np.zeros(len(truth)) if truth.stderr is None else truth.stderr
        header = json.dumps({"estimand": asdict(truth.estimand), "notes": truth.notes})
        leaves = dict(named_leaves(truth.observations, "observations"))
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, open(unfinished, "wb") as file:
            np.savez_compressed(file, values=truth.values, stderr=stderr, header=np.array(header), **leaves)

    def _load(self, path: Path, space_of: Trajectory) -> ValueEstimates:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays["header"]))
        return ValueEstimates(
            arrays["values"],
            _structured(arrays, space_of.observations, "observations"),
            Estimand(**header["estimand"]),
            arrays["stderr"],
            notes=tuple(header["notes"]),
        )


def _structured(arrays: dict[str, np.ndarray], like: object, name: str) -> object:
    if isinstance(like, dict):
        return {key: _structured(arrays, part, f"{name}[{key!r}]") for key, part in like.items()}
    if isinstance(like, tuple):
        return tuple(_structured(arrays, part, f"{name}[{i}]") for i, part in enumerate(like))
    return arrays[name]
