"""From findings to verdicts: an interval decides only where it leaves the bound out."""

from __future__ import annotations

from icrl_gym.reproduction.claim import Finding, Verdict

_WORST_FIRST: tuple[Verdict, ...] = ("does not hold", "not enough evidence", "holds with these limits", "holds")


def exactly(condition: bool) -> Verdict:
    """The verdict on something that needs no statistics."""
    return "holds" if condition else "does not hold"


def above(finding: Finding, bound: float = 0.0) -> Verdict:
    """Holds if the interval lies above the bound, fails if it lies below, is open otherwise or without an interval."""
    if finding.low is None or finding.high is None:
        return "not enough evidence"
    if finding.low > bound:
        return "holds"
    return "does not hold" if finding.high < bound else "not enough evidence"


def within(finding: Finding, low: float, high: float) -> Verdict:
    """Holds if the interval lies inside (low, high), fails if it lies outside, is open otherwise."""
    if finding.low is None or finding.high is None:
        return "not enough evidence"
    if low < finding.low and finding.high < high:
        return "holds"
    return "does not hold" if finding.high < low or finding.low > high else "not enough evidence"


def together(*verdicts: Verdict, limited: bool = False) -> Verdict:
    """The worst of several verdicts; "holds with these limits" instead of "holds" where ``limited``."""
    worst = min(verdicts, key=_WORST_FIRST.index)
    return "holds with these limits" if limited and worst == "holds" else worst
