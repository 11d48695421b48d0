"""Pendulum's equations with drawn parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.systems import Actuation, Law, System


@dataclass(frozen=True, eq=False)
class Pendulum(System):
    """A driven rod; the defaults are those of Pendulum-v1. State: angle from upright and its rate.

    Attributes:
        costs: weights of squared angle, rate and torque.
        start: largest angle and rate at a reset.
        spin_limit: an episode terminates where |rate| exceeds it; infinite for never.
        torque_noise: standard deviation of a random part of the torque, in units of ``torque``.
    """

    actuation: Actuation
    gravity: float = 10.0
    mass: float = 1.0
    length: float = 1.0
    time_step: float = 0.05
    max_rate: float = 8.0
    torque: float = 2.0
    costs: tuple[float, float, float] = (1.0, 0.1, 0.001)
    start: tuple[float, float] = (np.pi, 1.0)
    spin_limit: float = np.inf
    torque_noise: float = 0.0
    source: str = "Pendulum-v1"

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Every parameter around Pendulum's; some with discrete actions, noise, or an end at high rates."""
        gravity, mass, length = log_uniform(rng, 5.0, 15.0), log_uniform(rng, 0.5, 2.0), log_uniform(rng, 0.6, 1.6)
        torque = mass * gravity * length * log_uniform(rng, 0.1, 0.6)
        own = chance(rng, 0.7)
        return cls(
            actuation=Actuation(None, np.array([torque])) if own else Actuation.draw(rng, 1),
            gravity=gravity,
            mass=mass,
            length=length,
            time_step=log_uniform(rng, 0.025, 0.08),
            max_rate=log_uniform(rng, 6.0, 12.0),
            torque=torque,
            costs=(1.0, log_uniform(rng, 0.03, 0.3), log_uniform(rng, 0.0003, 0.03)),
            start=(pick(rng, (np.pi, rng.uniform(0.3, np.pi))), log_uniform(rng, 0.3, 2.0)),
            spin_limit=pick(rng, (np.inf, rng.uniform(3.0, 6.0)), (0.85, 0.15)),
            torque_noise=pick(rng, (0.0, log_uniform(rng, 0.05, 0.5)), (0.75, 0.25)),
        )

    @property
    def is_random(self) -> bool:
        return self.torque_noise > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, (batch, 2)) * self.start

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle, rate = states.T
        torque = self.torque * self.actuation.inputs(actions)[:, 0]
        wrapped = (angle + np.pi) % (2 * np.pi) - np.pi
        cost = self.costs[0] * wrapped**2 + self.costs[1] * rate**2 + self.costs[2] * torque**2
        if self.torque_noise:
            torque = torque + self.torque * self.torque_noise * rng.standard_normal(len(torque))
        push = 1.5 * self.gravity / self.length * np.sin(angle) + 3.0 / (self.mass * self.length**2) * torque
        new_rate = np.clip(rate + push * self.time_step, -self.max_rate, self.max_rate)
        new_angle = angle + new_rate * self.time_step
        return np.stack([new_angle, new_rate], axis=1), -cost, np.abs(new_rate) > self.spin_limit

    def observe(self, states: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1)

    def guide(self, rng: np.random.Generator) -> Law:
        """Pumps energy below, catches near the top."""
        natural = 1.5 * self.gravity / self.length
        strength = 3.0 / (self.mass * self.length**2) * self.torque
        stiffness = natural * rng.uniform(1.2, 3.0)
        damping = 2 * (stiffness - natural) ** 0.5 * log_uniform(rng, 0.3, 1.5)
        return SwingUp(
            natural=natural,
            pump=log_uniform(rng, 0.2, 5.0) / natural,
            stiffness=stiffness / strength,
            damping=damping / strength,
            catch=rng.uniform(0.8, 0.97),
        )


@dataclass(frozen=True, eq=False)
class SwingUp:
    """Inputs in [-1, 1] from (cos, sin, rate): towards the upright's energy, and linear feedback near the top."""

    natural: float
    pump: float
    stiffness: float
    damping: float
    catch: float

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        cosine, sine, rate = observations.T
        missing = self.natural * (1.0 - cosine) - 0.5 * rate**2
        held = -self.stiffness * sine - self.damping * rate
        return np.clip(np.where(cosine > self.catch, held, self.pump * missing * rate), -1.0, 1.0)[:, None]
