"""How well an estimator tells good policies from bad ones: figures over the snapshots of one environment.

Definitions follow Fu et al. 2021 (*Benchmarks for Deep Off-Policy Evaluation*): the absolute error of the start value,
Spearman's rank correlation, and regret@k = (best true value - best true value among the k policies ranked highest) /
(range of the true values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from icrl_gym.benchmark.cells import Task
from icrl_gym.benchmark.records import Record
from icrl_gym.scoring.statistics import rank_correlation


@dataclass(frozen=True)
class PolicyMetrics:
    """Figures of one estimator over the policies of one environment; nan where a figure is not defined.

    Attributes:
        env: environment id.
        estimator: under its default setting.
        context_length: transitions per policy.
        seed: seed of the contexts.
        num_policies: how many start values there are.
        absolute_error: mean over the policies of |start value - truth|, in units of the environment's reward.
        rank_correlation: Spearman's, between start values and truths.
        regret_at_1, regret_at_k: in [0, 1], 0 is best.
        value_range: largest minus smallest true start value.
    """

    env: str
    estimator: str
    context_length: int
    seed: int
    num_policies: int
    absolute_error: float
    rank_correlation: float
    regret_at_1: float
    regret_at_k: float
    value_range: float


def policy_metrics(records: Sequence[Record], k: int = 3) -> list[PolicyMetrics]:
    """Figures per environment, estimator, context length and seed, in that order.

    Takes the records of default settings that hold a start value; the policies of a group differ in nothing but the
    policy (same keyword arguments, wrapper, discount).

    Args:
        records: records of one or more suites.
        k: of regret@k, at least 1.
    """
    groups: dict[tuple[Task, str, int, int], dict[str, Record]] = {}
    for record in records:
        cell = record.cell
        if cell.variant.is_default and record.start_value is not None and record.start_value_truth is not None:
            key = (_environment(cell.task), cell.variant.estimator, cell.context_length, cell.seed)
            groups.setdefault(key, {})[cell.task.policy] = record
    found = [_metrics(key, list(group.values()), k) for key, group in groups.items()]
    return sorted(found, key=lambda m: (m.env, m.estimator, m.context_length, m.seed))


def regret_at(k: int, estimates: np.ndarray, truths: np.ndarray) -> float:
    """Normalised regret@k; nan where all true values are equal.

    Among policies with the same estimate those of lower true value are taken first: a tie earns nothing by luck.

    Raises:
        ValueError: k is not in 1..number of policies.
    """
    estimates, truths = _checked(estimates, truths)
    if not 1 <= k <= len(truths):
        raise ValueError(f"k must be in 1..{len(truths)} (the number of policies), got {k}")
    spread = np.ptp(truths)
    if spread == 0:
        return math.nan
    ranked = np.lexsort((truths, -estimates))
    return float((truths.max() - truths[ranked[:k]].max()) / spread)


def _environment(task: Task) -> Task:
    return replace(task, policy="", truth="", extra="")


def _metrics(key: tuple[Task, str, int, int], records: list[Record], k: int) -> PolicyMetrics:
    task, estimator, context_length, seed = key
    estimates = np.array([record.start_value for record in records], dtype=np.float64)
    truths = np.array([record.start_value_truth for record in records], dtype=np.float64)
    num = len(records)
    return PolicyMetrics(
        task.env, estimator, context_length, seed, num,
        absolute_error=float(np.abs(estimates - truths).mean()),
        rank_correlation=rank_correlation(estimates, truths),
        regret_at_1=regret_at(1, estimates, truths),
        regret_at_k=regret_at(k, estimates, truths) if k < num else math.nan,  # of all policies: 0 by definition
        value_range=float(np.ptp(truths)),
    )  # fmt: skip


def _checked(estimates: np.ndarray, truths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    estimates, truths = np.asarray(estimates, dtype=np.float64), np.asarray(truths, dtype=np.float64)
    if estimates.ndim != 1 or estimates.shape != truths.shape or not len(truths):
        raise ValueError(f"estimates and truths must be of one shape (N,), got {estimates.shape} and {truths.shape}")
    return estimates, truths
