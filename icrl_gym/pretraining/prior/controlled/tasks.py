"""Controlled tasks: a log of a policy in a drawn system, the policy itself, queries and their true values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.pretraining.prior.controlled.distributions import chance, log_uniform, pick
from icrl_gym.pretraining.prior.controlled.families import DRAWS, FAMILIES, WEIGHTS
from icrl_gym.pretraining.prior.controlled.policies import draw_policy
from icrl_gym.pretraining.prior.controlled.rollouts import NO_LIMIT, log_of, run_streams
from icrl_gym.pretraining.prior.controlled.truths import Truth, true_values

MAX_TRIES = 100
QUERY_STREAMS = 8
MAX_EPISODE = 1000
PILOT_COPIES, PILOT_STEPS = 16, 200
LEAST_SIGNAL = 3.0  # standard deviation of the true values in mean standard errors
LEAST_SPREAD = 0.005  # and in mean absolute values
LARGEST_TAIL = 0.01  # of what the rollouts cut off, in standard deviations of the true values
LARGEST_NUMBER = 1e6  # of any observation or value


@dataclass(frozen=True, eq=False)
class ControlledTask:
    """One task: everything float64, observations raw.

    Attributes:
        trajectory: n on-policy transitions; the first begins an episode.
        policy: a `SoftmaxController` or a `GaussianController`.
        gamma: the discount.
        queries: (Q, D) observations of on-policy steps of fresh episodes, each step as likely.
        truth: (Q,) values of the policy, by rollouts without time limit.
        truth_stderr: (Q,) their standard errors; 0 where nothing is random.
        family: a name of `FAMILIES`.
        source: "synthetic", or the environment around whose parameters the system's were drawn.
    """

    trajectory: Trajectory
    policy: Any
    gamma: float
    queries: np.ndarray
    truth: np.ndarray
    truth_stderr: np.ndarray
    family: str
    source: str


def draw_controlled_task(
    rng: np.random.Generator,
    num_transitions: int,
    num_queries: int = 32,
    num_rollouts: int = 32,
    family: str | None = None,
) -> ControlledTask:
    """Draw a task whose true values vary over the queries; the same state of ``rng`` gives the same task.

    Args:
        rng: source of everything that is random.
        num_transitions: n, rows of the log.
        num_queries: Q, at least 2.
        num_rollouts: copies per query, at least 2; a slow family may use fewer.
        family: a name of `FAMILIES`; None draws one by weight.

    Raises:
        ValueError: an unknown family or a count that is too small.
        RuntimeError: no draw of many was accepted.
    """
    for name, count, least in (
        ("num_transitions", num_transitions, 1),
        ("num_queries", num_queries, 2),
        ("num_rollouts", num_rollouts, 2),
    ):
        if not isinstance(count, (int, np.integer)) or count < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {count!r}")
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    chosen = pick(rng, FAMILIES, WEIGHTS) if family is None else family
    for _ in range(MAX_TRIES):
        task = _attempt(rng, num_transitions, num_queries, num_rollouts, chosen)
        if task is not None:
            return task
    raise RuntimeError(f"draw_controlled_task: {MAX_TRIES} draws of {chosen!r} had no values that vary")


def generate(seed: int, count: int, num_transitions: int) -> Iterator[ControlledTask]:
    """``count`` tasks; the i-th depends on the seed and on i alone."""
    for index in range(count):
        yield draw_controlled_task(np.random.default_rng([seed, index]), num_transitions)


def draw_gamma(rng: np.random.Generator) -> float:
    """Discounts between .9 and .997, most between .95 and .99."""
    low, high = pick(rng, ((0.01, 0.01), (0.01, 0.05), (0.05, 0.1), (0.003, 0.01)), (0.4, 0.4, 0.12, 0.08))
    return 1.0 - round(float(log_uniform(rng, low, high)), 6)


def draw_limit(rng: np.random.Generator) -> int:
    """Time limits between 25 and 1,000 steps, or none."""
    return NO_LIMIT if chance(rng, 0.15) else int(pick(rng, (200, 500, round(log_uniform(rng, 25, MAX_EPISODE)))))


def _attempt(
    rng: np.random.Generator, num_transitions: int, num_queries: int, num_rollouts: int, family: str
) -> ControlledTask | None:
    """One draw, or None where it is rejected."""
    gamma, limit = draw_gamma(rng), draw_limit(rng)
    system = DRAWS[family](rng)
    policy = draw_policy(system, rng)
    if system.needs_pilot:
        pilot = run_streams(system, policy, rng, PILOT_COPIES, PILOT_STEPS, NO_LIMIT)
        system = system.settled(pilot.next_states, gamma, rng)
    window = num_transitions if limit > MAX_EPISODE else max(num_transitions, limit)
    num_streams = 1 + max(QUERY_STREAMS, -(-num_queries // window))
    streams = run_streams(system, policy, rng, num_streams, window, limit)
    if not (streams.terminated.any() or streams.rewards.std() > 0):
        return None
    if not (np.isfinite(streams.next_states).all() and np.isfinite(streams.rewards).all()):
        return None
    if np.abs(streams.next_states).max() > LARGEST_NUMBER:
        return None
    fresh = streams.states[:, 1:].reshape(-1, streams.states.shape[-1])
    states = fresh[rng.choice(len(fresh), num_queries, replace=False)]
    truth = true_values(system, policy, states, gamma, min(num_rollouts, system.most_rollouts), rng)
    if not _worth_learning(truth):
        return None
    return ControlledTask(
        trajectory=log_of(system, policy, streams, num_transitions, f"prior/controlled/{family}"),
        policy=policy,
        gamma=gamma,
        queries=system.observe(states),
        truth=truth.values,
        truth_stderr=truth.stderr,
        family=family,
        source=system.source,
    )


def _worth_learning(truth: Truth) -> bool:
    """Whether the values are finite, known and vary."""
    size = np.abs(truth.values).mean()
    if not np.isfinite(size) or not np.isfinite(truth.stderr).all() or size > LARGEST_NUMBER:
        return False
    least = max(LEAST_SIGNAL * truth.stderr.mean(), LEAST_SPREAD * size, 1e-9)
    return truth.spread > least and truth.tail <= LARGEST_TAIL * truth.spread
