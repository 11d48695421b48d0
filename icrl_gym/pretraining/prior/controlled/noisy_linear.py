"""Linear systems with noise: additive, multiplicative and jumps.

Shapes: B copies, S state variables, U inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.shaped import Dynamics

LARGEST = 50.0  # of any state variable


@dataclass(frozen=True, eq=False)
class NoisyLinear(Dynamics):
    """state' = state @ matrix + inputs @ drive + noise; the features are the state.

    Attributes:
        noise_S: standard deviations of the additive noise.
        slip: standard deviation of a random factor of the inputs around 1.
        jump_chance, jump: how often, per step, the state is thrown, and how far.
    """

    matrix_SS: np.ndarray
    drive_US: np.ndarray
    noise_S: np.ndarray
    slip: float
    jump_chance: float
    jump: float
    centre_S: np.ndarray
    start: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Rotations and decays with a spectral radius of .8 to 1.01, the slowest modes far slower than the rest."""
        size = int(rng.integers(2, 7))
        inputs = int(rng.integers(1, min(size, 3) + 1))
        basis = rng.normal(size=(size, size)) / size**0.5
        generator = log_uniform(rng, 0.05, 0.4) * (basis - basis.T + rng.uniform(0.0, 0.5) * basis)
        matrix = np.eye(size) + generator - np.diag(log_uniform(rng, 0.01, 0.3, size))
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        matrix *= (1.0 - log_uniform(rng, 0.003, 0.2) + (0.01 if chance(rng, 0.15) else 0.0)) / radius
        drive = rng.normal(size=(inputs, size)) * log_uniform(rng, 0.05, 0.5)
        noise = log_uniform(rng, 0.003, 0.15) * log_uniform(rng, 0.3, 3.0, size)
        return cls(
            matrix_SS=matrix,
            drive_US=drive,
            noise_S=noise * (rng.random(size) < pick(rng, (0.5, 1.0))),
            slip=pick(rng, (0.0, log_uniform(rng, 0.1, 1.0))),
            jump_chance=log_uniform(rng, 0.003, 0.05) if chance(rng, 0.3) else 0.0,
            jump=log_uniform(rng, 0.3, 2.0),
            centre_S=rng.normal(size=size) * pick(rng, (0.0, 1.0, 2.0)),
            start=log_uniform(rng, 0.05, 1.5),
        )

    @property
    def num_inputs(self) -> int:
        return len(self.drive_US)

    @property
    def num_features(self) -> int:
        return len(self.matrix_SS)

    @property
    def is_random(self) -> bool:
        return bool(self.noise_S.any() or self.slip or self.jump_chance)

    def reset(self, batch: int, rng: np.random.Generator) -> np.ndarray:
        return self.centre_S + self.start * rng.uniform(-1.0, 1.0, (batch, len(self.centre_S)))

    def advance(self, states: np.ndarray, inputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.slip:
            inputs = inputs * (1.0 + self.slip * rng.standard_normal((len(inputs), 1)))
        after = states @ self.matrix_SS + inputs @ self.drive_US
        if self.noise_S.any():
            after += self.noise_S * rng.standard_normal(after.shape)
        if self.jump_chance:
            thrown = rng.random((len(after), 1)) < self.jump_chance
            after += thrown * self.jump * rng.standard_normal(after.shape)
        return np.clip(after, -LARGEST, LARGEST)

    def features(self, states: np.ndarray) -> np.ndarray:
        return states

    def forward(self, rng: np.random.Generator) -> np.ndarray:
        direction = rng.normal(size=self.num_features)
        return direction / np.linalg.norm(direction)

    def feedback(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Undoes part of the next step's deviation, as far as the inputs reach."""
        gains = -self.matrix_SS @ np.linalg.pinv(self.drive_US) * log_uniform(rng, 0.05, 1.0)
        return gains, rng.normal(0.0, 0.3, self.num_inputs)
