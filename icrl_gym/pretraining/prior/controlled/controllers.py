"""Policies that can be asked: softmax over discrete actions, Gaussian over continuous ones.

Shapes: B observations, D columns, A discrete actions or continuous coordinates, U noise numbers.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from icrl_gym.pretraining.prior.controlled.systems import Law

LEAST_NOISE = 1e-12  # uniform numbers are held this far from 0 and 1


class SoftmaxController:
    """softmax(scores / temperature), mixed with the uniform distribution.

    Attributes:
        identity: name for the estimand.
        num_actions: A.
        deterministic: always False.
    """

    deterministic = False

    def __init__(self, law: Law, num_actions: int, temperature: float, epsilon: float, identity: str) -> None:
        self.law, self.num_actions, self.identity = law, num_actions, identity
        self.temperature, self.epsilon = temperature, epsilon

    def action_probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Probability of each action, (B, A); rows sum to 1."""
        logits = self.law(np.asarray(observations, dtype=np.float64)) / self.temperature
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits)
        weights *= (1.0 - self.epsilon) / weights.sum(axis=1, keepdims=True)
        return weights + self.epsilon / self.num_actions

    def sample(self, observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions (B,) int, by inversion."""
        cumulative = self.action_probabilities(observations).cumsum(axis=1)
        uniform = rng.random((len(cumulative), 1))
        return (uniform >= cumulative[:, :-1]).sum(axis=1)


class GaussianController:
    """A Gaussian around a function of the observation, clipped to the action box.

    Attributes:
        identity: name for the estimand; ends in " (deterministic)" where the standard deviation is 0.
        low, high: (A,) the action box.
        std: (A,) standard deviation before clipping.
        num_noise: U, uniform numbers that decide one action: A, or 0 where the policy is deterministic.
    """

    def __init__(self, law: Law, std: np.ndarray, high: np.ndarray, seed: int, identity: str) -> None:
        self.law, self.std, self.low, self.high = law, std, -high, high
        self.deterministic = not std.any()
        self.num_noise = 0 if self.deterministic else len(std)
        self.identity = identity + " (deterministic)" * self.deterministic
        self._generator = np.random.default_rng(seed)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Actions (B, A) with noise from the controller's own generator."""
        return self.sample(observations, self._generator)

    def mean(self, observations: np.ndarray) -> np.ndarray:
        """Centre of the Gaussian before clipping, (B, A)."""
        return self.law(np.asarray(observations, dtype=np.float64)) * self.high

    def actions(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions (B, A) for uniform numbers (B, U) in [0, 1]: the mean plus std times their Gaussian quantiles."""
        means = self.mean(observations)
        if noise.shape != (len(means), self.num_noise):
            raise ValueError(f"noise must have shape {(len(means), self.num_noise)}, got {noise.shape}")
        if self.num_noise:
            means = means + self.std * ndtri(np.clip(noise, LEAST_NOISE, 1 - LEAST_NOISE))
        return np.clip(means, self.low, self.high)

    def sample(self, observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Actions (B, A) with noise from ``rng``."""
        means = self.mean(observations)
        if self.num_noise:
            means = means + self.std * rng.standard_normal(means.shape)
        return np.clip(means, self.low, self.high)


Controller = SoftmaxController | GaussianController
