"""Weighted softmax TD and its extensions as plain NumPy loops, written from the equations.

Source: [XLCLCZ26] eqs 8-9 for the plain recursion; theory section 7 (this project's own) for everything else. Slow on
purpose: nothing here shares code with the torch model, and the tests hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ReferenceInput:
    """A prompt in the reference's own terms: per transition k its state, reward, flags and true successor.

    Attributes:
        sources: (n, d) features of S_{k-1}.
        successors: (n, d) features of S_k, the true ones.
        rewards: (n,).
        terminated, ends: (n,) bool; `ends` marks rows that the next row does not continue.
        gamma: discount.
        log_weights: (n,) log weight of each source, -inf drops it.
        ratios: (n,) importance ratios, for the traces.
    """

    sources: np.ndarray
    successors: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    ends: np.ndarray
    gamma: float
    log_weights: np.ndarray
    ratios: np.ndarray

    @property
    def open_ends(self) -> list[int]:
        return [k for k in range(len(self.rewards)) if self.ends[k] and not self.terminated[k]]

    def discount(self, k: int) -> float:
        return 0.0 if self.terminated[k] else self.gamma


@dataclass(frozen=True)
class ReferenceSetting:
    """`kernel` is "gaussian" or "inner_product"; the others are named as in theory section 7."""

    kernel: str
    alpha: float = 1.0
    beta: float = 0.0
    lam: float = 0.0
    eta: float = 0.0
    sink: float = 0.0
    constant_mode: bool = False
    average_ends: bool = False
    start_at_constant: bool = False


def weights_of(x: np.ndarray, given: ReferenceInput, setting: ReferenceSetting) -> np.ndarray:
    """K(k | x) for every source k, (n,)."""
    n = len(given.rewards)
    scores = np.empty(n)
    for k in range(n):
        if setting.kernel == "inner_product":
            scores[k] = x @ given.sources[k]
        else:
            difference = x - given.sources[k]
            scores[k] = -(difference @ difference) / 2
        scores[k] += given.log_weights[k]
    sink_score = np.log(setting.sink) if setting.sink > 0 else -np.inf
    top = max(scores.max(), sink_score)
    mass = np.exp(scores - top)
    return mass / (mass.sum() + np.exp(sink_score - top))


def prompt_constant(delta: np.ndarray, given: ReferenceInput) -> float:
    """c = sum_k w_k delta_k / sum_k w_k (1 - discount_k)."""
    numerator = denominator = 0.0
    for k in range(len(delta)):
        weight = np.exp(given.log_weights[k])
        numerator += weight * delta[k]
        denominator += weight * (1.0 - given.discount(k))
    return numerator / denominator


def traces(delta: np.ndarray, given: ReferenceInput, lam: float) -> np.ndarray:
    """e_k = delta_k + discount_k lambda keep_k rho_{k+1} e_{k+1}."""
    e = np.array(delta)
    for k in range(len(delta) - 2, -1, -1):
        if not given.ends[k]:
            e[k] = delta[k] + given.discount(k) * lam * given.ratios[k + 1] * e[k + 1]
    return e


def run(given: ReferenceInput, setting: ReferenceSetting, queries: np.ndarray, num_layers: int) -> np.ndarray:
    """Values (L + 1, n + E + Q) of sources, open ends (in order) and queries before the first and after each layer."""
    n = len(given.rewards)
    points = [*given.sources, *(given.successors[k] for k in given.open_ends), *queries]
    attention = [weights_of(x, given, setting) for x in points]
    end_column = {k: n + i for i, k in enumerate(given.open_ends)}
    averaged = set(end_column.values()) if setting.average_ends and setting.eta == 0 else set()
    constant = prompt_constant(given.rewards, given) if setting.start_at_constant else 0.0
    value = np.full(len(points), constant)
    layers = [value]
    for _ in range(num_layers):
        delta = np.empty(n)
        for k in range(n):
            next_value = 0.0 if given.terminated[k] else value[end_column.get(k, k + 1)]
            delta[k] = given.rewards[k] + given.discount(k) * next_value - value[k]
        if setting.constant_mode:
            step = prompt_constant(delta, given)
            constant += step
            value = value + step
            delta = delta - np.array([(1.0 - given.discount(k)) * step for k in range(n)])
        e = traces(delta, given, setting.lam)
        new = np.empty_like(value)
        for j, kernel in enumerate(attention):
            beta, eta = (1.0, 0.0) if j in averaged else (setting.beta, setting.eta)
            moved = (1 - beta) * (1 - eta) * (value[j] - constant)
            for k in range(n):
                moved += kernel[k] * (beta * (value[k] - constant) + setting.alpha * e[k])
            new[j] = constant + moved
        value = new
        layers.append(value)
    return np.stack(layers)


def certainty_equivalence(
    states: np.ndarray, next_states: np.ndarray, rewards: np.ndarray, discounts: np.ndarray
) -> np.ndarray:
    """(I - P_gamma)^{-1} r of the empirical model over states 0..S-1, all visited, (S,); counts from n transitions."""
    num_states = int(states.max()) + 1
    transition = np.zeros((num_states, num_states))
    reward, count = np.zeros(num_states), np.zeros(num_states)
    for s, s_next, r, discount in zip(states, next_states, rewards, discounts, strict=True):
        count[s] += 1
        reward[s] += r
        if discount > 0:
            transition[s, s_next] += discount
    return np.linalg.solve(np.eye(num_states) - transition / count[:, None], reward / count)
