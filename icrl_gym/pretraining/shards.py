"""Examples to train on: tasks of the prior with every head solved at the corners of what the gate may choose.

Shard i is a pure function of (seed, i, plan): family, length and tasks are drawn from it. A shard is one npz file,
written under a temporary name and renamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.network import CompiledPrompt, compile_prompt, with_free_level
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import STATISTICS, QueryFacts, prompt_statistics
from icrl_gym.pretraining.prior import FAMILIES, TaskBatch, sample_tasks
from icrl_gym.runs import read_archive, write_archive

LEAST_TASKS = 4  # tasks of a shard of long contexts
PSEUDO_CORNERS = (0.0, 1.0)
LEVEL_CORNERS = (0.0, 1.0)


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
    """B tasks, H heads, Q queries, S statistics; NumPy arrays.

    Attributes:
        statistics: (B, S) float32.
        values: (B, H, 2, 2, Q) float32, in units of ``scale`` and relative to ``constant``, at the corners of
            pseudo-terminations and free level.
        mass: (B, Q) float32, the first head's attention in sources.
        level_shift: (B,) float32, in units of ``scale``.
        truth, truth_stderr: (B, Q) float32, in the same units.
        constant, scale: (B,) float64.
        family: (B,) index into `icrl_gym.pretraining.prior.FAMILIES`.
        length: (B,) transitions.
    """

    statistics: np.ndarray
    values: np.ndarray
    mass: np.ndarray
    level_shift: np.ndarray
    truth: np.ndarray
    truth_stderr: np.ndarray
    constant: np.ndarray
    scale: np.ndarray
    family: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

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
        heads: settings; the first gives the statistics.
        family: index into `icrl_gym.pretraining.prior.FAMILIES`, -1 for none.
    """
    first = compile_prompt(prompt, heads[0])
    facts = QueryFacts.of(first, query_QD)
    statistics = prompt_statistics(prompt, first)
    equal = bool(statistics[STATISTICS.index("constant_reward")])
    corners = np.stack([_corners(first, head, equal, query_QD) for head in heads])
    if not facts.scale > 0 or not np.isfinite(corners).all():
        return None

    def small(x: np.ndarray | float) -> np.ndarray:
        return np.asarray(x, dtype=np.float32)[None]

    return Examples(
        statistics=small(statistics),
        values=small((corners - facts.constant) / facts.scale),
        mass=small(facts.mass_Q),
        level_shift=small(facts.level_shift / facts.scale),
        truth=small((truth_Q - facts.constant) / facts.scale),
        truth_stderr=small(stderr_Q / facts.scale),
        constant=np.array([facts.constant]),
        scale=np.array([facts.scale]),
        family=np.array([family]),
        length=np.array([len(prompt)]),
    )


def _corners(first: CompiledPrompt, head: Setting, equal_rewards: bool, query_QD: np.ndarray) -> np.ndarray:
    """Values (2, 2, Q) at the corners of pseudo-terminations, which need equal rewards, and free level.

    Args:
        first: the prompt under the first head, which is not solved again.
        head: what to solve.
        equal_rewards: whether pseudo-terminations are allowed; without them their corner is a copy.
        query_QD: features of the queries.
    """
    by_pseudo = []
    for pseudo in PSEUDO_CORNERS:
        if pseudo and not equal_rewards:
            by_pseudo.append(by_pseudo[0])
            continue
        setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
        compiled = first if setting == first.setting else compile_prompt(first.prompt, setting)
        attention_QN = compiled.attend(query_QD)
        levels = [with_free_level(compiled, level) for level in LEVEL_CORNERS]
        by_pseudo.append([moved.values(attention_QN)[-1].double().cpu().numpy() for moved in levels])
    return np.array(by_pseudo)


def _save(path: Path, examples: Examples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, {}, {field.name: getattr(examples, field.name) for field in fields(examples)})


def _load(path: Path) -> Examples:
    try:
        return Examples(**read_archive(path)[1])
    except (TypeError, ValueError) as error:
        raise ValueError(f"the shard {path} is damaged; remove it, and it is made again: {error}") from error


def as_tensors(examples: Examples) -> dict[str, torch.Tensor]:
    """The arrays that training reads."""
    names = ("statistics", "values", "mass", "level_shift", "truth", "truth_stderr")
    return {name: torch.as_tensor(getattr(examples, name)) for name in names}
