"""How far counted values are believed beside a smooth estimate of the same values, and beside their mean.

Counts of a state know nothing of its neighbours, and a *leaf* (softmax TD's values) hardly anything else. The blend

    v = mean + a (leaf - its mean) + b (counted - mean),      a, b >= 0,  a + b <= 1                            (1)

has the shares a and b whose estimated squared error is least: with x the deviation in (1), and the noise of the counts
known, E|x - truth|^2 = |x - counted|^2 + 2 cov(x, noise of the counts) up to what is the same for all shares (Mallows
1973, C_p, here over the states of a log). Without the leaf, a = 0, this is the shrinkage of James & Stein (1961).

Shape legend: S states, R draws of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Blend:
    """Shares of the leaf and of the counts in the deviations of values from their mean.

    Attributes:
        visits_S: shares of the log that left each state, over which means are taken.
        leaf: a, in [0, 1].
        counts: b, in [0, 1 - a].
        misfit: estimated mean squared error of the blended values beyond their noise.
    """

    visits_S: np.ndarray
    leaf: float = 0.0
    counts: float = 1.0
    misfit: float = 0.0

    @classmethod
    def best(
        cls,
        visits_S: np.ndarray,
        counted_S: np.ndarray,
        leaf_S: np.ndarray,
        counted_noise_SR: np.ndarray,
        leaf_noise_SR: np.ndarray | None,
    ) -> Blend:
        """The shares with the least estimated squared error over the log.

        Args:
            visits_S: shares of the log that left each state.
            counted_S: values by counting.
            leaf_S: the leaf's.
            counted_noise_SR: draws of the noise in the first.
            leaf_noise_SR: what the same draws do to the second; None: not known, and the leaf has no share.
        """
        apart_S, noise_SR = counted_S - visits_S @ counted_S, counted_noise_SR - visits_S @ counted_noise_SR
        if not noise_SR.any():
            return cls(visits_S)
        known = leaf_noise_SR is not None
        smooth_S = leaf_S - visits_S @ leaf_S if known else np.zeros_like(leaf_S)
        smooth_noise_SR = leaf_noise_SR - visits_S @ leaf_noise_SR if known else np.zeros_like(noise_SR)
        deviations_2S, noises_2SR = np.stack([smooth_S, apart_S]), np.stack([smooth_noise_SR, noise_SR])
        gram_22 = (deviations_2S * visits_S) @ deviations_2S.T
        shared_22 = np.einsum("s,isr,jsr->ij", visits_S, noises_2SR, noises_2SR) / noise_SR.shape[1]
        target_2 = gram_22[1] - shared_22[1]  # products with the truth
        shares_2 = _least(gram_22, target_2)
        risk = shares_2 @ gram_22 @ shares_2 - 2 * shares_2 @ target_2 + max(float(target_2[1]), 0.0)
        misfit = max(0.0, float(risk - shares_2 @ shared_22 @ shares_2))
        return cls(visits_S, float(shares_2[0]), float(shares_2[1]), misfit)

    def __call__(self, counted: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """Blended values, of the shape (S, ...) of both."""
        mean = self.visits_S @ counted
        return mean + self.leaf * (leaf - self.visits_S @ leaf) + self.counts * (counted - mean)


def _least(gram_22: np.ndarray, target_2: np.ndarray) -> np.ndarray:
    """The x with x >= 0 and sum(x) <= 1 at which x G x - 2 x t is least: inside, or on one of the three edges."""
    determinant = float(np.linalg.det(gram_22))
    if determinant > 1e-12 * gram_22[0, 0] * gram_22[1, 1]:
        inside_2 = np.linalg.solve(gram_22, target_2)
        if (inside_2 >= 0).all() and inside_2.sum() <= 1:
            return inside_2
    found = []
    for start, along in ((0.0, 0.0), (0.0, 1.0)), ((0.0, 0.0), (1.0, 0.0)), ((0.0, 1.0), (1.0, -1.0)):
        start_2, along_2 = np.array(start), np.array(along)
        curvature, slope = along_2 @ gram_22 @ along_2, along_2 @ (target_2 - gram_22 @ start_2)
        found.append(start_2 + along_2 * (np.clip(slope / curvature, 0.0, 1.0) if curvature > 0 else 0.0))
    return min(found, key=lambda x_2: float(x_2 @ gram_22 @ x_2 - 2 * x_2 @ target_2))
