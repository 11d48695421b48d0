"""Running a policy in many copies of a system at once, with resets, and the log of one of them.

Shapes: T steps, M streams, S state variables.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.pretraining.prior.controlled.controllers import Controller
from icrl_gym.pretraining.prior.controlled.systems import System

NO_LIMIT = 10**9


@dataclass(frozen=True, eq=False)
class Streams:
    """T steps of M streams; after an end the next row starts a new episode.

    Attributes:
        states, next_states: (T, M, S) before and after each step; successors are those before any reset.
        actions: (T, M) or (T, M, A).
        rewards: (T, M).
        terminated, truncated: (T, M) bool, never both.
    """

    states: np.ndarray
    next_states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


def run_streams(
    system: System, policy: Controller, rng: np.random.Generator, num_streams: int, num_steps: int, limit: int
) -> Streams:
    """Streams that begin at a reset; episodes are truncated after ``limit`` steps."""
    states = system.reset(num_streams, rng)
    ages = np.zeros(num_streams, dtype=np.int64)
    rows: list[tuple[np.ndarray, ...]] = []
    for _ in range(num_steps):
        actions = policy.sample(system.observe(states), rng)
        following, rewards, terminated = system.step(states, actions, rng)
        ages += 1
        truncated = (ages >= limit) & ~terminated
        rows.append((states, following, actions, rewards, terminated, truncated))
        ended = terminated | truncated
        states = following
        if ended.any():
            states = following.copy()
            states[ended] = system.reset(int(ended.sum()), rng)
            ages[ended] = 0
    return Streams(*(np.stack(column) for column in zip(*rows, strict=True)))


def log_of(system: System, policy: Controller, streams: Streams, num_transitions: int, name: str) -> Trajectory:
    """The first transitions of the first stream as a `Trajectory`."""
    rows = slice(num_transitions)
    observations, successors = system.observe(streams.states[rows, 0]), system.observe(streams.next_states[rows, 0])
    ends = streams.terminated[rows, 0] | streams.truncated[rows, 0]
    ends[-1] = True
    return Trajectory(
        observations,
        streams.actions[rows, 0],
        streams.rewards[rows, 0],
        successors,
        streams.terminated[rows, 0],
        streams.truncated[rows, 0],
        ends,
        spaces.Box(-np.inf, np.inf, observations.shape[1:], dtype=np.float64),
        name,
        policy.identity,
    )
