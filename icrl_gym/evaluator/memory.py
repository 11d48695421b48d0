"""How much memory it takes to compile a prompt, how much there is, and heads that fit into it.

With every source as a key matrices of N x N are held; with landmarks attention is held for a block of transitions at a
time, and what grows with the context are its features and a few vectors. The counts below are those of the arrays that
live at once, and were held against the measured peak of a process (tests/test_memory.py, within 30 %).

Not counted: the prompt itself, which is there already; finite depth, whose rows are computed again where they are
large; a fallback to the averager, which is rare and holds one matrix more.

Shape legend: N sources, C columns, K landmarks, D features, H heads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.error_bars import LARGEST_CONTEXT
from icrl_gym.evaluator.heads import MOST_SOURCES, at_length
from icrl_gym.evaluator.kernel import HELD_COLUMNS
from icrl_gym.evaluator.landmarks import BLOCK
from icrl_gym.evaluator.setting import Setting

USABLE = 0.8  # of the free memory that a context may take: the prediction may fall short, and others need some
KEPT_BY_ALLOCATOR = 2**25  # bytes of the blocks that the C library keeps when they are freed
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
GIGABYTE = 1e9
FLOAT = 8  # bytes of a float64


@dataclass(frozen=True)
class FittingHeads:
    """Heads that fit into memory, and what was done for it.

    Attributes:
        heads: settings.
        notes: sentences, where a head is not the one that was asked for.
    """

    heads: tuple[Setting, ...]
    notes: tuple[str, ...] = ()


def heads_that_fit(
    prompt: Prompt, heads: Sequence[Setting], device: str | torch.device, dtype: torch.dtype
) -> FittingHeads:
    """The heads, or the same with landmarks where every source as a key does not fit and landmarks are allowed.

    Short contexts, other devices than the CPU, and systems that do not say what is free are not guarded.

    Args:
        prompt: the context.
        heads: those of one network, as they are at this length.
        device, dtype: torch device and dtype of the computation.

    Raises:
        ValueError: the context does not fit into memory under any heads of this kind.
    """
    wanted = tuple(heads)
    if len(prompt) <= MOST_SOURCES or torch.device(device).type != "cpu":
        return FittingHeads(wanted)
    free = available_memory()
    if free is None:
        return FittingHeads(wanted)
    needed = needed_memory(prompt, wanted, dtype)
    if needed <= USABLE * free:
        return FittingHeads(wanted)
    smaller = tuple(head if head.landmarks else at_length(head, len(prompt)) for head in wanted)
    least = needed_memory(prompt, smaller, dtype)
    if least > USABLE * free:
        raise ValueError(_refused(prompt, least, free, smaller))
    return FittingHeads(smaller, (_replaced(prompt, needed, free, smaller),))


def by_length_note(prompt: Prompt, head: Setting, most_sources: int) -> str:
    """The sentence for a context whose length alone gave a head landmarks."""
    return (
        f"above {most_sources:,} transitions not every state is a key: {head.landmarks:,} landmarks cover the "
        f"{len(prompt):,} of this context"
    )


def needed_memory(prompt: Prompt, heads: Sequence[Setting], dtype: torch.dtype = torch.float64) -> int:
    """Bytes above what the process holds, at the peak of compiling a prompt under the heads of one network.

    Args:
        prompt: the context.
        heads: settings; a single one has the error bars of its sampling error.
        dtype: that of heads with every source as a key; landmarks are summed in float64.
    """
    dense = [head for head in heads if head.at_equilibrium and not head.landmarks]
    few = [head for head in heads if head.landmarks]
    matrices = _with_every_key(prompt, dense, alone=len(heads) == 1, itemsize=dtype.itemsize) if dense else 0.0
    return round(matrices + (_with_landmarks(prompt, few) if few else 0.0))


def _with_every_key(prompt: Prompt, heads: Sequence[Setting], alone: bool, itemsize: int) -> float:
    """Attention of every kernel, and the matrices of the system that is solved."""
    num_sources = len(prompt)
    matrix = float(itemsize * num_sources**2)
    attention = float(itemsize * num_sources * (num_sources + len(prompt.end_features)))
    num_kernels = len({(head.kernel, head.bandwidth, head.sink, head.relevance) for head in heads})
    solving = max(_matrices_of_a_system(head) for head in heads)
    if alone:  # the factors, both triangles' inverses, and what masks and multiplies them
        shrinks = heads[0].parameters.shrinks and num_sources <= LARGEST_CONTEXT
        solving = max(solving, 6 if shrinks else 0)
    else:  # the factors of the first head are held
        solving += 1
    kept = num_kernels if matrix < KEPT_BY_ALLOCATOR else 0
    return num_kernels * attention + (solving + kept) * matrix


def _matrices_of_a_system(head: Setting) -> int:
    """Matrices of N x N that live at once while one head is solved, besides its attention."""
    if not head.parameters.shrinks:
        return 8  # a pseudo-inverse
    return 4 if head.trace_decay else 2


def _with_landmarks(prompt: Prompt, heads: Sequence[Setting]) -> float:
    """The larger of two steps: reading relevance and keys off the features; sums over blocks."""
    num_sources, num_features = prompt.source_features.shape
    num_keys = max(head.landmarks for head in heads)
    by_returns = any(head.relevance == "returns" for head in heads)
    reading = num_sources * ((4 if by_returns else 3) * num_features + 8)
    summing = 7 * min(BLOCK, num_sources) * num_keys + 4 * num_keys**2
    num_columns = num_sources + len(prompt.end_features)
    kernels = {(head.bandwidth, head.sink, head.relevance, head.landmarks) for head in heads}
    held = num_columns * num_keys * len(kernels) if num_columns <= HELD_COLUMNS else 0
    systems = 2 * num_keys**2 * (len(heads) - 1)
    equations = len({head.trace_decay for head in heads}) * num_sources * (4 + math.ceil(math.log2(num_sources)))
    return float(FLOAT * max(reading, summing + held + systems + equations))


def available_memory() -> int | None:
    """Bytes that this process may still take, or None where the system does not say.

    On Linux the least of what the machine has and what the process's control groups leave of their limits; elsewhere
    the free pages.
    """
    meminfo = PROC / "meminfo"
    if meminfo.exists():
        found = [
            1024 * int(line.split()[1]) for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")
        ]
        return min([*found, *_left_by_groups()], default=None)
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # no such name on this system
        return None


def _left_by_groups() -> Iterator[int]:
    """Bytes that each control group of this process, and each above it, leaves of its limit, where it has one."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        names = ("memory.max", "memory.current", "inactive_file")
        root = CGROUPS
        if controllers:
            if "memory" not in controllers.split(","):
                continue
            root, names = CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                yield from _left_by(folder, *names)


