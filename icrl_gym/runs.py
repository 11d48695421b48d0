"""Run folders: filled under a temporary name and renamed when complete; files are written whole or not at all.

Whoever fills a folder holds the lock on a file in it. The system lets go of the lock when the process ends, however it
ends, so that what a killed run left behind blocks nobody.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout

from icrl_gym import __version__

DEFAULT_ROOT = Path("runs")
UNFINISHED = ".unfinished-"  # prefix of a folder whose run is still going, or was interrupted or killed
LOCK = "lock"  # file in such a folder
Progress = Callable[[str, int, int], None]  # which part of the work, how much of it is done, how much there is
PACKAGES = ("gymnasium", "torch", "numpy", "scipy", "stable-baselines3", "sb3-contrib", "tensorboard")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to: on success it takes the place of ``path``, on failure it goes.

    The folder must exist. Readers see the old file or the new one, never a part.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=f".{os.getpid()}.tmp")
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class RunFolder:
    """A folder that exists under its own name only once the run is complete.

    Attributes:
        path: folder to write to while the run goes on.
        final: the name that the folder gets in the end.
        keeps: set by the run once it holds something that an interrupted run should be gone on with from.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(UNFINISHED + final.name)
        self.keeps = False
        self._place = self.path
        self._lock = FileLock(self.path / LOCK, timeout=0)

    def acquire(self) -> None:
        """Take the folder; raises FileExistsError where another run has it."""
        try:
            self.path.mkdir(exist_ok=True)
            self._lock.acquire()
            held = (self.path / LOCK).exists()  # else it was renamed or removed meanwhile
        except (Timeout, FileNotFoundError):
            held = False
        except OSError as error:
            raise type(error)(f"run_dir: cannot make the run folder {str(self.final)!r}: {error.strerror}") from error
        if not held:
            self._lock.release()
            raise FileExistsError(f"run_dir: {str(self.final)!r} is taken: another run is filling {str(self.path)!r}")

    def finish(self) -> None:
        """Give the folder its own name."""
        os.rename(self.path, self.final)
        self._place = self.final

    def release(self, keep: bool = False) -> None:
        """Let go of the folder, wherever it is by now; its lock goes too, unless it is to ``keep`` for another run."""
        if not keep:
            (self._place / LOCK).unlink(missing_ok=True)  # still held: whoever waits for this file gets none
        self._lock.release()

    def clear(self) -> None:
        """Remove what a killed run left in the folder."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()


@contextmanager
def run_folder(
    directory: str | os.PathLike[str] | None, env_id: str, root: Path = DEFAULT_ROOT, *, resume: bool = False
) -> Iterator[RunFolder]:
    """Make a run folder; give it its name on success, and remove it on any error.

    One that the user interrupts stays under its temporary name if it `keeps` something, and so does one that was
    resumed.

    Args:
        directory: a name chosen by the user, which must not exist yet; None: ``<root>/<env>-<utc>-<n>``, never taken.
        env_id: used in the default name.
        root: folder of the default folders.
        resume: go on with the unfinished folder of ``directory``, as it is.

    Raises:
        FileExistsError: ``directory`` exists, or another run is filling it.
        FileNotFoundError: there is nothing to resume.
        OSError: the folder cannot be made.
        KeyboardInterrupt: the user's; its message says how to go on, where something is kept.
    """
    final = Path(os.path.abspath(root / "new" if directory is None else directory))
    if resume:
        folder = _reclaim(final)
    else:
        _make_parent(final.parent)
        folder = _claim_default(final.parent, env_id) if directory is None else _claim(final)
    kept = False
    try:
        yield folder
        folder.finish()
    except BaseException as error:
        kept = resume or (folder.keeps and isinstance(error, KeyboardInterrupt))
        if not kept:
            shutil.rmtree(folder.path, ignore_errors=True)
        elif isinstance(error, KeyboardInterrupt):
            again = shlex.quote(shown_path(folder.final))
            raise KeyboardInterrupt(f"what is finished is kept; go on with --resume {again}") from None
        raise
    finally:
        folder.release(keep=kept)


def shown_path(path: Path) -> str:
    """A path as the user would write it: from the working directory on, where it lies below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def finished_name(run: str | os.PathLike[str]) -> Path:
    """The name that a run's folder has in the end, whether it is called by that or by its temporary one."""
    path = Path(os.path.abspath(run))
    return path.with_name(path.name.removeprefix(UNFINISHED))


