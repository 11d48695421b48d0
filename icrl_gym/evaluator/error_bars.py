"""Sampling error of an equilibrium's values: how far the context's randomness moves them.

Values are v = W r, so the innovation of transition k (its TD error under the true values) enters v(q) with weight
W_qk. Innovations are martingale differences, hence uncorrelated, and the sampling variance is
sum_k W_qk^2 E[innovation_k^2]: the influence-function variance of LSTD, here with a softmax kernel (this project's own
use of it). In-sample TD errors are too small, most of all where a transition is alone, such as the one episode end of a
context; so each is taken as predicted by the others, which has the closed form a_k / (matrix^-1)_kk, and bounded by
what values of the context's size can make of it. A context without any termination adds what one pseudo-termination
would do to the constant (rule of succession). The error does NOT include what smoothing leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.network import CompiledPrompt

LARGEST_CONTEXT = 4096  # sources; beyond it inverting the matrix is not worth its time, and stderr is None


@dataclass(frozen=True)
class SamplingError:
    """Standard errors of one compiled prompt's queries.

    Attributes:
        innovations_N1: (N, 1) TD errors, each as predicted by the other transitions.
        unseen: error of the constant where no termination was seen, else 0.
    """

    compiled: CompiledPrompt
    innovations_N1: Tensor
    unseen: float

    @classmethod
    def of(cls, compiled: CompiledPrompt) -> SamplingError | None:
        """None for finite depth, without forgetting or averaging, with landmarks, and for very long contexts."""
        too_long = len(compiled.prompt) > LARGEST_CONTEXT
        if compiled.readout.factors is None or compiled.setting.landmarks or too_long:
            return None
        return cls(compiled, _innovations(compiled), _unseen_termination(compiled))

    def __call__(self, attention_QN: Tensor) -> np.ndarray:
        """Standard errors (Q,) from the queries' attention."""
        compiled, context = self.compiled, self.compiled.context
        assert compiled.readout.factors is not None
        adjoint_NQ = torch.linalg.lu_solve(*compiled.readout.factors, attention_QN.mT.contiguous(), adjoint=True)
        weights_NQ = compiled.setting.step_size * context.trace.transposed(adjoint_NQ)
        loss_N1 = 1.0 - context.discounts_N1
        share_N1 = context.weights_N1 / (context.weights_N1 * loss_N1).sum()
        weights_NQ = weights_NQ + share_N1 * (1.0 - (loss_N1 * weights_NQ).sum(dim=0))
        variance_Q = (weights_NQ * self.innovations_N1).square().sum(dim=0) + self.unseen**2
        return variance_Q.sqrt().double().cpu().numpy()


def _innovations(compiled: CompiledPrompt) -> Tensor:
    """Leave-one-out TD errors, (N, 1)."""
    readout, context = compiled.readout, compiled.context
    assert readout.factors is not None
    assert readout.columns_LCR is not None
    identity_NN = torch.eye(
        len(compiled.prompt), dtype=compiled.attention_CN.dtype, device=compiled.attention_CN.device
    )
    inverse_N1 = torch.linalg.lu_solve(*readout.factors, identity_NN).diagonal().unsqueeze(-1)
    bound = context.rewards_NR.abs().max() + 2 * readout.columns_LCR[-1].abs().max()
    tiny = torch.finfo(inverse_N1.dtype).tiny
    return (readout.memories_LNR[-1] / inverse_N1.abs().clamp(min=tiny)).clamp(-bound, bound)


def _unseen_termination(compiled: CompiledPrompt) -> float:
    """Shift of the prompt's constant by one pseudo-termination, if the context holds none."""
    context, gamma = compiled.context, compiled.prompt.gamma
    if bool((context.discounts_N1 == 0).any()):
        return 0.0
    loss = float((1.0 - context.discounts_N1).sum())
    return abs(float(compiled.readout.constants_LR[-1, 0])) * gamma / (loss + gamma)
