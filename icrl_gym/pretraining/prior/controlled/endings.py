"""Where episodes terminate: regions of the feature space, as large as a wanted frequency asks for.

Shapes: B copies, F features, K forms, T pilot steps of M copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, subset

NONE, HALF_SPACE, BOX, BALL, QUADRIC, GOAL = "none", "half_space", "box", "ball", "quadric", "goal"
LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9997, 1.0)  # quantiles tried as thresholds


@dataclass(frozen=True, eq=False)
class Ending:
    """An episode terminates where the largest of K forms exceeds the threshold.

    A form is f^2 @ square + f @ linear + constant + (f @ first) * (f @ second).

    Attributes:
        kind: "none", "half_space", "box" (outside bounds on one or two features), "ball" (too far from a point),
            "quadric", or "goal" (near a point).
        square_FK, linear_FK, first_FK, second_FK, constant_K: coefficients.
        threshold: infinite for an ending that never happens.
    """

    kind: str
    square_FK: np.ndarray
    linear_FK: np.ndarray
    first_FK: np.ndarray
    second_FK: np.ndarray
    constant_K: np.ndarray
    threshold: float

    @classmethod
    def never(cls, num_features: int) -> Self:
        """No ending."""
        zero = np.zeros((num_features, 1))
        return cls(NONE, zero, zero, zero, zero, np.zeros(1), np.inf)

    @classmethod
    def draw(cls, kind: str, pilot_TMF: np.ndarray, rng: np.random.Generator) -> Ending:
        """A region of the given kind whose border the pilot runs cross as often as drawn: rarely or frequently."""
        num_features = pilot_TMF.shape[-1]
        if kind == NONE:
            return cls.never(num_features)
        spread_F = np.maximum(pilot_TMF.std(axis=(0, 1)), 1e-6)
        unfitted = _draw_forms(cls.never(num_features), kind, pilot_TMF, spread_F, rng)
        rate = log_uniform(rng, 1e-3, 1e-2) if chance(rng, 0.5) else log_uniform(rng, 1e-2, 6e-2)
        num_steps, num_copies, _ = pilot_TMF.shape
        scores = unfitted.score(pilot_TMF.reshape(-1, num_features)).reshape(num_steps, num_copies)
        return replace(unfitted, threshold=crossing_threshold(scores, rate))

    def score(self, features_BF: np.ndarray) -> np.ndarray:
        """The largest form, (B,)."""
        forms = features_BF**2 @ self.square_FK + features_BF @ self.linear_FK + self.constant_K
        if self.kind == QUADRIC:
            forms += (features_BF @ self.first_FK) * (features_BF @ self.second_FK)
        return forms[:, 0] if forms.shape[1] == 1 else forms.max(axis=1)

    def reached(self, features_BF: np.ndarray) -> np.ndarray:
        """Whether the episode terminates there, (B,) bool."""
        if self.kind == NONE:
            return np.zeros(len(features_BF), dtype=bool)
        return self.score(features_BF) > self.threshold


def _draw_forms(
    blank: Ending, kind: str, pilot_TMF: np.ndarray, spread_F: np.ndarray, rng: np.random.Generator
) -> Ending:
    size = len(spread_F)
    linear, square = np.zeros((size, 1)), np.zeros((size, 1))
    if kind == HALF_SPACE:
        chosen = subset(rng, size, 2)
        linear[chosen, 0] = rng.normal(size=len(chosen)) / spread_F[chosen]
        return replace(blank, kind=kind, linear_FK=linear)
    if kind == BOX:
        chosen = subset(rng, size, 2)
        square = np.zeros((size, len(chosen)))
        square[chosen, np.arange(len(chosen))] = log_uniform(rng, 0.5, 2.0, len(chosen)) / spread_F[chosen] ** 2
        linear = np.zeros_like(square)
        return replace(blank, kind=kind, square_FK=square, linear_FK=linear, constant_K=np.zeros(len(chosen)))
    if kind in (BALL, GOAL):
        chosen = subset(rng, size, 3)
        visited = pilot_TMF[rng.integers(len(pilot_TMF) // 2, len(pilot_TMF)), rng.integers(pilot_TMF.shape[1])]
        centre = visited if kind == GOAL else pilot_TMF.mean(axis=(0, 1))
        square[chosen, 0] = log_uniform(rng, 0.5, 2.0, len(chosen)) / spread_F[chosen] ** 2
        square *= -1.0 if kind == GOAL else 1.0
        linear = -2.0 * square * centre[:, None]
        return replace(blank, kind=kind, square_FK=square, linear_FK=linear, constant_K=centre**2 @ square)
    first, second = rng.normal(size=(2, size, 1)) / spread_F[:, None]
    square = rng.uniform(0.0, 1.0, (size, 1)) * (rng.random((size, 1)) < 0.5) / spread_F[:, None] ** 2
    return replace(blank, kind=kind, square_FK=square, first_FK=first, second_FK=second)


def crossing_threshold(scores_TM: np.ndarray, rate: float) -> float:
    """The threshold that first crossings of the pilot runs pass about as often per step as wanted."""
    highest_TM = np.maximum.accumulate(scores_TM, axis=0)
    levels_L = np.unique(np.quantile(scores_TM, LEVELS))
    below_L = np.array([(highest_TM <= level).sum() for level in levels_L])
    crossed_L = np.array([(highest_TM[-1] > level).sum() for level in levels_L])
    rates_L = np.maximum(crossed_L, 0.3) / np.maximum(below_L, 1)
    return float(levels_L[np.abs(np.log(rates_L / rate)).argmin()])
