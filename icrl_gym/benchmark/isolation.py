"""One call in a process of its own: nothing that an earlier call left behind is in its time or its memory.

A call that takes too long, or that the system kills for its memory, becomes a reason and not the end of the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

LONGEST_REASON = 200  # characters
SHARE_OF_MEMORY = 0.8  # of the machine's, that a call may allocate


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
        result: what it returned, None where it did not.
        reason: why it did not return, in one line; "" where it did.
    """

    result: Any
    reason: str = ""


def isolated(call: Callable[..., Any], *arguments: Any, seconds: float) -> Outcome:
    """Call a function of a module in a fresh process, for at most ``seconds``.

    Args:
        call: a function that can be imported.
        *arguments: what it is called with; these and the result go through pickle.
        seconds: after which the process is ended.
    """
    context = get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(there, call, arguments), daemon=True)
    process.start()
    there.close()
    try:
        if not here.poll(seconds):
            return Outcome(None, f"over the limit of {seconds:g} seconds")
        return here.recv()
    except EOFError:
        process.join()
        return Outcome(None, f"the process ended with exit code {process.exitcode} and without an answer")
    finally:
        process.kill()
        process.join()
        here.close()


def answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Send the outcome of a call; runs in the process of its own."""
    _limit_memory()
    try:
        outcome = Outcome(call(*arguments))
    except Exception as error:  # whatever went wrong in there is what the caller wants to read
        outcome = Outcome(None, reason_of(error))
    pipe.send(outcome)


def _limit_memory() -> None:
    """Let an allocation beyond the machine's memory fail, before the system kills this process or another (Linux)."""
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(SHARE_OF_MEMORY * memory), most))


def reason_of(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:LONGEST_REASON].rstrip(": ")
