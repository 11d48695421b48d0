"""A body on a springy leg above a floor: it is held, bounces or hops, and may run and topple.

Shapes: B copies, U inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform
from icrl_gym.pretraining.prior.controlled.shaped import Dynamics


@dataclass(frozen=True, eq=False)
class Hopper(Dynamics):
    """State and features: height, its rate and, where the body is planar, forward speed, lean and its rate.

    The floor pushes where the leg is longer than the height, never pulls, and only then do the other inputs grip.

    Attributes:
        planar: whether the body runs and leans; inputs are then leg, forward push and torque, else the leg alone.
        stiffness, damping: of the contact, per unit of mass.
        leg, stroke: length of the leg, and how much of it the input commands.
        topple, sway: how lean grows, and how a push against the floor turns it.
        noise: standard deviation of a random push per step.
    """

    planar: bool
    gravity: float
    stiffness: float
    damping: float
    leg: float
    stroke: float
    grip: float
    drag: float
    topple: float
    torque: float
    sway: float
    noise: float
    time_step: float
    num_substeps: int
    start: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """From stiff and bouncing to soft and held."""
        stiffness = log_uniform(rng, 100.0, 1500.0)
        leg = log_uniform(rng, 0.4, 1.5)
        return cls(
            planar=chance(rng, 0.7),
            gravity=log_uniform(rng, 4.0, 12.0),
            stiffness=stiffness,
            damping=2 * stiffness**0.5 * log_uniform(rng, 0.03, 0.6),
            leg=leg,
            stroke=leg * log_uniform(rng, 0.05, 0.3),
            grip=log_uniform(rng, 1.0, 10.0),
            drag=log_uniform(rng, 0.1, 2.0),
            topple=log_uniform(rng, 0.5, 10.0) * (1.0 if chance(rng, 0.8) else -1.0),
            torque=log_uniform(rng, 2.0, 20.0),
            sway=log_uniform(rng, 0.05, 1.0),
            noise=log_uniform(rng, 0.02, 0.3) if chance(rng, 0.3) else 0.0,
            time_step=log_uniform(rng, 0.02, 0.06),
            num_substeps=4,
            start=log_uniform(rng, 0.01, 0.4),
        )

    @property
    def num_inputs(self) -> int:
        return 3 if self.planar else 1

    @property
    def num_features(self) -> int:
        return 5 if self.planar else 2

    @property
    def is_random(self) -> bool:
        return self.noise > 0

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        states = rng.uniform(-1.0, 1.0, (batch, self.num_features)) * self.start
        states[:, 0] = self.leg * (1.0 + rng.uniform(0.0, 1.0, batch) * self.start)
        return states

    def advance(self, states: np.ndarray, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        step = self.time_step / self.num_substeps
        height, climb = states[:, 0], states[:, 1]
        reach = self.leg + self.stroke * inputs[:, 0]
        if self.noise:
            climb = climb + self.noise * rng.standard_normal(len(climb))
        speed, lean, tilt = states[:, 2:].T if self.planar else (climb, climb, climb)
        for _ in range(self.num_substeps):
            depth = reach - height
            touches = depth > 0
            force = touches * np.maximum(self.stiffness * depth - self.damping * climb, 0.0)
            climb = climb + step * (force - self.gravity)
            height = height + step * climb
            if self.planar:
                speed = speed + step * (touches * (self.grip * inputs[:, 1] + force * np.sin(lean)) - self.drag * speed)
                turn = self.topple * np.sin(lean) + touches * (self.torque * inputs[:, 2] - self.sway * inputs[:, 1])
                tilt = np.clip(tilt + step * (turn - 0.5 * tilt), -10.0, 10.0)
                lean = np.clip(lean + step * tilt, -1.5, 1.5)
        columns = [height, climb, speed, lean, tilt] if self.planar else [height, climb]
        return np.stack(columns, axis=1)

    def features(self, states: np.ndarray) -> np.ndarray:
        return states

    def forward(self, rng: np.random.Generator) -> np.ndarray:
        """Forward speed, or height where the body is not planar."""
        del rng
        return np.eye(self.num_features)[2 if self.planar else 0]

    def feedback(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Stretches the leg while rising, pushes forwards and rights the lean."""
        gains, bias = np.zeros((self.num_features, self.num_inputs)), np.zeros(self.num_inputs)
        gains[1, 0], bias[0] = rng.uniform(-1.0, 2.0), rng.normal(0.0, 0.3)
        if self.planar:
            bias[1], gains[2, 1] = rng.normal(0.3, 0.4), -rng.uniform(0.0, 0.5)
            gains[3, 2] = -(abs(self.topple) / self.torque + log_uniform(rng, 0.1, 2.0))
            gains[4, 2] = -log_uniform(rng, 0.03, 1.0)
        return gains, bias
