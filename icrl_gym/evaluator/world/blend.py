"""How far counted values are believed beside smoother estimates of the same values, and beside their mean.

Counts of a state know nothing of other states. Smoother estimates do: a *leaf* (softmax TD's values) of its neighbours,
an *additive* one (additive.py) of all states that show the same in one component. The blend

    v = mean + sum_e share_e (estimate_e - its mean),      share_e >= 0,  sum_e share_e <= 1                       (1)

has the shares whose estimated squared error is least: with x the deviation in (1), and the noise of the counts
known, E|x - truth|^2 = |x - counted|^2 + 2 cov(x, noise of the counts) up to what is the same for all shares (Mallows
1973, C_p, here over the states of a log). With the counts alone this is the shrinkage of James & Stein (1961).

Noise along the counted deviations is left out of that: it is one factor of all values, as where a goal was reached once
or twice. Its size goes with the values', so what was counted is as likely too little as too much.

Shape legend: S states, R draws of the noise, E estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

TINY = np.finfo(float).tiny
SINGULAR = 1e-12  # reciprocal condition number below which estimates are one


class Estimate(NamedTuple):
    """Values of the states of a log.

    Attributes:
        values_S: as estimated.
        noise_SR: draws of the noise in them, the same draws for all estimates.
    """

    values_S: np.ndarray
    noise_SR: np.ndarray


@dataclass(frozen=True, eq=False)
class Blend:
    """Shares of several estimates in the deviations of values from their mean.

    Attributes:
        visits_S: shares of the log that left each state, over which means are taken.
        counts, leaf, additive: the shares, at least 0 and together at most 1.
        misfit: estimated mean squared error of the blended values beyond their noise.
    """

    visits_S: np.ndarray
    counts: float = 1.0
    leaf: float = 0.0
    additive: float = 0.0
    misfit: float = 0.0

    @classmethod
    def best(cls, visits_S: np.ndarray, counted: Estimate, leaf: Estimate, additive: Estimate) -> Blend:
        """The shares with the least estimated squared error over the log.

        Args:
            visits_S: shares of the log that left each state.
            counted: values by counting, which have noise and no other error.
            leaf, additive: the others; one whose values are all alike has no share.
        """
        found = (counted, leaf, additive)
        deviations_ES = np.stack([one.values_S - visits_S @ one.values_S for one in found])
        noises_ESR = np.stack([one.noise_SR - visits_S @ one.noise_SR for one in found])
        if not noises_ESR[0].any():
            return cls(visits_S)
        gram_EE = (deviations_ES * visits_S) @ deviations_ES.T
        shared_EE = np.einsum("s,isr,jsr->ij", visits_S, noises_ESR, noises_ESR) / noises_ESR.shape[2]
        along_R = (deviations_ES[0] * visits_S) @ noises_ESR[0] / max(gram_EE[0, 0], TINY)
        across_SR = noises_ESR[0] - np.outer(deviations_ES[0], along_R)
        across_E = np.einsum("s,isr,sr->i", visits_S, noises_ESR, across_SR) / len(along_R)
        shares_E = least(gram_EE, gram_EE[0] - across_E)
        target_E = gram_EE[0] - shared_EE[0]  # products with the truth
        risk = shares_E @ gram_EE @ shares_E - 2 * shares_E @ target_E + max(float(target_E[0]), 0.0)
        return cls(visits_S, *shares_E.tolist(), misfit=max(0.0, float(risk - shares_E @ shared_EE @ shares_E)))

    def __call__(self, counted: np.ndarray, leaf: np.ndarray, additive: np.ndarray) -> np.ndarray:
        """Blended values, of the shape (S, ...) of all three."""
        mean = self.visits_S @ counted
        values = mean + self.counts * (counted - mean)
        for share, estimate in ((self.leaf, leaf), (self.additive, additive)):
            values = values + share * (estimate - self.visits_S @ estimate)
        return values


def least(gram_EE: np.ndarray, target_E: np.ndarray) -> np.ndarray:
    """The x with x >= 0 and sum(x) <= 1 at which x G x - 2 x t is least, for a few estimates.

    It is where the gradient vanishes on one of the faces: some of x are 0, and their sum is free or 1.
    """
    found = [x_E for x_E in _stationary(gram_EE, target_E) if (x_E >= 0).all() and x_E.sum() <= 1 + SINGULAR]
    return min(found, key=lambda x_E: float(x_E @ gram_EE @ x_E - 2 * x_E @ target_E))


def _stationary(gram_EE: np.ndarray, target_E: np.ndarray) -> Iterator[np.ndarray]:
    """Where the gradient vanishes on each face; a face on which that is no single point has such points at its rim."""
    yield np.zeros(len(target_E))
    scale = float(np.trace(gram_EE))
    for size in range(1, len(target_E) + 1):
        for chosen in combinations(range(len(target_E)), size):
            part = list(chosen)
            matrix = np.block([[gram_EE[np.ix_(part, part)], np.full((size, 1), scale)], [np.full(size, scale), 0.0]])
            vector = np.append(target_E[part], scale)
            for rows in (size, size + 1):  # the sum is free, or 1
                if np.linalg.cond(matrix[:rows, :rows]) < 1.0 / SINGULAR:
                    x_E = np.zeros(len(target_E))
                    x_E[part] = np.linalg.solve(matrix[:rows, :rows], vector[:rows])[:size]
                    yield x_E
