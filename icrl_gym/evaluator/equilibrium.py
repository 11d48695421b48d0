"""The limit of infinitely many tied layers, solved directly, with every source as a key.

Derived in theory section 7; this project's own. Shape legend: N source columns, E end columns, C = N + E columns, R
reward functions evaluated side by side. Leading batch axes are allowed everywhere and written `...`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icrl_gym.evaluator.inverse import lu_factors
from icrl_gym.evaluator.landmarks import LEAST_DETERMINED, Factors
from icrl_gym.evaluator.recursion import Equations, LayerParameters, Readout


def solve_equilibrium(equations: Equations, attention_CN: Tensor, parameters: LayerParameters) -> Readout:
    """The equilibrium without the constant mode: one linear system over the sources.

        [(1 - keep) I - beta K_S + alpha E (K_S - diag(discount) K_S')] a = alpha E (R - (1 - discount) c0)

    with keep = (1 - beta)(1 - eta), K_S' the attention of the true successors, c0 the prompt's constant; values are
    c0 + sum_k K(k | x) a_k. For beta = 0 this is regularised kernel LSTD(lambda) with a softmax kernel. Without
    forgetting (beta = eta = 0) repeated sources make the system singular and ends are averagers: the least-norm
    solution is taken.

    The *free level* is the constant c1 in place of c0 for which sum_k w_k a_k = 0, an unpenalised intercept: what c0
    gets wrong about the mean no longer has to be made up by memories that forgetting shrinks. The constant used is
    c0 + free_level (c1 - c0) (this project's own; needs forgetting or averaging).
    """
    constant_1R, matrix_NN, right_NR = equilibrium_system(equations, attention_CN, parameters)
    if not parameters.shrinks:
        source_attention = attention_CN[..., : right_NR.shape[-2], :]
        memory_NR = torch.linalg.pinv(source_attention @ matrix_NN, rtol=1e-12) @ (source_attention @ right_NR)
        return _readout(attention_CN, constant_1R, memory_NR, None)
    factors = lu_factors(matrix_NN)
    solved = constant_1R, torch.linalg.lu_solve(*factors, right_NR)
    if parameters.free_level:
        solved = _moved_level(equations, parameters, factors, *solved)
    return _readout(attention_CN, *solved, factors)


def at_free_level(equations: Equations, attention_CK: Tensor, parameters: LayerParameters, solved: Readout) -> Readout:
    """An equilibrium solved at level 0, moved to the parameters' free level with the factors that are there.

    The level stays where the context does not determine it: where the memories that it would free cancel.
    """
    assert solved.factors is not None
    parts = solved.factors, solved.constants_LR[..., -1:, :], solved.memories_LNR[..., -1, :, :]
    moved = _moved_level(equations, parameters, *parts)
    return _readout(attention_CK, *moved, solved.factors)


def _readout(attention_CK: Tensor, constant_1R: Tensor, memory_KR: Tensor, factors: Factors | None) -> Readout:
    """The read-out of an equilibrium, as one layer that starts at the constant."""
    values_CR = constant_1R + attention_CK @ memory_KR
    columns_LCR = torch.stack([constant_1R.expand_as(values_CR), values_CR], dim=-3)
    return Readout(constant_1R, memory_KR.unsqueeze(-3), columns_LCR, factors)


def _moved_level(
    equations: Equations, parameters: LayerParameters, factors: Factors, constant_1R: Tensor, memory_NR: Tensor
) -> tuple[Tensor, Tensor]:
    """Constant and memories at the free level, where the memories' weighted sum is zero."""
    level_N1 = torch.linalg.lu_solve(*factors, parameters.step_size * equations.trace(1.0 - equations.discounts_N1))
    whole_1R = (equations.weights_N1 * memory_NR).sum(-2, keepdim=True)
    shift_1R = parameters.free_level * _determined_share(whole_1R, equations.weights_N1 * level_N1)
    return constant_1R + shift_1R, memory_NR - level_N1 * shift_1R


def _determined_share(whole_1R: Tensor, level_N1: Tensor) -> Tensor:
    """The multiple of the level, given by its parts, that makes up the whole; 0 where these parts cancel."""
    total_11, size_11 = level_N1.sum(-2, keepdim=True), level_N1.abs().sum(-2, keepdim=True)
    determined = total_11.abs() > LEAST_DETERMINED * size_11
    return torch.where(determined, whole_1R / torch.where(determined, total_11, 1.0), 0.0)


def equilibrium_system(
    equations: Equations, attention_CN: Tensor, parameters: LayerParameters
) -> tuple[Tensor, Tensor, Tensor]:
    """``(c0 (..., 1, R), matrix (..., N, N), right-hand side (..., N, R))`` of `solve_equilibrium`."""
    num_sources = equations.rewards_NR.shape[-2]
    source_attention, end_attention = attention_CN[..., :num_sources, :], attention_CN[..., num_sources:, :]
    if not parameters.shrinks and parameters.average_ends and end_attention.shape[-2]:
        attention_CN = torch.cat([source_attention, end_attention @ source_attention], dim=-2)
    constant_1R = equations.constant(equations.rewards_NR)
    difference_NN = torch.addcmul(
        source_attention, equations.discounts_N1, equations.at_successors(attention_CN), value=-1.0
    )
    matrix_NN = equations.trace(difference_NN)
    if parameters.step_size != 1.0:
        matrix_NN = parameters.step_size * matrix_NN
    if parameters.averaging:
        matrix_NN = matrix_NN - parameters.averaging * source_attention
    matrix_NN.diagonal(dim1=-2, dim2=-1).add_(1.0 - parameters.keep)  # in place, since nobody else holds it
    loss_N1 = 1.0 - equations.discounts_N1
    return constant_1R, matrix_NN, parameters.step_size * equations.trace(equations.rewards_NR - loss_N1 * constant_1R)


def transposed_equilibrium(
    equations: Equations,
    attention_CN: Tensor,
    parameters: LayerParameters,
    rows_NQ: Tensor,
    constants_1Q: Tensor,
    factors: Factors | None = None,
) -> Tensor:
    """Weights (N, Q) of the rewards in what queries read from `solve_equilibrium`: its transpose, one solve.

    Args:
        equations, attention_CN, parameters: those of `solve_equilibrium`; the rewards are not looked at.
        rows_NQ: attention of the queries, one column each.
        constants_1Q: what they read of the constant: 1, or other numbers for weighted sums of queries.
        factors: LU factors of the equilibrium's matrix, where they are still there.
    """
    if factors is not None:
        return transposed_solve(equations, parameters, factors, rows_NQ, constants_1Q)
    _, matrix_NN, _ = equilibrium_system(equations, attention_CN, parameters)
    if parameters.shrinks:
        return transposed_solve(equations, parameters, lu_factors(matrix_NN), rows_NQ, constants_1Q)
    source_NN = attention_CN[: len(rows_NQ)]
    adjoint_NQ = source_NN.mT @ (torch.linalg.pinv(source_NN @ matrix_NN, rtol=1e-12).mT @ rows_NQ)
    weights_NQ = parameters.step_size * equations.trace.transposed(adjoint_NQ)
    return equations.with_constant(weights_NQ, constants_1Q)


def transposed_solve(
    equations: Equations, parameters: LayerParameters, factors: Factors, rows_NQ: Tensor, constants_1Q: Tensor
) -> Tensor:
    """`transposed_equilibrium` from the LU factors of the equilibrium's matrix; batch axes are allowed."""
    if parameters.free_level:
        loss_N1 = 1.0 - equations.discounts_N1
        level_N1 = torch.linalg.lu_solve(*factors, parameters.step_size * equations.trace(loss_N1))
        shift_1Q = _transposed_shift(parameters, equations.weights_N1 * level_N1, constants_1Q - level_N1.mT @ rows_NQ)
        rows_NQ = rows_NQ + equations.weights_N1 * shift_1Q
    adjoint_NQ = torch.linalg.lu_solve(*factors, rows_NQ.contiguous(), adjoint=True)
    return equations.with_constant(parameters.step_size * equations.trace.transposed(adjoint_NQ), constants_1Q)


def _transposed_shift(parameters: LayerParameters, parts_N1: Tensor, read_1Q: Tensor) -> Tensor:
    """What queries read of the whole that the free level, given by its parts, makes up, (1, Q).

    Args:
        parameters: say how much of it is made up.
        parts_N1: what one unit of the level makes up.
        read_1Q: what the queries read of one unit of the level.
    """
    return parameters.free_level * _determined_share(torch.ones_like(read_1Q), parts_N1) * read_1Q
