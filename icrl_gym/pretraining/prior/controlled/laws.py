"""Functions of the observation that policies are made of: (B, D) -> (B, K)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl_gym.pretraining.prior.controlled.systems import Law


@dataclass(frozen=True, eq=False)
class LinearLaw:
    """bias + ((observation - centre) / scale) @ weights, held within ``bound``."""

    centre_D: np.ndarray
    scale_D: np.ndarray
    weights_DK: np.ndarray
    bias_K: np.ndarray
    bound: float = np.inf

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        values = (observations - self.centre_D) / self.scale_D @ self.weights_DK + self.bias_K
        return values if self.bound == np.inf else np.clip(values, -self.bound, self.bound)


@dataclass(frozen=True, eq=False)
class NetworkLaw:
    """One hidden layer of tanh units on the standardised observation."""

    centre_D: np.ndarray
    scale_D: np.ndarray
    inward_DH: np.ndarray
    offset_H: np.ndarray
    outward_HK: np.ndarray
    bias_K: np.ndarray

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        standardised = (observations - self.centre_D) / self.scale_D
        return np.tanh(standardised @ self.inward_DH + self.offset_H) @ self.outward_HK + self.bias_K


@dataclass(frozen=True, eq=False)
class NearestLevel:
    """Scores of discrete actions: the nearer the level of its inputs to the wish, the higher; at most 0, (B, A)."""

    wish: Law
    levels_AU: np.ndarray

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        wish = np.clip(self.wish(observations), -1.0, 1.0)
        scores = 2 * wish @ self.levels_AU.T - (self.levels_AU**2).sum(axis=1)
        return scores - (wish**2).sum(axis=1, keepdims=True)


def raw_law(weights_DK: np.ndarray, bias_K: np.ndarray | float = 0.0, bound: float = np.inf) -> LinearLaw:
    """A linear law on raw observations."""
    size, outputs = weights_DK.shape
    return LinearLaw(np.zeros(size), np.ones(size), weights_DK, np.zeros(outputs) + bias_K, bound)
