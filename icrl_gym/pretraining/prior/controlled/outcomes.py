"""Rewards and endings for systems that have none of their own, fitted to where a policy goes.

Shapes: B copies, F features, T pilot steps of M copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick, subset
from icrl_gym.pretraining.prior.controlled.endings import BALL, BOX, GOAL, HALF_SPACE, NONE, QUADRIC, Ending

COST, ALIVE, PROGRESS, TIME, SPARSE, REGION = "cost", "alive", "progress", "time", "sparse", "region"
_FAILURES = (HALF_SPACE, BOX, BALL, QUADRIC)
_ENDINGS = {  # which endings go with which reward
    COST: (NONE, NONE, *_FAILURES, GOAL),
    ALIVE: _FAILURES,
    PROGRESS: (NONE, *_FAILURES),
    TIME: (GOAL, GOAL, GOAL, HALF_SPACE),
    SPARSE: (GOAL, GOAL, *_FAILURES),
    REGION: (NONE, NONE, *_FAILURES),
}
_KINDS, _SHARES = (COST, ALIVE, PROGRESS, TIME, SPARSE, REGION), (0.25, 0.2, 0.25, 0.1, 0.08, 0.12)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a step pays, from the features arrived in and the inputs, and where episodes terminate.

    Attributes:
        kind: "cost" (squared distance), "alive", "progress" (along a direction), "time" (a constant cost to an end),
            "sparse" (nothing but the end), or "region" (a bump around a point).
        constant: paid on every step.
        weights_F, centre_F, direction_F: coefficients of squared distances and of progress.
        effort: cost of the mean squared input.
        terminal: paid beside the rest on the step that terminates.
        unit: factor of all of it.
    """

    kind: str
    ending: Ending
    constant: float
    weights_F: np.ndarray
    centre_F: np.ndarray
    direction_F: np.ndarray
    effort: float
    terminal: float
    unit: float

    @classmethod
    def blank(cls, num_features: int) -> Self:
        """Pays nothing and never ends."""
        zero = np.zeros(num_features)
        return cls(SPARSE, Ending.never(num_features), 0.0, zero, zero, zero, 0.0, 0.0, 1.0)

    @classmethod
    def draw(cls, pilot_TMF: np.ndarray, forward_F: np.ndarray, gamma: float, rng: np.random.Generator) -> Self:
        """A random outcome in units of what the pilot runs show; progress is along ``forward_F`` or its opposite."""
        size = pilot_TMF.shape[-1]
        kind = pick(rng, _KINDS, _SHARES)
        ending = Ending.draw(pick(rng, _ENDINGS[kind]), pilot_TMF, rng)
        mean_F, spread_F = pilot_TMF.mean(axis=(0, 1)), np.maximum(pilot_TMF.std(axis=(0, 1)), 1e-6)
        weights, chosen = np.zeros(size), subset(rng, size, size)
        weights[chosen] = log_uniform(rng, 0.2, 2.0, len(chosen)) / spread_F[chosen] ** 2 / len(chosen)
        centre = pick(rng, (mean_F, np.zeros(size), mean_F + rng.normal(size=size) * spread_F))
        pace = float((pilot_TMF @ forward_F).std())
        bonus = rng.uniform(0.2, 2.0) if chance(rng, 0.4) else 0.0
        constants = {ALIVE: 1.0, TIME: -1.0, SPARSE: 0.0, REGION: 0.0, COST: bonus, PROGRESS: bonus}
        return cls(
            kind=kind,
            ending=ending,
            constant=constants[kind],
            weights_F=weights,
            centre_F=centre,
            direction_F=forward_F * (pick(rng, (1.0, -1.0), (0.8, 0.2)) / max(pace, 1e-6)),
            effort=log_uniform(rng, 0.01, 0.5) if chance(rng, 0.5) and kind != SPARSE else 0.0,
            terminal=_draw_terminal(kind, ending.kind, gamma, rng),
            unit=log_uniform(rng, 0.1, 10.0),
        )

    def __call__(self, features_BF: np.ndarray, inputs_BU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rewards (B,) and whether the episode terminates (B,) bool."""
        ended = self.ending.reached(features_BF)
        rewards = self.constant + self.terminal * ended
        if self.kind in (COST, REGION):
            distance = (features_BF - self.centre_F) ** 2 @ self.weights_F
            rewards = rewards + (np.exp(-0.5 * distance) if self.kind == REGION else -distance)
        elif self.kind == PROGRESS:
            rewards = rewards + features_BF @ self.direction_F
        if self.effort:
            rewards = rewards - self.effort * (inputs_BU**2).mean(axis=1)
        return self.unit * rewards, ended


def _draw_terminal(kind: str, ending: str, gamma: float, rng: np.random.Generator) -> float:
    """Bonus or penalty of at most the discounted horizon."""
    size = float((1.0 - gamma) ** -rng.uniform(0.0, 0.85))
    if kind == SPARSE:
        return size if ending == GOAL or chance(rng, 0.3) else -size
    if ending == NONE or chance(rng, 0.5):
        return 0.0
    return size if ending == GOAL or chance(rng, 0.2) else -size
