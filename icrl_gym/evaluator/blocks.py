"""Attention of a context's columns over its sources, stored where it is small enough, else computed when it is read.

Layers read the matrix of N x N by products alone, so it need not be held: its rows are computed again, a block at a
time, in every layer. That costs one softmax-attention pass for each read and a few megabytes.

Shape legend: N sources, E end columns, B rows of a block, R reward functions or queries evaluated side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import EndMixtures
from icrl_gym.evaluator.kernel import Kernel
from icrl_gym.evaluator.recursion import Columns

LARGEST_STORED = 2**31  # bytes of a matrix of attention that is held; larger ones are computed in blocks
BLOCK_BYTES = 2**24  # of the rows that are held at once then


def is_stored(kernel: Kernel) -> bool:
    """Whether the attention of all columns over the keys is small enough to be held."""
    num_columns = len(kernel.prompt) + len(kernel.prompt.end_features)
    return num_columns * len(kernel.rows_K) * kernel.log_weights_K.itemsize <= LARGEST_STORED


def columns_of(kernel: Kernel) -> Columns:
    """Attention of all columns over the sources."""
    if is_stored(kernel):
        return Columns.of(kernel.columns_CK)
    return Columns(ComputedRows(kernel, kernel.prompt.source_features), _end_rows(kernel))


@dataclass(frozen=True, eq=False)
class ComputedRows:
    """Rows of attention that are computed a block at a time, whenever they are read.

    Attributes:
        kernel: says how states attend.
        features_BD: the states.
    """

    kernel: Kernel
    features_BD: np.ndarray

    @property
    def shape(self) -> torch.Size:
        """(B, N)."""
        return torch.Size([len(self.features_BD), len(self.kernel.rows_K)])

    @property
    def mT(self) -> TransposedRows:
        """The transpose."""
        return TransposedRows(self)

    def __matmul__(self, x_NR: Tensor, /) -> Tensor:
        """(B, R)."""
        found_BR = x_NR.new_empty(len(self.features_BD), x_NR.shape[-1])
        for block, attention_BN in self.blocks():
            torch.mm(attention_BN, x_NR, out=found_BR[block])
        return found_BR

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which rows, and their attention."""
        step = _rows_at_once(self.kernel)
        for start in range(0, len(self.features_BD), step):
            block = slice(start, start + step)
            yield block, self.kernel.attend(self.features_BD[block])


@dataclass(frozen=True, eq=False)
class MixedRows(ComputedRows):
    """Rows of end columns that are mixtures: weighted means of the attention of their parts.

    Attributes:
        mixtures: features and weights of the parts.
    """

    mixtures: EndMixtures

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Which rows, and their attention."""
        step = _rows_at_once(self.kernel)
        for start in range(0, len(self.features_BD), step):
            block = slice(start, start + step)
            yield block, self._mean(block)

    def _mean(self, block: slice) -> Tensor:
        parts = zip(self.mixtures.features_MED, self.mixtures.weights_ME, strict=True)
        total_BN = self.kernel.log_weights_K.new_zeros(len(self.features_BD[block]), len(self.kernel.rows_K))
        for features_ED, weights_E in parts:
            weights_B1 = torch.as_tensor(weights_E[block, None]).to(total_BN)
            total_BN += weights_B1 * self.kernel.attend(features_ED[block])
        return total_BN


@dataclass(frozen=True, eq=False)
class TransposedRows:
    """The transpose of rows that are computed when they are read.

    Attributes:
        rows: the rows.
    """

    rows: ComputedRows

    @property
    def shape(self) -> torch.Size:
        """(N, B)."""
        return torch.Size(reversed(self.rows.shape))

    @property
    def mT(self) -> ComputedRows:
        """The rows."""
        return self.rows

    def __matmul__(self, g_BR: Tensor, /) -> Tensor:
        """(N, R)."""
        total_NR = g_BR.new_zeros(self.shape[0], g_BR.shape[-1])
        for block, attention_BN in self.rows.blocks():
            total_NR.addmm_(attention_BN.mT, g_BR[block])
        return total_NR


def _end_rows(kernel: Kernel) -> ComputedRows:
    ends_ED, mixtures = kernel.prompt.end_features, kernel.prompt.end_mixtures
    return ComputedRows(kernel, ends_ED) if mixtures is None else MixedRows(kernel, ends_ED, mixtures)


def _rows_at_once(kernel: Kernel) -> int:
    return max(1, BLOCK_BYTES // (len(kernel.rows_K) * kernel.log_weights_K.itemsize))
