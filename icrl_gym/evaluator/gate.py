"""The gate: a small network that sets the mixture from the prompt's statistics, and the mixing itself.

It starts at the construction and is withdrawn to it where the statistics leave the range it was trained on.

Shape legend: B prompts, S statistics, H heads, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CUT = 3.0  # standardised statistics are cut here
TRUSTED = 4.0  # beyond it trust in the adaptation falls
UNTRUSTED_COLUMN = 0  # the length of the context: longer ones than trained on are no reason to withdraw
LEAST_LEVEL = -0.3
LEAST_SPREAD = 1e-3  # of the mean distance from the median
# With equal shares: a mixture that was safe on all selection data.
SAFE_LEVEL, SAFE_PSEUDO_TERMINATIONS = 0.9, 0.7


@dataclass(frozen=True)
class Gates:
    """What the gate decides for B prompts.

    Attributes:
        shares_BH: shares of the heads; they sum to 1 (how they become weights: `consensus`).
        free_level_B: share of the free level, in [-0.3, 1].
        pseudo_terminations_B: terminations to add to those seen, in [0, 1].
        trust_B: trust in the adaptation, in [0, 1]; 0 is the construction.
    """

    shares_BH: Tensor
    free_level_B: Tensor
    pseudo_terminations_B: Tensor
    trust_B: Tensor


class Standardisation(nn.Module):
    """Statistics less their mean over their spread on the prior; buffers, not parameters."""

    def __init__(self, num_statistics: int) -> None:
        super().__init__()
        self.register_buffer("mean_S", torch.zeros(num_statistics))
        self.register_buffer("scale_S", torch.ones(num_statistics))

    def fit(self, statistics_BS: Tensor) -> None:
        self.get_buffer("mean_S").copy_(statistics_BS.mean(dim=0))
        self.get_buffer("scale_S").copy_(statistics_BS.std(dim=0).clamp(min=1e-3))

    def forward(self, statistics_BS: Tensor) -> Tensor:
        return (statistics_BS - self.get_buffer("mean_S")) / self.get_buffer("scale_S")


class Gate(nn.Module):
    """Statistics of prompts (B, S) -> `Gates`, the mean over a few members. At initialisation: the first head alone.

    Pseudo-terminations are allowed only where all rewards of a context are equal: there a termination is all that can
    set values apart, so one must be expected even where none was seen; elsewhere a process may never end.

    Args:
        num_statistics: S, the number of inputs.
        num_heads: H, the number of heads.
        width: units in each hidden layer.
        num_members: networks that differ in their initial weights alone.
        constant_reward: column of the statistic that is 1 where all rewards are equal, else 0.
    """

    def __init__(
        self,
        num_statistics: int,
        num_heads: int,
        width: int = 32,
        num_members: int = 1,
        constant_reward: int = -1,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.width = width
        self.constant_reward = constant_reward
        self.standardisation = Standardisation(num_statistics)
        self.members = nn.ModuleList(small_network(num_statistics, width, num_heads + 3) for _ in range(num_members))

    def forward(self, statistics_BS: Tensor) -> Gates:
        return mean_gates(self.by_member(statistics_BS))

    def by_member(self, statistics_BS: Tensor) -> list[Gates]:
        """The gates of every member."""
        z_BS = self.standardisation(statistics_BS)
        trust_B, cut_BS = trust(z_BS), z_BS.clamp(-CUT, CUT)
        constant_B = self.constant_rewards(statistics_BS)
        return [self._gates(member(cut_BS), trust_B, constant_B) for member in self.members]

    def constant_rewards(self, statistics_BS: Tensor) -> Tensor:
        """1 where all rewards of the context are equal, else 0, (B,)."""
        return (statistics_BS[:, self.constant_reward] > 0.5).to(statistics_BS)

    def _gates(self, raw: Tensor, trust_B: Tensor, constant_B: Tensor) -> Gates:
        mixing_B1 = torch.tanh(raw[:, -3:-2]) * trust_B[:, None]
        first_H = nn.functional.one_hot(torch.tensor(0, device=raw.device), self.num_heads).to(raw)
        shares_BH = (1.0 - mixing_B1) * first_H + mixing_B1 * torch.softmax(raw[:, :-3], dim=-1)
        level_B, pseudo_B = torch.tanh(raw[:, -2:]).unbind(dim=1)
        return Gates(
            shares_BH,
            trust_B * torch.where(level_B > 0, level_B, -LEAST_LEVEL * level_B),
            trust_B * constant_B * _nonnegative(pseudo_B),
            trust_B,
        )


def safe_gates(trust_B: Tensor, constant_B: Tensor, num_heads: int) -> Gates:
    """The safe mixture, as far as it is trusted: equal shares, fixed dials.

    Args:
        trust_B: trust in the adaptation, in [0, 1].
        constant_B: 1 where all rewards of the context are equal, so that pseudo-terminations are allowed, else 0.
        num_heads: H.
    """
    first_H = nn.functional.one_hot(torch.tensor(0, device=trust_B.device), num_heads).to(trust_B)
    return Gates(
        (1.0 - trust_B[:, None]) * first_H + trust_B[:, None] / num_heads,
        SAFE_LEVEL * trust_B,
        SAFE_PSEUDO_TERMINATIONS * constant_B * trust_B,
        trust_B,
    )


def distance_from_safe(gates: Gates, constant_B: Tensor) -> Tensor:
    """Mean squared distance of the gates of B prompts from the safe mixture at the same trust; a scalar."""
    safe = safe_gates(gates.trust_B, constant_B, gates.shares_BH.shape[1])
    return (
        (gates.shares_BH - safe.shares_BH).square().sum(dim=1)
        + (gates.free_level_B - safe.free_level_B).square()
        + (gates.pseudo_terminations_B - safe.pseudo_terminations_B).square()
    ).mean()


def mean_gates(members: list[Gates]) -> Gates:
    """The mean of every gate."""
    return Gates(*(torch.stack(parts).mean(dim=0) for parts in zip(*(vars(m).values() for m in members), strict=True)))


def small_network(num_inputs: int, width: int, num_outputs: int) -> nn.Sequential:
    """Two hidden layers, and an output that starts at zero."""
    out = nn.Linear(width, num_outputs)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(nn.Linear(num_inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), out)


def trust(standardised: Tensor) -> Tensor:
    """exp(-sum of squared excess over `TRUSTED` / 2) over the last axis, the context's length apart."""
    excess = (standardised.abs() - TRUSTED).clamp(min=0)
    excess = torch.cat([excess[..., :UNTRUSTED_COLUMN], excess[..., UNTRUSTED_COLUMN + 1 :]], dim=-1)
    return torch.exp(-excess.square().sum(dim=-1) / 2)


