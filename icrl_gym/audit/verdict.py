"""The verdict of an audit: what may be said of a critic in words, from intervals alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from icrl_gym.scoring.statistics import Aggregate

LEVEL = 0.95  # of the intervals that decide about bias
SUPPORT_LEVEL = 0.98  # of each of the two intervals that decide whether the returns support the in-context values
TOLERANCE = 0.05  # share of the values' scale: a bias that may be smaller is not called one
CLOSE = 0.25  # share of the values' scale: a critic agrees only where its bias is surely smaller
NEGLIGIBLE = 0.05  # share of the values' scale: differences between states that are smaller are not judged
LITTLE = 0.25  # share of the variance of the in-context values: a critic that accounts for less is uninformative


class Call(StrEnum):
    """The outcomes of an audit."""

    AGREES = "agrees"
    BIASED = "biased"
    UNINFORMATIVE = "uninformative"
    OPEN = "cannot tell"


@dataclass(frozen=True)
class Evidence:
    """The evidence that a verdict is made from; values are in units of reward.

    Attributes:
        scale, spread: root mean square and standard deviation of the in-context values.
        bias_in_context: mean of the critic's values minus the in-context values.
        bias_returns: mean of the critic's values minus the returns.
        shape_error: standard deviation of the difference between the two.
        critic_explains, evaluator_explains: variance of the true values that the critic's values, and the in-context
            values, account for, by the returns; squared units.
        support: what the returns say of the way in which the in-context values differ from the critic's, step by step
            and in full: positive where they support the in-context values.
    """

    scale: float
    spread: float
    bias_in_context: Aggregate
    bias_returns: Aggregate
    shape_error: float
    critic_explains: Aggregate
    evaluator_explains: Aggregate
    support: tuple[Aggregate, Aggregate]

    @property
    def explained_variance(self) -> float:
        """Share of the variance of the in-context values that the critic's values account for, at most 1."""
        return 1.0 - (self.shape_error / self.spread) ** 2 if self.spread > 0 else -math.inf


@dataclass(frozen=True)
class Verdict:
    """A verdict.

    Attributes:
        call: what is said of the critic.
        bias: how far its values are too high in the mean where that is sure, else NaN; in units of reward.
        sentence: the verdict in words.
    """

    call: Call
    bias: float
    sentence: str

    @property
    def alarm(self) -> bool:
        """Whether something is wrong with the critic."""
        return self.call in (Call.BIASED, Call.UNINFORMATIVE)


def judge(evidence: Evidence) -> Verdict:
    """The verdict that the evidence allows.

    Uninformative: the critic accounts for less than a quarter of how the in-context values differ between states, that
    matters beside the level of values, and the returns surely support the in-context values in it. Biased: its values
    are surely too high, or too low, by more than a twentieth of the values' scale. Agrees: neither, the bias is surely
    below a quarter of the scale, and the critic surely tells states apart, or there is little to tell. Cannot tell: all
    else.
    """
    if evidence.scale == 0:
        return Verdict(Call.OPEN, math.nan, f"{Call.OPEN}: no reward was seen, and all in-context values are 0")
    bias = _sure_bias(evidence)
    if _is_uninformative(evidence):
        level = "" if math.isnan(bias) else f", and biased by {bias:+.3g}"
        reason = "it hardly tells good states from bad ones"
        return Verdict(Call.UNINFORMATIVE, bias, f"{Call.UNINFORMATIVE}: {reason}{level}")
    if not math.isnan(bias):
        return Verdict(Call.BIASED, bias, f"biased by {bias:+.3g} ({_range(_deciding(evidence))})")
    doubt = _doubt(evidence)
    if doubt:
        return Verdict(Call.OPEN, math.nan, f"{Call.OPEN}: {doubt}")
    return Verdict(Call.AGREES, math.nan, f"{Call.AGREES} (bias {_range(_deciding(evidence))})")


def _deciding(evidence: Evidence) -> Aggregate:
    """The range that both intervals of the bias allow.

    It is that of the returns alone where the in-context interval leaves out their estimate, since two intervals that
    hardly overlap would allow next to nothing.
    """
    ours, theirs = evidence.bias_in_context, evidence.bias_returns
    if not (ours.has_interval and theirs.has_interval):
        return theirs if theirs.has_interval else ours
    if not ours.low <= theirs.value <= ours.high:
        return theirs
    low, high = max(ours.low, theirs.low), min(ours.high, theirs.high)
    return Aggregate((low + high) / 2, low, high)


def _sure_bias(evidence: Evidence) -> float:
    """The bias where its interval lies outside the tolerance, else NaN."""
    interval, tolerance = _deciding(evidence), TOLERANCE * evidence.scale
    surely = interval.has_interval and (interval.low > tolerance or interval.high < -tolerance)
    return interval.value if surely else math.nan


def _is_uninformative(evidence: Evidence) -> bool:
    if evidence.shape_error <= NEGLIGIBLE * evidence.scale or evidence.explained_variance >= LITTLE:
        return False
    if evidence.critic_explains.low > LITTLE * max(evidence.evaluator_explains.value, 0.0):
        return False  # the returns say that it is the in-context values that are wrong
    return any(one.low > 0 for one in evidence.support)


def _doubt(evidence: Evidence) -> str:
    """Why the critic cannot be said to agree; "" if it can."""
    interval, close = _deciding(evidence), CLOSE * evidence.scale
    if not (interval.has_interval and -close < interval.low and interval.high < close):
        return f"its bias may be anything in {_range(interval)}"
    most = max(evidence.critic_explains.high, evidence.spread**2)
    if evidence.critic_explains.low > 0 or most < (NEGLIGIBLE * evidence.scale) ** 2:
        return ""
    return "the returns do not show whether it knows good states from bad ones"


def _range(interval: Aggregate) -> str:
    if not interval.has_interval:
        return "an unknown range"
    return f"{interval.low:+.3g} to {interval.high:+.3g}"
