"""How far an in-context evaluation can be trusted: certificates of the recursion, support of the queries, warnings.

Certificates follow [XLCLCZ26] eqs 20-23 and are computed on de-duplicated source states: with duplicates or end columns
the all-column matrix always has eigenvalue 1, which says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.mixture import CompiledMixture
from icrl_gym.evaluator.network import CompiledPrompt, Setting, probe_rewards
from icrl_gym.evaluator.recursion import Context

POWER_WORK = 2_000_000_000  # multiplications of power iteration: 1,000 iterations up to 1,400 sources, at least 60


@dataclass(frozen=True)
class Certificates:
    """Eqs 20-23 on the m distinct source states of a context.

    Attributes:
        margin: min_s M(s, s) - (1 + gamma) / 2; positive means Assumption 5.1 holds. Sufficient, far from necessary.
        inf_norm_bound: || I - alpha M + alpha P ||_inf; below 1 one layer is a contraction.
        spectral_radius: growth per layer of the recursion, by power iteration within reach of the rewards.
    """

    margin: float
    inf_norm_bound: float
    spectral_radius: float


@dataclass(frozen=True, eq=False)
class Diagnostics:
    """What the evaluator did, beside the values.

    Attributes:
        setting: the network that was used: kernel, width, sink, forgetting, depth, trace.
        mode: how attention was computed ("exact").
        fell_back: whether the safe averager took over.
        support: (Q,) effective number of sources per query: sources counted with weight exp(-distance^2 / 2) in
            kernel widths (inner-product kernel: 1 / sum K^2). Near 0 the estimate is the prompt's constant, not
            evidence.
        warnings: in plain words; empty when all is well.
        mixture: what a pretrained model chose for this prompt (open heads, shares, trust), or None.
    """

    setting: Setting
    mode: str
    fell_back: bool
    support: np.ndarray
    warnings: tuple[str, ...]
    compiled: CompiledPrompt = field(repr=False)
    mixture: CompiledMixture | None = field(default=None, repr=False)

    @cached_property
    def certificates(self) -> Certificates:
        """Computed when first asked for: O(N^2) memory, O(N^2) time per power iteration."""
        return certificates(self.compiled)

    @property
    def margin(self) -> float:
        return self.certificates.margin

    @property
    def inf_norm_bound(self) -> float:
        return self.certificates.inf_norm_bound

    @property
    def spectral_radius(self) -> float:
        return self.certificates.spectral_radius


def certificates(compiled: CompiledPrompt) -> Certificates:
    """Margin, inf-norm bound and spectral radius of a compiled prompt.

    Raises:
        ValueError: the prompt was compiled with landmarks, whose equilibrium is no limit of the recursion.
    """
    if compiled.setting.landmarks:
        raise ValueError(f"compiled: certificates are of settings without landmarks, got {compiled.setting.landmarks=}")
    prompt, alpha = compiled.prompt, compiled.setting.step_size
    source_ND = prompt.source_features
    _, first, source_state_N = np.unique(source_ND, axis=0, return_index=True, return_inverse=True)
    num_states = len(first)
    end_state_E = num_states + np.arange(len(prompt.end_features))
    column_state_C = torch.as_tensor(np.concatenate([source_state_N.reshape(-1), end_state_E]))
    attention_MN = compiled.attention_CN[torch.as_tensor(first)]
    self_MM = _sum_columns(attention_MN, column_state_C[: len(source_ND)], num_states)
    next_state_N = column_state_C[torch.as_tensor(prompt.successors)]
    discounted_MN = attention_MN * compiled.context.discounts_N1[:, 0]
    next_MC = _sum_columns(discounted_MN, next_state_N, num_states + len(end_state_E))
    matrix_MC = alpha * next_MC
    matrix_MC[:, :num_states] += torch.eye(num_states, dtype=matrix_MC.dtype) - alpha * self_MM
    return Certificates(
        margin=float(self_MM.diagonal().min()) - (1.0 + prompt.gamma) / 2,
        inf_norm_bound=float(matrix_MC.abs().sum(dim=1).max()),
        spectral_radius=spectral_radius(compiled),
    )


def _sum_columns(matrix_MN: Tensor, group_N: Tensor, num_groups: int) -> Tensor:
    return torch.zeros(len(matrix_MN), num_groups, dtype=matrix_MN.dtype).index_add_(1, group_N, matrix_MN.cpu())


def spectral_radius(compiled: CompiledPrompt) -> float:
    """Power iteration on the recursion's linear part, started from what one layer writes for the probe rewards.

    At equilibrium this is the radius of the recursion whose limit was solved for directly; it may exceed 1 there.
    """
    context, setting = compiled.context, compiled.setting
    probe_N = torch.as_tensor(probe_rewards(compiled.prompt.source_features)).to(context.discounts_N1)
    constant_mode = setting.constant_mode and not setting.at_equilibrium
    u_CR = compiled.attention_CN @ probe_N[:, None]
    logarithms = []
    iterations = int(np.clip(POWER_WORK // compiled.attention_CN.numel(), 60, 1000))
    for _ in range(iterations):
        size = u_CR.norm()
        if not size > 0:
            return 0.0
        u_CR = _linear_layer(context, compiled.attention_CN, setting, u_CR / size, constant_mode)
        logarithms.append(u_CR.norm().log())
    return float(torch.stack(logarithms[iterations * 3 // 4 :]).mean().exp())


def _linear_layer(
    context: Context, attention_CN: Tensor, setting: Setting, v_CR: Tensor, constant_mode: bool
) -> Tensor:
    """One layer for zero rewards (theory section 7), the constant carried inside v."""
    num_sources = len(context.rewards_NR)
    v_source = v_CR[:num_sources]
    delta = context.discounts_N1 * context.at_successors(v_CR) - v_source
    if constant_mode:
        step = context.constant(delta)
        v_CR, v_source = v_CR + step, v_source + step
        delta = delta - (1.0 - context.discounts_N1) * step
    e = setting.step_size * context.trace(delta)
    keep = (1.0 - setting.averaging) * (1.0 - setting.forgetting)
    new = keep * v_CR + attention_CN @ (setting.averaging * v_source + e)
    if setting.average_ends and not setting.forgetting:
        new = torch.cat([new[:num_sources], attention_CN[num_sources:] @ (v_source + e)])
    return new
