"""True values by batched rollouts without a time limit.

Shapes: Q queries, R rollouts each, S state variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl_gym.pretraining.prior.controlled.controllers import Controller
from icrl_gym.pretraining.prior.controlled.systems import System

MAX_STEPS = 1500
CHECKED_EVERY = 20
SMOOTHING = 0.05  # of the mean absolute reward, whose largest value so far bounds what is cut off
NEGLIGIBLE = 1e-3  # largest weight of what is cut off, and its largest size in standard deviations of the values


@dataclass(frozen=True, eq=False)
class Truth:
    """Values of Q states.

    Attributes:
        values: (Q,) mean returns.
        stderr: (Q,) standard errors; 0 where neither the system nor the policy is random.
        tail: estimated size of the largest return that was cut off.
    """

    values: np.ndarray
    stderr: np.ndarray
    tail: float

    @property
    def spread(self) -> float:
        """Standard deviation of the values over the queries."""
        return float(self.values.std())


def true_values(
    system: System, policy: Controller, states_QS: np.ndarray, gamma: float, num_rollouts: int, rng: np.random.Generator
) -> Truth:
    """Mean discounted returns from each state, to termination or until what is left no longer matters.

    Rollouts stop at the first check where gamma^H and the estimated tail, as a share of the spread of the values, are
    below `NEGLIGIBLE`, at the latest after `MAX_STEPS`.
    """
    copies = num_rollouts if system.is_random or not policy.deterministic else 1
    num_queries = len(states_QS)
    returns = np.zeros(num_queries * copies)
    alive, states = np.arange(len(returns)), np.repeat(states_QS, copies, axis=0)
    weight, pace, peak, tail = 1.0, 0.0, 0.0, 0.0
    for step in range(1, MAX_STEPS + 1):
        actions = policy.sample(system.observe(states), rng)
        states, rewards, ended = system.step(states, actions, rng)
        returns[alive] += weight * rewards
        weight *= gamma
        pace += SMOOTHING * (float(np.abs(rewards).mean()) - pace)
        peak = max(peak, pace)
        if ended.any():
            going = ~ended
            alive, states = alive[going], states[going]
            if not len(alive):
                tail = 0.0
                break
        tail = weight * peak / (1.0 - gamma)
        if step % CHECKED_EVERY == 0 and weight < NEGLIGIBLE:
            means = returns.reshape(num_queries, copies).mean(axis=1)
            if tail * _largest_share(alive, num_queries, copies) < NEGLIGIBLE * means.std():
                break
    returns_QR = returns.reshape(num_queries, copies)
    spread_Q = returns_QR.std(axis=1, ddof=1) if copies > 1 else np.zeros(num_queries)
    return Truth(returns_QR.mean(axis=1), spread_Q / copies**0.5, tail * _largest_share(alive, num_queries, copies))


def _largest_share(alive: np.ndarray, num_queries: int, copies: int) -> float:
    """The largest share of one query's rollouts that is still going."""
    return float(np.bincount(alive // copies, minlength=num_queries).max() / copies)
