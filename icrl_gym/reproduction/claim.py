"""`Claim`, what is claimed and how it is judged; `Outcome`, what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icrl_gym.reproduction.store import Store

Verdict = Literal["holds", "holds with these limits", "does not hold", "not enough evidence"]
OURS = "ours"  # the source of what no paper states
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Finding:
    """One measured number.

    Attributes:
        name: what was measured, with its unit where it has one.
        value: the number; NaN where it is undefined.
        n: how many independent draws it rests on.
        low, high: 95 % interval, or None where the number is no estimate (a maximum over all n cases, say).
    """

    name: str
    value: float
    n: int
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "n", int(self.n))

    @classmethod
    def mean(cls, name: str, samples: Sequence[float] | np.ndarray) -> Self:
        """Mean of independent samples with Student's interval; no interval from a single sample."""
        samples = np.asarray(samples, dtype=np.float64).ravel()
        centre, n = float(samples.mean()), len(samples)
        if n < 2:
            return cls(name, centre, n)
        half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * samples.std(ddof=1) / math.sqrt(n))
        return cls(name, centre, n, centre - half, centre + half)

    @classmethod
    def share(cls, name: str, successes: int, n: int) -> Self:
        """Share of successes among n independent trials, with Wilson's interval."""
        interval = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
        return cls(name, successes / n, n, float(interval.low), float(interval.high))

    @classmethod
    def largest(cls, name: str, samples: Sequence[float] | np.ndarray) -> Self:
        """The largest of n numbers; no interval."""
        samples = np.asarray(samples, dtype=np.float64).ravel()
        return cls(name, float(samples.max()), len(samples))


@dataclass(frozen=True)
class Table:
    """A table of the report; cells are text, numbers already written as they are to be read.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"rows must have {len(self.columns)} cells like columns, got {row!r}")


@dataclass(frozen=True)
class Outcome:
    """What a claim's function found.

    Attributes:
        verdict: the one that a sceptical reader would reach from the findings.
        findings: the numbers.
        limits: where or in what sense the claim holds or fails; needed for "holds with these limits".
        figure: drawn without pyplot, or None.
        caption: what the figure shows.
        tables: further numbers.

    Raises:
        ValueError: the verdict is unknown, or lacks its limits.
    """

    verdict: Verdict
    findings: tuple[Finding, ...]
    limits: str = ""
    figure: Figure | None = field(default=None, compare=False, repr=False)
    caption: str = ""
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"verdict must be one of {get_args(Verdict)}, got {self.verdict!r}")
        if self.verdict == "holds with these limits" and not self.limits:
            raise ValueError("limits must say what they are where the verdict is 'holds with these limits', got ''")


# (quick, seeds, device, store) -> Outcome
ClaimFunction = Callable[[bool, Sequence[int], str, "Store"], Outcome]


@dataclass(frozen=True)
class Claim:
    """One statement that can be measured.

    Attributes:
        number: its place in the report.
        id: its name on the command line, words joined by hyphens.
        title: its heading.
        statement: what is claimed, in Markdown.
        source: the paper and its place there, or "ours".
        measured: what is measured, on what.
        criterion: when the verdict is "holds", fixed before the measurement.
        function: measures and judges. It gets ``seeds`` (independent repetitions) and may keep finished pieces in
            ``store``.
        num_seeds: how many seeds a full run takes.
        quick_seeds: how many `--quick` takes.
        least_seeds: how many the criterion needs; with fewer the verdict is "not enough evidence" whatever was found.
    """

    number: int
    id: str
    title: str
    statement: str
    source: str
    measured: str
    criterion: str
    function: ClaimFunction
    num_seeds: int = 1
    quick_seeds: int = 1
    least_seeds: int = 1
