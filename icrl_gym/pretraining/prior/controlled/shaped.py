"""Systems made of drawn dynamics and a drawn outcome.

Shapes: B copies, S state variables, F features, D = F observed columns, U inputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform
from icrl_gym.pretraining.prior.controlled.laws import LinearLaw
from icrl_gym.pretraining.prior.controlled.outcomes import Outcome
from icrl_gym.pretraining.prior.controlled.systems import UNLIMITED, Actuation, Law, System


class Dynamics(ABC):
    """What moves, without rewards.

    Attributes:
        num_features: F.
        num_inputs: U.
        is_random: whether `advance` draws any number.
        most_rollouts: per query for the truth, however many are asked for.
    """

    num_features: int
    num_inputs: int
    is_random: bool
    most_rollouts: int = UNLIMITED

    @abstractmethod
    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Starting states, (B, S)."""

    @abstractmethod
    def advance(self, states: np.ndarray, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Next states (B, S) under inputs (B, U) in [-1, 1]."""

    @abstractmethod
    def features(self, states: np.ndarray) -> np.ndarray:
        """Quantities that can be seen and that rewards are made of, (B, F); tells the whole state."""

    @abstractmethod
    def forward(self, rng: np.random.Generator) -> np.ndarray:
        """A direction in which progress makes sense, (F,)."""

    @abstractmethod
    def feedback(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Gains (F, U) and bias (U,) of a hand-made controller."""


@dataclass(frozen=True, eq=False)
class ShapedSystem(System):
    """Dynamics under an outcome, observed in drawn units.

    Attributes:
        unit_F, shift_F: observation = features * unit + shift.
    """

    dynamics: Dynamics
    outcome: Outcome
    actuation: Actuation
    unit_F: np.ndarray
    shift_F: np.ndarray

    @classmethod
    def draw(cls, dynamics: Dynamics, rng: np.random.Generator) -> Self:
        """Units and actions; the outcome is still blank, see `settled`."""
        size = dynamics.num_features
        units = log_uniform(rng, 0.2, 5.0, size) if chance(rng, 0.3) else np.ones(size)
        shifts = rng.normal(size=size) * units if chance(rng, 0.2) else np.zeros(size)
        return cls(dynamics, Outcome.blank(size), Actuation.draw(rng, dynamics.num_inputs, 0.35), units, shifts)

    @property
    def is_random(self) -> bool:
        return self.dynamics.is_random

    @property
    def most_rollouts(self) -> int:
        return self.dynamics.most_rollouts

    @property
    def needs_pilot(self) -> bool:
        return True

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return self.dynamics.reset(batch, rng)

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = self.actuation.inputs(actions)
        after = self.dynamics.advance(states, inputs, rng)
        return after, *self.outcome(self.dynamics.features(after), inputs)

    def observe(self, states: np.ndarray) -> np.ndarray:
        return self.dynamics.features(states) * self.unit_F + self.shift_F

    def guide(self, rng: np.random.Generator) -> Law:
        weights, bias = self.dynamics.feedback(rng)
        return LinearLaw(self.shift_F, self.unit_F, weights, bias, 1.0)

    def settled(self, pilot_TMS: np.ndarray, gamma: float, rng: np.random.Generator) -> ShapedSystem:
        num_steps, num_copies, _ = pilot_TMS.shape
        features = self.dynamics.features(pilot_TMS.reshape(num_steps * num_copies, -1))
        pilot_TMF = features.reshape(num_steps, num_copies, -1)
        return replace(self, outcome=Outcome.draw(pilot_TMF, self.dynamics.forward(rng), gamma, rng))
