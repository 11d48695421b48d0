"""`Audit`: what one audit found, and a table of several on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from icrl_gym.audit.verdict import Verdict
from icrl_gym.runs import write_csv, write_json


@dataclass(frozen=True)
class Audit:
    """One audit of a critic; values are in units of the environment's reward, figures that are not defined are NaN.

    Attributes:
        step: environment steps of the training when it was made.
        num_context: transitions that the evaluator read.
        num_examined: newer transitions at which critic and in-context values were asked and held against the returns.
        num_policies: policies that acted in these, 1 where the data are of one policy.
        gamma: the model's discount.
        policy: identity of the policy whose values are estimated.
        rmse, bias, spearman, explained_variance: the critic's values judged against the in-context values.
        interval_width: mean width of the 90 % interval of an in-context value.
        returns_bias, returns_bias_low, returns_bias_high: the critic's values minus the returns that came in, in the
            mean, with the interval that the verdict is made from.
        returns_explained_variance: share of the variance of the returns that the critic's values account for.
        in_context_explained_variance: the same of the in-context values, which never saw these returns.
        seconds: time that the audit took.
        verdict: what may be said of the critic.
        notes: remarks that belong beside the numbers.
    """

    step: int
    num_context: int
    num_examined: int
    num_policies: int
    gamma: float
    policy: str
    rmse: float
    bias: float
    spearman: float
    explained_variance: float
    interval_width: float
    returns_bias: float
    returns_bias_low: float
    returns_bias_high: float
    returns_explained_variance: float
    in_context_explained_variance: float
    seconds: float
    verdict: Verdict
    notes: tuple[str, ...] = ()

    def scalars(self) -> Iterator[tuple[str, float]]:
        """The figures that are logged, by name; those that are not defined are left out."""
        for name in LOGGED:
            value = float(getattr(self, name))
            if math.isfinite(value):
                yield name, value
        yield "alarm", float(self.verdict.alarm)


LOGGED = (
    "rmse", "bias", "spearman", "explained_variance", "interval_width", "returns_bias", "returns_bias_low",
    "returns_bias_high", "returns_explained_variance", "in_context_explained_variance", "num_policies", "seconds",
)  # fmt: skip
_PLAIN = tuple(field.name for field in fields(Audit) if field.name not in ("verdict", "notes"))
COLUMNS = (*_PLAIN, "verdict", "verdict_bias", "alarm", "sentence", "notes")


def save_audits(audits: Sequence[Audit], path: str | os.PathLike[str]) -> Path:
    """Write audits as a table, atomically: CSV, or JSON where the name ends in .json. Returns the path.

    Raises:
        ValueError: the name ends in neither .csv nor .json.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix == ".json":
        write_json(path, [_entry(audit) for audit in audits])
    elif path.suffix == ".csv":
        write_csv(path, COLUMNS, [_row(audit) for audit in audits])
    else:
        raise ValueError(f"path must end in .csv or .json, got {os.fspath(path)!r}")
    return path


def _entry(audit: Audit) -> dict[str, Any]:
    verdict = {**asdict(audit.verdict), "call": str(audit.verdict.call), "alarm": audit.verdict.alarm}
    return {**asdict(audit), "verdict": verdict}


def _row(audit: Audit) -> list[Any]:
    verdict = audit.verdict
    figures = [getattr(audit, name) for name in _PLAIN]
    words = [str(verdict.call), verdict.bias, verdict.alarm, verdict.sentence, "; ".join(audit.notes)]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in [*figures, *words]]
