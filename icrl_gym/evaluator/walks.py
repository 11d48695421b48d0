"""Returns imagined with a model of the closed loop that is read off the context.

Where a process moves smoothly and hardly at random, its next step is far easier to predict than its value: n
transitions are n labelled examples of a smooth function, and leaving each out tells honestly how good the prediction
is. From a query the model is followed for some steps, rewards are added up, and the value function takes over where the
walk ends:

    V_T(x) = sum_{t < T} D_t r(z_t) + D_T V(z_T),   z_0 = x,  z_{t+1} = z_t + d(z_t),  D_t = prod_{i < t} gamma c(z_i)

with d, r and c the model's displacement, reward and probability of going on. This is model-based value expansion
(Feinberg et al. 2018) with a kernel model; its use beside softmax TD, and when to believe it, are this project's own.
Rewards enter linearly.

Shape legend: N sources, M of them in the model, D features, Q queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from icrl_gym.context.prompt import Prompt

BANDWIDTH = 1.6  # of the model's kernel, as `Setting.bandwidth`
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LINEAR_RIDGE = 1e-2
MOST_ROWS = 512  # of the context in the model, evenly spaced
FEWEST_ROWS = 16
LEAST_DISTINCT = 0.5
TERMINATION_BANDWIDTH = 0.3
FAR = 1e-9  # of a source at distance zero: farther from all sources than this, nothing ends
MARGIN = 0.3  # standard deviations by which a walk may leave the context's range
MOST_STEPS = 50
STILL = 1e-9  # features that vary less are never moved


@dataclass(frozen=True, eq=False)
class Walks:
    """Walks from Q queries: their ends and their earnings.

    Attributes:
        ends_QD: features z_T of the states that the walks end in.
        discounts_Q: discounts D_T of the values there.
        reward_weights_QN: weights of the context's rewards in the earnings on the way.
    """

    ends_QD: np.ndarray
    discounts_Q: np.ndarray
    reward_weights_QN: np.ndarray

    def returns(self, rewards_N: np.ndarray, end_values_Q: np.ndarray) -> np.ndarray:
        """Imagined returns V_T (..., Q), given the values (..., Q) of the ends."""
        return self.reward_weights_QN @ rewards_N + self.discounts_Q * end_values_Q


@dataclass(frozen=True, eq=False)
class TransitionModel:
    """Displacement, reward and continuation as functions of the features, fitted to one prompt.

    Displacement is a linear function plus kernel ridge regression, reward its mean plus the same. Each of these D + 1
    outputs takes the ridge with the least squared leave-one-out error, or no kernel at all. Continuation is a narrow
    kernel average over all sources.

    Attributes:
        prompt: the context that it was fitted to.
        rows_M: the sources in it, none of which terminated.
        linear_ED: (1 + D, D) linear part of the displacement.
        weights_MD: kernel weights of the displacement.
        reward_inverse_MM: matrix that turns the rows' rewards, less their mean, into kernel weights; None for the mean
            alone.
        explained_D: share of each displacement's variance that is predicted from the other transitions; nan where the
            feature never moves, or always by the same.
    """

    prompt: Prompt
    rows_M: np.ndarray
    linear_ED: np.ndarray
    weights_MD: np.ndarray
    reward_inverse_MM: np.ndarray | None
    explained_D: np.ndarray

    @classmethod
    def fit(cls, prompt: Prompt) -> TransitionModel | None:
        """The model of a prompt; None where few transitions go on, states recur, or another policy acted.

        What recurs is to be looked up, not extrapolated: it does if less than half of the sources are distinct.
        """
        live = np.flatnonzero(prompt.discounts > 0)
        if len(live) < FEWEST_ROWS or prompt.importance_ratios is not None:
            return None
        if len(np.unique(prompt.source_features, axis=0)) < LEAST_DISTINCT * len(prompt):
            return None
        rows_M = live[np.linspace(0, len(live) - 1, min(len(live), MOST_ROWS)).round().astype(int)]
        columns_CD = np.concatenate([prompt.source_features, prompt.end_features])
        x_MD, rewards_M = prompt.source_features[rows_M], prompt.rewards[rows_M]
        moved_MD = columns_CD[prompt.successors[rows_M]] - x_MD
        ones_ME = _with_one(x_MD)
        gram_EE = ones_ME.T @ ones_ME + LINEAR_RIDGE * np.eye(ones_ME.shape[1])
        linear_ED = np.linalg.solve(gram_EE, ones_ME.T @ moved_MD)
        left_MO = np.column_stack([moved_MD - ones_ME @ linear_ED, rewards_M - rewards_M.mean()])
        least_O = np.square(left_MO).sum(axis=0)
        least_O[:-1] *= 1 + 2 * len(gram_EE) / len(rows_M)  # the linear part was fitted to the same rows
        kernel_MM = _gaussian(x_MD, x_MD, prompt.kernel_width(BANDWIDTH))
        weights_MO, reward_inverse_MM = np.zeros_like(left_MO), None
        for ridge in RIDGES:
            inverse_MM = _inverse(kernel_MM + ridge * np.eye(len(rows_M)))
            tried_MO = inverse_MM @ left_MO
            square_O = np.square(tried_MO / inverse_MM.diagonal()[:, None]).sum(axis=0)  # leaving each row out
            better_O = square_O < least_O
            weights_MO[:, better_O] = tried_MO[:, better_O]
            least_O = np.minimum(least_O, square_O)
            if better_O[-1]:
                reward_inverse_MM = inverse_MM
        square_D, variance_D = np.square(moved_MD).sum(axis=0), np.square(moved_MD - moved_MD.mean(axis=0)).sum(axis=0)
        moving_D = prompt.source_features.std(axis=0) > STILL
        varied_D = moving_D & (variance_D > STILL * square_D)
        explained_D = 1 - np.divide(least_O[:-1], variance_D, out=np.full_like(variance_D, np.nan), where=varied_D)
        weights_MD = weights_MO[:, :-1] * moving_D
        return cls(prompt, rows_M, linear_ED * moving_D, weights_MD, reward_inverse_MM, explained_D)

    @property
    def predictability(self) -> float:
        """How well the next step is predicted, at most 1: the mean over moving features, averaged with the least."""
        explained = self.explained_D[np.isfinite(self.explained_D)]
        return float((explained.mean() + explained.min()) / 2) if len(explained) else 0.0

    def walk(self, features_QD: np.ndarray, num_steps: int) -> Walks:
        """Follow the model from Q queries, (Q, D)."""
        prompt, x_ND = self.prompt, self.prompt.source_features
        low_QD = np.minimum(x_ND.min(axis=0) - MARGIN, features_QD)
        high_QD = np.maximum(x_ND.max(axis=0) + MARGIN, features_QD)
        ended_N = prompt.discounts == 0
        z_QD, discounts_Q = features_QD, np.ones(len(features_QD))
        weights_QN = np.zeros((len(features_QD), len(x_ND)))
        for _ in range(num_steps):
            kernel_QM = _gaussian(z_QD, x_ND[self.rows_M], prompt.kernel_width(BANDWIDTH))
            if ended_N.any():
                near_QN = _gaussian(z_QD, x_ND, prompt.kernel_width(TERMINATION_BANDWIDTH))
                ending_QN = near_QN[:, ended_N] / (near_QN.sum(axis=1, keepdims=True) + FAR)
                weights_QN[:, ended_N] += discounts_Q[:, None] * ending_QN
                discounts_Q = discounts_Q * (1.0 - ending_QN.sum(axis=1))
            weights_QN[:, self.rows_M] += discounts_Q[:, None] * self._reward_weights(kernel_QM)
            discounts_Q = discounts_Q * prompt.gamma
            moved_QD = _with_one(z_QD) @ self.linear_ED + kernel_QM @ self.weights_MD
            z_QD = (z_QD + moved_QD).clip(low_QD, high_QD)
        return Walks(z_QD, discounts_Q, weights_QN)

    def _reward_weights(self, kernel_QM: np.ndarray) -> np.ndarray:
        """The expected reward of going on, linear in the M rewards, (Q, M): their mean and what differs."""
        mean_QM = np.full_like(kernel_QM, 1.0 / len(self.rows_M))
        if self.reward_inverse_MM is None:
            return mean_QM
        weights_QM = kernel_QM @ self.reward_inverse_MM
        return mean_QM + weights_QM - weights_QM.mean(axis=1, keepdims=True)


def imagination_steps(gamma: float) -> int:
    """Number of steps to imagine: half a horizon, at most `MOST_STEPS`."""
    return min(MOST_STEPS, math.ceil(0.5 / (1.0 - gamma)))


def _inverse(positive_MM: np.ndarray) -> np.ndarray:
    """The inverse by Cholesky's factors, four times as fast as the general one."""
    return torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(positive_MM))).numpy()


def _with_one(x_BD: np.ndarray) -> np.ndarray:
    return np.concatenate([np.ones((len(x_BD), 1)), x_BD], axis=1)


def _gaussian(a_AD: np.ndarray, b_BD: np.ndarray, width: float) -> np.ndarray:
    """exp(-|a - b|^2 / (2 width^2)), (A, B)."""
    square_AB = np.square(a_AD).sum(axis=1)[:, None] + np.square(b_BD).sum(axis=1) - 2 * a_AD @ b_BD.T
    return np.exp(-np.maximum(square_AB, 0.0) / (2 * width**2))
