"""Certificates of the recursion on one prompt: margin, norm bound and growth per layer.

They follow [XLCLCZ26] eqs 20-23 and are computed on de-duplicated source states: with duplicates or end columns the
all-column matrix always has eigenvalue 1, which says nothing.

Shape legend: N sources, C columns, M distinct source states, E end columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.network import CompiledPrompt, probe_rewards
from icrl_gym.evaluator.recursion import Columns, layer

POWER_WORK = 2_000_000_000  # multiplications of power iteration: 1,000 iterations up to 1,400 sources, at least 60


@dataclass(frozen=True)
class Certificates:
    """What eqs 20-23 say of the m distinct source states of a context.

    Attributes:
        margin: min_s M(s, s) - (1 + gamma) / 2; positive means Assumption 5.1 holds. Sufficient, far from necessary.
        inf_norm_bound: || I - alpha M + alpha P ||_inf; below 1 one layer is a contraction.
        spectral_radius: growth per layer of the recursion, by power iteration within reach of the rewards.
    """

    margin: float
    inf_norm_bound: float
    spectral_radius: float


def certificates(compiled: CompiledPrompt) -> Certificates:
    """Margin, inf-norm bound and spectral radius of a compiled prompt, in O(N^2) memory.

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
    attention_MN = compiled.attention_CK[torch.as_tensor(first)]
    self_MM = _sum_columns(attention_MN, column_state_C[: len(source_ND)], num_states)
    next_state_N = column_state_C[torch.as_tensor(prompt.successors)]
    discounted_MN = attention_MN * compiled.equations.discounts_N1[:, 0]
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
    """Growth per layer for zero rewards, by power iteration from what one layer writes for the probe rewards.

    At equilibrium this is the radius of the recursion whose limit was solved for directly; it may exceed 1 there. Where
    only the sum of constant and deviations matters, the constant is put back into the deviations after every layer:
    their difference would stay for ever and hide what grows.
    """
    equations, setting, attention_CN = compiled.equations, compiled.setting, compiled.attention_CK
    without_rewards = replace(equations, rewards_NR=torch.zeros_like(equations.discounts_N1))
    parameters = replace(setting.parameters, constant_mode=setting.constant_mode and not setting.at_equilibrium)
    averages = setting.averaging > 0 or (setting.average_ends and len(compiled.prompt.end_features) > 0)
    only_sum_matters = not setting.forgetting and not (setting.sink and averages)
    probe_N = torch.as_tensor(probe_rewards(compiled.prompt.source_features)).to(equations.discounts_N1)
    constant_11, u_C1 = torch.zeros_like(equations.discounts_N1[:1]), attention_CN @ probe_N[:, None]
    iterations = int(np.clip(POWER_WORK // attention_CN.numel(), 60, 1000))
    logarithms, columns = [], Columns.of(attention_CN)
    for _ in range(iterations):
        size = torch.cat([constant_11, u_C1]).norm()
        if not size > 0:
            return 0.0
        constant_11, u_C1, _ = layer(without_rewards, columns, parameters, constant_11 / size, u_C1 / size)
        if only_sum_matters:
            constant_11, u_C1 = torch.zeros_like(constant_11), constant_11 + u_C1
        logarithms.append(torch.cat([constant_11, u_C1]).norm().log())
    return float(torch.stack(logarithms[iterations * 3 // 4 :]).mean().exp())
