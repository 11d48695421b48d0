"""MountainCar's equations with drawn parameters, with discrete and with continuous actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.acrobot import THREE_WAYS
from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.laws import raw_law
from icrl_gym.pretraining.prior.controlled.systems import Actuation, Law, System


@dataclass(frozen=True, eq=False)
class MountainCar(System):
    """A car in a valley; the defaults are those of MountainCar-v0. State and observation: position, velocity.

    Attributes:
        step_reward, goal_reward: paid on every step, and beside it at the goal.
        effort_cost: weight of the squared action.
        goal, goal_velocity: an episode terminates at both or beyond.
        edges: least and largest position.
        push_noise: standard deviation of a random part of the force, in units of ``force``.
    """

    actuation: Actuation
    force: float = 0.001
    gravity: float = 0.0025
    max_speed: float = 0.07
    edges: tuple[float, float] = (-1.2, 0.6)
    goal: float = 0.5
    goal_velocity: float = 0.0
    start: tuple[float, float] = (-0.6, -0.4)
    step_reward: float = -1.0
    goal_reward: float = 0.0
    effort_cost: float = 0.0
    push_noise: float = 0.0
    source: str = "MountainCar-v0"

    @classmethod
    def draw(cls, rng: np.random.Generator, continuous: bool) -> Self:
        """Every parameter around those of MountainCar-v0 or MountainCarContinuous-v0."""
        gravity = log_uniform(rng, 0.0015, 0.004)
        middle, width = rng.uniform(-0.65, -0.35), log_uniform(rng, 0.05, 0.4)
        sparse = continuous or chance(rng, 0.3)
        return cls(
            actuation=Actuation(None, np.ones(1)) if continuous else Actuation.discrete(THREE_WAYS),
            force=gravity * log_uniform(rng, 0.3, 0.9),
            gravity=gravity,
            max_speed=log_uniform(rng, 0.05, 0.1),
            edges=(rng.uniform(-1.3, -1.0), 0.6),
            goal=rng.uniform(0.2, 0.55),
            goal_velocity=pick(rng, (0.0, rng.uniform(0.0, 0.02)), (0.8, 0.2)),
            start=(middle - width / 2, middle + width / 2),
            step_reward=0.0 if sparse else -1.0,
            goal_reward=pick(rng, (100.0, log_uniform(rng, 1.0, 100.0))) if sparse else 0.0,
            effort_cost=pick(rng, (0.1, log_uniform(rng, 0.01, 0.5))) if continuous else 0.0,
            push_noise=pick(rng, (0.0, log_uniform(rng, 0.05, 0.5)), (0.7, 0.3)),
            source="MountainCarContinuous-v0" if continuous else "MountainCar-v0",
        )

    @property
    def is_random(self) -> bool:
        return self.push_noise > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([rng.uniform(*self.start, batch), np.zeros(batch)], axis=1)

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        position, velocity = states.T
        inputs = self.actuation.inputs(actions)[:, 0]
        push = inputs if not self.push_noise else inputs + self.push_noise * rng.standard_normal(len(inputs))
        velocity = velocity + push * self.force - self.gravity * np.cos(3 * position)
        velocity = np.clip(velocity, -self.max_speed, self.max_speed)
        position = np.clip(position + velocity, *self.edges)
        velocity = np.where((position == self.edges[0]) & (velocity < 0), 0.0, velocity)
        ended = (position >= self.goal) & (velocity >= self.goal_velocity)
        rewards = self.step_reward + self.goal_reward * ended - self.effort_cost * inputs**2
        return np.stack([position, velocity], axis=1), rewards, ended

    def observe(self, states: np.ndarray) -> np.ndarray:
        return states

    def guide(self, rng: np.random.Generator) -> Law:
        """Pushes the way the car moves."""
        gains = np.array([[rng.normal(0.0, 0.2)], [log_uniform(rng, 10.0, 200.0)]])
        return raw_law(gains, rng.normal(0.0, 0.1), 1.0)
