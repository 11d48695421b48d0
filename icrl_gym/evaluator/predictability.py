"""How well a context's next step is predicted by its features, which is a statistic of the prompt.

Where a process moves smoothly and hardly at random, its next step is easy to predict: n transitions are n labelled
examples of a smooth function, and leaving each out tells honestly how good the prediction is.

Shape legend: M transitions that are predicted, D features, E = 1 + D with the constant.
"""

from __future__ import annotations

import numpy as np
import torch

from icrl_gym.context.prompt import Prompt

BANDWIDTH = 1.6  # of the kernel, as `Setting.bandwidth`
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
LINEAR_RIDGE = 1e-2
MOST_ROWS = 512  # of the context that are used, evenly spaced
FEWEST_ROWS = 16
LEAST_DISTINCT = 0.5
STILL = 1e-9  # features that vary less are taken as fixed


def predictability(prompt: Prompt) -> float:
    """How well the next step is predicted, at most 1: the mean over moving features, averaged with the least.

    0 where nothing is known of it (see `explained_variance`), or no feature moves.
    """
    explained_D = explained_variance(prompt)
    if explained_D is None:
        return 0.0
    explained = explained_D[np.isfinite(explained_D)]
    return float((explained.mean() + explained.min()) / 2) if len(explained) else 0.0


def explained_variance(prompt: Prompt) -> np.ndarray | None:
    """Share (D,) of each displacement's variance that is predicted from the other transitions.

    The prediction is a linear function plus kernel ridge regression, with the ridge of the least squared leave-one-out
    error for each feature, or no kernel at all.

    Returns:
        The shares; nan where the feature never moves, or always by the same. None where few transitions go on, states
        recur (less than half of the sources are distinct), or another policy acted.
    """
    live = np.flatnonzero(prompt.discounts > 0)
    if len(live) < FEWEST_ROWS or prompt.importance_ratios is not None:
        return None
    if len(prompt.first_visits) < LEAST_DISTINCT * len(prompt):
        return None
    rows_M = live[np.linspace(0, len(live) - 1, min(len(live), MOST_ROWS)).round().astype(int)]
    columns_CD = np.concatenate([prompt.source_features, prompt.end_features])
    x_MD = prompt.source_features[rows_M]
    moved_MD = columns_CD[prompt.successors[rows_M]] - x_MD
    ones_ME = np.concatenate([np.ones((len(x_MD), 1)), x_MD], axis=1)
    gram_EE = ones_ME.T @ ones_ME + LINEAR_RIDGE * np.eye(ones_ME.shape[1])
    left_MD = moved_MD - ones_ME @ np.linalg.solve(gram_EE, ones_ME.T @ moved_MD)
    least_D = np.square(left_MD).sum(axis=0)
    least_D *= 1 + 2 * len(gram_EE) / len(rows_M)  # the linear part was fitted to the same rows
    kernel_MM = _gaussian(x_MD, prompt.kernel_width(BANDWIDTH))
    for ridge in RIDGES:
        inverse_MM = _inverse(kernel_MM + ridge * np.eye(len(rows_M)))
        left_out_MD = (inverse_MM @ left_MD) / inverse_MM.diagonal()[:, None]  # errors on rows that are left out
        least_D = np.minimum(least_D, np.square(left_out_MD).sum(axis=0))
    square_D, variance_D = np.square(moved_MD).sum(axis=0), np.square(moved_MD - moved_MD.mean(axis=0)).sum(axis=0)
    varied_D = (prompt.source_features.std(axis=0) > STILL) & (variance_D > STILL * square_D)
    return 1 - np.divide(least_D, variance_D, out=np.full_like(variance_D, np.nan), where=varied_D)


def _inverse(positive_MM: np.ndarray) -> np.ndarray:
    """The inverse by Cholesky's factors, four times as fast as the general one."""
    return torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(positive_MM))).numpy()


def _gaussian(x_MD: np.ndarray, width: float) -> np.ndarray:
    """exp(-|x - x'|^2 / (2 width^2)), (M, M)."""
    square_M = np.square(x_MD).sum(axis=1)
    square_MM = square_M[:, None] + square_M - 2 * x_MD @ x_MD.T
    return np.exp(-np.maximum(square_MM, 0.0) / (2 * width**2))
