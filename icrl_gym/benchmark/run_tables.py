"""Tables from run folders: what `icrl-gym evaluate` found, environment by environment, wins and losses alike.

Intervals are 95 % percentile bootstrap intervals: runs of one environment are drawn with replacement, and within each
run its query states, 2,000 times, always for both estimators together. The figure is the geometric mean over runs of
RMSE divided by the truth's standard deviation (1 is what the best constant would reach).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_RESAMPLES = 2000
INTERVAL = (2.5, 97.5)  # percent


@dataclass(frozen=True, eq=False)
class RunRecord:
    """One finished run folder.

    Attributes:
        env, policy, wrapper, seed, context_length: as configured.
        num_rollouts: simulated continuations per query state.
        commit: of the code that ran, "+changes" where the work tree was not clean.
        truth: (Q,).
        truth_stderr: (Q,), zeros where exact.
        estimates: name -> (Q,), the in-context estimator first.
        steps: name -> environment steps seen, None if unknown.
    """

    env: str
    policy: str
    wrapper: str | None
    seed: int
    context_length: int
    num_rollouts: int
    commit: str
    truth: np.ndarray
    truth_stderr: np.ndarray
    estimates: dict[str, np.ndarray]
    steps: dict[str, int | None]

    @property
    def command(self) -> str:
        """What reproduces this run."""
        parts = ["icrl-gym evaluate", self.env]
        if self.policy != "demo":
            parts += ["--policy", self.policy]
        if self.policy.endswith(".zip"):
            parts += ["--trust-model"]
        if self.wrapper:
            parts += ["--wrapper", self.wrapper]
        parts += ["--estimator", next(iter(self.estimates))]
        numbers = {"context-length": self.context_length, "num-rollouts": self.num_rollouts, "seed": self.seed}
        return " ".join([*parts, *(f"--{name} {number}" for name, number in numbers.items())])


def load_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        ValueError: the folder is not that of a finished run.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        versions = json.loads((folder / "versions.json").read_text())
        with open(folder / "scores.csv", newline="") as file:
            scores = list(csv.DictReader(file))
        with open(folder / "estimates.csv", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder} is not the folder of a finished run: {error}") from error

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name] or 0.0) for row in rows])

    return RunRecord(
        env=config["env"],
        policy=config["policy"],
        wrapper=config["wrapper"],
        seed=config["seed"],
        context_length=config["context_length"],
        num_rollouts=config["num_rollouts"],
        commit=versions["commit"] or "unknown",
        truth=column("truth"),
        truth_stderr=column("truth_stderr"),
        estimates={row["estimator"]: column(row["estimator"]) for row in scores},
        steps={row["estimator"]: int(row["environment_steps"]) if row["environment_steps"] else None for row in scores},
    )


@dataclass(frozen=True)
class Comparison:
    """An environment's runs in one line. Each figure is (estimate, low, high); None where there is no critic."""

    ours: tuple[float, float, float]
    critic: tuple[float, float, float] | None
    ratio: tuple[float, float, float] | None

    @property
    def nearer(self) -> str:
        """Who is nearer to the truth, where the interval of the ratio says so."""
        if self.ratio is None:
            return "no critic"
        if self.ratio[2] < 1:
            return "in context"
        return "critic" if self.ratio[1] > 1 else "too close to call"


def compare(records: Sequence[RunRecord], seed: int = 0) -> Comparison:
    """Judge the runs of one environment together."""
    ours, *critics = records[0].estimates
    rng = np.random.default_rng(seed)
    names = [ours, *critics[:1]]
    point = _log_errors([(record, np.arange(len(record.truth))) for record in records], names)
    draws = []
    for _ in range(NUM_RESAMPLES):
        picked = [records[i] for i in rng.integers(len(records), size=len(records))]
        draws.append(_log_errors([(r, rng.integers(len(r.truth), size=len(r.truth))) for r in picked], names))
    resampled = np.array(draws)
    figures = [_figure(point[i], resampled[:, i]) for i in range(len(names))]
    if not critics:
        return Comparison(figures[0], None, None)
    ratio = _figure(point[0] - point[1], resampled[:, 0] - resampled[:, 1])
    return Comparison(figures[0], figures[1], ratio)


def _log_errors(samples: Sequence[tuple[RunRecord, np.ndarray]], names: Sequence[str]) -> np.ndarray:
    """Mean over runs of log(RMSE / std of the whole run's truth), (names,)."""
    errors = [
        [
            0.5 * np.log(np.mean((record.estimates[name] - record.truth)[index] ** 2)) - np.log(record.truth.std())
            for name in names
        ]
        for record, index in samples
    ]
    return np.mean(errors, axis=0)


def _figure(log_point: float, log_draws: np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(log_draws, INTERVAL)
    return float(np.exp(log_point)), float(np.exp(low)), float(np.exp(high))


def group(records: Sequence[RunRecord]) -> dict[tuple[str, str, int], list[RunRecord]]:
    """Runs of one environment, policy and context length, in seed order."""
    groups: dict[tuple[str, str, int], list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.env, r.policy, r.context_length, r.seed)):
        groups.setdefault((record.env, record.policy, record.context_length), []).append(record)
    return groups


def main_job_table(records: Sequence[RunRecord]) -> str:
    """The Markdown table of the main job: one row per environment and context length."""
    lines = [
        "| environment | policy | context | runs x states | noise floor / std | in context | critic | ratio | nearer |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for (env, policy, length), runs in group(records).items():
        result = compare(runs)
        floor = float(np.mean([np.sqrt(np.mean(r.truth_stderr**2)) / r.truth.std() for r in runs]))
        critic_name = next(iter(list(runs[0].estimates)[1:]), None)
        critic = "-" if critic_name is None else f"{critic_name}, {runs[0].steps[critic_name] or 0:,} steps"
        cells = [
            env,
            "demo" if policy == "demo" else critic,
            f"{length:,}",
            f"{len(runs)} x {len(runs[0].truth)}",
            "exact" if floor == 0 else f"{floor:.2f}",
            *(_cell(figure) for figure in (result.ours, result.critic, result.ratio)),
            result.nearer,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(figure: tuple[float, float, float] | None) -> str:
    return "-" if figure is None else "{:.2f} [{:.2f}, {:.2f}]".format(*figure)


def commands_list(records: Sequence[RunRecord]) -> str:
    """The command of each group's first run, with all seeds."""
    lines = []
    for runs in group(records).values():
        seeds = ", ".join(str(run.seed) for run in runs)
        lines.append(f"- `{runs[0].command}` (seeds {seeds})")
    return "\n".join(lines)
