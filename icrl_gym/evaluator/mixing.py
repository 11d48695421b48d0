"""How heads become one answer: a robust mean of heads with fixed dials. Nothing in it is trained.

The dials were set by hand, as a mixture that was safe on all selection data. A network that set them, and the heads'
shares, from what a context looks like was within half a per cent of them, and was removed (docs/log.md, 2026-11-29).

Shape legend: B prompts, H heads, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Of every head. The prompt's constant is a crude mean; but going all the way to the free level was worse than staying
# where few endings are seen (Acrobot, docs/log.md), so a tenth of the constant stays.
FREE_LEVEL = 0.9
# Of every head, where all rewards of a context are equal and there alone: there a termination is all that can set
# values apart, so one must be expected even where none was seen; elsewhere a process may never end. Divided by one more
# than the terminations that were seen: where there are many, states that survive would seem worse than they are.
PSEUDO_TERMINATIONS = 0.7
LEAST_SPREAD = 1e-3  # of the mean distance from the median


def consensus(values_BHQ: Tensor, shares_BH: Tensor) -> Tensor:
    """Weights of the heads at every query, (B, H, Q), with sum 1 over the heads: shares, less where one stands apart.

    weight_h = share_h / (1 + (|v_h - median| / spread)^2), normalised, with the median and the median distance from it
    over the heads. The rule is a Cauchy weight (robust regression): a head that is far off at a query hardly counts
    there. Scale-free in the values; a head alone has weight 1.
    """
    distance_BHQ = (values_BHQ - _median(values_BHQ)).abs()
    spread_B1Q = _median(distance_BHQ) + LEAST_SPREAD * distance_BHQ.mean(dim=1, keepdim=True)
    far_BHQ = distance_BHQ / spread_B1Q.clamp(min=torch.finfo(values_BHQ.dtype).tiny)
    weights_BHQ = shares_BH[..., None] / (1.0 + far_BHQ.square())
    return weights_BHQ / weights_BHQ.sum(dim=1, keepdim=True)


def agreed(values_BHQ: Tensor) -> Tensor:
    """Values of the mixture of heads with equal shares, (B, Q)."""
    shares_BH = torch.ones_like(values_BHQ[..., 0])
    return (consensus(values_BHQ, shares_BH) * values_BHQ).sum(dim=1)


def _median(values_BHQ: Tensor) -> Tensor:
    """The median over the heads, half-way between the middle two of an even number, (B, 1, Q)."""
    sorted_BHQ, last = values_BHQ.sort(dim=1).values, values_BHQ.shape[1] - 1
    return (sorted_BHQ[:, last // 2, None] + sorted_BHQ[:, (last + 1) // 2, None]) / 2
