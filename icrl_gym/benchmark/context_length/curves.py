"""Errors of finished cells by environment, estimator and length, and how they compare with the critic's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.resolution import resolved_error
from icrl_gym.scoring.statistics import Aggregate, interval_over_groups

ERROR = "rmse_over_std_corrected"


@dataclass(frozen=True)
class Curves:
    """Finished cells of one measurement.

    Attributes:
        records: those with a score.
        failed: those without.
    """

    records: tuple[Record, ...]
    failed: tuple[Record, ...]

    @classmethod
    def of(cls, records: Iterable[Record]) -> Curves:
        """The curves of all these cells; a record of a truth without spread counts as failed."""
        parts: tuple[list[Record], list[Record]] = ([], [])
        for record in records:
            parts[error_of(record) is None].append(record)
        return cls(tuple(parts[0]), tuple(parts[1]))

    @property
    def envs(self) -> list[str]:
        """Environments whose critic has a score, in the order of the records."""
        return [record.cell.task.env for record in self.records if record.cell.variant.estimator == CRITIC]

    @property
    def lengths(self) -> list[int]:
        """Context lengths of the estimators, ascending."""
        return sorted({r.cell.context_length for r in self.records if r.cell.variant.estimator != CRITIC})

    def cells(self, estimator: str, length: int | None = None, env: str | None = None) -> list[Record]:
        """Records of an estimator, of a length and an environment where these are given."""
        return [
            record
            for record in self.records
            if record.cell.variant.estimator == estimator
            and length in (None, record.cell.context_length)
            and env in (None, record.cell.task.env)
        ]

    def errors(self, env: str, estimator: str, length: int) -> np.ndarray:
        """Errors (contexts,) of an estimator in one environment, empty where there are none."""
        return np.array([error_of(record) for record in self.cells(estimator, length, env)], dtype=np.float64)

    def critic(self, env: str) -> Record:
        """The critic's record in one of `envs`."""
        return self.cells(CRITIC, env=env)[0]

    def critic_error(self, env: str) -> float:
        """Error of the critic in one of `envs`."""
        return float(error_of(self.critic(env)) or np.nan)

    def log_ratios(self, estimator: str, length: int) -> list[np.ndarray]:
        """Logarithms of error over the critic's error, one array over contexts for each environment that has any."""
        found = [(self.errors(env, estimator, length), self.critic_error(env)) for env in self.envs]
        return [np.log(errors / critic) for errors, critic in found if len(errors)]

    def ratio(self, estimator: str, length: int) -> Aggregate | None:
        """Geometric mean over environments of error over the critic's error, with a t interval over environments."""
        groups = self.log_ratios(estimator, length)
        return interval_over_groups(groups).exponentiated() if groups else None


def error_of(record: Record) -> float | None:
    """RMSE / std of a cell without the truth's noise, as far as that lets it be told; None where it has none."""
    error, std = record.scores.get(ERROR), record.scores.get("truth_std_corrected")
    noise, number = record.scores.get("noise_floor"), record.scores.get("n")
    if record.error is not None or error is None or not std or noise is None or not number:
        return None
    return resolved_error(error, noise, std, int(number))


def noise_share(record: Record) -> float:
    """Standard error of the truth over the truth's spread."""
    return float(record.scores["noise_floor"] or 0.0) / float(record.scores["truth_std_corrected"] or np.nan)


def geometric_mean_of(errors: np.ndarray) -> float | None:
    """Geometric mean of one environment's contexts, None of none."""
    return float(np.exp(np.log(errors).mean())) if len(errors) else None


def first_reaching(lengths: Sequence[int], num_steps: int) -> int | None:
    """The shortest context with at least so many transitions, None if there is none."""
    return next((length for length in sorted(lengths) if length >= num_steps), None)
