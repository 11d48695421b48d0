"""Batches of finite Markov reward processes, all drawn, solved and walked at once.

Shape legend: B processes, S states, D features, n transitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class MRPBatch:
    """B processes of S states each.

    Attributes:
        transition: (B, S, S) row-stochastic.
        reward: (B, S), received on leaving a state.
        features: (B, S, D).
    """

    transition: np.ndarray
    reward: np.ndarray
    features: np.ndarray

    def __len__(self) -> int:
        return len(self.reward)

    def repeat(self, times: int) -> MRPBatch:
        """Every process ``times`` times in a row, for independent walks: (B * times) processes."""
        return MRPBatch(*(np.repeat(array, times, axis=0) for array in (self.transition, self.reward, self.features)))

    def values(self, gamma: float) -> np.ndarray:
        """Exact values (B, S)."""
        identity = np.eye(self.reward.shape[1])
        return np.linalg.solve(identity - gamma * self.transition, self.reward[..., None])[..., 0]

    def stationary(self) -> np.ndarray:
        """Stationary distribution (B, S); the chains must have only one."""
        size = self.reward.shape[1]
        balance = np.swapaxes(self.transition, 1, 2) - np.eye(size)
        balance[:, -1, :] = 1.0
        right = np.zeros((len(self), size, 1))
        right[:, -1] = 1.0
        return np.linalg.solve(balance, right)[..., 0]

    def walk(self, rng: np.random.Generator, num_transitions: int) -> np.ndarray:
        """States (B, n + 1) of one walk per process, started uniformly."""
        cumulative = np.cumsum(self.transition, axis=2)
        cumulative[..., -1] = 1.0
        states = np.empty((len(self), num_transitions + 1), dtype=np.int64)
        states[:, 0] = rng.integers(self.reward.shape[1], size=len(self))
        every = np.arange(len(self))
        for t in range(num_transitions):
            draw = rng.random((len(self), 1))
            states[:, t + 1] = (cumulative[every, states[:, t]] <= draw).sum(axis=1)
        return states

    def rewards_of(self, states: np.ndarray) -> np.ndarray:
        """R_1..R_n (B, n) of walks (B, n + 1)."""
        return np.take_along_axis(self.reward, states[:, :-1], axis=1)

    def features_of(self, states: np.ndarray) -> np.ndarray:
        """x(S_0)..x(S_n) (B, n + 1, D) of walks (B, n + 1)."""
        return np.take_along_axis(self.features, states[..., None], axis=1)


def random_mrps(rng: np.random.Generator, num_mrps: int, num_states: int, num_features: int) -> MRPBatch:
    """Rows from Dirichlet(1), rewards and features from U(-1, 1)."""
    return MRPBatch(
        rng.dirichlet(np.ones(num_states), size=(num_mrps, num_states)),
        rng.uniform(-1, 1, (num_mrps, num_states)),
        rng.uniform(-1, 1, (num_mrps, num_states, num_features)),
    )


def boyan_chains(rng: np.random.Generator, num_mrps: int, num_states: int = 10, num_features: int = 4) -> MRPBatch:
    """Boyan chains as randomised in [WBDZ24]: i to i + 1 with probability u ~ U(.01, .99), else i + 2; the last state
    but one to the last, the last anywhere (normalised uniform weights); rewards and features U(-1, 1)."""
    transition = np.zeros((num_mrps, num_states, num_states))
    one_step = rng.uniform(0.01, 0.99, (num_mrps, num_states - 2))
    chain = np.arange(num_states - 2)
    transition[:, chain, chain + 1] = one_step
    transition[:, chain, chain + 2] = 1.0 - one_step
    transition[:, num_states - 2, num_states - 1] = 1.0
    anywhere = rng.uniform(0.0, 1.0, (num_mrps, num_states))
    transition[:, num_states - 1] = anywhere / anywhere.sum(axis=1, keepdims=True)
    return MRPBatch(
        transition,
        rng.uniform(-1, 1, (num_mrps, num_states)),
        rng.uniform(-1, 1, (num_mrps, num_states, num_features)),
    )
