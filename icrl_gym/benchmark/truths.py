"""What a task's estimates are scored against: true values at states that the policy visits, and at states it starts in.

Both are measured once per task and conditions, and kept as arrays without pickle. A file that cannot be read is set
aside under another name, and its truth is measured again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.policies import as_policy
from icrl_gym.benchmark.cells import Conditions, Task, digest
from icrl_gym.ground_truth.values import exact_values, monte_carlo_values
from icrl_gym.observations import Observations, named_leaves, stack, take
from icrl_gym.stored_values import load_values, save_values
from icrl_gym.values import ValueEstimates

TRUTH_SEED = 1_000_003  # contexts use small seeds; the truth's states never come from a context's episodes
START_SEED = 1_000_033
ROLLOUTS_PER_START = 4  # one rollout from a start for so many from a visited state: only the mean over starts is used


@dataclass(frozen=True, eq=False)
class Truths:
    """The true values of one task.

    Attributes:
        visited: where estimates are scored.
        start: at ``num_queries`` states that the environment starts in, one fresh reset each; their mean is the start
            value.
    """

    visited: ValueEstimates
    start: ValueEstimates

    @property
    def start_value(self) -> float:
        """Mean true value over the start states."""
        return float(self.start.values.mean())

    @property
    def start_value_stderr(self) -> float:
        """Standard error of the mean over these very states: only the rollouts' noise."""
        stderr = self.start.stderr
        return 0.0 if stderr is None else float(np.sqrt((stderr**2).sum()) / len(stderr))


def truths_of(folder: Path, task: Task, conditions: Conditions, policy: Any) -> Truths:
    """Both truths of a task, measured where the folder does not hold them.

    Args:
        folder: where truths are kept; made if it does not exist.
        task: the policy in its environment.
        conditions: numbers of states and of rollouts, and the content of the policy's snapshot.
        policy: the task's policy, loaded.
    """
    stem = truth_stem(task, conditions)
    if task.truth == "exact":
        visited = kept(folder / f"{stem}.npz", lambda: _solved(task, policy))
        start = kept(folder / f"{stem}-start.npz", lambda: _looked_up(task, visited, conditions.num_queries))
    else:
        visited = kept(folder / f"{stem}.npz", lambda: _simulated(task, conditions, policy))
        start = kept(folder / f"{stem}-start.npz", lambda: _simulated_start(task, conditions, policy))
    return Truths(visited, start)


def truth_stem(task: Task, conditions: Conditions) -> str:
    """File name, without ending, that tells truths of different tasks, policies and budgets apart."""
    content = {
        "task": task.target.id,
        "policy": conditions.policy_sha256,
        "num_queries": conditions.num_queries,
        "num_rollouts": conditions.num_rollouts,
    }
    return f"{task.target.id}-{digest(content)[:8]}"


def kept(path: Path, measure: Callable[[], ValueEstimates]) -> ValueEstimates:
    """The truth at ``path``; measured and written where it is not there or cannot be read.

    Warns:
        UserWarning: the file is damaged or of another version. It is renamed to end in ".damaged".
    """
    if path.exists():
        try:
            return load_values(path)
        except ValueError as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            warnings.warn(f"truth {path}: {error}; set aside as {aside.name}, measured again", stacklevel=2)
    truth = measure()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_values(path, truth if truth.stderr is not None else replace(truth, stderr=np.zeros(len(truth))))
    return load_values(path)


def _solved(task: Task, policy: Any) -> ValueEstimates:
    with _environment(task) as env:
        return exact_values(env, as_policy(policy, env.action_space, env.observation_space), task.gamma)


def _looked_up(task: Task, exact: ValueEstimates, num_states: int) -> ValueEstimates:
    with _environment(task) as env:
        return values_at_resets(env, exact, num_states, START_SEED)


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


def _simulated(task: Task, conditions: Conditions, policy: Any) -> ValueEstimates:
    return monte_carlo_values(
        task.spec, policy, gamma=task.gamma, seed=TRUTH_SEED, num_queries=conditions.num_queries,
        num_rollouts=conditions.num_rollouts,
    )  # fmt: skip


def _simulated_start(task: Task, conditions: Conditions, policy: Any) -> ValueEstimates:
    num_rollouts = max(2, conditions.num_rollouts // ROLLOUTS_PER_START)
    return monte_carlo_values(
        task.spec, policy, gamma=task.gamma, seed=START_SEED, states="start", num_queries=conditions.num_queries,
        num_rollouts=num_rollouts,
    )  # fmt: skip
