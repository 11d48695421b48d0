"""TensorBoard, in the only module that knows it: `open_writer` and a null object for runs without events.

The methods carry the names of ``torch.utils.tensorboard.SummaryWriter``, so that code which logs (`Score.log`, the
wrappers) takes this writer, the user's own SummaryWriter, or nothing at all.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ScalarWriter(Protocol):
    """The one method of a TensorBoard writer that logging of numbers needs."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> Any:
        """Write one number under ``tag`` at ``step``."""


class EventWriter(Protocol):
    """Scalars, figures and hyperparameters of one run; a context manager that closes itself."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None: ...
    def add_text(self, tag: str, text: str, global_step: int) -> None: ...
    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, float], global_step: int = 0
    ) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> EventWriter: ...
    def __exit__(self, *error: object) -> None: ...


class NullWriter:
    """Takes everything and writes nothing."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Nothing."""

    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None:
        """Nothing."""

    def add_text(self, tag: str, text: str, global_step: int) -> None:
        """Nothing."""

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, float], global_step: int = 0
    ) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def __enter__(self) -> EventWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TensorBoardWriter(NullWriter):
    """One event file in one folder."""

    def __init__(self, log_dir: str | os.PathLike[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(log_dir))

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one point of the curve ``tag``."""
        self._writer.add_scalar(tag, scalar_value, global_step)

    def add_figure(self, tag: str, figure: Figure, global_step: int) -> None:
        """Draw a matplotlib figure as an image, without touching pyplot's global state."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        self._writer.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], global_step, dataformats="HWC")

    def add_text(self, tag: str, text: str, global_step: int) -> None:
        """Write Markdown, a table say, to the tab of texts."""
        self._writer.add_text(tag, text, global_step)

    def add_hparams(
        self, hparam_dict: Mapping[str, Any], metric_dict: Mapping[str, float], global_step: int = 0
    ) -> None:
        """Write settings and results of the run into this very event file.

        SummaryWriter's own method opens a second run in a sub-folder named by the clock; here the HParams tab and the
        scalars show one run. Metrics become scalars at ``global_step``; settings that are not numbers, booleans or text
        become text.
        """
        from torch.utils.tensorboard.summary import hparams

        plain = {name: _plain(value) for name, value in hparam_dict.items()}
        assert self._writer.file_writer is not None, "the writer is closed"
        for summary in hparams(plain, dict(metric_dict)):
            self._writer.file_writer.add_summary(summary)
        for name, value in metric_dict.items():
            self._writer.add_scalar(name, value, global_step)

    def close(self) -> None:
        """Write out what is buffered and close the file."""
        self._writer.close()


def _plain(value: Any) -> bool | int | float | str:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str) else str(value)


def open_writer(log_dir: str | os.PathLike[str] | None) -> EventWriter:
    """A writer for ``log_dir`` (made if missing), or one that writes nothing if it is None.

    Raises:
        OSError: the folder cannot be made or written to (the subclass is the system's).
    """
    if log_dir is None:
        return NullWriter()
    check_writable(log_dir, "log_dir")
    return TensorBoardWriter(log_dir)


def check_writable(folder: str | os.PathLike[str], name: str) -> None:
    """Make ``folder`` if it is missing and try it with an empty temporary file.

    Raises:
        OSError: the folder cannot be made or written to (the subclass is the system's); the message names it.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{name}: cannot write to the folder {os.fspath(folder)!r}: {error.strerror}") from error
