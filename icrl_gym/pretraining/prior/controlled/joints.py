"""One to four coupled second-order joints, some that turn all the way, some that drive a body forwards.

Shapes: B copies, J joints, U inputs, R joints that turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.shaped import Dynamics

MAX_RATE = 20.0


@dataclass(frozen=True, eq=False)
class Joints(Dynamics):
    """State: J positions, J rates and, where the joints drive a body, its speed.

    Features: positions of joints that do not turn, cosines and sines of those that do, rates, speed.

    Attributes:
        turns_J: which joints turn; their springs pull like gravity.
        stiffness_JJ: symmetric; a negative diagonal is an unstable joint.
        damping_J, friction_J: of viscous and of dry friction.
        drive_UJ: accelerations per unit of input.
        bend_JJ, bend: weights and size of a smooth nonlinear force.
        reach: positions of joints that do not turn are held within it.
        bounce: share of the rate that is kept, with the other sign, where a joint reaches its bound.
        thrust_J, drag: of the body; ``thrust_J`` is None where there is none.
        noise: standard deviation of the random acceleration per square root of a unit of time.
    """

    turns_J: np.ndarray
    stiffness_JJ: np.ndarray
    damping_J: np.ndarray
    friction_J: np.ndarray
    drive_UJ: np.ndarray
    bend_JJ: np.ndarray
    bend: float
    reach: float
    bounce: float
    thrust_J: np.ndarray | None
    drag: float
    noise: float
    time_step: float
    centre_J: np.ndarray
    start: tuple[float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Natural frequencies of 0.5 to 5 radians per unit of time; from free to overdamped."""
        size = int(rng.integers(1, 5))
        inputs = size if chance(rng, 0.6) else int(rng.integers(1, size + 1))
        turns = rng.random(size) < pick(rng, (0.0, 0.5, 1.0), (0.5, 0.25, 0.25))
        frequency = log_uniform(rng, 0.5, 5.0, size)
        signs = np.where(rng.random(size) < 0.2, -0.5, 1.0)
        mixed = rng.normal(size=(size, size)) * np.sqrt(np.outer(frequency, frequency)) ** 2
        coupling = rng.uniform(0.0, 0.3) * (mixed + mixed.T) / 2 * (1 - np.eye(size))
        drive = np.concatenate([np.eye(size)[rng.permutation(size)][:inputs]])
        drive = drive + rng.normal(size=drive.shape) * pick(rng, (0.0, 0.2))
        return cls(
            turns_J=turns,
            stiffness_JJ=np.diag(signs * frequency**2) + coupling,
            damping_J=2 * frequency * log_uniform(rng, 0.02, 0.8, size),
            friction_J=frequency**2 * (log_uniform(rng, 0.02, 0.3) if chance(rng, 0.2) else 0.0),
            drive_UJ=drive * frequency**2 * log_uniform(rng, 0.3, 3.0),
            bend_JJ=rng.normal(size=(size, size)) * 1.5,
            bend=pick(rng, (0.0, log_uniform(rng, 0.1, 1.0))) * float(frequency.mean()) ** 2,
            reach=log_uniform(rng, 0.8, 4.0),
            bounce=pick(rng, (0.0, rng.uniform(0.0, 0.7))),
            thrust_J=rng.normal(size=size) * log_uniform(rng, 0.2, 1.0) if chance(rng, 0.35) else None,
            drag=log_uniform(rng, 0.1, 1.0),
            noise=pick(rng, (0.0, log_uniform(rng, 0.03, 0.5)), (0.75, 0.25)) * float(frequency.mean()) ** 1.5,
            time_step=min(log_uniform(rng, 0.02, 0.15), 0.5 / float(frequency.max())),
            centre_J=rng.normal(size=size) * pick(rng, (0.0, 0.8)),
            start=(log_uniform(rng, 0.02, 0.8), log_uniform(rng, 0.02, 0.8)),
        )

    @property
    def num_inputs(self) -> int:
        return len(self.drive_UJ)

    @property
    def num_features(self) -> int:
        return 2 * len(self.turns_J) + int(self.turns_J.sum()) + (self.thrust_J is not None)

    @property
    def is_random(self) -> bool:
        return self.noise > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        size = len(self.turns_J)
        positions = self.centre_J + rng.uniform(-1.0, 1.0, (batch, size)) * self.start[0]
        rates = rng.uniform(-1.0, 1.0, (batch, size)) * self.start[1]
        bodies = np.zeros((batch, int(self.thrust_J is not None)))
        held = np.where(self.turns_J, positions, np.clip(positions, -self.reach, self.reach))
        return np.concatenate([held, rates, bodies], axis=1)

    def advance(self, states: np.ndarray, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        size, step = len(self.turns_J), self.time_step
        positions, rates = states[:, :size], states[:, size : 2 * size]
        pulled = np.where(self.turns_J, np.sin(positions), positions) if self.turns_J.any() else positions
        push = inputs @ self.drive_UJ - pulled @ self.stiffness_JJ - self.damping_J * rates
        if self.friction_J.any():
            push -= self.friction_J * np.tanh(rates * 20.0)
        if self.bend:
            push += self.bend * np.tanh(pulled @ self.bend_JJ)
        if self.noise:
            push += self.noise / step**0.5 * rng.standard_normal(push.shape)
        rates = np.clip(rates + step * push, -MAX_RATE, MAX_RATE)
        moved = positions + step * rates
        held = np.where(self.turns_J, moved, np.clip(moved, -self.reach, self.reach))
        rates = np.where(held != moved, -self.bounce * rates, rates)
        parts = [held, rates]
        if self.thrust_J is not None:
            speed = states[:, -1:]
            push = ((rates * np.sin(held + 0.7)) @ self.thrust_J)[:, None]
            parts.append(speed + step * (push - self.drag * speed))
        return np.concatenate(parts, axis=1)

    def features(self, states: np.ndarray) -> np.ndarray:
        if not self.turns_J.any():
            return states
        size = len(self.turns_J)
        positions = states[:, :size]
        turning = positions[:, self.turns_J]
        return np.concatenate([positions[:, ~self.turns_J], np.cos(turning), np.sin(turning), states[:, size:]], axis=1)

    def forward(self, rng: np.random.Generator) -> np.ndarray:
        """The body's speed where there is one, else one joint's rate."""
        direction = np.zeros(self.num_features)
        direction[-1 if self.thrust_J is not None else -1 - rng.integers(len(self.turns_J))] = 1.0
        return direction

    def feedback(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Proportional and derivative gains towards a random posture; some push along the motion instead."""
        size, num_turning = len(self.turns_J), int(self.turns_J.sum())
        inverse = np.linalg.pinv(self.drive_UJ)
        scale = np.abs(np.diag(self.stiffness_JJ))
        place, pace = -scale * log_uniform(rng, 0.3, 3.0), -(scale**0.5) * log_uniform(rng, 0.1, 2.0)
        if chance(rng, 0.25):
            pace = -pace
        gains = np.zeros((self.num_features, len(self.drive_UJ)))
        fixed = size - num_turning
        gains[:fixed] = (np.diag(place) @ inverse)[~self.turns_J]
        gains[fixed + num_turning : size + num_turning] = (np.diag(place) @ inverse)[self.turns_J]
        gains[size + num_turning : 2 * size + num_turning] = np.diag(pace) @ inverse
        return gains, rng.normal(0.0, 0.4, len(self.drive_UJ))
