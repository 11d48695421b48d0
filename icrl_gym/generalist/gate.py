"""Two small networks: the gate sets the mixture from the prompt's statistics, the spread head sets the error bars.

Both start at the construction and are withdrawn to it where the statistics leave the range they were trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

CUT = 3.0  # standardised statistics are cut here
TRUSTED = 4.0  # beyond it trust in the adaptation falls
UNTRUSTED_COLUMN = 0  # the length of the context: longer ones than trained on are no reason to withdraw
LEAST_LEVEL = -0.3
SAFE_LEVEL, SAFE_PSEUDO_TERMINATIONS = 0.6, 0.7  # with equal shares: a mixture that was safe on all selection data


@dataclass(frozen=True)
class Gates:
    """What the gate decides for B prompts.

    Attributes:
        shares_BH: of the heads; they sum to 1.
        free_level_B: share of the free level, in [-0.3, 1].
        pseudo_terminations_B: in [0, 1].
        trust_B: in [0, 1]; 0 is the construction.
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
        num_statistics: S.
        num_heads: H.
        width: of the hidden layers.
        num_members: networks that differ in their initial weights alone.
        constant_reward: column of the statistic that is 1 where all rewards are equal, else 0.
    """

    def __init__(
        self, num_statistics: int, num_heads: int, width: int = 32, num_members: int = 1, constant_reward: int = -1
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.width = width
        self.constant_reward = constant_reward
        self.standardisation = Standardisation(num_statistics)
        self.members = nn.ModuleList(_network(num_statistics, width, num_heads + 3) for _ in range(num_members))

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
        level_B, pseudo_B = torch.tanh(raw[:, -2]), torch.tanh(raw[:, -1])
        return Gates(
            shares_BH,
            trust_B * torch.where(level_B > 0, level_B, -LEAST_LEVEL * level_B),
            trust_B * constant_B * _nonnegative(pseudo_B),
            trust_B,
        )


def distance_from_safe(gates: Gates, constant_reward_B: Tensor) -> Tensor:
    """Mean squared distance of the gates from the safe mixture, scaled by trust as they are; a scalar.

    Args:
        gates: of B prompts.
        constant_reward_B: 1 where all rewards are equal, else 0.
    """
    trust_B1, num_heads = gates.trust_B[:, None], gates.shares_BH.shape[1]
    first_H = nn.functional.one_hot(torch.tensor(0, device=trust_B1.device), num_heads).to(trust_B1)
    shares_BH = (1.0 - trust_B1) * first_H + trust_B1 / num_heads
    level_B = SAFE_LEVEL * gates.trust_B
    pseudo_B = SAFE_PSEUDO_TERMINATIONS * constant_reward_B * gates.trust_B
    return (
        (gates.shares_BH - shares_BH).square().sum(dim=1)
        + (gates.free_level_B - level_B).square()
        + (gates.pseudo_terminations_B - pseudo_B).square()
    ).mean()


def mean_gates(members: list[Gates]) -> Gates:
    """The mean of every gate."""
    return Gates(*(torch.stack(parts).mean(dim=0) for parts in zip(*(vars(m).values() for m in members), strict=True)))


class SpreadHead(nn.Module):
    """Statistics of prompts (B, S) and of their queries (B, Q, T) -> log standard error in units of the value scale.

    At initialisation the error is one value scale, whatever the query.
    """

    def __init__(self, num_statistics: int, num_query_statistics: int, width: int = 32) -> None:
        super().__init__()
        self.standardisation = Standardisation(num_statistics + num_query_statistics)
        self.network = _network(num_statistics + num_query_statistics, width, 1)

    def forward(self, statistics_BS: Tensor, query_statistics_BQT: Tensor) -> Tensor:
        repeated = statistics_BS[:, None, :].expand(-1, query_statistics_BQT.shape[1], -1)
        z_BQZ = self.standardisation(torch.cat([repeated, query_statistics_BQT], dim=-1))
        doubt_BQ = torch.log(2.0 - trust(z_BQZ))  # up to twice as wide where nothing was learned
        return self.network(z_BQZ.clamp(-CUT, CUT))[..., 0] + doubt_BQ


def _network(num_inputs: int, width: int, num_outputs: int) -> nn.Sequential:
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


def gated(values: Tensor, gates: Gates) -> Tensor:
    """Mix values solved at the corners, as the equilibrium at the gates' own level and pseudo-terminations would be.

    The level enters exactly (values are linear in it), the pseudo-terminations by interpolation between 0 and 1.

    Args:
        values: (B, H, 2, 2, Q), axes head, pseudo-terminations 0 or 1, free level 0 or 1.

    Returns:
        (B, Q).
    """
    pseudo, level = gates.pseudo_terminations_B[:, None, None, None], gates.free_level_B[:, None, None]
    at_pseudo = (1 - pseudo) * values[:, :, 0] + pseudo * values[:, :, 1]
    at_level = (1 - level) * at_pseudo[:, :, 0] + level * at_pseudo[:, :, 1]
    return (gates.shares_BH[..., None] * at_level).sum(dim=1)


def _nonnegative(x: Tensor) -> Tensor:
    """max(x, 0) whose gradient passes where x < 0 as well, so that a gate that shut can open again."""
    return x + (x.clamp(min=0) - x).detach()
