"""What a task's estimates are scored against: true values at states that the policy visits, and at states it starts in.

Both are measured once per task and kept.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.policies import as_policy
from icrl_gym.benchmark.cells import Task
from icrl_gym.benchmark.truth_cache import TruthCache
from icrl_gym.configuration import BenchmarkConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.ground_truth.values import exact_values, monte_carlo_values
from icrl_gym.observations import Observations, named_leaves, stack, take
from icrl_gym.values import ValueEstimates

TRUTH_SEED = 1_000_003  # contexts use small seeds; the truth's states never come from a context's episodes
START_SEED = 1_000_033
ROLLOUTS_PER_START = 4  # one rollout from a start for so many from a visited state: only the mean over starts is used


@dataclass(frozen=True, eq=False)
class Truths:
    """Of one task.

    Attributes:
        visited: where estimates are scored.
        start: at ``num_queries`` states that the environment starts in, one fresh reset each; their mean is the start
            value.
    """

    visited: ValueEstimates
    start: ValueEstimates

    @property
    def start_value(self) -> float:
        return float(self.start.values.mean())

    @property
    def start_value_stderr(self) -> float:
        """Of the mean over these very states, so only the rollouts' noise."""
        stderr = self.start.stderr
        return 0.0 if stderr is None else float(np.sqrt((stderr**2).sum()) / len(stderr))


def truths_of(config: BenchmarkConfig, task: Task, policy: Any, space_of: Trajectory) -> Truths:
    """Both truths of a task, measured where the cache below ``config.out`` does not hold them.

    Args:
        config: number of states and of rollouts, and where the cache is.
        task: whose.
        policy: the task's, loaded.
        space_of: any log of the environment.
    """
    key = task.target.id
    cache = TruthCache(config.out / "truth")
    sizes = f"q{config.num_queries}-r{config.num_rollouts}"
    if task.truth != "exact":
        return Truths(
            cache.get(f"{key}-{sizes}", lambda: _simulated(config, task, policy), space_of),
            cache.get(f"{key}-start-{sizes}", lambda: _simulated_start(config, task, policy), space_of),
        )

    def solve() -> ValueEstimates:
        with _environment(task) as env:
            return exact_values(env, as_policy(policy, env.action_space, env.observation_space), task.gamma)

    def look_up() -> ValueEstimates:
        with _environment(task) as env:
            return values_at_resets(env, visited, config.num_queries, START_SEED)

    visited = cache.get(key, solve, space_of)
    return Truths(visited, cache.get(f"{key}-start-q{config.num_queries}", look_up, space_of))


def values_at_resets(env: gymnasium.Env, exact: ValueEstimates, num_states: int, seed: int) -> ValueEstimates:
    """Exact values at ``num_states`` fresh resets of an environment, found by what it shows there.

    Raises:
        ValueError: a reset shows something that no state of the exact values shows.
    """
    row_of = {_bytes(exact.observations, row): row for row in reversed(range(len(exact)))}
    seeds = np.random.SeedSequence(seed).generate_state(num_states)
    observations = stack([env.reset(seed=int(each))[0] for each in seeds])
    try:
        rows = np.array([row_of[_bytes(observations, row)] for row in range(num_states)])
    except KeyError:
        raise ValueError(f"{exact.estimand.env} starts in a state that its transition table does not list") from None
    return ValueEstimates(exact.values[rows], take(exact.observations, rows), exact.estimand, np.zeros(num_states))


def _bytes(observations: Observations, row: int) -> tuple[bytes, ...]:
    return tuple(np.asarray(leaf[row], np.float64).tobytes() for _, leaf in named_leaves(observations, ""))


def _environment(task: Task) -> closing[gymnasium.Env]:
    return closing(make_environment(task.spec))


def _simulated(config: BenchmarkConfig, task: Task, policy: Any) -> ValueEstimates:
    return _monte_carlo(task, policy, num_queries=config.num_queries, num_rollouts=config.num_rollouts, seed=TRUTH_SEED)


def _simulated_start(config: BenchmarkConfig, task: Task, policy: Any) -> ValueEstimates:
    num_rollouts = max(2, config.num_rollouts // ROLLOUTS_PER_START)
    sizes = {"num_queries": config.num_queries, "num_rollouts": num_rollouts}
    return _monte_carlo(task, policy, states="start", seed=START_SEED, **sizes)


def _monte_carlo(task: Task, policy: Any, **options: Any) -> ValueEstimates:
    return monte_carlo_values(task.spec, policy, gamma=task.gamma, **options)
