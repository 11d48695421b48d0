"""Standard errors: from the sampling error of one equilibrium, or from a pretrained network.

`SamplingError` says how far the context's randomness moves an equilibrium's values. Values are v = W r, so the
innovation of transition k (its TD error under the true values) enters v(q) with weight W_qk. Innovations are
martingale differences, hence uncorrelated, and the sampling variance is sum_k W_qk^2 E[innovation_k^2]: the
influence-function variance of LSTD, here with a softmax kernel (this project's own use of it). In-sample TD errors are
too small, most of all where a transition is alone, such as the one episode end of a context; so each is taken as
predicted by the others, which has the closed form a_k / (matrix^-1)_kk, and bounded by what values of the context's
size can make of it. A context without any termination adds what one pseudo-termination would do to the constant (rule
of succession). The error does NOT include what smoothing leaves out.

`PretrainedError` is trained to hold nine tenths of the errors, whatever they come from. It knows how contexts of a kind
go wrong on the whole, and the sampling error how noisy this one is, so what is stated is the geometric mean of both, at
most twice and at least half of what was trained.

Shape legend: N sources, K keys, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
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
FARTHEST = 4.0  # factor between sampling error and trained error that still counts


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
class SamplingCovariance:
    """The same of any equilibrium, with landmarks or without, as a matrix: cheap for many queries.

    An answer is c + K(q) a, and constant and memories are linear in the rewards, (c, a) = G R; so its variance is
    x G diag(innovations^2) G^T x^T with x = (1, K(q)).

    Attributes:
        covariance: (1 + K, 1 + K), of the constant and the memories.
        unseen: error of the constant where no termination was seen, else 0.
    """

    covariance: Tensor
    unseen: float

    @classmethod
    def of(cls, head: CompiledPrompt) -> SamplingCovariance | None:
        """That of a head; None at finite depth, for the averager, and in long contexts."""
        if not head.setting.at_equilibrium or head.setting.averaging or len(head.prompt) > LARGEST_CONTEXT:
            return None
        attention_CK, equations = head.attention_CK, head.equations
        num_keys, (discounts_N1, num_sources) = attention_CK.shape[1], (equations.discounts_N1, len(head.prompt))
        rows = torch.cat([attention_CK.new_zeros(1, num_keys), torch.eye(num_keys).to(attention_CK)])
        made_XN = head.attribution(rows, torch.cat([rows.new_ones(1), rows.new_zeros(num_keys)]))
        read_NK = attention_CK[:num_sources] - discounts_N1 * equations.at_successors(attention_CK)
        read_NX = torch.cat([1.0 - discounts_N1, read_NK], dim=1)
        constant, memory_K1 = head.readout.constants_LR[-1, 0], head.readout.memories_LNR[-1, :, :1]
        errors_N1 = equations.rewards_NR[:, :1] - read_NX[:, :1] * constant - read_NK @ memory_K1
        left_N1 = 1.0 - (read_NX * made_XN.mT).sum(dim=1, keepdim=True)  # one, less how far a reward moves its own fit
        innovations_N1 = errors_N1 / left_N1.abs().clamp(min=torch.finfo(left_N1.dtype).tiny)
        largest = (constant + attention_CK @ memory_K1).abs().max()
        bound = equations.rewards_NR[:, :1].abs().max() + 2 * largest
        weighed_XN = made_XN * innovations_N1.mT.clamp(-bound, bound)
        return cls(weighed_XN @ weighed_XN.mT, unseen_termination(head))

    def __call__(self, attention_QK: Tensor) -> np.ndarray:
        """Standard errors (Q,) from the queries' attention alone."""
        read_QX = torch.cat([torch.ones_like(attention_QK[:, :1]), attention_QK], dim=1)
        variance_Q = ((read_QX @ self.covariance) * read_QX).sum(dim=1).clamp(min=0.0)
        return (variance_Q + self.unseen**2).sqrt().double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class PretrainedError:
    """Error bars of a mixture: a 90 % interval is the value +- 1.645 of them.

    Attributes:
        spread: the network.
        statistics_S: statistics of the prompt.
        first: the prompt under the first head as it stands; the statistics are read from it.
        facts: the first head's numbers for the whole prompt, and for no query yet.
        sampled: whether the first head's sampling error counts, which takes all transitions that it was solved from.
    """

    spread: SpreadHead
    statistics_S: Tensor
    first: CompiledPrompt
    facts: QueryFacts
    sampled: bool = True

    def __call__(self, rows: Rows, by_member_HQ: np.ndarray, values_Q: np.ndarray) -> np.ndarray:
        """Standard errors (Q,) in units of reward."""
        attention_QN = rows[self.first.kernel]
        first_Q, mass_Q = self.first.values(attention_QN)[-1], attention_mass(self.first.kernel, attention_QN)
        facts = replace(self.facts, values_Q=first_Q.double().cpu().numpy(), mass_Q=mass_Q)
        statistics_QT = query_statistics(facts, by_member_HQ, values_Q)
        with torch.no_grad():
            log_Q = self.spread(self.statistics_S[None], torch.as_tensor(statistics_QT[None]).float())[0]
        trained_Q = self._widening * facts.scale * log_Q.double().exp().numpy()
        if self.sampling is None:
            return trained_Q
        ratio_Q = self.sampling(attention_QN) / np.maximum(trained_Q, np.finfo(float).tiny)
        return trained_Q * np.sqrt(ratio_Q.clip(1.0 / FARTHEST, FARTHEST))

    @cached_property
    def sampling(self) -> SamplingCovariance | None:
        """The first head's sampling error, if it counts and there is one."""
        found = SamplingCovariance.of(self.first) if self.sampled else None
        self.first.kernel.release()
        return found

    @property
    def _widening(self) -> float:
        """sqrt(N / effective sample size) of a weighted log (Kish), 1 without weights: training never saw any."""
        ratios_N = self.first.prompt.importance_ratios
        return 1.0 if ratios_N is None else float(np.sqrt(np.square(ratios_N).mean()) / ratios_N.mean())
