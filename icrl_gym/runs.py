"""Run folders: filled under a temporary name and renamed when complete; files are written whole or not at all."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from icrl_gym import __version__

DEFAULT_ROOT = Path("runs")
UNFINISHED = ".unfinished-"  # prefix of a folder whose run is still going, or was killed
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
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(UNFINISHED + final.name)


@contextmanager
def run_folder(directory: str | os.PathLike[str] | None, env_id: str, root: Path = DEFAULT_ROOT) -> Iterator[RunFolder]:
    """Make a run folder; give it its name on success, and remove it on any error.

    Args:
        directory: a name chosen by the user, which must not exist yet; None: ``<root>/<env>-<utc>-<n>``, never taken.
        env_id: used in the default name.
        root: folder of the default folders.

    Raises:
        FileExistsError: ``directory`` exists, or another run is filling it.
        OSError: the folder cannot be made.
    """
    final = Path(os.path.abspath(root / "new" if directory is None else directory))
    _make_parent(final.parent)
    folder = _claim_default(final.parent, env_id) if directory is None else _claim(final)
    try:
        yield folder
        os.rename(folder.path, folder.final)
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise


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
    """Take a name: the unfinished folder is the lock, and the final name is looked at only while it is held."""
    folder = RunFolder(final)
    try:
        folder.path.mkdir()
    except FileExistsError:
        owner = "another run is filling it, or was killed and left"
        raise FileExistsError(f"run_dir: {str(final)!r} is taken: {owner} {str(folder.path)!r}") from None
    except OSError as error:
        raise type(error)(f"run_dir: cannot make the run folder {str(final)!r}: {error.strerror}") from error
    if os.path.lexists(final):
        folder.path.rmdir()
        raise FileExistsError(f"run_dir: the run folder {str(final)!r} exists already; name one that does not")
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
