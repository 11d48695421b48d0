"""Random choices per task, and batches of parameters that can be narrowed to some tasks.

Shapes: B tasks come first. ``Draws`` gives every task of a batch its own numbers from one generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor


def make_generator(device: str | torch.device, *words: int) -> torch.Generator:
    """A generator that is a pure function of the integers given (each >= 0)."""
    state = np.random.SeedSequence(words).generate_state(1, np.uint64)[0]
    generator = torch.Generator(device)
    generator.manual_seed(int(state >> np.uint64(1)))
    return generator


@dataclass(frozen=True)
class Draws:
    """Independent numbers for each of ``num_tasks`` tasks, (B, *shape)."""

    generator: torch.Generator
    num_tasks: int

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        size = (self.num_tasks, *shape)
        return torch.rand(size, generator=self.generator, device=self.generator.device) * (high - low) + low

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn((self.num_tasks, *shape), generator=self.generator, device=self.generator.device)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(0.0, 1.0, *shape) < probability

    def sign(self, *shape: int) -> Tensor:
        return torch.where(self.chance(0.5, *shape), 1.0, -1.0)

    def choice(self, weights: Sequence[float], *shape: int) -> Tensor:
        """Indices with probabilities proportional to ``weights``, int64."""
        total = np.cumsum(weights) / np.sum(weights)
        edges = torch.tensor(total[:-1], dtype=torch.float32, device=self.generator.device)
        return torch.bucketize(self.uniform(0.0, 1.0, *shape), edges, right=True)

    def integer(self, below: int, *shape: int) -> Tensor:
        """Uniform in 0 .. below - 1, int64."""
        return (self.uniform(0.0, 1.0, *shape) * below).long().clamp_(max=below - 1)

    def subset(self, size: int, *, least: int = 1, most: int) -> Tensor:
        """A random subset of ``size`` items with ``least`` to ``most`` members, (B, size) bool."""
        most = min(most, size)
        count_B1 = min(least, most) + self.integer(most - min(least, most) + 1, 1)
        rank_BS = self.uniform(0.0, 1.0, size).argsort(dim=-1).argsort(dim=-1)
        return rank_BS < count_B1

    def rotation(self, size: int) -> Tensor:
        """Random orthogonal matrices, (B, size, size)."""
        return torch.linalg.qr(self.normal(size, size).cpu())[0].to(self.generator.device)


@dataclass(frozen=True)
class Batched:
    """Dataclass of tensors whose first axis is the task; None fields are allowed, other fields are shared."""

    def select(self, tasks: Tensor) -> Self:
        """The same for the tasks given by index, in that order."""
        narrowed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                narrowed[field.name] = value.index_select(0, tasks)
            elif isinstance(value, Batched):
                narrowed[field.name] = value.select(tasks)
        return replace(self, **narrowed)


def gather_rows(table_BNX: Tensor, index_BM: Tensor) -> Tensor:
    """Rows of each task's table, (B, N, X) and (B, M) -> (B, M, X)."""
    return table_BNX.gather(1, index_BM.unsqueeze(-1).expand(-1, -1, table_BNX.shape[-1]))
