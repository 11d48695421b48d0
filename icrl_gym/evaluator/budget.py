"""`prompt_budget`: how many transitions a context needs for a wanted accuracy.

The squared error of a read over n transitions falls like n^-1 wherever the kernel is not sharp against the spread of
the context ([BB25]; the reproduction's claims on large prompts and prompt length), and more slowly where it is. So the
budget is measured on the context itself: cut it into blocks, let each block answer the same queries, and see how far
the answers lie apart and how far their mean lies from the whole context's answer. The squared errors at several block
lengths give a power law; its exponent is drawn towards the theory's -1 because few lengths determine it badly. The
evaluator's own standard error is not used: it leaves out smoothing, which the blocks show. All of this is this
project's own.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.estimator import InContextEvaluator
from icrl_gym.observations import Observations, take

LEAST_BLOCK = 16  # transitions
MOST_BLOCKS = 16
NUM_QUERIES = 128
RATE, RATE_DEVIATION = 1.0, 0.6  # what theory says of the exponent, and how far a context may depart from it
FARTHEST = 64.0  # times the context's length: beyond it the power law is no longer to be trusted


@dataclass(frozen=True)
class PromptBudget:
    """What a wanted accuracy costs.

    Attributes:
        num_transitions: the length of context that is expected to reach the accuracy.
        low, high: 90 % interval of that length, from the noise of the blocks alone.
        accuracy: the wanted root mean squared error, in units of reward.
        error_now: the expected one of the given context.
        num_given: transitions in the given context.
        rate: r where the squared error falls like n^-r.
        block_lengths, block_errors: (B,) what was measured: root mean squared errors at these lengths.
        notes: why the number should be taken with care, if it should.
    """

    num_transitions: int
    low: int
    high: int
    accuracy: float
    error_now: float
    num_given: int
    rate: float
    block_lengths: tuple[int, ...]
    block_errors: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def error_at(self, num_transitions: int) -> float:
        """The expected root mean squared error of a context of this length."""
        return self.error_now * (self.num_given / num_transitions) ** (self.rate / 2)


def prompt_budget(
    trajectory: Trajectory,
    gamma: float,
    accuracy: float,
    *,
    observations: Observations | None = None,
    evaluator: InContextEvaluator | None = None,
) -> PromptBudget:
    """Say how many transitions are needed for a wanted root mean squared error of the values.

    What smoothing leaves out in contexts of every length cannot be seen in one of them and is not included.

    Args:
        trajectory: a pilot context of at least 64 transitions.
        gamma: discount in [0, 1).
        accuracy: wanted root mean squared error over the queries, in units of reward.
        observations: the queries; default up to 128 of the context's own states, evenly spaced.
        evaluator: who reads the context; default the constructed one. Its own context is left alone.

    Raises:
        ValueError: accuracy is not a positive number, or the context is too short.
        TypeError: not a Trajectory.
    """
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
    if not isinstance(accuracy, (int, float, np.number)) or not 0.0 < accuracy < math.inf:
        raise ValueError(f"accuracy must be a positive finite number, got {accuracy!r}")
    n = len(trajectory)
    if n < 4 * LEAST_BLOCK:
        raise ValueError(f"trajectory must have at least {4 * LEAST_BLOCK} transitions for a budget, got {n}")
    if observations is None:
        observations = take(trajectory.observations, np.linspace(0, n - 1, min(n, NUM_QUERIES)).astype(int))
    reader = InContextEvaluator() if evaluator is None else evaluator
    lengths, squared, freedom = _measure(trajectory, gamma, observations, reader)
    if (squared > 0).sum() < 2:
        raise ValueError("trajectory: its parts agree exactly on every value, so there is nothing to extrapolate from")
    law = PowerLaw.fit(lengths, squared, freedom)
    return _answer(law, n, float(accuracy), lengths, squared)


def _measure(
    trajectory: Trajectory, gamma: float, observations: Observations, evaluator: InContextEvaluator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block lengths, squared errors and their degrees of freedom, each (B,).

    At each length: the variance between blocks, and the squared distance of their mean from the whole context's answer.
    """
    reader, n = copy(evaluator), len(trajectory)
    whole = reader.fit(trajectory, gamma).predict(observations)
    rows = []
    for num_blocks in (2**k for k in range(MOST_BLOCKS.bit_length() - 1, 0, -1)):
        length = n // num_blocks
        if length < LEAST_BLOCK:
            continue
        blocks = [trajectory[i * length : (i + 1) * length] for i in range(num_blocks)]
        answers = np.stack([reader.fit(block, gamma).predict(observations).values for block in blocks])
        bias = answers.mean(axis=0) - whole.values
        rows.append((length, answers.var(axis=0, ddof=1).mean() + np.mean(bias**2), num_blocks - 1.0))
    lengths, squared, freedom = np.array(rows).T
    return lengths, squared, freedom


