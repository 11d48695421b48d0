"""The one trained network: standard errors of the mixture's values, from statistics of the prompt and of its queries.

Shape legend: B prompts, S statistics of a prompt, T of a query, Z = S + T, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS

CUT = 3.0  # standardised statistics are cut here
TRUSTED = 4.0  # beyond it trust in the error bars falls
UNTRUSTED_COLUMN = 0  # the length of the context: longer ones than trained on are no reason for doubt


class Standardisation(nn.Module):
    """Statistics less their mean over their spread on the prior; buffers, not parameters."""

    def __init__(self, num_statistics: int) -> None:
        super().__init__()
        self.register_buffer("mean_Z", torch.zeros(num_statistics))
        self.register_buffer("scale_Z", torch.ones(num_statistics))

    def fit(self, statistics_BZ: Tensor) -> None:
        self.get_buffer("mean_Z").copy_(statistics_BZ.mean(dim=0))
        self.get_buffer("scale_Z").copy_(statistics_BZ.std(dim=0).clamp(min=1e-3))

    def forward(self, statistics: Tensor) -> Tensor:
        """The same over the last axis, whose columns are the first ones of those fitted."""
        mean_Z, scale_Z = (self.get_buffer(name)[: statistics.shape[-1]] for name in ("mean_Z", "scale_Z"))
        return (statistics - mean_Z) / scale_Z


class SpreadHead(nn.Module):
    """Statistics of prompts (B, S) and of their queries (B, Q, T) -> log standard error in units of the value scale.

    At initialisation the error is one value scale, whatever the query. Where its inputs leave what it was trained on,
    the error is up to twice as wide.

    Args:
        width: units in each of the two hidden layers.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.standardisation = Standardisation(len(STATISTICS) + len(QUERY_STATISTICS))
        self.network = _small_network(len(STATISTICS) + len(QUERY_STATISTICS), width)

    def forward(self, statistics_BS: Tensor, query_statistics_BQT: Tensor) -> Tensor:
        z_BQZ = self.standardisation(joined(statistics_BS, query_statistics_BQT))
        doubt_BQ = torch.log(2.0 - trust(z_BQZ))
        return self.network(z_BQZ.clamp(-CUT, CUT))[..., 0] + doubt_BQ

    def trust_in(self, statistics_BS: Tensor) -> Tensor:
        """Trust in the error bars of prompts with these statistics, whatever their queries, (B,) in [0, 1]."""
        return trust(self.standardisation(statistics_BS))


def joined(statistics_BS: Tensor, query_statistics_BQT: Tensor) -> Tensor:
    """What the network reads of every query: the statistics of its prompt, then its own, (B, Q, Z)."""
    repeated_BQS = statistics_BS[:, None, :].expand(-1, query_statistics_BQT.shape[1], -1)
    return torch.cat([repeated_BQS, query_statistics_BQT], dim=-1)


def trust(standardised: Tensor) -> Tensor:
    """exp(-sum of squared excess over `TRUSTED` / 2) over the last axis, the context's length apart."""
    excess = (standardised.abs() - TRUSTED).clamp(min=0)
    excess = torch.cat([excess[..., :UNTRUSTED_COLUMN], excess[..., UNTRUSTED_COLUMN + 1 :]], dim=-1)
    return torch.exp(-excess.square().sum(dim=-1) / 2)


def _small_network(num_inputs: int, width: int) -> nn.Sequential:
    """Two hidden layers, and one output that starts at zero."""
    out = nn.Linear(width, 1)
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    return nn.Sequential(nn.Linear(num_inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), out)
