"""`LoggedArrays`: one transition per row, as a trajectory is made of them, with what had to be assumed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from icrl_gym.observations import Observations

EXTRA = "icrl-gym[logs]"


@dataclass(frozen=True, eq=False)
class LoggedArrays:
    """The fields of a trajectory of n transitions (see `Trajectory`), and remarks.

    Attributes:
        observations, actions, rewards, next_observations, terminated, truncated, episode_ends, observation_space,
            env_id, policy, importance_ratios: the arguments of `Trajectory`.
        assumptions: sentences on what the log did not say and what was taken in its place.
        reading: which columns were read as what, or "".
    """

    observations: Observations
    actions: np.ndarray | None
    rewards: np.ndarray
    next_observations: Observations
    terminated: np.ndarray
    truncated: np.ndarray
    episode_ends: np.ndarray
    observation_space: spaces.Space | None = None
    env_id: str | None = None
    policy: str | None = None
    importance_ratios: np.ndarray | None = None
    assumptions: tuple[str, ...] = ()
    reading: str = ""


def missing_package(package: str, purpose: str) -> ImportError:
    """The error of a reader whose package is not installed; it names the extra that brings it."""
    return ImportError(f"{purpose} needs {package}: pip install '{EXTRA}'")
