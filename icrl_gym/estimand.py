"""`Estimand`: which quantity a result is about. It travels with every result; scores across different ones raise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np


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
