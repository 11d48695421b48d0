"""Running a suite: every finished cell is one atomically written record, so a killed sweep goes on where it stopped.

Cells of one (task, context length, seed) share the context, the truth and the policy; they are one job. Jobs run where
`backends` says; a cell that fails is a record with its error, and the sweep goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled, UnregisteredEnv

import icrl_gym
from icrl_gym.acting.policies import ActingPolicy
from icrl_gym.benchmark.backends import open_backend
from icrl_gym.benchmark.cells import CRITIC, Cell, Conditions, Task, Variant
from icrl_gym.benchmark.contexts import evaluated_policy, task_context, task_policy, truths_as_seen
from icrl_gym.benchmark.records import Record, load_record, record_path, write_record
from icrl_gym.benchmark.resources import Cost, measured
from icrl_gym.benchmark.suites import SUITES
from icrl_gym.benchmark.truths import Truths, truths_of
from icrl_gym.configuration import BenchmarkConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.registry import estimators, make_estimator, tuning_grid, weights_sha256
from icrl_gym.rivals.critics import sb3_critic_values
from icrl_gym.runs import Progress, shown_path, source_commit, versions, write_json
from icrl_gym.scoring.score import score
from icrl_gym.values import ValueEstimates

_Part = tuple[str, Callable[..., Any], list[tuple[Any, ...]]]  # its name, what is called, and with what


@dataclass(frozen=True)
class SweepCost:
    """What a sweep took, over all its workers.

    Attributes:
        num_jobs: groups of cells that were run.
        num_kept: cells that were finished before.
        seconds_truth: measuring the truths that were not there yet.
        seconds_jobs: everything else: policies, contexts, estimators, scores, records.
        seconds_own: the part of ``seconds_jobs`` inside the estimators' ``fit`` and ``predict``.
    """

    num_jobs: int
    num_kept: int
    seconds_truth: float
    seconds_jobs: float
    seconds_own: float

    @property
    def overhead(self) -> float:
        """Whole time of the jobs over the estimators' own; nan if no estimator ran."""
        return self.seconds_jobs / self.seconds_own if self.seconds_own else math.nan

    def __str__(self) -> str:
        if not self.num_jobs:
            return f"all {self.num_kept} cells were finished before and kept; nothing was run"
        own = f"{self.overhead:.2f} times the estimators' own fit and predict ({self.seconds_own:.1f} s)"
        return (
            f"{self.num_kept} cells were finished before and kept; {self.num_jobs} jobs took {self.seconds_jobs:.1f} s "
            f"of computing, {own if self.seconds_own else 'and no cell succeeded'}; truths took "
            f"{self.seconds_truth:.1f} s more"
        )


def run_benchmark(config: BenchmarkConfig, progress: Progress | None = None) -> list[Record]:
    """Run what is missing of a suite and return all its records.

    Raises:
        ValueError: bad configuration, or a finished record that is damaged.
        ImportError, ConnectionError, ChildProcessError: see `open_backend`.
    """
    run_missing(config, progress)
    return suite_records(config)


def run_missing(config: BenchmarkConfig, progress: Progress | None = None) -> SweepCost:
    """Run what is missing of a suite; raises as `run_benchmark` does.

    Raises:
        KeyboardInterrupt: the user's; its message says how many cells are kept.
    """
    check_config(config)
    out, critics = config.out.absolute(), config.critics.absolute()  # workers start elsewhere
    jobs = suite_jobs(config)
    if config.retry_failed:
        _forget_failures(out, jobs)
    missing = [job for job in jobs if not all(record_path(out, cell).exists() for cell in job)]
    num_kept, num_cells = _num_finished(out, jobs), sum(map(len, jobs))
    if progress is not None and num_kept:
        progress("cells kept", num_kept, num_cells)
    if not missing:
        return SweepCost(0, num_kept, 0.0, 0.0, 0.0)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "versions.json", versions())
    firsts = {(job[0].task.target.id, _truth_conditions(job[0])): job[0] for job in missing}
    # Truths first, so that no two jobs measure the same one.
    parts = (
        ("measuring truths", measure_truth, [(out, critics, cell) for cell in firsts.values()]),
        ("running cells", run_job, [(out, critics, job) for job in missing]),
    )
    try:
        found = _run_parts(config, parts, progress)
    except KeyboardInterrupt:
        kept = f"{_num_finished(out, jobs)} of {num_cells} cells are finished and kept below {shown_path(out)}"
        raise KeyboardInterrupt(f"{kept}; the same command goes on") from None
    costs: list[JobCost] = found["running cells"]
    return SweepCost(
        len(missing), num_kept, sum(found["measuring truths"]), sum(c.seconds for c in costs),
        sum(c.seconds_own for c in costs),
    )  # fmt: skip


