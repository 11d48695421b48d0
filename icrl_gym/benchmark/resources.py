"""What a call costs: wall time, and the peak of resident memory above what was resident before.

The peak is the kernel's own high-water mark of this process (``VmHWM``), set back just before the call (Linux, by
``/proc/self/clear_refs``), so no short peak is missed, whichever library allocates. Memory that the allocator still
holds from earlier calls is given back first (glibc), since it would hide as much of the peak. The kernel counts per
thread and adds up late: a peak is right to about 0.3 MB. Libraries that the call loads for the first time in this
process, and other threads, count too.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

RESET_PEAK = "5"  # what proc(5) says to write into clear_refs

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cost:
    """What one call cost.

    Attributes:
        seconds: wall time.
        peak_memory: bytes above what was resident before, or None where the system cannot say.
    """

    seconds: float
    peak_memory: int | None


def measured(call: Callable[[], Result]) -> tuple[Result, Cost]:
    """The result of a call, and its cost; what the call raises goes through."""
    before = _reset_peak()
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    return result, Cost(seconds, None if before is None else max(0, _peak() - before))


def _reset_peak() -> int | None:
    """Set the high-water mark back to what is resident now, and return it in bytes; None where that cannot be done."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
        return _peak()
    except (OSError, ValueError):
        return None


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise ValueError("/proc/self/status has no VmHWM")


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # not glibc
        return None
