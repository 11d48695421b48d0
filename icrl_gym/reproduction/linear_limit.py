"""Softmax TD and the linear TD it becomes, on Gaussian processes and on finite chains, at finite and infinite n.

The linear form reads E[delta] + x^T Cov(x, delta) instead of a softmax over the sources: keys centred, query not. Both
start at zero with step size 1. Shape legend: n sources, Q queries, D features, S states, B processes, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from icrl_gym.reproduction.mrps import MRPBatch

Read = Callable[[np.ndarray], np.ndarray]  # residuals at the sources -> values at destinations


@dataclass(frozen=True)
class GaussianProcess:
    """Features x' = rho x + sqrt(1 - rho^2) xi with xi ~ N(0, size^2 I); rewards <u, x> / size + noise, |u| = 1.

    Attributes:
        size: standard deviation of each feature; scores at a query x have standard deviation size |x|.
        dimension, correlation, noise: D, rho, standard deviation of the reward's noise.
    """

    size: float
    dimension: int = 4
    correlation: float = 0.8
    noise: float = 0.1

    def context(self, rng: np.random.Generator, n: int, independent: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources (n, D), successors (n, D), rewards (n,): one trajectory, or independent transitions."""
        shocks = self.size * rng.standard_normal((n + 1, self.dimension))
        rho, kept = self.correlation, np.sqrt(1 - self.correlation**2)
        if independent:
            sources = self.size * rng.standard_normal((n, self.dimension))
            successors = rho * sources + kept * shocks[1:]
        else:
            states = shocks[:1]
            walk = [states[0]]
            for shock in shocks[1:]:
                walk.append(rho * walk[-1] + kept * shock)
            states = np.stack(walk)
            sources, successors = states[:-1], states[1:]
        rewards = sources.sum(axis=1) / self.size / np.sqrt(self.dimension) + self.noise * rng.standard_normal(n)
        return sources, successors, rewards


def gaussian_values(
    sources: np.ndarray, successors: np.ndarray, rewards: np.ndarray, queries: np.ndarray, gamma: float, num_layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values at queries (Q,) after L layers by softmax TD and by its linear form, on one context.

    Every successor is a destination of its own, so that independent transitions need no special case.
    """
    n = len(sources)
    destinations = np.concatenate([sources, successors, queries])
    scores = destinations @ sources.T
    scores -= scores.max(axis=1, keepdims=True)
    kernel = np.exp(scores, out=scores)
    kernel /= kernel.sum(axis=1, keepdims=True)
    centred = sources - sources.mean(axis=0)

    def linear(delta: np.ndarray) -> np.ndarray:
        return delta.mean() + destinations @ (centred.T @ delta) / n

    def softmax(delta: np.ndarray) -> np.ndarray:
        return kernel @ delta

    return tuple(_recursion(read, rewards, n, gamma, num_layers)[2 * n :] for read in (softmax, linear))  # type: ignore


def _recursion(read: Read, rewards: np.ndarray, n: int, gamma: float, num_layers: int) -> np.ndarray:
    """Destinations are sources, successors, queries."""
    value = read(rewards)
    for _ in range(num_layers - 1):
        value = value + read(rewards + gamma * value[n : 2 * n] - value[:n])
    return value


def chain_values(
    mrps: MRPBatch, weights: np.ndarray, next_state: np.ndarray, gamma: float, num_layers: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values of all states (B, S) by both forms, from the share of sources in each state and where they lead.

    Args:
        weights: (B, S) summing to 1: visits over n, or the stationary distribution for infinite n.
        next_state: (B, S, S) empirical or true transition probabilities.
    """
    x = mrps.features
    scores = x @ np.swapaxes(x, 1, 2)
    kernel = weights[:, None] * np.exp(scores - scores.max(axis=2, keepdims=True))
    kernel /= kernel.sum(axis=2, keepdims=True)
    centred = x - (weights[..., None] * x).sum(axis=1, keepdims=True)
    linear = weights[:, None] * (1.0 + x @ np.swapaxes(centred, 1, 2))
    found = []
    for read in (kernel, linear):
        value = np.zeros((*mrps.reward.shape, 1))
        for _ in range(num_layers):
            value = value + read @ (mrps.reward[..., None] + gamma * next_state @ value - value)
        found.append(value[..., 0])
    return found[0], found[1]


def walked(mrps: MRPBatch, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and next-state probabilities of one walk of n transitions per process."""
    num_mrps, num_states = mrps.reward.shape
    states = mrps.walk(rng, n)
    flat = (np.arange(num_mrps)[:, None] * num_states + states[:, :-1]) * num_states + states[:, 1:]
    visits = np.bincount(flat.ravel(), minlength=num_mrps * num_states**2).reshape(num_mrps, num_states, num_states)
    counts = visits.sum(axis=2)
    return counts / n, visits / np.maximum(counts, 1)[..., None]


def relative_gap(softmax: np.ndarray, linear: np.ndarray) -> float:
    """Root mean squared difference over the root mean square of the linear form's values."""
    return float(np.sqrt(np.mean((softmax - linear) ** 2) / np.mean(linear**2)))
