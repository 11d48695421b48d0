"""Softmax attention on a value stream: the pure functions under the evaluator.

Sources: [XLCLCZ26] eqs 8-9 (weighted softmax TD) for the plain layer; everything else is this project's own, written
down beside each function. Leading batch axes are allowed everywhere and written `...`.

Shape legend: N source columns, E end columns (true successors that are never sources), C = N + E columns, Q queries,
D features, R reward functions evaluated side by side, L layers, K landmarks (a few sources that are the
only keys).

The value stream is kept as v = constant + u. The constant is shared by all columns, and u is what attention moves, so
that a read which falls on the sink (whose value is zero) returns to the constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_DETERMINED = 1e-3  # cancellation in the free level's denominator below which the level stays at c0


def inner_product_attention(destination_BD: Tensor, source_ND: Tensor, key_bias_N: Tensor) -> Tensor:
    """K(k | x) = softmax_k(<x, x_k> + b_k), (..., C, N). Theorem 1's kernel for b = 0."""
    return torch.softmax(destination_BD @ source_ND.mT + key_bias_N.unsqueeze(-2), dim=-1)


def gaussian_attention(
    destination_BD: Tensor, source_ND: Tensor, key_bias_N: Tensor, log_sink: Tensor | None
) -> Tensor:
    """K(k | x) = w_k exp(-|x - x_k|^2 / 2) / (sink + sum_m w_m exp(-|x - x_m|^2 / 2)), (..., C, N), with w = exp(b).

    One softmax over inner products: the key bias -|x_k|^2/2 makes the Gaussian, and the sink is one more key that
    scores |x|^2/2 + log sink, which the query carries as a feature. The features come divided by the kernel width.

    Args:
        destination_BD: (..., C, D).
        source_ND: (..., N, D).
        key_bias_N: (..., N) log weights of the sources; -inf drops a source.
        log_sink: (...) log of the sink's weight in units of one source at distance zero; None for no sink.
    """
    one_B1 = torch.ones_like(destination_BD[..., :1])
    bias_N1 = key_bias_N.unsqueeze(-1) - half_square(source_ND)
    if log_sink is None:
        scores_BN = torch.cat([destination_BD, one_B1], dim=-1) @ torch.cat([source_ND, bias_N1], dim=-1).mT
        return torch.softmax(scores_BN, dim=-1)
    query_BD = torch.cat([destination_BD, half_square(destination_BD), one_B1], dim=-1)
    key_ND = torch.cat([source_ND, torch.zeros_like(bias_N1), bias_N1], dim=-1)
    sink_1D = torch.zeros_like(key_ND[..., :1, :])
    sink_1D[..., 0, -2] = 1.0
    sink_1D[..., 0, -1] = log_sink
    scores_BN = query_BD @ torch.cat([key_ND, sink_1D], dim=-2).mT
    return torch.softmax(scores_BN, dim=-1)[..., :-1]


def half_square(x_BD: Tensor) -> Tensor:
    """|x|^2 / 2, keeping the feature axis: (..., B, 1)."""
    return x_BD.square().sum(dim=-1, keepdim=True) / 2


@dataclass(frozen=True)
class Trace:
    """The operator E of theory section 7: e_k = delta_k + decay_k e_{k+1}, by doubling in log2(N) steps.

    ``decays[j]`` (..., N, 1) is the product of 2^j successive decays, so that e over a span of 2^(j+1) is
    e[k] + decays[j][k] e[k + 2^j].
    """

    decays: tuple[Tensor, ...]

    @classmethod
    def of(cls, decay_N: Tensor) -> Trace:
        """From decay_k = discount_k lambda keep_k (times the next importance ratio), (..., N); the last entry is 0."""
        decays, span, decay = [], 1, decay_N.unsqueeze(-1)
        while span < decay_N.shape[-1] and bool(decay.any()):
            decays.append(decay)
            decay = decay * _shift(decay, span)
            span *= 2
        return cls(tuple(decays))

    def __call__(self, delta_NR: Tensor) -> Tensor:
        """Apply E along the axis before the last: (..., N, R) -> (..., N, R)."""
        e_NR = delta_NR
        for j, decay_N1 in enumerate(self.decays):
            span = 2**j
            ahead_NR = torch.addcmul(e_NR[..., :-span, :], decay_N1[..., :-span, :], e_NR[..., span:, :])
            e_NR = torch.cat([ahead_NR, e_NR[..., -span:, :]], dim=-2)
        return e_NR

    def transposed(self, g_NR: Tensor) -> Tensor:
        """Apply the transpose of E along the axis before the last."""
        for j in reversed(range(len(self.decays))):
            moved_NR = (self.decays[j] * g_NR)[..., : -(2**j), :]
            g_NR = g_NR + torch.nn.functional.pad(moved_NR, (0, 0, 2**j, 0))
        return g_NR


