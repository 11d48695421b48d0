"""CartPole's equations with drawn parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.laws import raw_law
from icrl_gym.pretraining.prior.controlled.systems import Actuation, Law, System

TWO_WAYS = np.array([[-1.0], [1.0]])
EVERY_STEP, AT_THE_END, COST = "every_step", "at_the_end", "cost"


@dataclass(frozen=True, eq=False)
class CartPole(System):
    """A pole on a cart; the defaults are those of CartPole-v1. State and observation: x, dx/dt, angle, dangle/dt.

    Attributes:
        reward: "every_step" pays 1, "at_the_end" pays -1 on falling, "cost" pays 1 less squared deviations.
        force_noise: standard deviation of a random part of the force, in units of ``force``.
    """

    actuation: Actuation
    gravity: float = 9.8
    cart_mass: float = 1.0
    pole_mass: float = 0.1
    half_length: float = 0.5
    force: float = 10.0
    time_step: float = 0.02
    angle_limit: float = 12 * 2 * np.pi / 360
    position_limit: float = 2.4
    start: float = 0.05
    semi_implicit: bool = False
    reward: str = EVERY_STEP
    force_noise: float = 0.0
    source: str = "CartPole-v1"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Every parameter around CartPole's; some with three or continuous actions, or with noise."""
        own = chance(rng, 0.6)
        angle_limit = log_uniform(rng, 0.1, 0.6)
        return cls(
            actuation=Actuation.discrete(TWO_WAYS) if own else Actuation.draw(rng, 1),
            gravity=log_uniform(rng, 6.0, 15.0),
            cart_mass=log_uniform(rng, 0.4, 2.5),
            pole_mass=log_uniform(rng, 0.04, 0.4),
            half_length=log_uniform(rng, 0.25, 1.2),
            force=log_uniform(rng, 5.0, 20.0),
            time_step=log_uniform(rng, 0.015, 0.04),
            angle_limit=angle_limit,
            position_limit=log_uniform(rng, 1.2, 4.0),
            start=pick(rng, (0.05, angle_limit * rng.uniform(0.05, 0.8))),
            semi_implicit=chance(rng, 0.3),
            reward=pick(rng, (EVERY_STEP, AT_THE_END, COST), (0.6, 0.2, 0.2)),
            force_noise=pick(rng, (0.0, log_uniform(rng, 0.05, 0.5)), (0.7, 0.3)),
        )

    @property
    def is_random(self) -> bool:
        return self.force_noise > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-self.start, self.start, (batch, 4))

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, x_dot, angle, angle_dot = states.T
        force = self.force * self.actuation.inputs(actions)[:, 0]
        if self.force_noise:
            force = force + self.force * self.force_noise * rng.standard_normal(len(force))
        cosine, sine = np.cos(angle), np.sin(angle)
        total, moment = self.cart_mass + self.pole_mass, self.pole_mass * self.half_length
        push = (force + moment * angle_dot**2 * sine) / total
        spin = (self.gravity * sine - cosine * push) / (
            self.half_length * (4.0 / 3.0 - self.pole_mass * cosine**2 / total)
        )
        pace = push - moment * spin * cosine / total
        new_x_dot, new_angle_dot = x_dot + self.time_step * pace, angle_dot + self.time_step * spin
        new_x = x + self.time_step * (new_x_dot if self.semi_implicit else x_dot)
        new_angle = angle + self.time_step * (new_angle_dot if self.semi_implicit else angle_dot)
        ended = (np.abs(new_x) > self.position_limit) | (np.abs(new_angle) > self.angle_limit)
        return np.stack([new_x, new_x_dot, new_angle, new_angle_dot], axis=1), self._pay(new_x, new_angle, ended), ended

    def _pay(self, x: np.ndarray, angle: np.ndarray, ended: np.ndarray) -> np.ndarray:
        if self.reward == AT_THE_END:
            return -ended.astype(np.float64)
        if self.reward == COST:
            return 1.0 - 0.5 * (x / self.position_limit) ** 2 - 0.5 * (angle / self.angle_limit) ** 2
        return np.ones(len(x))

    def observe(self, states: np.ndarray) -> np.ndarray:
        return states

    def guide(self, rng: np.random.Generator) -> Law:
        """Feedback that balances the pole and, more slowly, the cart; often imperfect."""
        gains = np.array([0.15, 0.4, 4.0, 0.9]) * log_uniform(rng, 0.4, 2.5, 4)
        gains[:2] *= pick(rng, (1.0, 0.0, -0.3), (0.7, 0.2, 0.1))
        return raw_law(gains[:, None] * log_uniform(rng, 0.5, 3.0), rng.normal(0.0, 0.05))
