"""`Basis`: functions of a state that an imitated policy's actions are read from.

Shape legend: N transitions, B states, D features, L bumps, P functions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MOST_QUADRATIC = 12
MOST_BUMPS, ROWS_PER_BUMP = 96, 6  # at least so many transitions for each
BUMP_BANDWIDTHS = (0.5, 1.2)  # standard deviations of the context, times sqrt(D / 4)
BUMPS_PAY = 0.95  # of the error without bumps: only with less than that are they used


@dataclass(frozen=True, eq=False)
class Basis:
    """Functions of a state that imitated actions are linear in: 1, the features, squares and products, and bumps.

    Attributes:
        quadratic: whether squares and products are among them.
        centres_LD: states of the log at which there is a Gaussian bump.
        width: of the bumps.
    """

    quadratic: bool
    centres_LD: np.ndarray
    width: float

    @classmethod
    def candidates(cls, features_ND: np.ndarray) -> tuple[Basis, ...]:
        """Without bumps, then with wider and narrower ones, at states spread over the log."""
        num_rows, num_features = features_ND.shape
        quadratic = num_features <= MOST_QUADRATIC
        rows = np.linspace(0, num_rows - 1, min(MOST_BUMPS, num_rows // ROWS_PER_BUMP)).round().astype(int)
        plain = cls(quadratic, features_ND[:0], 1.0)
        widths = [bandwidth * math.sqrt(num_features / 4) for bandwidth in BUMP_BANDWIDTHS] if len(rows) else []
        return (plain, *(cls(quadratic, features_ND[rows], width) for width in widths))

    @property
    def least_gain(self) -> float:
        """Share of another basis's error that this one must stay below to be preferred."""
        return BUMPS_PAY if len(self.centres_LD) else 1.0

    def __call__(self, features_BD: np.ndarray) -> np.ndarray:
        """Values (B, P) of the functions."""
        parts = [np.ones((len(features_BD), 1)), features_BD]
        if self.quadratic:
            i, j = np.triu_indices(features_BD.shape[1])
            parts.append(features_BD[:, i] * features_BD[:, j])
        if len(self.centres_LD):
            squares_BL = (
                np.square(features_BD).sum(axis=1)[:, None]
                - 2.0 * features_BD @ self.centres_LD.T
                + np.square(self.centres_LD).sum(axis=1)
            )
            parts.append(np.exp(-squares_BL / (2.0 * self.width**2)))
        return np.concatenate(parts, axis=1)