def _shift(x_NR: Tensor, by: int) -> Tensor:
    """x[k + by], zeros past the end."""
    return torch.nn.functional.pad(x_NR[..., by:, :], (0, 0, 0, by))


@dataclass(frozen=True)
class Context:
    """What the layers need from a prompt besides attention; tensors of one dtype and device.

    Attributes:
        rewards_NR: (..., N, R).
        discounts_N1: (..., N, 1).
        successors_N: (..., N) column of the successor.
        weights_N1: (..., N, 1) exp(key bias), 0 for dropped sources; they weigh the constant.
        trace: E.
    """

    rewards_NR: Tensor
    discounts_N1: Tensor
    successors_N: Tensor
    weights_N1: Tensor
    trace: Trace

    def constant(self, delta_NR: Tensor) -> Tensor:
        """c = sum_k w_k delta_k / sum_k w_k (1 - discount_k), (..., 1, R)."""
        loss_N1 = self.weights_N1 * (1.0 - self.discounts_N1)
        return (self.weights_N1 * delta_NR).sum(-2, keepdim=True) / loss_N1.sum(-2, keepdim=True)

    def at_successors(self, u_CR: Tensor) -> Tensor:
        """u[successors], (..., N, R)."""
        if self.successors_N.ndim == 1:
            return u_CR.index_select(-2, self.successors_N)
        index = self.successors_N.unsqueeze(-1).expand(*self.successors_N.shape, u_CR.shape[-1])
        return torch.take_along_dim(u_CR, index, dim=-2)


@dataclass(frozen=True)
class Gates:
    """The scalar parameters of a layer (theory section 7); floats, or tensors that broadcast against (..., N, R).

    Attributes:
        step_size: alpha.
        averaging: beta; 0 is softmax TD, 1 kernel-based averaging.
        forgetting: eta.
        constant_mode: solve the constant in every layer.
        average_ends: update end columns as averagers (only without forgetting; with it all columns follow one rule).
        free_level: share of the free level in an equilibrium's constant (`solve_equilibrium`).
    """

    step_size: float | Tensor = 1.0
    averaging: float | Tensor = 0.0
    forgetting: float | Tensor = 0.0
    constant_mode: bool = True
    average_ends: bool = True
    free_level: float = 0.0


@dataclass(frozen=True)
class Readout:
    """Everything a query needs: v_l(x) = constants_l + sum_k K(k | x) memories_l[k].

    Attributes:
        constants_LR: (..., L, R).
        memories_LNR: (..., L, N, R).
        columns_LCR: (..., L + 1, C, R) values of all columns before the first and after each layer, or None.
        factors: LU factors and pivots of the equilibrium's matrix, or None.
    """

    constants_LR: Tensor
    memories_LNR: Tensor
    columns_LCR: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, attention_QN: Tensor) -> Tensor:
        """Values of queries after each layer, (..., L, Q, R)."""
        return self.constants_LR.unsqueeze(-2) + attention_QN.unsqueeze(-3) @ self.memories_LNR


def run_layers(
    context: Context, attention_CN: Tensor, gates: Gates, num_layers: int, start_at_constant: bool
) -> Readout:
    """Weighted softmax TD(lambda) with its extensions, ``num_layers`` tied layers over one attention matrix.

    Per layer, with u the deviation from the running constant c (theory section 7):

        delta_k = R_k - (1 - discount_k) c + discount_k u(S_k) - u(S_{k-1})
        constant mode: d = sum w delta / sum w (1 - discount);  c <- c + d;  delta_k <- delta_k - (1 - discount_k) d
        e = E delta
        u(x) <- (1 - beta)(1 - eta) u(x) + sum_k K(k | x) (beta u(S_{k-1}) + alpha e_k)       sources and queries
        u(B) <- sum_k K(k | B) (u(S_{k-1}) + alpha e_k)                                       ends, when averaged
    """
    num_sources = context.rewards_NR.shape[-2]
    source_attention, end_attention = attention_CN[..., :num_sources, :], attention_CN[..., num_sources:, :]
    average_ends = gates.average_ends and end_attention.shape[-2] > 0 and not _positive(gates.forgetting)
    loss_N1 = 1.0 - context.discounts_N1
    keep = (1.0 - gates.averaging) * (1.0 - gates.forgetting)
    constant_1R = context.constant(context.rewards_NR) if start_at_constant else 0.0 * context.rewards_NR[..., :1, :]
    u_CR = torch.zeros_like(attention_CN[..., :1] * constant_1R)
    memory_NR = torch.zeros_like(context.rewards_NR)
    constants, memories, columns = [], [], [constant_1R + u_CR]
    for _ in range(num_layers):
        u_source_NR = u_CR[..., :num_sources, :]
        delta_NR = context.rewards_NR - loss_N1 * constant_1R + context.discounts_N1 * context.at_successors(u_CR)
        delta_NR = delta_NR - u_source_NR
        if gates.constant_mode:
            correction_1R = context.constant(delta_NR)
            constant_1R = constant_1R + correction_1R
            delta_NR = delta_NR - loss_N1 * correction_1R
        step_NR = gates.step_size * context.trace(delta_NR)
        write_NR = gates.averaging * u_source_NR + step_NR
        memory_NR = keep * memory_NR + write_NR
        if average_ends:
            read_SR = source_attention @ write_NR
            read_ER = end_attention @ (u_source_NR + step_NR)
            u_CR = torch.cat([keep * u_source_NR + read_SR, read_ER], dim=-2)
        else:
            u_CR = keep * u_CR + attention_CN @ write_NR
        constants.append(constant_1R)
        memories.append(memory_NR)
        columns.append(constant_1R + u_CR)
    return Readout(torch.cat(constants, dim=-2), torch.stack(memories, dim=-3), torch.stack(columns, dim=-3))


