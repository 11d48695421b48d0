"""Controlled systems: what a family is to the rest of this package.

Shapes: B copies, S state variables, D observed columns, U inputs, A discrete actions. Everything is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
from gymnasium import spaces

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick

UNLIMITED = 10**9
Law = Callable[[np.ndarray], np.ndarray]  # observations (B, D) to numbers (B, K)


@dataclass(frozen=True, eq=False)
class Actuation:
    """How actions become inputs in [-1, 1].

    Attributes:
        levels: (A, U) inputs of each discrete action, or None where actions are continuous.
        high: (U,) bounds of the continuous actions, -high to high; ones where actions are discrete.
    """

    levels: np.ndarray | None
    high: np.ndarray

    @classmethod
    def discrete(cls, levels: np.ndarray) -> Self:
        """The actions 0 to A - 1 with inputs ``levels`` (A, U)."""
        return cls(levels, np.ones(levels.shape[1]))

    @classmethod
    def draw(cls, rng: np.random.Generator, num_inputs: int, discrete_share: float = 0.5) -> Self:
        """Random actions for U inputs, discrete with the given probability."""
        if chance(rng, discrete_share):
            return cls.discrete(_draw_levels(rng, num_inputs))
        return cls(None, np.full(num_inputs, pick(rng, (1.0, 1.0, 2.0, 0.4, log_uniform(rng, 0.1, 10.0)))))

    @property
    def num_inputs(self) -> int:
        return len(self.high)

    @property
    def space(self) -> spaces.Discrete | spaces.Box:
        if self.levels is not None:
            return spaces.Discrete(len(self.levels))
        return spaces.Box(-self.high, self.high, dtype=np.float64)

    def inputs(self, actions: np.ndarray) -> np.ndarray:
        """Inputs (B, U) of actions (B,) or (B, U); what is outside the box counts as its edge."""
        if self.levels is not None:
            return self.levels[actions]
        return np.clip(actions / self.high, -1.0, 1.0)

    def uniform(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Uniformly random actions of B copies."""
        if self.levels is not None:
            return rng.integers(len(self.levels), size=batch)
        return rng.uniform(-1.0, 1.0, (batch, self.num_inputs)) * self.high


def _draw_levels(rng: np.random.Generator, num_inputs: int) -> np.ndarray:
    """A row of levels for one input; the grid of two; plus, minus and nothing on each axis of more."""
    if num_inputs == 1:
        return np.linspace(-1.0, 1.0, pick(rng, (2, 3, 3, 5)))[:, None]
    if num_inputs == 2 and chance(rng, 0.4):
        return np.stack(np.meshgrid([-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]), axis=-1).reshape(-1, 2)
    axes = np.eye(num_inputs)
    return np.concatenate([axes, -axes, np.zeros((1, num_inputs))][: pick(rng, (2, 3))])


class System(ABC):
    """A family with drawn parameters: states move on under actions, pay, and end episodes.

    Attributes:
        actuation: what actions there are.
        is_random: whether `step` draws any number.
        needs_pilot: whether `settled` does anything.
        most_rollouts: per query for the truth, however many are asked for.
        source: "synthetic", or the environment around whose parameters those of this system were drawn.
    """

    actuation: Actuation
    is_random: bool = False
    needs_pilot: bool = False
    most_rollouts: int = UNLIMITED
    source: str = "synthetic"

    @abstractmethod
    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Starting states, (B, S)."""

    @abstractmethod
    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Next states (B, S), rewards (B,) and whether the episode terminates there (B,) bool."""

    @abstractmethod
    def observe(self, states: np.ndarray) -> np.ndarray:
        """Observations, (B, D)."""

    def guide(self, rng: np.random.Generator) -> Law | None:
        """A hand-made controller from observations to inputs, (B, D) -> (B, U), or None where there is none."""
        del rng
        return None

    def settled(self, pilot_TMS: np.ndarray, gamma: float, rng: np.random.Generator) -> System:
        """The system with all that depends on where its policy goes: states of T steps of M endless pilot runs."""
        del pilot_TMS, gamma, rng
        return self