Weighing = Callable[[Tensor, Tensor], Tensor]  # values (B, H, Q), shares (B, H) -> weights (B, H, Q)


def consensus(values_BHQ: Tensor, shares_BH: Tensor) -> Tensor:
    """Weights of the heads at every query, (B, H, Q), with sum 1 over the heads: shares, less where one stands apart.

    weight_h = share_h / (1 + (|v_h - median| / spread)^2), normalised, with the median and the median distance from it
    over the heads. The rule is a Cauchy weight (robust regression): a head that is far off at a query hardly counts
    there. Scale-free in the values; a head alone has weight 1.
    """
    distance_BHQ = (values_BHQ - _median(values_BHQ)).abs()
    spread_B1Q = _median(distance_BHQ) + LEAST_SPREAD * distance_BHQ.mean(dim=1, keepdim=True)
    far_BHQ = distance_BHQ / spread_B1Q.clamp(min=torch.finfo(values_BHQ.dtype).tiny)
    weights_BHQ = shares_BH.clamp(min=0.0)[..., None] / (1.0 + far_BHQ.square())
    return weights_BHQ / weights_BHQ.sum(dim=1, keepdim=True)


def _median(values_BHQ: Tensor) -> Tensor:
    """The median over the heads, half-way between the middle two of an even number, (B, 1, Q)."""
    sorted_BHQ, last = values_BHQ.sort(dim=1).values, values_BHQ.shape[1] - 1
    return (sorted_BHQ[:, last // 2, None] + sorted_BHQ[:, (last + 1) // 2, None]) / 2


def gated(values: Tensor, gates: Gates, weigh: Weighing = consensus) -> Tensor:
    """Mix values solved at the corners, as the equilibrium at the gates' own level and pseudo-terminations would be.

    The level enters exactly (values are linear in it), the pseudo-terminations by interpolation between 0 and 1.

    Args:
        values: (B, H, 2, 2, Q), axes head, pseudo-terminations 0 or 1, free level 0 or 1.
        gates: decisions of the gate for the B prompts.
        weigh: rule by which shares become weights.

    Returns:
        Mixed values (B, Q).
    """
    pseudo, level = gates.pseudo_terminations_B[:, None, None, None], gates.free_level_B[:, None, None]
    at_pseudo = (1 - pseudo) * values[:, :, 0] + pseudo * values[:, :, 1]
    at_level = (1 - level) * at_pseudo[:, :, 0] + level * at_pseudo[:, :, 1]
    return (weigh(at_level, gates.shares_BH) * at_level).sum(dim=1)


def _nonnegative(x: Tensor) -> Tensor:
    """max(x, 0) whose gradient passes where x < 0 as well, so that a gate that shut can open again."""
    return x + (x.clamp(min=0) - x).detach()
