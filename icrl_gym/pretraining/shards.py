"""Examples to train on: tasks of the prior with every head solved at the dials of the mixture.

Shard i is a pure function of (seed, i, plan): family, length and tasks are drawn from it. A shard is one npz file,
written under a temporary name and renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.error_bars import SamplingError
from icrl_gym.evaluator.heads import at_length
from icrl_gym.evaluator.kernel import Rows
from icrl_gym.evaluator.mixing import agreed
from icrl_gym.evaluator.mixture import at_dials
from icrl_gym.evaluator.network import Compiler
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import QueryFacts, prompt_statistics, query_statistics
from icrl_gym.pretraining.prior import FAMILIES, TaskBatch, sample_tasks
from icrl_gym.runs import read_archive, write_archive

LEAST_TASKS = 4  # tasks of a shard of long contexts


@dataclass(frozen=True)
class ShardPlan:
    """The choice of tasks that the shards of one folder hold.

    Attributes:
        heads: settings that every task is solved under; the first gives the statistics.
        lengths: numbers of transitions of a context, each with its share of the shards.
        num_queries: queries per task.
        tasks_per_shard: largest number of tasks in a shard; contexts above 512 transitions come in smaller shards.
    """

    heads: tuple[Setting, ...]
    lengths: tuple[tuple[int, float], ...]
    num_queries: int
    tasks_per_shard: int

    def num_tasks(self, length: int) -> int:
        """Tasks in a shard of contexts of this length."""
        return max(LEAST_TASKS, min(self.tasks_per_shard, self.tasks_per_shard * 512 // length))


@dataclass(frozen=True, eq=False)
class Examples:
    """B tasks, H heads, Q queries, S statistics, T of a query; NumPy arrays. Values are in units of ``scale``.

    Attributes:
        statistics: (B, S) float32.
        query_statistics: (B, Q, T) float32.
        values: (B, H, Q) float32, relative to ``constant``: every head at the mixture's dials.
        constructed: (B, Q) float32, relative to ``constant``: the first head as it stands.
        sampling_error: (B, Q) float32, that of the first head as it stands; NaN where there is none.
        truth: (B, Q) float32, relative to ``constant``.
        truth_stderr: (B, Q) float32.
        constant, scale: (B,) float64, in units of reward.
        family: (B,) index into `icrl_gym.pretraining.prior.FAMILIES`.
        length: (B,) transitions.
    """

    statistics: np.ndarray
    query_statistics: np.ndarray
    values: np.ndarray
    constructed: np.ndarray
    sampling_error: np.ndarray
    truth: np.ndarray
    truth_stderr: np.ndarray
    constant: np.ndarray
    scale: np.ndarray
    family: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def mixed(self) -> np.ndarray:
        """(B, Q) float64: what the mixture says, in units of ``scale`` and relative to ``constant``."""
        return agreed(torch.as_tensor(self.values, dtype=torch.float64)).numpy()

    def select(self, rows: np.ndarray) -> Examples:
        """The examples that an index or a mask picks."""
        return Examples(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    @classmethod
    def join(cls, parts: Sequence[Examples]) -> Examples:
        """All examples of several parts, in their order."""
        return cls(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)})


def make_shard(path: Path, seed: int, index: int, plan: ShardPlan) -> None:
    """Draw and solve shard ``index`` of stream ``seed``, unless it is there."""
    if path.exists():
        return
    rng = np.random.default_rng((seed, index))
    shares = np.array([family.weight for family in FAMILIES.values()])
    family = str(rng.choice(list(FAMILIES), p=shares / shares.sum()))
    lengths, length_shares = zip(*plan.lengths, strict=True)
    length = int(rng.choice(lengths, p=np.array(length_shares) / sum(length_shares)))
    batch = sample_tasks(
        family,
        num_tasks=plan.num_tasks(length),
        num_transitions=length,
        num_queries=plan.num_queries,
        seed=(seed, index),
    )
    number = list(FAMILIES).index(family)
    solved = [example for task in range(len(batch)) if (example := _solve(batch, task, plan.heads, number)) is not None]
    if not solved:
        raise RuntimeError(f"shard {index} of seed {seed}: no task of {family!r} could be solved")
    _save(path, Examples.join(solved))


def load_shards(paths: Sequence[Path]) -> Examples:
    """Read shards in the order given.

    Raises:
        ValueError: a shard is damaged.
    """
    return Examples.join([_load(path) for path in paths])


def task_prompt(batch: TaskBatch, task: int) -> tuple[Prompt, np.ndarray]:
    """Prompt and query features (Q, D) of one task of the prior."""
    trajectory, queries = batch.trajectory(task), batch.queries[task].double().cpu().numpy()
    gamma = float(batch.gamma[task])
    feature_map = _Plain(trajectory.observation_space) if not batch.standardise else None
    prompt = Prompt.from_trajectory(trajectory, gamma, feature_map)
    return prompt, prompt.queries(queries)


class _Plain(FeatureMap):
    """One-hot columns of a lone categorical state: features already, one component."""

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        return np.asarray(observations, dtype=np.float64)

    @property
    def effective_dimension(self) -> int:
        return 1


def _solve(batch: TaskBatch, task: int, heads: tuple[Setting, ...], family: int) -> Examples | None:
    prompt, query_QD = task_prompt(batch, task)
    truth_Q = (batch.values[task] + batch.values_second[task]).double().cpu().numpy() / 2
    return solve_example(prompt, query_QD, truth_Q, batch.stderr[task].double().cpu().numpy(), heads, family)


def solve_example(
    prompt: Prompt,
    query_QD: np.ndarray,
    truth_Q: np.ndarray,
    stderr_Q: np.ndarray,
    heads: tuple[Setting, ...],
    family: int = -1,
) -> Examples | None:
    """One example, or None where a head's values are not finite or the prompt has no scale.

    Args:
        prompt: the context.
        query_QD: features of the queries.
        truth_Q, stderr_Q: their values, in units of reward, and standard errors.
        heads: settings; the first as it stands gives the statistics.
        family: index into `icrl_gym.pretraining.prior.FAMILIES`, -1 for none.
    """
    compiler, rows = Compiler(prompt), Rows(query_QD)
    heads = tuple(at_length(head, len(prompt)) for head in heads)
    first = compiler.compile(heads[0])
    facts, sampling_error = QueryFacts.of(first, query_QD), SamplingError.of(first)
    answering = at_dials(compiler, heads, first)
    by_head_HQ = np.stack([head.values(rows[head.kernel])[-1].double().cpu().numpy() for head in answering])
    if not facts.scale > 0 or not np.isfinite(by_head_HQ).all():
        return None
    mixed_Q = agreed(torch.as_tensor(by_head_HQ)[None])[0].numpy()
    no_error_Q = np.full_like(mixed_Q, np.nan)
    sampling_Q = no_error_Q if sampling_error is None else sampling_error(rows, by_head_HQ, mixed_Q)

    def small(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(x, dtype=np.float32)[None]

    return Examples(
        statistics=small(prompt_statistics(prompt, first)),
        query_statistics=small(query_statistics(facts, by_head_HQ, mixed_Q)),
        values=small((by_head_HQ - facts.constant) / facts.scale),
        constructed=small((facts.values_Q - facts.constant) / facts.scale),
        sampling_error=small(sampling_Q / facts.scale),
        truth=small((truth_Q - facts.constant) / facts.scale),
        truth_stderr=small(stderr_Q / facts.scale),
        constant=np.array([facts.constant]),
        scale=np.array([facts.scale]),
        family=np.array([family]),
        length=np.array([len(prompt)]),
    )


def _save(path: Path, examples: Examples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, {}, {field.name: getattr(examples, field.name) for field in fields(examples)})


def _load(path: Path) -> Examples:
    try:
        return Examples(**read_archive(path)[1])
    except (TypeError, ValueError) as error:
        raise ValueError(f"the shard {path} is damaged; remove it, and it is made again: {error}") from error


def as_tensors(examples: Examples) -> dict[str, torch.Tensor]:
    """What training reads: statistics (B, S), query statistics (B, Q, T), errors and noise of the truth (B, Q)."""
    arrays = {
        "statistics": examples.statistics,
        "query_statistics": examples.query_statistics,
        "error": examples.mixed - examples.truth,
        "truth_stderr": examples.truth_stderr,
    }
    return {name: torch.as_tensor(array, dtype=torch.float32) for name, array in arrays.items()}
