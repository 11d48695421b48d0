"""`Claim`, what is claimed and how it is judged; `Outcome`, what was found; `Result`, an outcome and its origin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
from scipy import stats

from icrl_gym.scoring.document import Table, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from icrl_gym.reproduction.store import Store

Judgement = Literal["holds", "holds in part", "does not hold", "not enough evidence", "not tested"]
LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class Finding:
    """One measured number.

    Attributes:
        name: what was measured, with its unit where it has one.
        value: the number; NaN where it is undefined.
        n: number of independent draws it rests on.
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
    def mean(cls, name: str, samples: Sequence[float] | np.ndarray, level: float = LEVEL) -> Self:
        """Mean of independent samples with Student's interval; no interval from a single sample."""
        samples = np.asarray(samples, dtype=np.float64).ravel()
        centre, n = float(samples.mean()), len(samples)
        if n < 2:
            return cls(name, centre, n)
        half = float(stats.t.ppf(0.5 + level / 2, n - 1) * samples.std(ddof=1) / math.sqrt(n))
        return cls(name, centre, n, centre - half, centre + half)

    @classmethod
    def share(cls, name: str, successes: int, n: int) -> Self:
        """Share of successes among n independent trials, with Wilson's interval."""
        interval = stats.binomtest(int(successes), int(n)).proportion_ci(LEVEL, method="wilson")
        return cls(name, successes / n, n, float(interval.low), float(interval.high))

    def text(self, digits: int) -> str:
        """The number with its interval, if it has one, with so many digits behind the point."""
        interval = "" if self.low is None else f" [{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f}{interval}"

    @classmethod
    def largest(cls, name: str, samples: Sequence[float] | np.ndarray) -> Self:
        """The largest of n numbers; no interval."""
        samples = np.asarray(samples, dtype=np.float64).ravel()
        return cls(name, float(samples.max()), len(samples))


@dataclass(frozen=True)
class Statement:
    """One sentence of a claim with its own verdict.

    Attributes:
        text: the sentence, as plain text.
        verdict: what the numbers say about it; "not tested" for a sentence of the source that nothing here measures.
        decides: whether the claim's verdict rests on it; the others are judged and shown beside it.

    Raises:
        ValueError: the verdict is unknown.
    """

    text: str
    verdict: Judgement
    decides: bool = True

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Judgement):
            raise ValueError(f"verdict must be one of {get_args(Judgement)}, got {self.verdict!r}")


@dataclass(frozen=True)
class Outcome:
    """The result of a claim's function.

    Attributes:
        statements: the sentences of the claim, each judged by itself.
        findings: the numbers.
        scope: words that complete the verdict, such as "at any size measured"; may be empty.
        remarks: what a reader should know beside the verdict; may be empty.
        figure: drawn without pyplot, or None.
        caption: what the figure shows.
        tables: further numbers.

    Raises:
        ValueError: no statement decides.
    """

    statements: tuple[Statement, ...]
    findings: tuple[Finding, ...]
    scope: str = ""
    remarks: str = ""
    figure: Figure | None = field(default=None, compare=False, repr=False)
    caption: str = ""
    tables: tuple[Table, ...] = ()

    def __post_init__(self) -> None:
        if not any(statement.decides for statement in self.statements):
            raise ValueError("statements must hold one that decides the verdict")

    @property
    def verdict(self) -> Judgement:
        """The claim's verdict: that of its deciding statements where they agree, "holds in part" where some hold."""
        found = {statement.verdict for statement in self.statements if statement.decides} - {"not tested"}
        if found == {"holds"}:
            return "holds"
        if found & {"holds", "holds in part"}:
            return "holds in part"
        return "does not hold" if "does not hold" in found else "not enough evidence"

    @property
    def headline(self) -> str:
        """The verdict with its scope, in one line; what holds only in part says how much of it."""
        deciding = [one for one in self.statements if one.decides and one.verdict != "not tested"]
        holding = sum(statement.verdict == "holds" for statement in deciding)
        part = f"({holding} of {len(deciding)} statements)" if self.verdict == "holds in part" else ""
        return " ".join(filter(None, (self.verdict, part, self.scope)))


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A table of the report whose cells are text, numbers already written as they are to be read.

    Raises:
        ValueError: a row has not as many cells as there are columns.
    """
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"rows must have {len(columns)} cells like columns, got {tuple(row)!r}")
    return Table(title, tuple(columns), tuple(tuple(map(text, row)) for row in rows))


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
        criterion: when each statement holds.
        function: measures and judges. It gets ``seeds`` (independent repetitions) and may keep finished pieces in
            ``store``.
        num_seeds: number of seeds of a full run.
        quick_seeds: number of seeds with `--quick`.
        least_seeds: number of seeds that the criterion needs; with fewer the verdict is "not enough evidence".
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


@dataclass(frozen=True)
class Result:
    """One claim's outcome in a run.

    Attributes:
        claim: what was claimed.
        outcome: what was found; its figure is None once it was read back from disk.
        quick: whether small sizes were used.
        num_seeds: independent repetitions.
        device: torch device.
        seconds: wall-clock time of the run that finished it.
        commit: the code's commit, with "+changes" where it was edited, or "unknown".
        sources: hash of the claim's source modules, as `fingerprint` gives it.
        criterion: the criterion that was judged by.
        figure: the drawn file, if there is one.
    """

    claim: Claim
    outcome: Outcome
    quick: bool
    num_seeds: int
    device: str
    seconds: float
    commit: str
    sources: str
    criterion: str
    figure: Path | None

    @property
    def command(self) -> str:
        """The command that gives this result again."""
        words = ["icrl-gym reproduce", self.claim.id]
        if self.quick:
            words.append("--quick")
        if self.num_seeds != (self.claim.quick_seeds if self.quick else self.claim.num_seeds):
            words.append(f"--seeds {self.num_seeds}")
        if self.device != "cpu":
            words.append(f"--device {self.device}")
        return " ".join(words)
