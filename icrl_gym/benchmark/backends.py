"""Where the jobs of a sweep run: processes of this machine by joblib, or a Ray cluster. The jobs are the same.

A backend is a context manager around ``map(function, calls)``, an iterator over the results as they come. A job whose
worker dies is lost, not the sweep: Ray runs it again on another worker, and what it had finished is on disk by then.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

SECONDS_TO_ANSWER = 10.0  # that a cluster's address is given
RETRIES = 3  # for a Ray job whose worker or node died
OBJECT_STORE = 100 * 2**20  # bytes, in a Ray of our own: jobs pass paths and numbers only

_AGAIN = "finished cells are kept, and the same command goes on with the others"

Map = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterator[Any]]


def open_backend(name: str, num_workers: int, address: str | None = None) -> AbstractContextManager[Map]:
    """The backend of this name.

    Args:
        name: "joblib" (processes of this machine) or "ray".
        num_workers: processes, where they are started here.
        address: address of a Ray cluster that runs already; None starts a Ray of our own.

    Raises (when entered, or while jobs run):
        ImportError: it needs an extra that is not installed.
        ConnectionError: there is no Ray cluster at the address.
        ChildProcessError: workers died; the jobs that could be done are done.
    """
    return _joblib(num_workers) if name == "joblib" else _ray(num_workers, address)


@contextmanager
def _joblib(num_workers: int) -> Iterator[Map]:
    from concurrent.futures.process import BrokenProcessPool

    from joblib import Parallel, delayed

    parallel = Parallel(n_jobs=num_workers, return_as="generator_unordered")

    def run(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        try:
            yield from parallel(delayed(function)(*call) for call in calls)
        except BrokenProcessPool as error:
            raise ChildProcessError(f"a worker process died; {_AGAIN} ({error})") from error

    yield run


@contextmanager
def _ray(num_workers: int, address: str | None) -> Iterator[Map]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ImportError('backend "ray" needs an extra: pip install "icrl-gym[ray]"') from error
    if address is None:
        own = {"num_cpus": num_workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        ray.init(**own, log_to_driver=False)
    else:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False)

    lost = 0

    def run(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        nonlocal lost
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        waiting = [remote.remote(*call) for call in calls]
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield ray.get(done)
            except RayTaskError:  # what the job itself raised
                raise
            except RayError:
                lost += 1

    try:
        yield run
        if lost:
            raise ChildProcessError(f"{lost} jobs lost {RETRIES + 1} workers each; {_AGAIN}")
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise ConnectionError where nothing listens, since Ray would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto": Ray looks for a cluster, and says at once if there is none
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS_TO_ANSWER).close()
    except OSError as error:
        raise ConnectionError(f"address: nothing answers at {address!r}: {error}") from error
