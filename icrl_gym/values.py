"""`ValueEstimates`, the record that every evaluation returns, and `Estimand`, the quantity it is about.

Every source of values - the transformer, a classical method, Monte Carlo truth, an exact solve, an SB3 critic - answers
with the same frozen record, so that scoring, plotting and logging know one type.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from icrl_gym.observations import Observations


def check_gamma(gamma: float) -> float:
    """Return gamma as a float in [0, 1), or raise ValueError."""
    if not isinstance(gamma, (int, float, np.floating, np.integer)) or not 0.0 <= float(gamma) < 1.0:
        raise ValueError(f"gamma must be in [0, 1), got {gamma!r}")
    return float(gamma)


@dataclass(frozen=True)
class Estimand:
    """Which quantity a result estimates: V(s) = E[sum_t gamma^t reward_scale R_t | s, policy], infinite horizon.

    Termination ends the sum, a time limit does not. ``None`` stands for "not known" and matches anything, with a
    warning.

    Attributes:
        env: environment id (with its keyword arguments where they are not the defaults), or None.
        policy: identity of the policy, including whether it acts deterministically, or None.
        gamma: discount in [0, 1).
        reward_scale: factor on the environment's own rewards.
    """

    env: str | None
    policy: str | None
    gamma: float
    reward_scale: float = 1.0

    def check_matches(self, other: Estimand) -> None:
        """Raise ValueError if the two quantities differ; warn where one side does not know."""
        for name in ("env", "policy"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is None or theirs is None:
                if mine != theirs:
                    warnings.warn(f"estimand: {name} unknown on one side, taken to be {mine or theirs!r}", stacklevel=3)
            elif mine != theirs:
                raise ValueError(f"estimands differ in {name}: {mine!r} against {theirs!r}")
        for name in ("gamma", "reward_scale"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.isclose(mine, theirs, rtol=1e-9, atol=1e-12):
                raise ValueError(f"estimands differ in {name}: {mine!r} against {theirs!r}")


@dataclass(frozen=True, eq=False)
class ValueEstimates:
    """Values of a policy at Q states, NumPy float64, in units of the environment's reward.

    Attributes:
        values: (Q,).
        observations: the Q raw observations, in the structure of the observation space.
        estimand: which quantity this is.
        stderr: (Q,) standard error, or None where the source gives none.
        by_layer: (L, Q), the final read-out applied after each layer; the last row equals ``values``. None for sources
            without layers.
        diagnostics: the source's account of how it came to the values (the in-context evaluator's `Diagnostics`), or
            None.
        bounds: least and largest value that rewards like those seen can add up to, for the intervals; None if unknown.
        notes: remarks that belong beside the numbers (fallbacks, tails, what a critic's value includes).
        attribute: computes the matrix of `attribution`, or None where there is none.
    """

    values: np.ndarray
    observations: Observations
    estimand: Estimand
    stderr: np.ndarray | None = None
    by_layer: np.ndarray | None = None
    diagnostics: Any = None
    bounds: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    attribute: Callable[[], np.ndarray] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Central normal interval, cut off at `bounds` but always around the value, ``(low (Q,), high (Q,))``.

        Raises:
            ValueError: ``level`` is not in (0, 1), or these estimates carry no standard error.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1), got {level}")
        if self.stderr is None:
            raise ValueError("interval: these estimates carry no standard error (stderr is None)")
        half_width = NormalDist().inv_cdf(0.5 + level / 2) * self.stderr
        low, high = self.values - half_width, self.values + half_width
        if self.bounds is None:
            return low, high
        least, largest = self.bounds
        return np.minimum(np.maximum(low, least), self.values), np.maximum(np.minimum(high, largest), self.values)

    def attribution(self) -> np.ndarray:
        """The matrix W with ``values == W @ rewards``, (Q, n), constants included.

        Raises:
            ValueError: the source's values are not a known linear function of the context's rewards.
        """
        if self.attribute is None:
            raise ValueError("attribution: these values are not a known linear function of the context's rewards")
        return self.attribute()
