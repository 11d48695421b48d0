"""Sampling error of an equilibrium's values: how far the context's randomness moves them.

Values are v = W r, so the innovation of transition k (its TD error under the true values) enters v(q) with weight
W_qk. Innovations are martingale differences, hence uncorrelated, and the sampling variance is sum_k W_qk^2
E[innovation_k^2] (the influence-function variance of LSTD, here with a softmax kernel; this project's own use of it).
In-sample TD errors are too small by the degrees of freedom that the fit used, so they are scaled as in generalised
cross-validation. The error does NOT include what smoothing leaves out, nor events that the context never showed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.model import CompiledPrompt

LARGEST_CONTEXT = 4096  # sources; beyond it the extra factorisation is not worth its time, and stderr is None
NUM_PROBES = 32
SMALLEST_SHARE = 0.05


@dataclass(frozen=True)
class SamplingError:
    """Standard errors of one compiled prompt's queries.

    Attributes:
        innovations_N1: (N, 1) TD errors, scaled up by the degrees of freedom.
    """

    compiled: CompiledPrompt
    innovations_N1: Tensor

    @classmethod
    def of(cls, compiled: CompiledPrompt) -> SamplingError | None:
        """None for finite depth, without forgetting or averaging, and for very long contexts."""
        if compiled.readout.factors is None or len(compiled.prompt) > LARGEST_CONTEXT:
            return None
        return cls(compiled, _innovations(compiled) / _residual_share(compiled))

    def __call__(self, attention_QN: Tensor) -> np.ndarray:
        """Standard errors (Q,) from the queries' attention."""
        compiled, context = self.compiled, self.compiled.context
        assert compiled.readout.factors is not None
        adjoint_NQ = torch.linalg.lu_solve(*compiled.readout.factors, attention_QN.mT.contiguous(), adjoint=True)
        weights_NQ = compiled.setting.step_size * context.trace.transposed(adjoint_NQ)
        loss_N1 = 1.0 - context.discounts_N1
        share_N1 = context.weights_N1 / (context.weights_N1 * loss_N1).sum()
        weights_NQ = weights_NQ + share_N1 * (1.0 - (loss_N1 * weights_NQ).sum(dim=0))
        return (weights_NQ * self.innovations_N1).square().sum(dim=0).sqrt().double().cpu().numpy()


def _innovations(compiled: CompiledPrompt) -> Tensor:
    """In-sample TD errors, (N, 1)."""
    context = compiled.context
    assert compiled.readout.columns_LCR is not None
    value_CR = compiled.readout.columns_LCR[-1]
    num_sources = len(context.rewards_NR)
    return context.rewards_NR + context.discounts_N1 * context.at_successors(value_CR) - value_CR[:num_sources]


def _residual_share(compiled: CompiledPrompt) -> float:
    """1 - degrees of freedom / N = eta tr(matrix^-1) / N by Hutchinson probes, within [0.05, 1]; 1 for averagers."""
    forgetting = compiled.setting.forgetting
    if not forgetting:
        return 1.0
    assert compiled.readout.factors is not None
    num_sources = len(compiled.prompt)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (num_sources, NUM_PROBES), generator=generator).to(compiled.attention_CN) * 2 - 1
    trace = float((signs * torch.linalg.lu_solve(*compiled.readout.factors, signs)).sum()) / NUM_PROBES
    return min(1.0, max(SMALLEST_SHARE, forgetting * trace / num_sources))
