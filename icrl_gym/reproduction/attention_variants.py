"""Seven ways to attend, each a pure function of one signature, for the comparison of claim 13.

    variant(query_HCD, key_HND, value_NR, extras) -> (..., C, R)

Heads come as separate queries and keys; a single-head variant uses the first. Where a paper leaves a normalisation to
its training recipe, ours divides by the number of sources. Shape legend: `...` batch, H heads, C destinations, N
sources, D features, R channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Extras:
    """Parameters that some variants need besides queries, keys and values.

    Attributes:
        head_weight: (..., H), how much each head adds to the output.
        query_gate: (..., C, H) logits of a destination over heads.
        key_gate: (..., N, H) logits of a source over heads.
        local: (..., 3) coefficients of the sources just before, at and just after a destination's place in the context.
        layer, num_layers: which layer this is, from 0.
    """

    head_weight: Tensor
    query_gate: Tensor
    key_gate: Tensor
    local: Tensor
    layer: int
    num_layers: int


Variant = Callable[[Tensor, Tensor, Tensor, Extras], Tensor]
SOFTMAX_EVERY = 4  # of the hybrid: one softmax layer closes each group of this many
TAYLOR_ORDER = 2  # even, so that all weights are positive


def softmax(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """One head of softmax attention, unscaled scores: [XLCLCZ26]."""
    return torch.softmax(_scores(query_HCD, key_HND)[..., 0, :, :], dim=-1) @ value_NR


def multi_head_softmax(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """A weighted sum of softmax heads."""
    weights_CN = _combined(torch.softmax(_scores(query_HCD, key_HND), dim=-1), extras.head_weight)
    return weights_CN @ value_NR


def linear(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """One head of unnormalised linear attention, <q, k> / N: [WBDZ24]."""
    return _scores(query_HCD, key_HND)[..., 0, :, :] @ value_NR / value_NR.shape[-2]


def injective_linear(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """InLine: weights made to sum to one by subtraction, and a local residual (Han et al., arXiv 2412.06590).

    With the identity as feature map this read is mean(v) + <q, Cov(k, v)>, the large-prompt limit of softmax attention.
    The residual's coefficients are learned constants here, where the paper predicts them from the mean input.
    """
    scores_CN = _scores(query_HCD, key_HND)[..., 0, :, :]
    weights_CN = (scores_CN - scores_CN.mean(dim=-1, keepdim=True) + 1.0) / value_NR.shape[-2]
    return weights_CN @ value_NR + local_residual(value_NR, extras.local, query_HCD.shape[-2])


def softmax_linear(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """SLA: linear attention inside each head, softmax over heads for queries and keys (Xu et al., arXiv 2602.01744)."""
    query_gate_HC1 = torch.softmax(extras.query_gate, dim=-1).mT.unsqueeze(-1)
    key_gate_HN1 = torch.softmax(extras.key_gate, dim=-1).mT.unsqueeze(-1)
    scores_HCN = _scores(query_gate_HC1 * query_HCD, key_gate_HN1 * key_HND)
    return _combined(scores_HCN, extras.head_weight) @ value_NR / value_NR.shape[-2]


def taylor_softmax(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """Softmax with the exponential's Taylor series in place of it, normalised (Mongaras, Larson, arXiv 2507.23632).

    Each order is a recurrent network of its own there; order 1 alone is linear attention.
    """
    scores_CN = _scores(query_HCD, key_HND)[..., 0, :, :]
    term_CN = series_CN = torch.ones_like(scores_CN)
    for order in range(1, TAYLOR_ORDER + 1):
        term_CN = term_CN * scores_CN / order
        series_CN = series_CN + term_CN
    return series_CN / series_CN.sum(dim=-1, keepdim=True) @ value_NR


def hybrid(query_HCD: Tensor, key_HND: Tensor, value_NR: Tensor, extras: Extras) -> Tensor:
    """SoLA: linear layers with a softmax layer at the end of each group and of the network (Li et al., 2601.11164)."""
    last = extras.layer == extras.num_layers - 1 or (extras.layer + 1) % SOFTMAX_EVERY == 0
    return (softmax if last else linear)(query_HCD, key_HND, value_NR, extras)


def local_residual(value_NR: Tensor, local_3: Tensor, num_destinations: int) -> Tensor:
    """local[0] v[c - 1] + local[1] v[c] + local[2] v[c + 1], destinations c in the context's order, (..., C, R)."""
    after = max(0, num_destinations + 1 - value_NR.shape[-2])
    padded = torch.nn.functional.pad(value_NR, (0, 0, 1, after))
    shifted = [padded[..., i : i + num_destinations, :] for i in range(3)]
    return sum(local_3[..., i, None, None] * one for i, one in enumerate(shifted))  # type: ignore[return-value]


def _scores(query_HCD: Tensor, key_HND: Tensor) -> Tensor:
    return query_HCD @ key_HND.mT


def _combined(per_head_HCN: Tensor, head_weight_H: Tensor) -> Tensor:
    return (head_weight_H[..., None, None] * per_head_HCN).sum(dim=-3)


VARIANTS: dict[str, Variant] = {
    "softmax": softmax,
    "multi-head softmax": multi_head_softmax,
    "linear": linear,
    "InLine": injective_linear,
    "SLA": softmax_linear,
    "Taylor softmax": taylor_softmax,
    "SoLA hybrid": hybrid,
}
