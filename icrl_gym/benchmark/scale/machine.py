"""What the machine can do: matrix products and copies at their measured speed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

PRODUCT_SIZE = 2_048
COPY_BYTES = 2**28
REPEATS = 5
GIGA = 1e9


@dataclass(frozen=True)
class Machine:
    """The machine as measured.

    Attributes:
        cores: that this process may use.
        memory: bytes in all, None where the system does not say.
        threads: of torch.
        load: processes that wanted to run during the minute before (load average), None where the system does not say.
        gflops_float32, gflops_float64: billions of operations per second in a product of square matrices.
        bandwidth: bytes per second of a copy, read and write counted.
        platform: system and processor.
        torch: version.
    """

    cores: int
    memory: int | None
    threads: int
    load: float | None
    gflops_float32: float
    gflops_float64: float
    bandwidth: float
    platform: str
    torch: str


def measured_machine(threads: int, product_size: int = PRODUCT_SIZE, copy_bytes: int = COPY_BYTES) -> Machine:
    """Measure this machine with so many threads of torch."""
    torch.set_num_threads(threads)
    return Machine(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        _memory(),
        threads,
        os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        _gflops(product_size, torch.float32),
        _gflops(product_size, torch.float64),
        _bandwidth(copy_bytes),
        f"{platform.system()} {platform.machine()}",
        torch.__version__,
    )


def median_seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median wall time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _gflops(size: int, dtype: torch.dtype) -> float:
    matrix = torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / median_seconds(lambda: matrix @ matrix) / GIGA


def _bandwidth(num_bytes: int) -> float:
    source = np.zeros(num_bytes // 8)
    target = np.ones_like(source)
    return 2 * source.nbytes / median_seconds(lambda: np.copyto(target, source))


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
