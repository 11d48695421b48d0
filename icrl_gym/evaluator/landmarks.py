"""The equilibrium with K landmarks as the only keys, from sums over the transitions: any length, K x K to solve.

N equations for K memories a are met in the mean, weighted by the sources' own attention (a Galerkin projection): with
s_k the attention of source k over the landmarks, s'_k that of its successor and w_k its weight,

    [alpha sum_k z_k (s_k - discount_k s'_k)^T + eta sum_k w_k |s_k|^2] a = alpha sum_k z_k (R_k - (1 - discount_k) c)
    z_k = w_k s_k + decay_{k-1} z_{k-1}

and v(x) = c + sum_m K(m | x) a_m. It is LSTD(lambda) with softmax features, a ridge without a unit, and eligibility
traces z (Boyan 1999; the features and the constant are this project's own). All of it are sums over transitions, so
they are taken block by block, more transitions are added to them, and parts from several machines are added up.

The *free level* is the constant for which the errors that the equations leave, z-weighted with K = 1 feature that is
one everywhere, sum to zero: an unpenalised intercept.

Shape legend: N sources, B of them in a block, C of these in a chunk, K landmarks, R reward functions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.kernel import Kernel
from icrl_gym.evaluator.recursion import Equations, LayerParameters

BLOCK = 2048  # transitions whose attention is held at once
TRACE_ENDS = 1e-14  # of a trace, below which it has ended
TAIL = 256  # transitions at a time, after those that are taken out, that their traces are followed through
CHUNK = 64  # of them over which a trace is one product of matrices
LEAST_DETERMINED = 1e-3  # cancellation in the free level's denominator below which the level stays at c0
Factors = tuple[Tensor, Tensor]  # LU factors and pivots


@dataclass(frozen=True, eq=False)
class LandmarkSystem:
    """Sums over transitions, in float64.

    Attributes:
        matrix_KK: sum of z (s - discount s')^T.
        rewards_KR: sum of z R.
        losses_K1: sum of z (1 - discount).
        squares_11: sum of w |s|^2.
        level_1K, level_rewards_1R, level_loss_11: the same three with m_k = w_k + decay_{k-1} m_{k-1} for z.
        weighted_rewards_1R, weighted_loss_11: sums of w R and w (1 - discount), whose ratio is the prompt's constant.
        trace_1K, level_trace_11: z and m of the last transition.
    """

    matrix_KK: Tensor
    rewards_KR: Tensor
    losses_K1: Tensor
    squares_11: Tensor
    level_1K: Tensor
    level_rewards_1R: Tensor
    level_loss_11: Tensor
    weighted_rewards_1R: Tensor
    weighted_loss_11: Tensor
    trace_1K: Tensor
    level_trace_11: Tensor

    @classmethod
    def empty(cls, num_keys: int, num_rewards: int, device: torch.device | str) -> LandmarkSystem:
        """No transitions."""
        k, r = num_keys, num_rewards
        shapes = ((k, k), (k, r), (k, 1), (1, 1), (1, k), (1, r), (1, 1), (1, r), (1, 1), (1, k), (1, 1))
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    @classmethod
    def of(cls, equations: Equations, kernel: Kernel) -> LandmarkSystem:
        """The sums of all transitions of a prompt."""
        num_keys, rewards_NR = len(kernel.rows_K), equations.rewards_NR
        return cls.empty(num_keys, rewards_NR.shape[-1], rewards_NR.device).extended(equations, kernel, 0)

    def extended(self, equations: Equations, kernel: Kernel, first: int) -> LandmarkSystem:
        """With the transitions from ``first`` on; these sums are of those before."""
        total = LandmarkSystem(*(part.clone() for part in vars(self).values()))
        num_sources = len(equations.weights_N1)
        for start in range(first, num_sources, BLOCK):
            total._add(_Block.of(equations, kernel, start, min(num_sources, start + BLOCK)))
        return total

    def plus(self, other: LandmarkSystem) -> LandmarkSystem:
        """The sums of both; no trace passes from the one to the other."""
        sums = {field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        return LandmarkSystem(**(sums | {"trace_1K": other.trace_1K, "level_trace_11": other.level_trace_11}))

    def without_first(self, equations: Equations, kernel: Kernel, count: int) -> LandmarkSystem:
        """Without the first transitions and all that their traces reach.

        Args:
            equations, kernel: those that the sums were taken with.
            count: how many transitions, fewer than there are.
        """
        weights_N1, num_sources = equations.weights_N1, len(equations.weights_N1)
        gone = LandmarkSystem.empty(len(kernel.rows_K), equations.rewards_NR.shape[-1], weights_N1.device)
        gone = gone.extended(replace(equations, weights_N1=weights_N1[:count]), kernel, 0)
        unweighted = replace(equations, weights_N1=torch.zeros_like(weights_N1))
        while count < num_sources and float(gone.trace_1K.abs().max()) > TRACE_ENDS:
            stop = min(num_sources, count + TAIL)
            gone = gone.extended(replace(unweighted, weights_N1=unweighted.weights_N1[:stop]), kernel, count)
            count = stop
        traces = ("trace_1K", "level_trace_11") if count < num_sources else ()
        left = {field.name: getattr(self, field.name) - getattr(gone, field.name) for field in fields(self)}
        return LandmarkSystem(**(left | {name: getattr(self, name) for name in traces}))

    def scaled(self, factor: float) -> LandmarkSystem:
        """With the weights of all transitions multiplied by a factor."""
        return LandmarkSystem(*(factor * part for part in vars(self).values()))

    def solve(self, parameters: LayerParameters) -> tuple[Tensor, Tensor]:
        """Constant (1, R) and memories (K, R)."""
        constant_1R = self.weighted_rewards_1R / self.weighted_loss_11
        memory_KR, level_K1 = self._solved(parameters, constant_1R)
        if not parameters.free_level:
            return constant_1R, memory_KR
        unmet_1R = self.level_rewards_1R - self.level_loss_11 * constant_1R - self.level_1K @ memory_KR
        shift_1R = parameters.free_level * self._share(level_K1) * unmet_1R
        return constant_1R + shift_1R, memory_KR - level_K1 * shift_1R

    def transposed(
        self, equations: Equations, kernel: Kernel, parameters: LayerParameters, rows_KQ: Tensor, constants_1Q: Tensor
    ) -> Tensor:
        """Weights (N, Q) of the rewards in what queries read from `solve`: its transpose, one solve and one pass.

        Args:
            equations, kernel: those that the sums were taken with; the rewards are not looked at.
            parameters: those of `solve`.
            rows_KQ: attention of the queries, one column each.
            constants_1Q: what they read of the constant: 1, or other numbers for weighted sums of queries.
        """
        factors, level_1Q = self.factors(parameters), torch.zeros_like(constants_1Q)
        if parameters.free_level:
            level_K1 = torch.linalg.lu_solve(*factors, parameters.step_size * self.losses_K1)
            level_1Q = parameters.free_level * self._share(level_K1) * (constants_1Q - level_K1.mT @ rows_KQ)
        rows_KQ = (rows_KQ - self.level_1K.mT * level_1Q).contiguous()
        adjoint_KQ = parameters.step_size * torch.linalg.lu_solve(*factors, rows_KQ, adjoint=True)
        weights_NQ = equations.weights_N1 * (read_by_sources(kernel, adjoint_KQ) + level_1Q)
        return equations.with_constant(equations.trace.transposed(weights_NQ), constants_1Q)

    def _share(self, level_K1: Tensor) -> Tensor:
        """How far the level moves for each unit that is unmet, (1, 1); 0 where the context does not determine it."""
        made_11 = self.level_1K @ level_K1
        total_11, size_11 = self.level_loss_11 - made_11, self.level_loss_11.abs() + made_11.abs()
        determined = total_11.abs() > LEAST_DETERMINED * size_11
        return torch.where(determined, 1.0 / torch.where(determined, total_11, 1.0), 0.0)

    def factors(self, parameters: LayerParameters) -> Factors:
        """LU factors and pivots of the system's matrix."""
        matrix_KK = parameters.step_size * self.matrix_KK
        matrix_KK.diagonal().add_(parameters.forgetting * self.squares_11[0])
        return torch.linalg.lu_factor(matrix_KK)

    def _solved(self, parameters: LayerParameters, constant_1R: Tensor) -> tuple[Tensor, Tensor]:
        right_KR = torch.cat([self.rewards_KR - self.losses_K1 * constant_1R, self.losses_K1], dim=-1)
        solved_KR = torch.linalg.lu_solve(*self.factors(parameters), parameters.step_size * right_KR)
        return solved_KR[:, :-1], solved_KR[:, -1:]

    def _add(self, block: _Block) -> None:
        """Add a block to these sums, in place."""
        traced_BK = traced(block.weights_B1 * block.source_BK, block.decays_B, block.decay_before * self.trace_1K)
        level_B1 = traced(block.weights_B1, block.decays_B, block.decay_before * self.level_trace_11)
        left_BK = block.source_BK - block.discounts_B1 * block.next_BK
        loss_B1 = 1.0 - block.discounts_B1
        self.matrix_KK.addmm_(traced_BK.mT, left_BK)
        self.rewards_KR.addmm_(traced_BK.mT, block.rewards_BR)
        self.losses_K1.addmm_(traced_BK.mT, loss_B1)
        self.squares_11.add_((block.weights_B1 * block.source_BK.square()).sum())
        self.level_1K.addmm_(level_B1.mT, left_BK)
        self.level_rewards_1R.addmm_(level_B1.mT, block.rewards_BR)
        self.level_loss_11.addmm_(level_B1.mT, loss_B1)
        self.weighted_rewards_1R.add_((block.weights_B1 * block.rewards_BR).sum(dim=0))
        self.weighted_loss_11.add_((block.weights_B1 * loss_B1).sum())
        self.trace_1K.copy_(traced_BK[-1:])
        self.level_trace_11.copy_(level_B1[-1:])


def aggregated(equations: Equations, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Constant (1, R) and memories (K, R) of the averager over landmarks: certain to be a contraction.

    Every landmark's value is the mean of what the sources that attend to it earn and reach (soft state aggregation,
    Singh et al. 1995), u_m = sum_k w_k s_km (R_k - (1 - discount_k) c + discount_k s'_k u) / sum_k w_k s_km.
    """
    constant_1R = equations.constant(equations.rewards_NR)
    matrix_KK, right_KR = _aggregation(equations, kernel, constant_1R)
    return constant_1R, torch.linalg.solve(matrix_KK, right_KR)


def transposed_aggregated(equations: Equations, kernel: Kernel, rows_KQ: Tensor, constants_1Q: Tensor) -> Tensor:
    """Weights (N, Q) of the rewards in what queries read from `aggregated`; arguments as of `transposed`."""
    matrix_KK, _ = _aggregation(equations, kernel, equations.constant(equations.rewards_NR))
    adjoint_KQ = torch.linalg.solve(matrix_KK.mT, rows_KQ)
    return equations.with_constant(equations.weights_N1 * read_by_sources(kernel, adjoint_KQ), constants_1Q)


def _aggregation(equations: Equations, kernel: Kernel, constant_1R: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (K, K) and right-hand side (K, R) of the averager's system."""
    num_sources, num_keys = len(equations.weights_N1), len(kernel.rows_K)
    matrix_KK = constant_1R.new_zeros(num_keys, num_keys)
    right_KR = constant_1R.new_zeros(num_keys, constant_1R.shape[-1])
    for start in range(0, num_sources, BLOCK):
        block = _Block.of(equations, kernel, start, min(num_sources, start + BLOCK))
        weighted_KB = (block.weights_B1 * block.source_BK).mT
        matrix_KK.diagonal().add_(weighted_KB.sum(dim=1))
        matrix_KK.addmm_(weighted_KB, block.discounts_B1 * block.next_BK, alpha=-1.0)
        right_KR.addmm_(weighted_KB, block.rewards_BR - (1.0 - block.discounts_B1) * constant_1R)
    matrix_KK.diagonal().clamp_(min=torch.finfo(matrix_KK.dtype).tiny)
    return matrix_KK, right_KR


def read_by_sources(kernel: Kernel, x_KQ: Tensor) -> Tensor:
    """Attention of the sources times a matrix, (N, Q), block by block."""
    num_sources = len(kernel.prompt)
    blocks = [np.arange(start, min(num_sources, start + BLOCK)) for start in range(0, num_sources, BLOCK)]
    return torch.cat([kernel.attend_columns(block) @ x_KQ for block in blocks])


def traced(x_BK: Tensor, decays_B: Tensor, before_1K: Tensor) -> Tensor:
    """The recursion z_k = x_k + decay_{k-1} z_{k-1}, (B, K), chunk by chunk as a product with a triangular matrix.

    Args:
        x_BK: what each row adds.
        decays_B: decay from each row to the next; the last one is not used.
        before_1K: the decayed trace that comes in at the first row.
    """
    if not bool(decays_B.any()):
        return torch.cat([x_BK[:1] + before_1K, x_BK[1:]])
    found_BK = torch.empty_like(x_BK)
    for start in range(0, len(x_BK), CHUNK):
        x_CK = x_BK[start : start + CHUNK]
        into_C = decays_B[start : start + len(x_CK) - 1]
        triangle_CC = _decays_between(into_C)
        # The trace comes in at the first row of the chunk, and reaches the others as that row does.
        found_BK[start : start + CHUNK] = triangle_CC @ x_CK + triangle_CC[:, :1] * before_1K
        last = start + len(x_CK) - 1
        before_1K = decays_B[last] * found_BK[last : last + 1]
    return found_BK


def _decays_between(decays: Tensor) -> Tensor:
    """Products of the decays from row j to row i >= j, (C, C) lower triangular with ones on its diagonal."""
    count = len(decays) + 1
    rows = torch.arange(count, device=decays.device)
    steps_C = torch.cat([decays.new_ones(1), decays])
    return torch.where(rows[:, None] > rows, steps_C[:, None], 1.0).cumprod(dim=0).tril()


@dataclass(frozen=True, eq=False)
class _Block:
    """A stretch of a prompt's transitions.

    Attributes:
        source_BK, next_BK: attention of the sources and of their successors over the landmarks.
        rewards_BR, discounts_B1, weights_B1: as in `Equations`.
        decays_B: decay of a trace from each row to the next.
        decay_before: that from the row before the block into it.
    """

    source_BK: Tensor
    next_BK: Tensor
    rewards_BR: Tensor
    discounts_B1: Tensor
    weights_B1: Tensor
    decays_B: Tensor
    decay_before: float

    @classmethod
    def of(cls, equations: Equations, kernel: Kernel, start: int, stop: int) -> _Block:
        source_BK = kernel.attend_columns(np.arange(start, stop))
        successors_B = equations.successors_N[start:stop]
        inside_B = (successors_B >= start) & (successors_B < stop)
        next_BK = torch.empty_like(source_BK)
        next_BK[inside_B] = source_BK[successors_B[inside_B] - start]
        if not bool(inside_B.all()):
            next_BK[~inside_B] = kernel.attend_columns(successors_B[~inside_B].cpu().numpy())
        rows, decays_N1 = slice(start, stop), equations.decays_N1
        return cls(
            source_BK,
            next_BK,
            equations.rewards_NR[rows],
            equations.discounts_N1[rows],
            equations.weights_N1[rows],
            decays_N1[rows, 0],
            float(decays_N1[start - 1]) if start else 0.0,
        )