def _left_by(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[int]:
    """What one group leaves; the file cache that it can give back is not counted as used."""
    try:
        most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if most.isdigit():
        yield max(0, int(most) - taken + int(statistics.get(reclaimable, 0)))


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / GIGABYTE:.2g} GB" if num_bytes < 10 * GIGABYTE else f"{num_bytes / GIGABYTE:,.0f} GB"


def _replaced(prompt: Prompt, needed: float, free: float, heads: Sequence[Setting]) -> str:
    count = max(head.landmarks for head in heads)
    return (
        f"{len(prompt):,} transitions with every source as a key need about {_gigabytes(needed)}, "
        f"{_gigabytes(free)} are free: {count:,} landmarks are the keys instead"
    )


def _refused(prompt: Prompt, needed: float, free: float, heads: Sequence[Setting]) -> str:
    dense = any(head.at_equilibrium and not head.landmarks for head in heads)
    keys = " with every source as a key" if dense else ""
    advice = "give a shorter context"
    if dense:
        advice += ", or a setting with landmarks (num_layers='equilibrium', forgetting above 0, averaging 0)"
    return (
        f"context: {len(prompt):,} transitions{keys} need about {_gigabytes(needed)}, {_gigabytes(free)} are free, of "
        f"which {USABLE:.0%} may be taken; {advice}"
    )
