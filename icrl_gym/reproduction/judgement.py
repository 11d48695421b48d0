"""Rules that turn findings into verdicts: an interval decides only where it leaves the bound out."""

from __future__ import annotations

import math
from collections.abc import Iterable

from icrl_gym.reproduction.claim import Finding, Judgement

_WORST_FIRST: tuple[Judgement, ...] = ("does not hold", "not enough evidence", "holds")


def exactly(condition: bool) -> Judgement:
    """The verdict on something that needs no statistics."""
    return "holds" if condition else "does not hold"


def above(finding: Finding, bound: float = 0.0) -> Judgement:
    """Holds if the interval lies above the bound, fails if it lies below, is open otherwise or without an interval."""
    if finding.low is None or finding.high is None:
        return "not enough evidence"
    if finding.low > bound:
        return "holds"
    return "does not hold" if finding.high < bound else "not enough evidence"


def below(finding: Finding, bound: float) -> Judgement:
    """Holds if the interval lies below the bound, fails if it lies above, is open otherwise or without an interval."""
    return within(finding, -math.inf, bound)


def within(finding: Finding, low: float, high: float) -> Judgement:
    """Holds if the interval lies inside (low, high), fails if it lies outside, is open otherwise."""
    if finding.low is None or finding.high is None:
        return "not enough evidence"
    if low < finding.low and finding.high < high:
        return "holds"
    return "does not hold" if finding.high < low or finding.low > high else "not enough evidence"


def together(verdicts: Iterable[Judgement]) -> Judgement:
    """The verdict on a sentence that several numbers must all support: the worst of them."""
    return min(verdicts, key=_WORST_FIRST.index)
