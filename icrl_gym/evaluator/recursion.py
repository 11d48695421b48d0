"""The recursion on a value stream: weighted softmax TD(lambda) with its extensions, layer by layer.

Sources: [XLCLCZ26] eqs 8-9 (weighted softmax TD) for the plain layer; everything else is this project's own, written
down beside each function. Leading batch axes are allowed everywhere and written `...`.

Shape legend: N source columns, E end columns (true successors that are never sources), C = N + E columns, Q queries,
K keys, R reward functions evaluated side by side, L layers.

The value stream is kept as v = constant + u. The constant is shared by all columns, and u is what attention moves, so
that a read which falls on the sink (whose value is zero) returns to the constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trace:
    """The operator E of theory section 7: e_k = delta_k + decay_k e_{k+1}, by doubling in log2(N) steps.

    ``decays[j]`` (..., N, 1) is the product of 2^j successive decays, so that e over a span of 2^(j+1) is
    e[k] + decays[j][k] e[k + 2^j].
    """

    decays: tuple[Tensor, ...]

    @classmethod
    def of(cls, decay_N: Tensor) -> Trace:
        """The trace of (..., N) decays discount_k lambda keep_k, times the next importance ratio; the last one is 0."""
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
class Equations:
    """The N TD equations of a prompt: all that the layers need of it besides attention. One dtype and device.

    Attributes:
        rewards_NR: (..., N, R) rewards, in units of reward.
        discounts_N1: (..., N, 1) gamma, or 0 where the transition terminated.
        successors_N: (..., N) column of the successor.
        weights_N1: (..., N, 1) exp(key bias), 0 for dropped sources; they weigh the constant.
        trace: the operator E.
    """

    rewards_NR: Tensor
    discounts_N1: Tensor
    successors_N: Tensor
    weights_N1: Tensor
    trace: Trace

    @property
    def decays_N1(self) -> Tensor:
        """Decay of a trace from each transition to the next, (..., N, 1)."""
        return self.trace.decays[0] if self.trace.decays else torch.zeros_like(self.discounts_N1)

    def of_prompt(self, index: int) -> Equations:
        """Those of one prompt of a batch."""
        decays = tuple(decay_BN1[index] for decay_BN1 in self.trace.decays)
        parts = (self.rewards_NR, self.discounts_N1, self.successors_N, self.weights_N1)
        return Equations(*(part[index] for part in parts), trace=Trace(decays))

    def constant(self, delta_NR: Tensor) -> Tensor:
        """c = sum_k w_k delta_k / sum_k w_k (1 - discount_k), (..., 1, R)."""
        loss_N1 = self.weights_N1 * (1.0 - self.discounts_N1)
        return (self.weights_N1 * delta_NR).sum(-2, keepdim=True) / loss_N1.sum(-2, keepdim=True)

    @property
    def shares_N1(self) -> Tensor:
        """Weights (..., N, 1) of the TD errors in `constant`."""
        return self.weights_N1 / (self.weights_N1 * (1.0 - self.discounts_N1)).sum(-2, keepdim=True)

    def with_constant(self, weights_NQ: Tensor, constants_1Q: Tensor) -> Tensor:
        """Weights (..., N, Q) of the rewards, from those of the rewards less (1 - discount) times the constant.

        Args:
            weights_NQ: what Q queries read of the latter.
            constants_1Q: what they read of the constant.
        """
        loss_N1 = 1.0 - self.discounts_N1
        return weights_NQ + self.shares_N1 * (constants_1Q - (loss_N1 * weights_NQ).sum(dim=-2, keepdim=True))

    def at_successors(self, u_CR: Tensor) -> Tensor:
        """u[successors], (..., N, R)."""
        if self.successors_N.ndim == 1:
            return u_CR.index_select(-2, self.successors_N)
        *batch, num_columns, num_functions = u_CR.shape
        rows = self.successors_N.expand(*batch, -1).reshape(-1, self.successors_N.shape[-1])
        rows = rows + num_columns * torch.arange(len(rows), device=rows.device).unsqueeze(-1)
        found = u_CR.reshape(-1, num_functions).index_select(0, rows.reshape(-1))
        return found.reshape(*batch, -1, num_functions)

    def transposed_successors(self, g_NR: Tensor, num_columns: int) -> Tensor:
        """The transpose of discounts * `at_successors`, (C, R); without batch axes."""
        found_CR = g_NR.new_zeros(num_columns, g_NR.shape[-1])
        return found_CR.index_add_(0, self.successors_N, self.discounts_N1 * g_NR)


class AttentionRows(Protocol):
    """Rows of attention over the keys, as a linear map: a stored tensor, or rows that are computed when read."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def mT(self) -> AttentionRows: ...

    def __matmul__(self, other: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Columns:
    """Attention of all columns over the sources.

    Attributes:
        sources: (..., N, N) rows of the sources.
        ends: (..., E, N) rows of the ends.
    """

    sources: AttentionRows
    ends: AttentionRows

    @classmethod
    def of(cls, attention_CN: Tensor) -> Columns:
        """Stored attention, its sources' rows first."""
        num_sources = attention_CN.shape[-1]
        return cls(attention_CN[..., :num_sources, :], attention_CN[..., num_sources:, :])

    def __matmul__(self, x_NR: Tensor) -> Tensor:
        """(..., C, R)."""
        return torch.cat([self.sources @ x_NR, self.ends @ x_NR], dim=-2)


@dataclass(frozen=True)
class LayerParameters:
    """The scalar parameters of a layer (theory section 7).

    Attributes:
        step_size: alpha.
        averaging: beta; 0 is softmax TD, 1 kernel-based averaging.
        forgetting: eta.
        constant_mode: solve the constant in every layer.
        average_ends: update end columns as averagers (only without forgetting; with it all columns follow one rule).
        free_level: share of the free level in an equilibrium's constant (`solve_equilibrium`).
    """

    step_size: float = 1.0
    averaging: float = 0.0
    forgetting: float = 0.0
    constant_mode: bool = True
    average_ends: bool = True
    free_level: float = 0.0

    @property
    def keep(self) -> float:
        """Share of the deviation from the constant that a layer keeps."""
        return (1.0 - self.averaging) * (1.0 - self.forgetting)

    @property
    def ends_are_averagers(self) -> bool:
        """Whether end columns follow a rule of their own."""
        return self.average_ends and not self.forgetting

    @property
    def shrinks(self) -> bool:
        """Whether a layer draws values towards the constant, so that an equilibrium's system is regular."""
        return self.averaging > 0 or self.forgetting > 0


@dataclass(frozen=True)
class Readout:
    """Everything a query needs: v_l(x) = constants_l + sum_k K(k | x) memories_l[k].

    Attributes:
        constants_LR: (..., L, R) constant after each layer.
        memories_LNR: (..., L, N, R) memory of each source after each layer; of the K keys, where these are landmarks.
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


def layer(
    equations: Equations, attention: Columns, parameters: LayerParameters, constant_1R: Tensor, u_CR: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: the new constant (..., 1, R) and deviations (..., C, R), and what was written to memory (..., N, R).

    With u the deviation from the running constant c (theory section 7):

        delta_k = R_k - (1 - discount_k) c + discount_k u(S_k) - u(S_{k-1})
        constant mode: d = sum w delta / sum w (1 - discount);  c <- c + d;  delta_k <- delta_k - (1 - discount_k) d
        e = E delta
        u(x) <- (1 - beta)(1 - eta) u(x) + sum_k K(k | x) (beta u(S_{k-1}) + alpha e_k)       sources and queries
        u(B) <- sum_k K(k | B) (u(S_{k-1}) + alpha e_k)                                       ends, when averaged
    """
    num_sources = equations.rewards_NR.shape[-2]
    u_source_NR, loss_N1 = u_CR[..., :num_sources, :], 1.0 - equations.discounts_N1
    delta_NR = equations.rewards_NR - loss_N1 * constant_1R + equations.discounts_N1 * equations.at_successors(u_CR)
    delta_NR = delta_NR - u_source_NR
    if parameters.constant_mode:
        correction_1R = equations.constant(delta_NR)
        constant_1R = constant_1R + correction_1R
        delta_NR = delta_NR - loss_N1 * correction_1R
    step_NR = parameters.step_size * equations.trace(delta_NR)
    write_NR = parameters.averaging * u_source_NR + step_NR
    if parameters.ends_are_averagers:
        read_SR = parameters.keep * u_source_NR + attention.sources @ write_NR
        read_ER = attention.ends @ (u_source_NR + step_NR)
        return constant_1R, torch.cat([read_SR, read_ER], dim=-2), write_NR
    return constant_1R, parameters.keep * u_CR + attention @ write_NR, write_NR


def run_layers(
    equations: Equations, attention: Columns, parameters: LayerParameters, num_layers: int, start_at_constant: bool
) -> Readout:
    """Weighted softmax TD(lambda) with its extensions: ``num_layers`` tied layers over one attention matrix."""
    rewards_NR = equations.rewards_NR
    constant_1R = equations.constant(rewards_NR) if start_at_constant else 0.0 * rewards_NR[..., :1, :]
    num_columns = attention.sources.shape[-2] + attention.ends.shape[-2]
    u_CR = torch.zeros_like(constant_1R).expand(*constant_1R.shape[:-2], num_columns, -1)
    memory_NR = torch.zeros_like(rewards_NR)
    constants, memories, columns = [], [], [constant_1R + u_CR]
    for _ in range(num_layers):
        constant_1R, u_CR, write_NR = layer(equations, attention, parameters, constant_1R, u_CR)
        memory_NR = parameters.keep * memory_NR + write_NR
        constants.append(constant_1R)
        memories.append(memory_NR)
        columns.append(constant_1R + u_CR)
    return Readout(torch.cat(constants, dim=-2), torch.stack(memories, dim=-3), torch.stack(columns, dim=-3))


def transposed_layers(
    equations: Equations,
    attention: Columns,
    parameters: LayerParameters,
    num_layers: int,
    start_at_constant: bool,
    rows_NQ: Tensor,
    constants_1Q: Tensor,
) -> Tensor:
    """Weights (N, Q) of the rewards in what queries read after `run_layers`: its transpose, from the last layer back.

    Args:
        equations, attention, parameters, num_layers, start_at_constant: those of `run_layers`, without batch axes; the
            rewards are not looked at.
        rows_NQ: attention of the queries, one column each.
        constants_1Q: what they read of the constant: 1, or other numbers for weighted sums of queries.
    """
    num_columns = attention.sources.shape[-2] + attention.ends.shape[-2]
    constant_1Q, memory_NQ = constants_1Q, rows_NQ
    u_CQ, weights_NQ = rows_NQ.new_zeros(num_columns, rows_NQ.shape[-1]), torch.zeros_like(rows_NQ)
    for _ in range(num_layers):
        delta_NQ, constant_1Q, u_CQ = _transposed_layer(equations, attention, parameters, constant_1Q, u_CQ, memory_NQ)
        weights_NQ = weights_NQ + delta_NQ
        memory_NQ = parameters.keep * memory_NQ
    return weights_NQ + equations.shares_N1 * constant_1Q if start_at_constant else weights_NQ


def _transposed_layer(
    equations: Equations,
    attention: Columns,
    parameters: LayerParameters,
    constant_1Q: Tensor,
    u_CQ: Tensor,
    memory_NQ: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, in what is read at last, of a layer's TD errors (N, Q), of the constant (1, Q) and u (C, Q) before it.

    Args:
        equations, attention, parameters: those of `layer`.
        constant_1Q, u_CQ, memory_NQ: weights of the constant, of u and of the memory after it.
    """
    num_sources = len(memory_NQ)
    u_source_NQ, u_end_EQ = u_CQ[:num_sources], u_CQ[num_sources:]
    through_ends_NQ = attention.ends.mT @ u_end_EQ
    write_NQ = memory_NQ + attention.sources.mT @ u_source_NQ
    if parameters.ends_are_averagers:
        step_NQ = write_NQ + through_ends_NQ
        before_CQ = torch.cat([parameters.keep * u_source_NQ + through_ends_NQ, torch.zeros_like(u_end_EQ)])
    else:
        step_NQ = write_NQ = write_NQ + through_ends_NQ
        before_CQ = parameters.keep * u_CQ
    delta_NQ = parameters.step_size * equations.trace.transposed(step_NQ)
    loss_N1 = 1.0 - equations.discounts_N1
    if parameters.constant_mode:
        correction_1Q = constant_1Q - (loss_N1 * delta_NQ).sum(-2, keepdim=True)
        delta_NQ = delta_NQ + equations.shares_N1 * correction_1Q
    before_CQ = before_CQ + equations.transposed_successors(delta_NQ, len(u_CQ))
    before_CQ[:num_sources] += parameters.averaging * write_NQ - delta_NQ
    return delta_NQ, constant_1Q - (loss_N1 * delta_NQ).sum(-2, keepdim=True), before_CQ
