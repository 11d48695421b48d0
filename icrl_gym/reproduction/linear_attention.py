"""The linear-attention ancestor and the updates that its constructions compute, in batches.

[WBDZ24]: Z <- Z + (1/n) P Z M (Z^T Q Z), columns [phi; gamma phi'; R], query [phi; 0; 0], prediction -Z_L[-1, -1]. The
matrices below were derived again from the update that each is to compute; where a trace decays by gamma lambda rather
than lambda, that is our choice.

Shape legend: leading axes `...` (trials), n transitions, D features, R = 2 D + 1 rows, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class LinearHead:
    """One head of linear attention.

    Attributes:
        value: P (R, R).
        score: Q (R, R).
        mask: M (n + 1, n + 1); its last row is zero, so the query is no source.
    """

    value: np.ndarray
    score: np.ndarray
    mask: np.ndarray


def prompt(features: np.ndarray, next_features: np.ndarray, rewards: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Z_0 (..., 2 D + 1, n + 1).

    Args:
        features: (..., n, D).
        next_features: (..., n, D), the discount already in it.
        rewards: (..., n).
        query: (..., D).
    """
    context = np.concatenate([features, next_features, rewards[..., None]], axis=-1)
    last = np.concatenate([query, np.zeros((*query.shape[:-1], query.shape[-1] + 1))], axis=-1)
    return np.swapaxes(np.concatenate([context, last[..., None, :]], axis=-2), -1, -2)


def forward(Z: np.ndarray, heads: tuple[LinearHead, ...], num_layers: int) -> np.ndarray:
    """The last row before the first and after each of L tied layers, (..., L + 1, n + 1)."""
    num_transitions = Z.shape[-1] - 1
    rows = [Z[..., -1, :]]
    for _ in range(num_layers):
        update = sum(head.value @ Z @ head.mask @ (np.swapaxes(Z, -1, -2) @ head.score @ Z) for head in heads)
        Z = Z + update / num_transitions
        rows.append(Z[..., -1, :])
    return np.stack(rows, axis=-2)


def last_row(num_rows: int, column: int = -1) -> np.ndarray:
    """P that writes row ``column`` into the last row."""
    matrix = np.zeros((num_rows, num_rows))
    matrix[-1, column] = 1.0
    return matrix


def source_mask(num_transitions: int, decay: float = 0.0) -> np.ndarray:
    """M[k, i] = decay^(k - i) for sources k >= i: column i gathers what comes after i; diag(I, 0) for decay 0."""
    size = num_transitions + 1
    gap = np.arange(size)[:, None] - np.arange(size)[None, :]
    mask = np.where(gap >= 0, float(decay) ** np.maximum(gap, 0), 0.0)
    mask[-1, :] = 0.0
    mask[:, -1] = 0.0
    return mask


def td_heads(preconditioner: np.ndarray, num_transitions: int, decay: float = 0.0) -> tuple[LinearHead, ...]:
    """TD(lambda), decay = gamma lambda: w <- w + (C / n) sum_k delta_k e_k, e_k = decay e_{k-1} + phi_k."""
    D = len(preconditioner)
    score = np.zeros((2 * D + 1, 2 * D + 1))
    score[:D, :D], score[:D, D : 2 * D] = -preconditioner.T, preconditioner.T
    return (LinearHead(last_row(2 * D + 1), score, source_mask(num_transitions, decay)),)


def residual_gradient_heads(preconditioner: np.ndarray, num_transitions: int) -> tuple[LinearHead, ...]:
    """w <- w + (C / n) sum_k delta_k (phi_k - gamma phi'_k)."""
    D = len(preconditioner)
    block, score = preconditioner.T, np.zeros((2 * D + 1, 2 * D + 1))
    score[:D, :D], score[:D, D : 2 * D] = -block, block
    score[D : 2 * D, :D], score[D : 2 * D, D : 2 * D] = block, -block
    return (LinearHead(last_row(2 * D + 1), score, source_mask(num_transitions)),)


def average_reward_heads(preconditioner: np.ndarray, num_transitions: int) -> tuple[LinearHead, ...]:
    """w <- w + (C / n) sum_k (R_k - mean(R_1..R_k) + w . phi'_k - w . phi_k) phi_k, on prompts with gamma = 1.

    Two heads and one more row, which starts at zero and holds w . phi' - w . phi: the first head reads it, the second
    reads the reward row less its running mean, which its mask makes.
    """
    D, size = len(preconditioner), 2 * len(preconditioner) + 2
    score = np.zeros((size, size))
    score[:D, :D], score[:D, D : 2 * D] = -preconditioner.T, preconditioner.T
    mask = source_mask(num_transitions)
    running_mean = np.triu(np.ones((num_transitions + 1, num_transitions + 1))) / np.arange(1, num_transitions + 2)
    centred = (np.eye(num_transitions + 1) - running_mean) @ mask
    return LinearHead(last_row(size), score, mask), LinearHead(last_row(size, -2), score, centred)


def with_memory_row(Z: np.ndarray) -> np.ndarray:
    """One more row of zeros at the bottom, as average-reward TD needs it."""
    return np.concatenate([Z, np.zeros_like(Z[..., :1, :])], axis=-2)


def linear_updates(
    features: np.ndarray,
    next_features: np.ndarray,
    rewards: np.ndarray,
    preconditioner: np.ndarray,
    num_layers: int,
    method: str,
    decay: float = 0.0,
) -> np.ndarray:
    """Weights before the first and after each batch update, (..., L + 1, D), written from the update rules.

    Args:
        features, next_features, rewards: arrays as `prompt` takes them.
        preconditioner: C (D, D).
        method: "td" (with traces that decay by ``decay``), "residual_gradient" or "average_reward".
        decay: gamma lambda.
    """
    n = rewards.shape[-1]
    direction = features if method != "residual_gradient" else features - next_features
    if method == "td":
        direction = _traces(features, decay)
    if method == "average_reward":
        rewards = rewards - np.cumsum(rewards, axis=-1) / np.arange(1, n + 1)
    weight = np.zeros((*features.shape[:-2], features.shape[-1]))
    rows = [weight]
    for _ in range(num_layers):
        delta = rewards + np.einsum("...nd,...d->...n", next_features - features, weight)
        weight = weight + np.einsum("ed,...nd,...n->...e", preconditioner, direction, delta) / n
        rows.append(weight)
    return np.stack(rows, axis=-2)


def _traces(features: np.ndarray, decay: float) -> np.ndarray:
    """e_k = decay e_{k-1} + phi_k, (..., n, D)."""
    trace, traces = np.zeros_like(features[..., 0, :]), []
    for k in range(features.shape[-2]):
        trace = decay * trace + features[..., k, :]
        traces.append(trace)
    return np.stack(traces, axis=-2)
