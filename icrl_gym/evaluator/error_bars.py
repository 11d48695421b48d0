"""Standard errors: from the sampling error of one equilibrium, or from a pretrained network.

`SamplingError` says how far the context's randomness moves an equilibrium's values. Values are v = W r, so the
innovation of transition k (its TD error under the true values) enters v(q) with weight W_qk. Innovations are
martingale differences, hence uncorrelated, and the sampling variance is sum_k W_qk^2 E[innovation_k^2]: the
influence-function variance of LSTD, here with a softmax kernel (this project's own use of it). In-sample TD errors are
too small, most of all where a transition is alone, such as the one episode end of a context; so each is taken as
predicted by the others, which has the closed form a_k / (matrix^-1)_kk, and bounded by what values of the context's
size can make of it. A context without any termination adds what one pseudo-termination would do to the constant (rule
of succession). The error does NOT include what smoothing leaves out.

`PretrainedError` is trained to hold nine tenths of the errors, whatever they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.equilibrium import transposed_solve
from icrl_gym.evaluator.inverse import inverse_diagonal
from icrl_gym.evaluator.kernel import Kernel, Rows
from icrl_gym.evaluator.network import CompiledPrompt
from icrl_gym.evaluator.recursion import Equations, LayerParameters, Readout
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QueryFacts, attention_mass, query_statistics

LARGEST_CONTEXT = 4096  # sources; beyond it inverting the matrix is not worth its time, and stderr is None


class ErrorBars(Protocol):
    """Standard errors of a compiled mixture's answers."""

    def __call__(self, rows: Rows, by_member_HQ: np.ndarray, values_Q: np.ndarray) -> np.ndarray:
        """Standard errors (Q,) in units of reward.

        Args:
            rows: attention of the queries.
            by_member_HQ: values under each member.
            values_Q: the mixture's values.
        """
        ...


@dataclass(frozen=True, eq=False)
class SamplingError:
    """Sampling error of one compiled prompt, whose mixture it is alone.

    Attributes:
        kernel, equations: those of the compiled prompt.
        parameters: those of the equilibrium.
        factors: LU factors and pivots of the equilibrium's matrix.
        innovations_N1: (N, 1) TD errors, each as predicted by the other transitions.
        unseen: error of the constant where no termination was seen, else 0.
    """

    kernel: Kernel
    equations: Equations
    parameters: LayerParameters
    factors: tuple[Tensor, Tensor]
    innovations_N1: Tensor
    unseen: float

    @classmethod
    def of(cls, compiled: CompiledPrompt) -> SamplingError | None:
        """The error of a compiled prompt; None at finite depth, without a ridge, with landmarks, in long contexts."""
        factors, setting = compiled.readout.factors, compiled.setting
        if factors is None or setting.landmarks or len(compiled.prompt) > LARGEST_CONTEXT:
            return None
        innovations_N1 = leave_one_out_errors(compiled.equations, compiled.readout)
        unseen = unseen_termination(compiled)
        return cls(compiled.kernel, compiled.equations, setting.parameters, factors, innovations_N1, unseen)

    def __call__(self, rows: Rows, by_member_HQ: np.ndarray, values_Q: np.ndarray) -> np.ndarray:
        """Standard errors (Q,) from the queries' attention alone."""
        variance_Q = sampling_variance(
            self.equations, self.parameters, self.factors, self.innovations_N1, rows[self.kernel]
        )
        return (variance_Q + self.unseen**2).sqrt().double().cpu().numpy()


def sampling_variance(
    equations: Equations,
    parameters: LayerParameters,
    factors: tuple[Tensor, Tensor],
    innovations_N1: Tensor,
    attention_QN: Tensor,
) -> Tensor:
    """Sampling variance (..., Q) of an equilibrium's values: innovations weighed as rewards are, squared and summed."""
    rows_NQ = attention_QN.mT
    weights_NQ = transposed_solve(equations, parameters, factors, rows_NQ, torch.ones_like(rows_NQ[..., :1, :]))
    return (weights_NQ * innovations_N1).square().sum(dim=-2)


def leave_one_out_errors(equations: Equations, readout: Readout) -> Tensor:
    """TD errors of an equilibrium, each as predicted by the other transitions, (..., N, 1)."""
    assert readout.columns_LCR is not None
    assert readout.factors is not None
    inverse_N1 = inverse_diagonal(*readout.factors).unsqueeze(-1)
    largest_11 = readout.columns_LCR[..., -1, :, :].abs().amax(dim=-2, keepdim=True)
    bound_11 = equations.rewards_NR.abs().amax(dim=-2, keepdim=True) + 2 * largest_11
    tiny = torch.finfo(inverse_N1.dtype).tiny
    errors_N1 = readout.memories_LNR[..., -1, :, :] / inverse_N1.abs().clamp(min=tiny)
    return torch.minimum(torch.maximum(errors_N1, -bound_11), bound_11)


def unseen_termination(compiled: CompiledPrompt) -> float:
    """Shift of the prompt's constant by one pseudo-termination, if the context holds none, in units of reward."""
    discounts_N1, gamma = compiled.equations.discounts_N1, compiled.prompt.gamma
    if bool((discounts_N1 == 0).any()):
        return 0.0
    loss = float((1.0 - discounts_N1).sum())
    return abs(float(compiled.readout.constants_LR[-1, 0])) * gamma / (loss + gamma)


@dataclass(frozen=True, eq=False)
class PretrainedError:
    """Error bars of a mixture: a 90 % interval is the value +- 1.645 of them.

    Attributes:
        spread: the network.
        statistics_S: statistics of the prompt.
        first: the prompt under the first head as it stands; the statistics are read from it.
        facts: the first head's numbers for the whole prompt, and for no query yet.
    """

    spread: SpreadHead
    statistics_S: Tensor
    first: CompiledPrompt
    facts: QueryFacts

    def __call__(self, rows: Rows, by_member_HQ: np.ndarray, values_Q: np.ndarray) -> np.ndarray:
        """Standard errors (Q,) in units of reward."""
        attention_QN = rows[self.first.kernel]
        first_Q, mass_Q = self.first.values(attention_QN)[-1], attention_mass(self.first.kernel, attention_QN)
        facts = replace(self.facts, values_Q=first_Q.double().cpu().numpy(), mass_Q=mass_Q)
        statistics_QT = query_statistics(facts, by_member_HQ, values_Q)
        with torch.no_grad():
            log_Q = self.spread(self.statistics_S[None], torch.as_tensor(statistics_QT[None]).float())[0]
        return self._widening * facts.scale * log_Q.double().exp().numpy()

    @property
    def _widening(self) -> float:
        """sqrt(N / effective sample size) of a weighted log (Kish), 1 without weights: training never saw any."""
        ratios_N = self.first.prompt.importance_ratios
        return 1.0 if ratios_N is None else float(np.sqrt(np.square(ratios_N).mean()) / ratios_N.mean())
