"""`Store`: the finished pieces of one claim on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from icrl_gym.reproduction.sources import fingerprint
from icrl_gym.runs import read_archive, write_archive, write_text

CODE = "code.txt"  # the fingerprint of the code that made what is in the folder
_log = logging.getLogger(__name__)


class Store:
    """A folder of named pieces; each is written whole or not at all, and kept only as long as its code is the same.

    Attributes:
        folder: the claim's folder; its function may keep files of its own there, such as checkpoints.
    """

    def __init__(self, folder: Path, module: str) -> None:
        """Open or make the folder; what other code left in it is removed, with a line that says so.

        Args:
            folder: the claim's folder.
            module: name of the module that measures the claim.
        """
        self.folder = folder
        code = folder / CODE
        if folder.exists() and not (code.exists() and code.read_text(encoding="utf-8") == fingerprint(module)):
            _log.warning("%s: measured again, since the code of %s is not the one that made it", folder, module)
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not code.exists():
            write_text(code, fingerprint(module))

    def beside(self, claim_id: str, module: str) -> Store:
        """The store of another claim of the same run."""
        return Store(self.folder.parent / claim_id, module)

    def arrays(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The piece ``name``: read if it is there, else computed and kept.

        Args:
            name: the piece's name; it must say everything that changes it apart from ``quick`` (the seed, say).
            compute: makes the arrays by name.

        Raises:
            ValueError: the stored file cannot be read; the message names it.
        """
        path = self.folder / f"{name}.npz"
        if not path.exists():
            write_archive(path, {}, {key: np.asarray(array) for key, array in compute().items()})
        return read_archive(path)[1]