def solve_equilibrium(context: Context, attention_CN: Tensor, gates: Gates) -> Readout:
    """The limit of infinitely many tied layers without the constant mode: one linear system over the sources.

        [(1 - keep) I - beta K_S + alpha E (K_S - diag(discount) K_S')] a = alpha E (R - (1 - discount) c0)

    with keep = (1 - beta)(1 - eta), K_S' the attention of the true successors, c0 the prompt's constant; values are
    c0 + sum_k K(k | x) a_k. For beta = 0 this is regularised kernel LSTD(lambda) with a softmax kernel. Without
    forgetting (beta = eta = 0) repeated sources make the system singular and ends are averagers: the least-norm
    solution is taken.

    The *free level* is the constant c1 in place of c0 for which sum_k w_k a_k = 0, an unpenalised intercept: what c0
    gets wrong about the mean no longer has to be made up by memories that forgetting shrinks. The constant used is
    c0 + free_level (c1 - c0) (this project's own; needs forgetting or averaging).
    """
    constant_1R, matrix_NN, right_NR = equilibrium_system(context, attention_CN, gates)
    factors = None
    if _positive(gates.forgetting) or _positive(gates.averaging):
        factors = torch.linalg.lu_factor(matrix_NN)
        memory_NR = torch.linalg.lu_solve(*factors, right_NR)
        if gates.free_level:
            constant_1R, memory_NR = move_level(context, gates, factors, constant_1R, memory_NR)
    else:
        source_attention = attention_CN[..., : right_NR.shape[-2], :]
        memory_NR = torch.linalg.pinv(source_attention @ matrix_NN, rtol=1e-12) @ (source_attention @ right_NR)
    columns = torch.stack([(constant_1R + 0.0 * attention_CN[..., :1]), constant_1R + attention_CN @ memory_NR], dim=-3)
    return Readout(constant_1R, memory_NR.unsqueeze(-3), columns, factors)


def move_level(
    context: Context, gates: Gates, factors: tuple[Tensor, Tensor], constant_1R: Tensor, memory_NR: Tensor
) -> tuple[Tensor, Tensor]:
    """Constant and memories (..., 1, R), (..., N, R) of a solved equilibrium, moved towards its free level.

    The level stays where the context does not determine it: where the memories that it would free cancel.
    """
    level_N1 = torch.linalg.lu_solve(*factors, gates.step_size * context.trace(1.0 - context.discounts_N1))
    whole_1R = (context.weights_N1 * memory_NR).sum(-2, keepdim=True)
    shift_1R = gates.free_level * _determined_share(whole_1R, context.weights_N1 * level_N1)
    return constant_1R + shift_1R, memory_NR - level_N1 * shift_1R


def solve_landmarks(context: Context, attention_CK: Tensor, gates: Gates) -> Readout:
    """The equilibrium with K landmarks as the only keys: v(x) = c + sum_m K(m | x) a_m, (..., K, R) memories a.

    N equations for K memories are met in the mean, weighted by the sources' own attention (a Galerkin projection). It
    is LSTD(lambda) with softmax features and a ridge (Boyan 1999; the features are this project's own):

        [alpha S^T W E (S - diag(discount) S') + eta |S|^2 I] a = alpha S^T W E (R - (1 - discount) c0)

    with S (N, K) the attention of the sources over the landmarks, S' that of their successors, W the weights of the
    sources and |S|^2 the weighted sum of all squares in S, so that eta has no unit. K x K instead of N x N.
    """
    constant_1R = context.constant(context.rewards_NR)
    source_NK = attention_CK[..., : context.rewards_NR.shape[-2], :]
    weighted_KN = gates.step_size * (context.weights_N1 * source_NK).mT
    left_NK = context.trace(source_NK - context.discounts_N1 * context.at_successors(attention_CK))
    size = (context.weights_N1 * source_NK.square()).sum((-2, -1))
    matrix_KK = weighted_KN @ left_NK
    matrix_KK.diagonal(dim1=-2, dim2=-1).add_((gates.forgetting * size).unsqueeze(-1))
    factors = torch.linalg.lu_factor(matrix_KK)
    right_NR = context.trace(context.rewards_NR - (1.0 - context.discounts_N1) * constant_1R)
    memory_KR = torch.linalg.lu_solve(*factors, weighted_KN @ right_NR)
    if gates.free_level:
        constant_1R, memory_KR = move_landmark_level(context, attention_CK, gates, factors, constant_1R, memory_KR)
    columns = torch.stack([(constant_1R + 0.0 * attention_CK[..., :1]), constant_1R + attention_CK @ memory_KR], dim=-3)
    return Readout(constant_1R, memory_KR.unsqueeze(-3), columns, factors)


