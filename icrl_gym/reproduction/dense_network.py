"""The printed single-head transformer with free V and A, in torch, so that it can be trained without masks.

[XLCLCZ26] eqs 1-4 and 12. Shape legend: `...` seeds and prompts, n + 1 columns, D features, rows D + 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from icrl_gym.reproduction.mrps import MRPBatch


def prompts(mrps: MRPBatch, states: np.ndarray) -> np.ndarray:
    """Z_0 of walks (B, n + 1), (B, D + 3, n + 1)."""
    features = np.swapaxes(mrps.features_of(states), 1, 2)
    rewards = np.pad(mrps.rewards_of(states), ((0, 0), (0, 1)))[:, None]
    return np.concatenate([features, rewards, np.zeros_like(rewards), np.zeros_like(rewards)], axis=1)


def read_out(prompt_Z: Tensor, value_matrix: Tensor, score_matrix: Tensor, gamma: float, num_layers: int) -> Tensor:
    """The current-memory row after L tied layers with the temporal shift module, (..., n + 1).

    Args:
        prompt_Z: (..., D + 3, n + 1).
        value_matrix, score_matrix: (..., D + 3, D + 3).
    """
    Z = prompt_Z
    mask = torch.zeros(Z.shape[-1], 1, dtype=Z.dtype, device=Z.device)
    mask[-1] = -torch.inf
    for _ in range(num_layers):
        weights = torch.softmax(Z.mT @ score_matrix @ Z + mask, dim=-2)
        Z = Z + value_matrix @ Z @ weights
        shifted = torch.nn.functional.pad(Z[..., -1:, 1:], (0, 1))
        Z = torch.cat([Z[..., :-2, :], gamma * shifted, Z[..., -1:, :]], dim=-2)
    return Z[..., -1, :]