def unfinished_folder(run: str | os.PathLike[str]) -> Path:
    """The temporary folder of a run that was interrupted, named as it would have been in the end.

    Raises:
        FileExistsError: the run is finished.
        FileNotFoundError: there is no such run.
    """
    final = finished_name(run)
    if os.path.lexists(final):
        raise FileExistsError(f"resume: {str(run)!r} exists: this run is finished")
    path = RunFolder(final).path
    if not path.is_dir():
        raise FileNotFoundError(f"resume: there is no interrupted run {str(run)!r} (no folder {str(path)!r})")
    return path


def _make_parent(parent: Path) -> None:
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"run_dir: cannot make the folder {str(parent)!r}: {error.strerror}") from error


def _claim_default(root: Path, env_id: str) -> RunFolder:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", env_id).strip("-.") or "env"
    for number in itertools.count():
        try:
            return _claim(root / f"{stem}-{stamp}-{number}")
        except FileExistsError:
            continue
    raise AssertionError("unreachable")


def _claim(final: Path) -> RunFolder:
    """Take a name: the unfinished folder is locked, and the final name is looked at only while it is."""
    folder = RunFolder(final)
    folder.acquire()
    if os.path.lexists(final):
        folder.release()
        with suppress(OSError):  # not empty: left by a run that was interrupted
            folder.path.rmdir()
        raise FileExistsError(f"run_dir: the run folder {str(final)!r} exists already; name one that does not")
    folder.clear()
    return folder


def _reclaim(final: Path) -> RunFolder:
    """Take the folder of an interrupted run."""
    unfinished_folder(final)
    folder = RunFolder(final)
    folder.acquire()
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write standard JSON (NaN and infinities become null), atomically."""
    with _replacing(path) as file:
        json.dump(standard_json(content), file, indent=2, allow_nan=False)
        file.write("\n")


def write_text(path: Path, content: str) -> None:
    """Write text, atomically."""
    with _replacing(path) as file:
        file.write(content)


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table with a header line, atomically; None becomes an empty cell, floats keep every digit."""
    with _replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def write_archive(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays and a JSON header into one compressed ``.npz`` file without pickle, atomically.

    The header stands among the arrays under the name "header", which no array may have.
    """
    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, header=np.array(json.dumps(header)), **arrays)


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays that `write_archive` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or a damaged one; the message names it.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        header = json.loads(str(arrays.pop("header")))
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, zlib, npy and JSON each fail in their own ways
        raise ValueError(
            f"{path} is not an archive of arrays that can be read: {error or type(error).__name__}"
        ) from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is not an archive of arrays that can be read: its header is no JSON object")
    return header, arrays


@contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
        yield file


def standard_json(content: Any) -> Any:
    """The same tree with paths as text, tuples as lists, and undefined numbers as None."""
    if isinstance(content, Mapping):
        return {str(key): standard_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [standard_json(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return os.fspath(content) if isinstance(content, os.PathLike) else content


def versions() -> dict[str, Any]:
    """Python, platform, installed packages, and the commit of this package's source where it is a checkout."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {"icrl-gym": __version__, **{name: _installed_version(name) for name in PACKAGES}},
        "commit": source_commit(Path(__file__).parent),
    }


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def source_commit(package: Path) -> str | None:
    """Commit of the git checkout that tracks ``package``, with ``+changes`` if it was edited; else None.

    A package that is installed inside somebody's own checkout is not tracked there, and gets None.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None