def _run_parts(config: BenchmarkConfig, parts: Sequence[_Part], progress: Progress | None) -> dict[str, list[Any]]:
    """The results of each part by its name."""
    found: dict[str, list[Any]] = {}
    with open_backend(config.backend, config.jobs, config.address) as run:
        for part, function, calls in parts:
            results = found[part] = []
            for result in run(function, calls):
                results.append(result)
                if progress is not None:
                    progress(part, len(results), len(calls))
    return found


def _num_finished(out: Path, jobs: Sequence[Sequence[Cell]]) -> int:
    return sum(record_path(out, cell).exists() for job in jobs for cell in job)


def _truth_conditions(cell: Cell) -> tuple[str | None, int, int]:
    return cell.conditions.policy_sha256, cell.conditions.num_queries, cell.conditions.num_rollouts


def _forget_failures(out: Path, jobs: Sequence[Sequence[Cell]]) -> None:
    for path in (record_path(out, cell) for job in jobs for cell in job):
        if path.exists() and load_record(path).error is not None:
            path.unlink()


def suite_records(config: BenchmarkConfig) -> list[Record]:
    """The records of a suite's cells, all of which are finished."""
    return [load_record(record_path(config.out, cell)) for job in suite_jobs(config) for cell in job]


def check_config(config: BenchmarkConfig) -> None:
    """Raise ValueError if a field is out of range, or a model would be unpickled that nobody trusts."""
    if config.suite not in SUITES:
        raise ValueError(f"suite must be one of {sorted(SUITES)}, got {config.suite!r}")
    unknown = sorted(set(config.estimators) - set(estimators()) - {CRITIC})
    if unknown:
        raise ValueError(f"estimators: unknown {unknown}; known are {sorted([*estimators(), CRITIC])}")
    known = sorted({task.env for task in SUITES[config.suite].tasks})
    if not set(config.envs) <= set(known):
        raise ValueError(f"envs must be environments of suite {config.suite!r}, {known}; got {list(config.envs)}")
    if config.jobs < 1 or config.num_queries < 2 or config.num_rollouts < 2:
        raise ValueError("jobs must be at least 1, num_queries and num_rollouts at least 2")
    for name, least in (("context_lengths", 1), ("seeds", 0)):
        if any(value < least for value in getattr(config, name)):
            raise ValueError(f"{name} must be integers of at least {least}, got {list(getattr(config, name))}")
    if config.backend not in ("joblib", "ray"):
        raise ValueError(f'backend must be "joblib" or "ray", got {config.backend!r}')
    if config.address is not None and config.backend != "ray":
        raise ValueError(f'address is that of a Ray cluster; with it, backend must be "ray", got {config.backend!r}')
    models = [path for task in _tasks(config) for path in task.snapshots]
    if models and not config.trust_model:
        raise ValueError(
            f"critics: suite {config.suite!r} loads Stable-Baselines3 models such as {config.critics / models[0]}; "
            "their zips hold pickles, which run code when loaded: pass trust_model=True (--trust-model) if you know "
            "where they are from"
        )


def _tasks(config: BenchmarkConfig) -> list[Task]:
    return [task for task in SUITES[config.suite].tasks if not config.envs or task.env in config.envs]


def suite_jobs(config: BenchmarkConfig) -> list[list[Cell]]:
    """The cells of a suite, grouped by what they share: task, context length and seed."""
    suite, variants = SUITES[config.suite], _variants(config)
    return [
        [
            Cell(task, variant, length, seed, _conditions(config, task, variant))
            for variant in variants
            if variant.estimator != CRITIC or task.policy != "random"
        ]
        for task in _tasks(config)
        for length in (config.context_lengths or suite.context_lengths)
        for seed in (config.seeds or suite.seeds)
    ]


def _variants(config: BenchmarkConfig) -> list[Variant]:
    names = config.estimators or (*estimators(), CRITIC)
    variants = [Variant(name) for name in names]
    if config.tune:
        variants += [Variant.of(n, options) for n in names if n != CRITIC for options in tuning_grid(n) if options]
    return variants


def _conditions(config: BenchmarkConfig, task: Task, variant: Variant) -> Conditions:
    behaviour = task.behaviour if task.behaviour in task.snapshots else None
    return Conditions(
        config.num_queries,
        0 if task.truth == "exact" else config.num_rollouts,
        _content(config.critics / task.policy) if task.policy in task.snapshots else None,
        None if behaviour is None else _content(config.critics / behaviour),
        None if variant.estimator == CRITIC else weights_sha256(variant.estimator),
    )


def _content(path: Path) -> str | None:
    """SHA-256 of a file's content, None where it is missing."""
    if not path.is_file():
        return None
    return _content_at(path, path.stat().st_mtime_ns)


