"""The transformer of the paper as printed: one trajectory, the whole matrix Z, column by column, float64.

Source: [XLCLCZ26] arXiv 2605.07333v2, eqs 1-4, 10, 12, 16-19 and Theorem 1. Our names: `num_features` is d,
`num_layers` is L. Z is (d + 3, n + 1): rows 0..d-1 hold features, row d the reward, row d+1 the target memory, row
d+2 the current memory; column j holds S_j (0-based), the last column is the query S_n, which is never a source.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from icrl_gym.observations import check_finite
from icrl_gym.values import check_gamma

Form = Literal["tsm", "dual_head"]


def paper_prompt(features: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """Z_0 of a trajectory S_0, R_1, S_1, ..., R_n, S_n.

    Args:
        features: (n + 1, d), x(S_0) .. x(S_n).
        rewards: (n,), R_1 .. R_n.

    Returns:
        (d + 3, n + 1) float64, both memories zero, the query's reward zero.

    Raises:
        ValueError: shapes disagree, or a number is not finite.
    """
    features, rewards = np.asarray(features, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if features.ndim != 2 or rewards.ndim != 1 or len(features) != len(rewards) + 1 or not len(rewards):
        raise ValueError(
            f"features (n + 1, d) and rewards (n,), n >= 1, expected; got {features.shape}, {rewards.shape}"
        )
    check_finite(features, "features")
    check_finite(rewards, "rewards")
    reward_row = np.append(rewards, 0.0)
    memories = np.zeros((2, len(features)))
    return np.concatenate([features.T, reward_row[None], memories])


def paper_parameters(num_features: int, alpha: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Theorem 1's (V, A), each (d + 3, d + 3).

    V's last row is alpha (1, 1, -1) over (reward, target, current), all else zero; A = diag(I_d, 0).
    """
    if num_features < 1:
        raise ValueError(f"num_features must be at least 1, got {num_features}")
    size = num_features + 3
    value_matrix, score_matrix = np.zeros((size, size)), np.zeros((size, size))
    value_matrix[-1, -3:] = alpha * np.array([1.0, 1.0, -1.0])
    score_matrix[:num_features, :num_features] = np.eye(num_features)
    return value_matrix, score_matrix


def paper_forward(
    features: np.ndarray,
    rewards: np.ndarray,
    gamma: float,
    num_layers: int,
    form: Form = "tsm",
    alpha: float = 1.0,
) -> np.ndarray:
    """The current-memory row before the first and after each layer; row L at the last column is +v_L(S_n).

    Args:
        features: (n + 1, d) features of S_0 .. S_n.
        rewards: (n,) rewards R_1 .. R_n.
        gamma: discount in [0, 1).
        num_layers: L >= 0.
        form: "tsm" (one head and the temporal shift module) or "dual_head".
        alpha: step size.

    Returns:
        (L + 1, n + 1).

    Raises:
        ValueError: bad shapes, gamma, num_layers or form.
    """
    if form not in ("tsm", "dual_head"):
        raise ValueError(f"form must be 'tsm' or 'dual_head', got {form!r}")
    if num_layers < 0:
        raise ValueError(f"num_layers must be at least 0, got {num_layers}")
    Z = paper_prompt(features, rewards)
    parameters = paper_parameters(len(Z) - 3, alpha)
    return forward(Z, *parameters, check_gamma(gamma), num_layers, form)


def forward(
    Z: np.ndarray, value_matrix: np.ndarray, score_matrix: np.ndarray, gamma: float, num_layers: int, form: Form
) -> np.ndarray:
    """Current-memory rows (L + 1, n + 1) of any parameters; L tied layers."""
    layer = {"tsm": _tsm_layer, "dual_head": _dual_head_layer}[form]
    rows = [Z[-1]]
    for _ in range(num_layers):
        Z = layer(Z, value_matrix, score_matrix, gamma)
        rows.append(Z[-1])
    return np.stack(rows)


def attention_weights(Z: np.ndarray, score_matrix: np.ndarray) -> np.ndarray:
    """softmax_col(Z^T A Z + M), (n + 1, n + 1): column j attends over source rows; the query's row is masked."""
    scores = Z.T @ score_matrix @ Z
    scores[-1, :] = -np.inf
    weights = np.exp(scores - scores.max(axis=0))
    return weights / weights.sum(axis=0)


def shift_matrix(num_columns: int) -> np.ndarray:
    """Pi, (n + 1, n + 1): Z Pi moves every column one place to the left, zeros enter at the query."""
    return np.eye(num_columns, k=-1)


def _tsm_layer(Z: np.ndarray, value_matrix: np.ndarray, score_matrix: np.ndarray, gamma: float) -> np.ndarray:
    """Attention, then Z <- U Z + W Z Pi: the target row becomes gamma times the new current row, shifted."""
    Z = Z + value_matrix @ Z @ attention_weights(Z, score_matrix)
    size = len(Z)
    U, W = np.eye(size), np.zeros((size, size))
    U[-2, -2] = 0.0
    W[-2, -1] = gamma
    return U @ Z + W @ Z @ shift_matrix(Z.shape[1])


def _dual_head_layer(Z: np.ndarray, value_matrix: np.ndarray, score_matrix: np.ndarray, gamma: float) -> np.ndarray:
    """Z + V_cur Z K + V_tgt Z K Pi, where V_tgt holds gamma times V_cur's row in the target row."""
    weights = attention_weights(Z, score_matrix)
    target_matrix = np.zeros_like(value_matrix)
    target_matrix[-2] = gamma * value_matrix[-1]
    return Z + value_matrix @ Z @ weights + target_matrix @ Z @ weights @ shift_matrix(Z.shape[1])
