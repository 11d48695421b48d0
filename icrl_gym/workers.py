"""Where the parts of a long log are summed: processes of this machine or a Ray cluster, as the benchmark opens them.

A call whose process dies is made again: Ray does so itself, and for processes of this machine it is done here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from icrl_gym.benchmark.backends import RETRIES, Map, open_backend

RAY = "ray"


@contextmanager
def open_workers(where: int | str) -> Iterator[Map]:
    """Workers for ``InContextEvaluator.fit_parts(..., workers=...)``, as a context manager.

    Args:
        where: a number of processes of this machine; "ray" for a Ray of our own with all cores of this machine; or the
            address of a Ray cluster that runs already ("auto", "host:port"), whose machines must see the same paths and
            have this package.

    Raises:
        TypeError, ValueError: ``where`` is no such thing.
        ImportError: Ray is not installed.
        ConnectionError: there is no Ray cluster at the address.
        ChildProcessError: the same calls lost their workers again and again.
    """
    if isinstance(where, bool) or not isinstance(where, (int, str)):
        raise TypeError(f"where must be a number of processes, 'ray' or an address, got {where!r}")
    if isinstance(where, int):
        if where < 1:
            raise ValueError(f"where must be at least 1 process, got {where}")
        yield partial(_on_processes, where)
        return
    if not where:
        raise ValueError("where must be a number of processes, 'ray' or an address, got ''")
    with open_backend("ray", os.cpu_count() or 1, None if where == RAY else where) as run:
        yield run


def _on_processes(num_workers: int, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """What the calls return; those that were not finished when a process died are made again, by new processes."""
    left = dict(enumerate(calls))
    for attempt in range(RETRIES + 1):
        try:
            with open_backend("joblib", num_workers) as run:
                for number, result in run(_numbered, [(number, function, call) for number, call in left.items()]):
                    del left[number]
                    yield result
            return
        except ChildProcessError as error:
            if attempt == RETRIES:
                raise ChildProcessError(f"workers: {len(left)} calls lost {RETRIES + 1} processes") from error


def _numbered(number: int, function: Callable[..., Any], call: tuple[Any, ...]) -> tuple[int, Any]:
    return number, function(*call)
