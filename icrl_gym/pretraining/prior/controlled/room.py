"""A point in a room with walls, goals and hazards.

Shapes: B copies, W walls, G goals, H hazards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.laws import raw_law
from icrl_gym.pretraining.prior.controlled.systems import Actuation, Law, System

SIDE = 1.0  # the room reaches from -SIDE to SIDE in both directions


@dataclass(frozen=True, eq=False)
class Room(System):
    """State: place (2), velocity (2). Observation: the place, and the velocity where there is inertia.

    A move into a wall or out of the room is undone, and the velocity along it is lost.

    Attributes:
        low_W2, high_W2: corners of the walls, which are rectangles.
        goal_G2, hazard_H2: centres of discs that end the episode; hazards only where ``hazards_end``.
        goal_radius, hazard_radius: of the discs.
        inertia: share of the velocity that is kept per step; 0 for a point that moves as it is told.
        slip: standard deviation of a random part of each input.
        start_low, start_high: corners of the rectangle where episodes start.
        pays: rewards of (every step, goal, hazard, distance to the first goal per step).
    """

    actuation: Actuation
    low_W2: np.ndarray
    high_W2: np.ndarray
    goal_G2: np.ndarray
    hazard_H2: np.ndarray
    goal_radius: float
    hazard_radius: float
    hazards_end: bool
    inertia: float
    pace: float
    slip: float
    start_low: np.ndarray
    start_high: np.ndarray
    pays: tuple[float, float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Up to three walls, one or two goals, up to three hazards."""
        centre, half = rng.uniform(-0.8, 0.8, (int(rng.integers(0, 4)), 2)), log_uniform(rng, 0.04, 0.5, 2)
        half = np.where(rng.random((len(centre), 1)) < 0.5, half, half[::-1])
        inertia = pick(rng, (0.0, rng.uniform(0.5, 0.95)))
        everywhere = chance(rng, 0.5)
        corner = rng.uniform(-0.9, 0.5, 2)
        bonus = pick(rng, (0.0, 1.0, log_uniform(rng, 1.0, 50.0)))
        cost = -1.0 if bonus == 0 else pick(rng, (0.0, -0.05, -1.0))
        return cls(
            actuation=Actuation.draw(rng, 2, 0.5),
            low_W2=centre - half,
            high_W2=centre + half,
            goal_G2=rng.uniform(-0.9, 0.9, (int(rng.integers(1, 3)), 2)),
            hazard_H2=rng.uniform(-0.9, 0.9, (int(rng.integers(0, 4)), 2)),
            goal_radius=log_uniform(rng, 0.08, 0.3),
            hazard_radius=log_uniform(rng, 0.08, 0.3),
            hazards_end=chance(rng, 0.5),
            inertia=inertia,
            pace=log_uniform(rng, 0.03, 0.2) * (1.0 - inertia),
            slip=pick(rng, (0.0, log_uniform(rng, 0.1, 1.0))),
            start_low=np.full(2, -0.95) if everywhere else corner,
            start_high=np.full(2, 0.95) if everywhere else corner + 0.4,
            pays=(cost, bonus, -log_uniform(rng, 0.3, 20.0), pick(rng, (0.0, -1.0), (0.7, 0.3))),
        )

    @property
    def is_random(self) -> bool:
        return self.slip > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        """Places outside walls and goals; after many tries wherever they fall."""
        states = np.zeros((batch, 4))
        waiting = np.arange(batch)
        for _ in range(30):
            places = rng.uniform(self.start_low, self.start_high, (len(waiting), 2))
            states[waiting, :2] = places
            waiting = waiting[self.blocked(places) | self._within(places, self.goal_G2, self.goal_radius)]
            if not len(waiting):
                break
        return states

    def blocked(self, places: np.ndarray) -> np.ndarray:
        """Whether a place is in a wall or outside the room, (B,) bool."""
        outside = np.abs(places).max(axis=1) > SIDE
        if not len(self.low_W2):
            return outside
        inside = (places[:, None] > self.low_W2) & (places[:, None] < self.high_W2)
        return outside | np.any(np.all(inside, axis=2), axis=1)

    def step(
        self, states: np.ndarray, actions: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places, velocity = states[:, :2].copy(), self.inertia * states[:, 2:]
        push = self.actuation.inputs(actions)
        if self.slip:
            push = push + self.slip * rng.standard_normal(push.shape)
        velocity = velocity + self.pace * push
        for axis in range(2):
            moved = places.copy()
            moved[:, axis] += velocity[:, axis]
            stopped = self.blocked(moved)
            velocity[:, axis] = np.where(stopped, 0.0, velocity[:, axis])
            places = np.where(stopped[:, None], places, moved)
        at_goal = self._within(places, self.goal_G2, self.goal_radius)
        in_hazard = self._within(places, self.hazard_H2, self.hazard_radius) & ~at_goal
        every, goal, hazard, distance = self.pays
        rewards = every + goal * at_goal + hazard * in_hazard
        if distance:
            rewards = rewards + distance * np.linalg.norm(places - self.goal_G2[0], axis=1)
        ended = at_goal | in_hazard if self.hazards_end else at_goal
        return np.concatenate([places, velocity], axis=1), rewards, ended

    def _within(self, places: np.ndarray, centres: np.ndarray, radius: float) -> np.ndarray:
        if not len(centres):
            return np.zeros(len(places), dtype=bool)
        return ((places[:, None] - centres) ** 2).sum(axis=2).min(axis=1) < radius**2

    def observe(self, states: np.ndarray) -> np.ndarray:
        return states if self.inertia else states[:, :2]

    def guide(self, rng: np.random.Generator) -> Law:
        """Heads for the first goal, straight through walls if they are in the way."""
        gain = log_uniform(rng, 1.0, 10.0)
        weights = np.zeros((4 if self.inertia else 2, 2))
        weights[:2] = -gain * np.eye(2)
        if self.inertia:
            weights[2:] = -np.eye(2) * rng.uniform(0.0, 1.0) / self.pace
        return raw_law(weights, gain * self.goal_G2[0], 1.0)
