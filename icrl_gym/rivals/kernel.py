"""Methods that compare states: kernel-based RL, regression on returns, Gaussian-process TD.

Widths are in standard deviations of the context, times sqrt(effective dimension / 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import linalg

from icrl_gym.context.prompt import Prompt
from icrl_gym.rivals.base import (
    PromptEstimator,
    all_features,
    check_fraction,
    check_positive,
    excess_rewards,
    importance_ratios,
    returns,
    scaled_distances,
)


@dataclass(eq=False)
class KernelEstimator(PromptEstimator):
    """An estimator with one Gaussian width. Importance ratios multiply the weights of their sources.

    Args:
        width: width of the kernel.
    """

    weighs_ratios = True

    width: float

    def __post_init__(self) -> None:
        check_positive(width=self.width)

    def _distances(self, features_BD: np.ndarray) -> np.ndarray:
        return scaled_distances(features_BD, self.prompt_.source_features, self.prompt_.kernel_width(self.width))

    def _weights(self, features_BD: np.ndarray) -> np.ndarray:
        """Normalised weights of the sources, Gaussian times importance ratio, (B, N)."""
        with np.errstate(divide="ignore"):
            scores = np.log(importance_ratios(self.prompt_)) - self._distances(features_BD) / 2
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)


@dataclass(eq=False)
class KernelBasedRL(KernelEstimator):
    """Ormoneit & Sen 2002: the fixed point of v(x) = sum_k K(k | x) (r_k + discount_k v(S_k)), solved directly.

    With importance ratios K(k | x) is proportional to rho_k times the Gaussian, so that each transition's equation
    counts as often as the target would make it.

    Args:
        width: width of the kernel; 0.4 is its best fixed value on the project's own cells.
    """

    width: float = 0.4

    def _fit(self, prompt: Prompt) -> None:
        next_NN = self._weights(all_features(prompt))[prompt.successors]
        matrix_NN = np.eye(len(prompt)) - prompt.discounts[:, None] * next_NN
        self._targets_N = np.linalg.solve(matrix_NN, prompt.rewards)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self._weights(features_QD) @ self._targets_N


@dataclass(eq=False)
class NadarayaWatson(KernelEstimator):
    """Kernel regression on Monte Carlo returns; an end that did not terminate is worth the prompt's constant.

    With importance ratios the returns are weighted per decision, and normalised by the weights of the first actions.
    """

    width: float = 0.4

    def _fit(self, prompt: Prompt) -> None:
        self._returns_N = returns(prompt)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self._weights(features_QD) @ self._returns_N


@dataclass(eq=False)
class NearestNeighbours(KernelEstimator):
    """Mean Monte Carlo return of the k nearest sources, weighted by importance ratios; those with ratio 0 are none.

    Args:
        num_neighbours: k, or the context's length where that is shorter.
    """

    width: float = field(default=1.0, init=False)
    num_neighbours: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(num_neighbours=self.num_neighbours)

    def _fit(self, prompt: Prompt) -> None:
        self._returns_N = returns(prompt)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        ratio_N = importance_ratios(self.prompt_)
        k = min(self.num_neighbours, int((ratio_N > 0).sum()))
        distance_QN = np.where(ratio_N > 0, self._distances(features_QD), np.inf)
        nearest_QK = np.argpartition(distance_QN, k - 1, axis=1)[:, :k]
        return np.average(self._returns_N[nearest_QK], axis=1, weights=ratio_N[nearest_QK])


@dataclass(eq=False)
class GaussianProcessTD(KernelEstimator):
    """Gaussian-process TD (Engel, Mannor, Meir 2003, 2005) around the prompt's constant.

    R = H v + noise with H the difference operator (discount at the successor); v is a Gaussian process with a Gaussian
    kernel. Its posterior gives values and standard errors. Noise and prior variance are in units of the variance of the
    rewards relative to the constant.

    Args:
        width: width of the kernel.
        noise: variance of a TD error, relative to ``prior``; > 0.
        trace_decay: 0 for white noise (2003), 1 for the noise of Monte Carlo returns (2005).
    """

    weighs_ratios = False
    width: float = 1.6
    noise: float = 0.03
    trace_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(noise=self.noise)
        check_fraction(trace_decay=self.trace_decay)

    def _fit(self, prompt: Prompt) -> None:
        num_sources = len(prompt)
        columns_CD = all_features(prompt)
        difference_NC = np.zeros((num_sources, len(columns_CD)))
        rows = np.arange(num_sources)
        difference_NC[rows, rows] = 1.0
        np.add.at(difference_NC, (rows, prompt.successors), -prompt.discounts)
        noise_NN = self._noise(prompt)
        self._width, self._columns_CD = prompt.kernel_width(self.width), columns_CD
        kernel_CC = self._cross(columns_CD)
        target_N = excess_rewards(prompt)
        covariance_NN = difference_NC @ kernel_CC @ difference_NC.T + self.noise * noise_NN
        self._factor = linalg.cho_factor(covariance_NN, lower=True)
        self._difference_NC = difference_NC
        solved_N = linalg.cho_solve(self._factor, target_N)
        self._dual_C = difference_NC.T @ solved_N
        self._scale = float(np.sqrt(max(target_N @ solved_N, 0.0) / num_sources))  # maximum-likelihood prior spread

    def _noise(self, prompt: Prompt) -> np.ndarray:
        """B B^T with B the bidiagonal operator delta_k - discount lambda delta_{k+1}, as in MC-GPTD."""
        operator_NN = np.eye(len(prompt))
        decay_N = prompt.discounts * self.trace_decay * prompt.trace_links
        operator_NN[np.arange(len(prompt) - 1), np.arange(1, len(prompt))] = -decay_N[:-1]
        return operator_NN @ operator_NN.T

    def _cross(self, features_QD: np.ndarray) -> np.ndarray:
        return np.exp(-scaled_distances(features_QD, self._columns_CD, self._width) / 2)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self.prompt_.constant + self._cross(features_QD) @ self._dual_C

    def _stderr(self, features_QD: np.ndarray) -> np.ndarray:
        cross_NQ = self._difference_NC @ self._cross(features_QD).T
        explained_Q = (cross_NQ * linalg.cho_solve(self._factor, cross_NQ)).sum(axis=0)
        return self._scale * np.sqrt(np.maximum(1.0 - explained_Q, 0.0))
