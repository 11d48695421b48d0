"""Figures out of records: errors by cell, by suite, by environment; matrices of what several estimators share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from icrl_gym.benchmark.cells import CRITIC, Task, Variant
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.suites import SUITES
from icrl_gym.scoring.statistics import Aggregate, mean_interval
from icrl_gym.scoring.verdict import by_group

METRIC = "rmse_over_std"
# The environments on which anything was designed, tuned or calibrated.
SELECTION = (
    "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0", "MountainCarContinuous-v0", "FrozenLake-v1",
    "CliffWalking-v1", "InvertedPendulum-v5", "Reacher-v5", "icrl_envs:icrl/BoyanChain-v0",
    "icrl_envs:icrl/RandomMRP-v0", "icrl_envs:icrl/Loop-v0", "icrl_envs:icrl/PointGoal-v0",
)  # fmt: skip
SMALLEST_SPREAD = 2.0  # truths whose standard deviation is below this many noise floors say nothing about spread
SMALLEST_ERROR = 1e-9  # what an error of zero counts as in a geometric mean
OTHER = "other"  # the suite of tasks that no suite names
REFERENCE = "constructed"  # the estimator without training, from which the pretrained ones start

Key = tuple[Task, int]  # a context: task and seed
Figures = dict[Key, float]


def figures(records: Iterable[Record], estimator: str, metric: str = METRIC, *, tuned: bool = False) -> Figures:
    """A figure of each context: under the default setting, or the least over the default and the whole grid."""
    found: Figures = {}
    for record in records:
        variant = record.cell.variant
        if variant.estimator != estimator or (variant.options and not tuned):
            continue
        value = record.scores.get(metric)
        if value is not None:
            key = record.cell.task, record.cell.seed
            value = max(value, SMALLEST_ERROR) if metric.startswith("rmse") else value
            found[key] = min(value, found.get(key, value))
    return found


def shared(*parts: Figures) -> list[Figures]:
    """Each of them, on the contexts that all of them have."""
    keys = [key for key in parts[0] if all(key in part for part in parts[1:])] if parts else []
    return [{key: part[key] for key in keys} for part in parts]


def ratios(ours: Figures, theirs: Figures) -> Figures:
    """Our error over theirs, on the contexts that both have."""
    mine, other = shared(ours, theirs)
    return {key: mine[key] / other[key] for key in mine}


def geometric(by_context: Figures) -> Aggregate | None:
    """Geometric mean over policies with its interval over their contexts, None of nothing."""
    if not by_context:
        return None
    return mean_interval(by_group({key: np.log(value) for key, value in by_context.items()})).exponentiated()


def has_spread(record: Record) -> bool:
    """Whether the truth's spread stands out of its own noise."""
    spread, floor = record.scores.get("truth_std"), record.scores.get("noise_floor")
    return spread is not None and floor is not None and spread > 0 and spread >= SMALLEST_SPREAD * floor


def usable(records: Iterable[Record]) -> list[Record]:
    """Finished, with a truth that has a spread."""
    return [record for record in records if record.error is None and has_spread(record)]


def lengths_of(records: Iterable[Record]) -> list[int]:
    """Context lengths, ascending."""
    return sorted({record.cell.context_length for record in records})


def main_lengths(records: Sequence[Record], most: int | None = None) -> list[int]:
    """Context lengths at which nearly everything was run, ascending; of more than ``most``, evenly spread ones.

    Nearly everything: 90 % of the pairs of a task and a variant that the length with most of them has.
    """
    pairs: dict[int, set[tuple[Task, Variant]]] = {}
    for record in records:
        pairs.setdefault(record.cell.context_length, set()).add((record.cell.task, record.cell.variant))
    enough = 0.9 * max(map(len, pairs.values()), default=0)
    lengths = sorted(length for length, found in pairs.items() if len(found) >= enough)
    if most is None or len(lengths) <= most:
        return lengths
    return [lengths[i] for i in np.linspace(0, len(lengths) - 1, most).round().astype(int)]


def at_length(records: Iterable[Record], length: int) -> list[Record]:
    """Records of one context length."""
    return [record for record in records if record.cell.context_length == length]


def names_of(records: Iterable[Record]) -> list[str]:
    """Estimators, the critic included, in alphabetical order."""
    return sorted({record.cell.variant.estimator for record in records})


def complete(records: Sequence[Record]) -> list[str]:
    """Estimators that have a result under their default on every task that anybody has one on."""
    tasks = {record.cell.task for record in records}
    seen = {(record.cell.variant.estimator, record.cell.task) for record in records if record.cell.variant.is_default}
    counts = Counter(name for name, _ in seen)
    return sorted(name for name, count in counts.items() if count == len(tasks))


def by_suite(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records under the suites that name their tasks, in the suites' order; the rest under "other"."""
    suites: dict[Task, list[str]] = {}
    for name, suite in SUITES.items():
        for task in suite.tasks:
            suites.setdefault(task, []).append(name)
    parts: dict[str, list[Record]] = {name: [] for name in (*SUITES, OTHER)}
    for record in records:
        for name in suites.get(record.cell.task, [OTHER]):
            parts[name].append(record)
    return {name: part for name, part in parts.items() if part}


def by_environment(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records of each environment (and policy or discount, where an environment has several kinds), by label."""
    named = labels({record.cell.task for record in records})
    parts: dict[str, list[Record]] = {}
    for record in records:
        parts.setdefault(named[record.cell.task], []).append(record)
    return dict(sorted(parts.items()))


def labels(tasks: Iterable[Task]) -> dict[Task, str]:
    """A short name per task: the environment, and of policy kind, discount and options what tells its tasks apart.

    Snapshots that differ in nothing but the seed and the length of the training share a name.
    """
    found = {task: (task.env.rpartition(":")[2].removeprefix("icrl/"),) for task in tasks}
    for part in _PARTS:
        details: dict[tuple[str, ...], set[str]] = {}
        for task, name in found.items():
            details.setdefault(name, set()).add(part(task))
        found = {
            task: (*name, part(task)) if len(details[name]) > 1 and part(task) else name for task, name in found.items()
        }
    return {task: env + (f" ({', '.join(more)})" if more else "") for task, (env, *more) in found.items()}


def _policy_kind(task: Task) -> str:
    kind = re.sub(r"-seed\d+", "", task.policy.rpartition("/")[0].rpartition("/")[2])
    return kind or task.policy


def _options(task: Task) -> str:
    return " ".join(f"{name}={value}" for name, value in task.env_kwargs)


def _behaviour(task: Task) -> str:
    return "" if task.behaviour is None else f"behaviour {_policy_kind(replace(task, policy=task.behaviour))}"


def _wrapping(task: Task) -> str:
    wrapper = task.wrapper.rpartition(":")[2] if task.wrapper else ""
    return " ".join(filter(None, [wrapper, "policy's features" if task.features else ""]))


_PARTS: tuple[Callable[[Task], str], ...] = (
    _policy_kind, _behaviour, lambda task: f"gamma {task.gamma:g}", _options, _wrapping,
)  # fmt: skip


def training_steps(task: Task) -> int | None:
    """Environment steps that the policy's snapshot is named after."""
    found = re.search(r"steps(\d+)", task.policy)
    return int(found[1]) if found else None


def environment_steps(record: Record) -> int | None:
    """Environment steps that the estimator has seen: recorded, or the context's length, or in the snapshot's name."""
    if record.environment_steps is not None:
        return record.environment_steps
    return training_steps(record.cell.task) if record.cell.variant.estimator == CRITIC else record.cell.context_length