@dataclass(frozen=True)
class PowerLaw:
    """Squared error = exp(level) (length / centre)^-rate, with the covariance (2, 2) of (level, rate)."""

    level: float
    rate: float
    centre: float
    covariance: np.ndarray

    @classmethod
    def fit(cls, lengths: np.ndarray, squared: np.ndarray, freedom: np.ndarray) -> PowerLaw:
        """Weighted least squares in logarithms; a mean square of f degrees of freedom has log variance 2 / f.

        The rate is drawn towards `RATE` as a normal prior of deviation `RATE_DEVIATION` would.
        """
        kept = squared > 0
        weight = freedom[kept] / 2.0
        centre = float(np.exp(np.average(np.log(lengths[kept]), weights=weight)))
        design = np.stack([np.ones(kept.sum()), -np.log(lengths[kept] / centre)], axis=1)
        precision = design.T @ (weight[:, None] * design)
        right = design.T @ (weight * np.log(squared[kept]))
        precision[1, 1] += RATE_DEVIATION**-2
        right[1] += RATE * RATE_DEVIATION**-2
        covariance = np.linalg.inv(precision)
        level, rate = covariance @ right
        return cls(float(level), max(float(rate), 0.25), centre, covariance)

    def error(self, length: float) -> float:
        """Root mean squared error at a length."""
        return math.exp((self.level - self.rate * math.log(length / self.centre)) / 2)

    def length(self, error: float) -> tuple[float, float]:
        """Logarithm of the length that has this error, and its standard deviation."""
        reach = (self.level - 2 * math.log(error)) / self.rate
        gradient = np.array([1.0, -reach]) / self.rate
        return reach + math.log(self.centre), math.sqrt(float(gradient @ self.covariance @ gradient))


def _answer(law: PowerLaw, n: int, accuracy: float, lengths: np.ndarray, squared: np.ndarray) -> PromptBudget:
    centre, deviation = law.length(accuracy)
    half = NormalDist().inv_cdf(0.95) * deviation

    def whole(logarithm: float) -> int:
        return max(1, math.ceil(math.exp(min(logarithm, 40.0))))

    notes = []
    if centre > math.log(FARTHEST * n):
        notes.append(f"more than {FARTHEST:g} times the given context: collect more before trusting this number")
    if centre < math.log(lengths.min()):
        notes.append("less than the shortest block that was measured: any such context may do")
    if law.rate < 0.6:
        notes.append("the error falls slowly: a wider kernel may need fewer transitions")
    return PromptBudget(
        num_transitions=whole(centre),
        low=whole(centre - half),
        high=whole(centre + half),
        accuracy=accuracy,
        error_now=law.error(n),
        num_given=n,
        rate=law.rate,
        block_lengths=tuple(int(length) for length in lengths),
        block_errors=tuple(float(error) for error in np.sqrt(squared)),
        notes=tuple(notes),
    )