@cache
def _content_at(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure_truth(out: Path, critics: Path, cell: Cell) -> float:
    """Put a task's truths into the cache; returns the seconds. What goes wrong is recorded later, by its cells."""
    start = time.perf_counter()
    with contextlib.suppress(Exception):
        truths_of(out / "truth", cell.task, cell.conditions, task_policy(cell.task.policy, critics))
    return time.perf_counter() - start


@dataclass(frozen=True)
class JobCost:
    """Seconds of one job, and those of them inside the estimators."""

    seconds: float
    seconds_own: float


def run_job(out: Path, critics: Path, cells: Sequence[Cell]) -> JobCost:
    """Run the missing cells of one group."""
    start = time.perf_counter()
    missing = [cell for cell in cells if not record_path(out, cell).exists()]
    if not missing:  # another worker did them before it died
        return JobCost(time.perf_counter() - start, 0.0)
    task, first = missing[0].task, missing[0]
    try:
        policy = task_policy(task.policy, critics)
        context = task_context(task, policy, first.context_length, first.seed, critics)
        truths = truths_of(out / "truth", task, first.conditions, policy)
        seen = truths_as_seen(task, policy, truths)
        evaluated = evaluated_policy(task, policy)
    except Exception as error:  # whatever an environment or a model raises is this group's result
        for cell in missing:
            write_record(out, Record(cell, error=_reason(error, task), commit=_commit()))
        return JobCost(time.perf_counter() - start, 0.0)
    seconds_own = 0.0
    for cell in missing:
        if cell.variant.estimator == CRITIC:
            record, own = _run_critic(cell, policy, context, truths, _training_steps(critics / task.policy))
        else:
            record, own = _run_estimator(cell, evaluated, context, seen)
        write_record(out, record)
        seconds_own += own
    return JobCost(time.perf_counter() - start, seconds_own)


def _run_estimator(
    cell: Cell, policy: ActingPolicy | None, context: Trajectory, truths: Truths
) -> tuple[Record, float]:
    """A finished cell, and the seconds inside its estimator."""
    try:
        estimator = make_estimator(cell.variant.estimator, **dict(cell.variant.options))
        _, fit = measured(lambda: estimator.fit(context, cell.task.gamma, policy=policy))
        return _finish(cell, estimator.predict, context, truths, fit, len(context))
    except Exception as error:  # an estimator that raises is a recorded failure of its cell
        return Record(cell, error=_reason(error, cell.task), commit=_commit()), 0.0


def _run_critic(
    cell: Cell, policy: Any, context: Trajectory, truths: Truths, steps: int | None
) -> tuple[Record, float]:
    predict = partial(sb3_critic_values, policy, env=truths.visited.estimand.env)
    try:
        return _finish(cell, predict, context, truths, Cost(0.0, 0), steps)
    except Exception as error:  # a model without a critic, say
        return Record(cell, error=_reason(error, cell.task), commit=_commit()), 0.0


def _finish(
    cell: Cell, predict: Any, context: Trajectory, truths: Truths, fit: Cost, environment_steps: int | None
) -> tuple[Record, float]:
    """Predict, check and score."""
    truth, start = truths.visited, truths.start
    estimate, prediction = measured(lambda: predict(truth.observations))
    _check_estimate(estimate, len(truth))
    estimate_at_start, extra = measured(lambda: predict(start.observations))
    _check_estimate(estimate_at_start, len(start))
    figures = {name: value for name, value in score(estimate, truth).as_dict().items() if name != "notes"}
    defined = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    record = Record(
        cell, defined, fit.seconds, prediction.seconds, peak_memory_fit=fit.peak_memory,
        environment_steps=environment_steps, context_episodes=context.num_complete_episodes,
        context_terminations=int(context.terminated.sum()), start_value=float(estimate_at_start.values.mean()),
        start_value_truth=truths.start_value, start_value_truth_stderr=truths.start_value_stderr, commit=_commit(),
    )  # fmt: skip
    return record, fit.seconds + prediction.seconds + extra.seconds


def _training_steps(snapshot: Path) -> int | None:
    card = snapshot.with_suffix(".json")
    return json.loads(card.read_text())["num_steps_taken"] if card.is_file() else None


@cache
def _commit() -> str | None:
    return source_commit(Path(icrl_gym.__file__).parent)


def _check_estimate(estimate: ValueEstimates, num_queries: int) -> None:
    if estimate.values.shape != (num_queries,):
        raise ValueError(f"values must have shape ({num_queries},), got {estimate.values.shape}")
    if not np.isfinite(estimate.values).all():
        raise ValueError(f"values[{int(np.flatnonzero(~np.isfinite(estimate.values))[0])}] is not finite")


def _reason(error: Exception, task: Task) -> str:
    lines = str(error).splitlines() or [""]
    wanting = task.extra and _lacks_package(error) and "icrl-gym[" not in lines[0]
    hint = f' (pip install "icrl-gym[{task.extra}]")' if wanting else ""
    return f"{type(error).__name__}: {lines[0]}{hint}"


def _lacks_package(error: BaseException) -> bool:
    """Whether this error, or one that led to it, says that a package or what it registers is not there."""
    if isinstance(error, (ImportError, DependencyNotInstalled, UnregisteredEnv)):
        return True
    before = error.__cause__ or error.__context__
    return before is not None and _lacks_package(before)
