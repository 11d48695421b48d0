"""`LogEvaluation`: what a log says of a policy's values, its summary in words, and its tables on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from icrl_gym.configuration import LogConfig
from icrl_gym.context.log_files import Log
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.runs import write_csv
from icrl_gym.scoring.score import INTERVAL_LEVEL
from icrl_gym.values import ValueEstimates

_HALF_WIDTH = NormalDist().inv_cdf(0.5 + INTERVAL_LEVEL / 2)


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 90 % interval, which are None where there is no standard error."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class EpisodeValues:
    """Values along one episode of the context.

    Attributes:
        episode: its number in the context, from 0.
        steps: (T,) steps of the episode whose values were asked for, from 0.
        estimates: values at these steps.
        returns: (T,) what the episode went on to collect, discounted, or None where its end is not known.
        ending: in words.
    """

    episode: int
    steps: np.ndarray
    estimates: ValueEstimates
    returns: np.ndarray | None
    ending: str


@dataclass(frozen=True, eq=False)
class LogEvaluation:
    """The findings from one log.

    Attributes:
        config: the flags of the run.
        log: the log as read.
        context: what of it the estimator saw.
        start_rows: (Q,) rows of the log in which episodes start.
        starts: values at these starts.
        returns: (R,) discounted returns of the log's own episodes that are known to their end; empty where another
            policy than the one that acted is evaluated.
        num_episodes: stretches in the log, complete or not.
        episodes: values along some episodes of the context.
        notes: remarks that belong beside the numbers.
        gamma: the discount that was used.
        run_dir: folder of the run.
    """

    config: LogConfig
    log: Log
    context: Trajectory
    start_rows: np.ndarray
    starts: ValueEstimates
    returns: np.ndarray
    num_episodes: int
    episodes: tuple[EpisodeValues, ...]
    notes: tuple[str, ...]
    gamma: float
    run_dir: Path

    @property
    def start_value(self) -> Interval:
        """Mean value over the starts.

        Its interval joins the spread of the starts, as another log would have others, with the estimates' own errors,
        which come from one context and are not taken to average out.
        """
        values, stderr = self.starts.values, self.starts.stderr
        if stderr is None:
            return Interval(float(values.mean()), None, None)
        drawn = float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
        half = _HALF_WIDTH * math.sqrt(float(np.mean(stderr)) ** 2 + drawn)
        mean = float(values.mean())
        low, high = mean - half, mean + half
        if self.starts.bounds is not None:
            low, high = max(low, min(self.starts.bounds[0], mean)), min(high, max(self.starts.bounds[1], mean))
        return Interval(mean, low, high)

    @property
    def mean_return(self) -> Interval | None:
        """Mean of the log's own returns from starts, or None where fewer than two are known."""
        if len(self.returns) < 2:
            return None
        mean, half = float(self.returns.mean()), _HALF_WIDTH * self.returns.std(ddof=1) / math.sqrt(len(self.returns))
        return Interval(mean, float(mean - half), float(mean + half))

    def start(self, which: int) -> Interval:
        """The value at one start, by its position among the starts."""
        value = float(self.starts.values[which])
        if self.starts.stderr is None:
            return Interval(value, None, None)
        low, high = self.starts.interval(INTERVAL_LEVEL)
        return Interval(value, float(low[which]), float(high[which]))

    @property
    def contents(self) -> str:
        """The content of the log and the part of it that was seen, in words."""
        whole, seen = self.log.trajectory, self.context
        ended = int(whole.terminated.sum())
        counts = f"{ended:,} ended, {self.num_episodes - ended:,} stopped by a time limit or cut"
        words = f"{len(whole):,} transitions in {self.num_episodes:,} episodes ({counts})"
        if len(seen) == len(whole):
            return words
        return f"{words}, of which {len(seen):,} in {int(seen.episode_ends.sum()):,} episodes were used"


def save_log_tables(evaluation: LogEvaluation, folder: Path) -> None:
    """Write trajectory.npz (the context), starts.csv (a row per start) and episodes.csv (a row per step shown)."""
    evaluation.context.save(folder / "trajectory.npz")
    low, high = _bounds(evaluation.starts)
    rows = zip(evaluation.start_rows.tolist(), *_columns(evaluation.starts), low, high, strict=True)
    write_csv(folder / "starts.csv", ("row", "value", "stderr", "low", "high"), list(rows))
    lines = []
    for shown in evaluation.episodes:
        low, high = _bounds(shown.estimates)
        returns = [None] * len(shown.steps) if shown.returns is None else shown.returns.tolist()
        columns = (shown.steps.tolist(), *_columns(shown.estimates), low, high, returns)
        lines += [(shown.episode, *row) for row in zip(*columns, strict=True)]
    write_csv(folder / "episodes.csv", ("episode", "step", "value", "stderr", "low", "high", "return"), lines)


def _columns(estimates: ValueEstimates) -> tuple[list[float], list[float | None]]:
    stderr: list[float | None] = [None] * len(estimates) if estimates.stderr is None else estimates.stderr.tolist()
    return estimates.values.tolist(), stderr


def _bounds(estimates: ValueEstimates) -> tuple[list[float | None], list[float | None]]:
    if estimates.stderr is None:
        return [None] * len(estimates), [None] * len(estimates)
    low, high = estimates.interval(INTERVAL_LEVEL)
    return low.tolist(), high.tolist()
