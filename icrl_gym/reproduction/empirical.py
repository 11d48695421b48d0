"""Weighted softmax TD aggregated over states: one column per state instead of one per transition.

K(k | s) depends on k only through its source state, so n transitions over S states act through counts alone, and
layers cost S^2 however long the walk is. Theory section 3, with our P^ = M^ P_emp. A state that is no source has count
0: it is a destination only.

Shape legend: B processes, S states, n transitions, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class EmpiricalModel:
    """The empirical model of B processes that a context of transitions gives; zero rows for states that are no source.

    Attributes:
        counts: (B, S) visits as a source.
        transition: (B, S, S) frequencies of successors.
        reward: (B, S) mean reward.
    """

    counts: np.ndarray
    transition: np.ndarray
    reward: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray, rewards: np.ndarray, num_states: int) -> EmpiricalModel:
        """The model of walks (B, n + 1) of ids and rewards (B, n)."""
        num_walks = len(states)
        pairs = np.zeros((num_walks, num_states, num_states))
        sums = np.zeros((num_walks, num_states))
        row = np.arange(num_walks)[:, None]
        np.add.at(pairs, (row, states[:, :-1], states[:, 1:]), 1.0)
        np.add.at(sums, (row, states[:, :-1]), rewards)
        counts = pairs.sum(axis=2)
        visits = np.maximum(counts, 1.0)
        return cls(counts, pairs / visits[..., None], sums / visits)

    @property
    def complete(self) -> np.ndarray:
        """(B,) bool: every state is a source."""
        return np.all(self.counts > 0, axis=1)

    def certainty_equivalence(self, gamma: float) -> np.ndarray:
        """(I - gamma P_emp)^-1 r_emp, (B, S)."""
        identity = np.eye(self.counts.shape[1])
        return np.linalg.solve(identity - gamma * self.transition, self.reward[..., None])[..., 0]

    def source_mass(self, scores: np.ndarray) -> np.ndarray:
        """M^(s, s') = N(s') exp g(s, s') / sum, (B, S, S), from scores g (B, S, S)."""
        with np.errstate(divide="ignore"):
            scores = scores + np.log(self.counts)[:, None, :]
        mass = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return mass / mass.sum(axis=-1, keepdims=True)

    def layers(self, mass: np.ndarray, gamma: float, num_layers: int, start: np.ndarray | None = None) -> np.ndarray:
        """v <- v + M^ (r_emp + gamma P_emp v - v), (B, L + 1, S), from ``start`` (B, S) or zero."""
        value = np.zeros_like(self.reward) if start is None else start
        step, drift = self.iteration(mass, gamma), (mass @ self.reward[..., None])[..., 0]
        rows = [value]
        for _ in range(num_layers):
            value = (step @ value[..., None])[..., 0] + drift
            rows.append(value)
        return np.stack(rows, axis=1)

    def iteration(self, mass: np.ndarray, gamma: float) -> np.ndarray:
        """I - M^ + gamma P^, (B, S, S)."""
        identity = np.eye(mass.shape[-1])
        return identity - mass @ (identity - gamma * self.transition)


def spectral_radius(matrix: np.ndarray) -> np.ndarray:
    """Largest modulus of the eigenvalues, (...)."""
    return np.abs(np.linalg.eigvals(matrix)).max(axis=-1)


def inf_norm(matrix: np.ndarray) -> np.ndarray:
    """Largest row sum of absolute values, (...)."""
    return np.abs(matrix).sum(axis=-1).max(axis=-1)
