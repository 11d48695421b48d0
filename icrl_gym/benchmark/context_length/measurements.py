"""What is run for the curve: trained agents, truths, contexts and cells, each kept as a file and never made twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import icrl_gym
from icrl_gym.benchmark.cells import CRITIC, Cell, Conditions, Variant
from icrl_gym.benchmark.context_length.subjects import Subject
from icrl_gym.benchmark.contexts import evaluated_policy, task_context, task_policy
from icrl_gym.benchmark.isolation import isolated
from icrl_gym.benchmark.records import Record, load_record, record_path, write_record
from icrl_gym.benchmark.resources import Cost, measured
from icrl_gym.benchmark.truths import TRUTH_SEED, kept, truth_stem
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.ground_truth.values import monte_carlo_values
from icrl_gym.registry import make_estimator, weights_sha256
from icrl_gym.rivals.critic_training import train
from icrl_gym.rivals.critics import sb3_critic_values
from icrl_gym.runs import source_commit
from icrl_gym.scoring.score import score
from icrl_gym.values import ValueEstimates

TOLD, FROM_LOG = "generalist", "generalist_from_log"  # given the policy, or its logged actions alone
ESTIMATORS = (TOLD, FROM_LOG)
WARM_UP = 64  # transitions of a fit that loads what is loaded on first use, before anything is measured


@dataclass(frozen=True)
class Place:
    """Where things are kept.

    Attributes:
        out: folder of truths, contexts and records.
        critics: folder of the trained agents.
    """

    out: Path
    critics: Path

    def truth(self, cell: Cell) -> Path:
        """File of a cell's truth."""
        return self.out / "truths" / f"{truth_stem(cell.task, cell.conditions)}.npz"

    def context(self, cell: Cell, num_transitions: int) -> Path:
        """File of the log that a cell's context is the beginning of."""
        policy = (cell.conditions.policy_sha256 or "")[:8]
        return self.out / "contexts" / f"{cell.task.id}-{policy}-n{num_transitions}-seed{cell.seed}.npz"


def trained(place: Place, subject: Subject, command: str) -> None:
    """Train the agent of a subject, unless it is there."""
    if not (place.critics / subject.task.policy).with_suffix(".json").is_file():
        train(subject.recipe, 0, place.critics, command=command)


def conditions(place: Place, subject: Subject, estimator: str) -> Conditions:
    """The conditions of a subject's cells, beside estimator, length and seed; its agent must be there."""
    content = (place.critics / subject.task.policy).read_bytes()
    weights = None if estimator == CRITIC else weights_sha256("generalist")
    return Conditions(
        subject.num_queries, subject.num_rollouts, hashlib.sha256(content).hexdigest(), weights_sha256=weights
    )


def cells_of(place: Place, subject: Subject, lengths: Sequence[int], seeds: Sequence[int]) -> list[Cell]:
    """The critic's cell, then those of the estimators, short contexts first."""
    task, given = subject.task, partial(conditions, place, subject)
    critic = Cell(task, Variant(CRITIC), subject.num_steps, 0, given(CRITIC))
    return [critic] + [
        Cell(task, Variant(name), length, seed, given(name))
        for length in lengths
        for seed in seeds
        for name in ESTIMATORS
    ]


def truth_of(place: Place, cell: Cell) -> ValueEstimates:
    """True values at states of the policy's own path, measured where they are not there."""
    task, budget = cell.task, cell.conditions
    return kept(
        place.truth(cell),
        lambda: monte_carlo_values(
            task.spec, task_policy(task.policy, place.critics), gamma=task.gamma, seed=TRUTH_SEED,
            num_queries=budget.num_queries, num_rollouts=budget.num_rollouts,
        ),
    )  # fmt: skip


def context_file(place: Place, cell: Cell, num_transitions: int) -> Path:
    """The stored log of this many transitions whose beginning is the cell's context; run where it is not there."""
    path = place.context(cell, num_transitions)
    if not path.exists():
        policy = task_policy(cell.task.policy, place.critics)
        path.parent.mkdir(parents=True, exist_ok=True)
        task_context(cell.task, policy, num_transitions, cell.seed, place.critics).save(path)
    return path


def run_missing(place: Place, cells: Sequence[Cell], num_threads: int, seconds: float, retry: bool) -> list[Record]:
    """The records of these cells; each that is missing runs in a process of its own.

    Args:
        place: where things are kept.
        cells: of one subject.
        num_threads: threads of torch.
        seconds: limit of one cell; one that takes longer has failed.
        retry: whether cells that failed before run again.
    """
    longest = max((cell.context_length for cell in cells if cell.variant.estimator != CRITIC), default=0)
    return [_record_of(place, cell, longest, num_threads, seconds, retry) for cell in cells]


def _record_of(place: Place, cell: Cell, longest: int, num_threads: int, seconds: float, retry: bool) -> Record:
    path = record_path(place.out, cell)
    if path.exists():
        record = load_record(path)
        if record.error is None or not retry:
            return record
    truth_of(place, cell)
    log = None if cell.variant.estimator == CRITIC else context_file(place, cell, longest)
    outcome = isolated(measured_cell, place, cell, log, num_threads, seconds=seconds)
    record = outcome.result or Record(cell, error=outcome.reason, commit=source_commit(_SOURCE))
    write_record(place.out, record)
    return record


_SOURCE = Path(icrl_gym.__file__).parent


def measured_cell(place: Place, cell: Cell, log: Path | None, num_threads: int) -> Record:
    """Run one cell here: time, memory and score.

    Args:
        place: where things are kept.
        cell: to be run.
        log: file whose beginning is the context; None for the critic.
        num_threads: threads of torch.
    """
    torch.set_num_threads(num_threads)
    policy, truth = task_policy(cell.task.policy, place.critics), truth_of(place, cell)
    if log is None:
        values = sb3_critic_values(policy, truth.observations, env=truth.estimand.env)
        card = (place.critics / cell.task.policy).with_suffix(".json")
        steps = json.loads(card.read_text(encoding="utf-8"))["num_steps_taken"]
        return _scored(cell, values, truth, Cost(0.0, 0), Cost(0.0, 0), steps)
    context = Trajectory.load(log)[: cell.context_length]
    told = evaluated_policy(cell.task, policy) if cell.variant.estimator == TOLD else None
    _warm_up(cell, context, told, truth)
    estimator: Any = make_estimator(cell.variant.estimator)
    _, fit = measured(lambda: estimator.fit(context, cell.task.gamma, policy=told))
    values, prediction = measured(lambda: estimator.predict(truth.observations))
    return _scored(cell, values, truth, fit, prediction, len(context))


def _warm_up(cell: Cell, context: Trajectory, told: Any, truth: ValueEstimates) -> None:
    estimator = make_estimator(cell.variant.estimator)
    estimator.fit(context[:WARM_UP], cell.task.gamma, policy=told).predict(truth.observations)


def _scored(
    cell: Cell, values: ValueEstimates, truth: ValueEstimates, fit: Cost, prediction: Cost, num_steps: int
) -> Record:
    if not np.isfinite(values.values).all():
        raise ValueError("the estimates are not finite")
    figures = {name: figure for name, figure in score(values, truth).as_dict().items() if name != "notes"}
    return Record(
        cell, figures, fit.seconds, prediction.seconds, peak_memory_fit=fit.peak_memory,
        environment_steps=num_steps, commit=source_commit(_SOURCE),
    )  # fmt: skip