def move_landmark_level(
    context: Context,
    attention_CK: Tensor,
    gates: Gates,
    factors: tuple[Tensor, Tensor],
    constant_1R: Tensor,
    memory_KR: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `move_level`, for landmarks: at the free level what the N equations leave unmet sums to zero, W-weighted."""
    source_NK, loss_N1 = attention_CK[..., : context.rewards_NR.shape[-2], :], 1.0 - context.discounts_N1

    def unmet(right_NR: Tensor, memory_KR: Tensor) -> Tensor:
        values_CR = attention_CK @ memory_KR
        met_NR = values_CR[..., : source_NK.shape[-2], :] - context.discounts_N1 * context.at_successors(values_CR)
        return context.weights_N1 * context.trace(right_NR - met_NR)

    weighted_KN = gates.step_size * (context.weights_N1 * source_NK).mT
    level_K1 = torch.linalg.lu_solve(*factors, weighted_KN @ context.trace(loss_N1))
    level_N1 = unmet(loss_N1, level_K1)
    unmet_1R = unmet(context.rewards_NR - loss_N1 * constant_1R, memory_KR).sum(-2, keepdim=True)
    shift_1R = gates.free_level * _determined_share(unmet_1R, level_N1)
    return constant_1R + shift_1R, memory_KR - level_K1 * shift_1R


def _determined_share(whole_1R: Tensor, level_N1: Tensor) -> Tensor:
    """How much of the level, whose parts are given, makes up the whole; 0 where these parts cancel."""
    total_11, size_11 = level_N1.sum(-2, keepdim=True), level_N1.abs().sum(-2, keepdim=True)
    determined = total_11.abs() > LEAST_DETERMINED * size_11
    return torch.where(determined, whole_1R / torch.where(determined, total_11, 1.0), 0.0)


def equilibrium_system(context: Context, attention_CN: Tensor, gates: Gates) -> tuple[Tensor, Tensor, Tensor]:
    """``(c0 (..., 1, R), matrix (..., N, N), right-hand side (..., N, R))`` of `solve_equilibrium`."""
    num_sources = context.rewards_NR.shape[-2]
    source_attention, end_attention = attention_CN[..., :num_sources, :], attention_CN[..., num_sources:, :]
    plain_limit = not (_positive(gates.forgetting) or _positive(gates.averaging))
    if plain_limit and gates.average_ends and end_attention.shape[-2]:
        attention_CN = torch.cat([source_attention, end_attention @ source_attention], dim=-2)
    constant_1R = context.constant(context.rewards_NR)
    difference_NN = torch.addcmul(
        source_attention, context.discounts_N1, context.at_successors(attention_CN), value=-1.0
    )
    matrix_NN = context.trace(difference_NN)
    if _not_one(gates.step_size):
        matrix_NN = gates.step_size * matrix_NN
    if _positive(gates.averaging):
        matrix_NN = matrix_NN - gates.averaging * source_attention
    diagonal = 1.0 - (1.0 - gates.averaging) * (1.0 - gates.forgetting)
    matrix_NN = _with_diagonal(matrix_NN, diagonal)
    right_NR = gates.step_size * context.trace(context.rewards_NR - (1.0 - context.discounts_N1) * constant_1R)
    return constant_1R, matrix_NN, right_NR


def _with_diagonal(matrix_NN: Tensor, diagonal: float | Tensor) -> Tensor:
    """The matrix plus a multiple of the identity; in place, since nobody else holds it."""
    matrix_NN.diagonal(dim1=-2, dim2=-1).add_(diagonal)
    return matrix_NN


def _not_one(gate: float | Tensor) -> bool:
    return isinstance(gate, Tensor) or gate != 1.0


def _positive(gate: float | Tensor) -> bool:
    return bool((gate > 0).any()) if isinstance(gate, Tensor) else gate > 0
