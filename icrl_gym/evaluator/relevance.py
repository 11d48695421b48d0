"""Which features a Gaussian kernel looks at: weights read off the context, scale-free in features and in rewards.

| relevance | weight of a feature (this project's own) |
|---|---|
| uniform | 1 |
| slow | (mean squared step between neighbours)^(-1/4): what changes slowly matters more |
| returns | sqrt(c^2 + q^2 + 1/N + 1/100), c and q: correlations of the feature and its square with lambda-returns |
| whitened | half-way to a whitened context: C^(-1/4) with C the covariance of the features, plus 1/100 |

All leave the total variance of the features as it was. Only "returns" looks at rewards, and only through correlations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from icrl_gym.context.prompt import Prompt

Relevance = Literal["uniform", "slow", "returns", "whitened"]
RETURN_TRACE = 0.95  # lambda of the returns that features are correlated with
JITTER = 0.01


def relevant_features(features_BD: np.ndarray, prompt: Prompt, relevance: Relevance) -> np.ndarray:
    """Features (B, D) weighed, or rotated, by what the prompt's context says of them."""
    if relevance == "uniform":
        return features_BD
    return features_BD @ RELEVANCES[relevance](prompt)


def lambda_return_errors(prompt: Prompt, trace_decay: float) -> np.ndarray:
    """lambda-returns less the prompt's constant, (N,): sums of decayed TD errors of the constant."""
    loss_N = 1.0 - prompt.discounts
    errors_N = prompt.rewards - loss_N * (prompt.rewards.sum() / loss_N.sum())
    return accumulate(errors_N, prompt.discounts * trace_decay * prompt.trace_links)


def accumulate(errors_N: np.ndarray, decay_N: np.ndarray) -> np.ndarray:
    """e_k = errors_k + decay_k e_{k+1}, (N,), by doubling; `Trace` is the same for tensors."""
    sums_N, decay_N, span = errors_N.copy(), decay_N.copy(), 1
    while span < len(sums_N) and decay_N.any():
        sums_N[:-span] += decay_N[:-span] * sums_N[span:].copy()
        shifted_N = np.zeros_like(decay_N)
        shifted_N[:-span] = decay_N[span:]
        decay_N, span = decay_N * shifted_N, 2 * span
    return sums_N


def _slow(prompt: Prompt) -> np.ndarray:
    x_ND, links_N = prompt.source_features, prompt.trace_links[:-1]
    if not links_N.any():
        return np.eye(x_ND.shape[1])
    return _diagonal(np.maximum(np.square(np.diff(x_ND, axis=0)[links_N]).mean(axis=0), 1e-6) ** -0.25, x_ND)


def _by_returns(prompt: Prompt) -> np.ndarray:
    x_ND = prompt.source_features - prompt.source_features.mean(axis=0)
    returns_N = lambda_return_errors(prompt, RETURN_TRACE)
    squares_D = _correlation(x_ND, returns_N) ** 2 + _correlation(x_ND**2, returns_N) ** 2
    return _diagonal(np.sqrt(squares_D + 1.0 / len(x_ND) + JITTER), x_ND)


def _whitened(prompt: Prompt) -> np.ndarray:
    x_ND = prompt.source_features
    covariance_DD = np.cov(x_ND.T, bias=True).reshape(x_ND.shape[1], -1)
    spectrum_D, axes_DD = np.linalg.eigh(covariance_DD + JITTER * np.eye(len(covariance_DD)))
    root_DD = (axes_DD * spectrum_D**-0.25) @ axes_DD.T
    return root_DD * _same_variance(np.trace(covariance_DD), np.trace(root_DD @ covariance_DD @ root_DD))


def _diagonal(weights_D: np.ndarray, x_ND: np.ndarray) -> np.ndarray:
    variance_D = x_ND.var(axis=0)
    return np.diag(weights_D * _same_variance(variance_D.sum(), (variance_D * weights_D**2).sum()))


def _same_variance(before: float, after: float) -> float:
    return float(np.sqrt(before / after)) if after > 0 else 1.0


def _correlation(x_ND: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    """Of each column with y, (D,); 0 where either does not vary."""
    x_ND, y_N = x_ND - x_ND.mean(axis=0), y_N - y_N.mean()
    scale_D = np.sqrt(np.square(x_ND).sum(axis=0) * np.square(y_N).sum())
    return np.divide(y_N @ x_ND, scale_D, out=np.zeros_like(scale_D), where=scale_D > 0)


RELEVANCES: dict[str, Callable[[Prompt], np.ndarray]] = {
    "uniform": lambda prompt: np.eye(prompt.source_features.shape[1]),
    "slow": _slow,
    "returns": _by_returns,
    "whitened": _whitened,
}
