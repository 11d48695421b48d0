"""Acrobot's equations with drawn parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.laws import raw_law
from icrl_gym.pretraining.prior.controlled.systems import Actuation, Law, System

THREE_WAYS = np.array([[-1.0], [0.0], [1.0]])


@dataclass(frozen=True, eq=False)
class Acrobot(System):
    """Two links, driven at the elbow; the defaults are those of Acrobot-v1. State: two angles, two rates.

    Attributes:
        height: an episode terminates where -cos(first) - cos(first + second) exceeds it.
        dense: pays the height less 2 per step instead of -1, and 0 at the end either way.
    """

    actuation: Actuation
    gravity: float = 9.8
    first_length: float = 1.0
    first_mass: float = 1.0
    second_mass: float = 1.0
    first_centre: float = 0.5
    second_centre: float = 0.5
    inertia: float = 1.0
    torque: float = 1.0
    time_step: float = 0.2
    max_rates: tuple[float, float] = (4 * np.pi, 9 * np.pi)
    start: float = 0.1
    height: float = 1.0
    dense: bool = False
    source: str = "Acrobot-v1"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Every parameter around Acrobot's; some with continuous torque or dense rewards."""
        own = chance(rng, 0.7)
        return cls(
            actuation=Actuation.discrete(THREE_WAYS) if own else Actuation.draw(rng, 1),
            gravity=log_uniform(rng, 6.0, 14.0),
            first_length=log_uniform(rng, 0.7, 1.4),
            first_mass=log_uniform(rng, 0.6, 1.6),
            second_mass=log_uniform(rng, 0.6, 1.6),
            first_centre=rng.uniform(0.35, 0.65),
            second_centre=rng.uniform(0.35, 0.65),
            inertia=log_uniform(rng, 0.6, 1.6),
            torque=log_uniform(rng, 0.8, 3.0),
            time_step=log_uniform(rng, 0.1, 0.25),
            start=pick(rng, (0.1, log_uniform(rng, 0.05, 1.0))),
            height=pick(rng, (1.0, rng.uniform(-0.5, 1.5))),
            dense=chance(rng, 0.25),
        )

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-self.start, self.start, (batch, 4))

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        del rng
        torque, step = self.torque * self.actuation.inputs(actions)[:, 0], self.time_step
        start = np.ascontiguousarray(states.T)
        first = self._rates(start, torque)
        second = self._rates(start + step / 2 * first, torque)
        third = self._rates(start + step / 2 * second, torque)
        fourth = self._rates(start + step * third, torque)
        after = start + step / 6.0 * (first + 2 * second + 2 * third + fourth)
        after[:2] = (after[:2] + np.pi) % (2 * np.pi) - np.pi
        after[2] = np.clip(after[2], -self.max_rates[0], self.max_rates[0])
        after[3] = np.clip(after[3], -self.max_rates[1], self.max_rates[1])
        height = self.height_of(after.T)
        ended = height > self.height
        return after.T, np.where(ended, 0.0, height - 2.0 if self.dense else -1.0), ended

    def height_of(self, states: np.ndarray) -> np.ndarray:
        """-cos(first) - cos(first + second), (B,)."""
        return -np.cos(states[:, 0]) - np.cos(states[:, 0] + states[:, 1])

    def _rates(self, state_4B: np.ndarray, torque: np.ndarray) -> np.ndarray:
        """Time derivatives of the state, (4, B)."""
        first, second, first_rate, second_rate = state_4B
        m1, m2, l1, c1, c2 = self.first_mass, self.second_mass, self.first_length, self.first_centre, self.second_centre
        cosine, sine = np.cos(second), np.sin(second)
        d1 = (m1 * c1**2 + m2 * (l1**2 + c2**2) + 2 * self.inertia) + (2 * m2 * l1 * c2) * cosine
        d2 = (m2 * c2**2 + self.inertia) + (m2 * l1 * c2) * cosine
        phi2 = (m2 * c2 * self.gravity) * np.sin(first + second)
        swirl = (m2 * l1 * c2) * sine
        phi1 = phi2 - swirl * second_rate * (second_rate + 2 * first_rate)
        phi1 += ((m1 * c1 + m2 * l1) * self.gravity) * np.sin(first)
        share = d2 / d1
        pull = torque + share * phi1 - swirl * first_rate**2 - phi2
        second_pull = pull / ((m2 * c2**2 + self.inertia) - d2 * share)
        return np.stack([first_rate, second_rate, -(d2 * second_pull + phi1) / d1, second_pull])

    def observe(self, states: np.ndarray) -> np.ndarray:
        first, second, first_rate, second_rate = states.T
        return np.stack([np.cos(first), np.sin(first), np.cos(second), np.sin(second), first_rate, second_rate], axis=1)

    def guide(self, rng: np.random.Generator) -> Law:
        """Torque along the swing: pumps energy."""
        gains = np.zeros((6, 1))
        gains[4], gains[5] = rng.uniform(-0.5, 1.0), rng.uniform(0.0, 1.0)
        return raw_law(gains * log_uniform(rng, 0.5, 5.0), 0.0, 1.0)
