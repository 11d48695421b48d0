"""`Store`: the finished pieces of one claim on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from icrl_gym.runs import replacing


class Store:
    """A folder of named pieces; each is written whole or not at all.

    Attributes:
        folder: of the claim; its function may keep files of its own there, such as checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def arrays(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The piece ``name``: read if it is there, else computed and kept.

        Args:
            name: of the piece; it must say everything that changes it apart from ``quick`` (the seed, say).
            compute: makes the arrays by name.

        Raises:
            ValueError: the stored file cannot be read.
        """
        path = self.folder / f"{name}.npz"
        if not path.exists():
            arrays = {key: np.asarray(array) for key, array in compute().items()}
            with replacing(path) as unfinished, open(unfinished, "wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
        try:
            with np.load(path, allow_pickle=False) as file:
                return dict(file)
        except Exception as error:
            raise ValueError(f"run_dir: {path} cannot be read, remove it: {error}") from error
