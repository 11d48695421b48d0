"""`RewardValues`: values of one context under many reward functions.

Values are linear in the rewards, so that many reward functions cost little more than one: the matrix of attribution is
multiplied by them, or they are solved for side by side.

Shape legend: Q queries, N transitions, R reward functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.world.imagination import CompiledContext
from icrl_gym.observations import Observations
from icrl_gym.values import Estimand, ValueEstimates


@dataclass(frozen=True, eq=False)
class RewardValues:
    """Values of a policy at Q states under R reward functions, in the units of these.

    Attributes:
        values: (Q, R).
        observations: the Q raw observations, in the structure of the observation space.
        estimand: which quantity this is; its environment is not known (None), as rewards are not the environment's own.
    """

    values: np.ndarray
    observations: Observations
    estimand: Estimand

    @classmethod
    def of(cls, compiled: CompiledContext, rewards: np.ndarray, observations: Observations) -> RewardValues:
        """Read a compiled context under other rewards.

        Raises:
            ValueError: the rewards are not (N, R) finite numbers.
        """
        prompt = compiled.prompt
        rewards_NR, features_QD = _check_rewards(rewards, len(prompt)), prompt.queries(observations)
        if isinstance(compiled, CompiledMixture):
            values_QR = compiled.values_of_rewards(features_QD, rewards_NR)
        else:
            values_QR = compiled.attribution(features_QD) @ rewards_NR
        return cls(values_QR, observations, replace(prompt.estimand, env=None))

    def __len__(self) -> int:
        return len(self.values)

    def under(self, index: int) -> ValueEstimates:
        """The estimates under one of the reward functions, without standard errors."""
        return ValueEstimates(self.values[:, index], self.observations, self.estimand)


def _check_rewards(rewards: np.ndarray, num_transitions: int) -> np.ndarray:
    """The rewards as (N, R) float64."""
    try:
        rewards_NR = np.asarray(rewards, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rewards must be {num_transitions} rows of numbers: {error}") from error
    if rewards_NR.ndim != 2 or len(rewards_NR) != num_transitions:
        raise ValueError(
            f"rewards must have shape ({num_transitions}, R), a column for each reward function, got {rewards_NR.shape}"
        )
    bad = np.argwhere(~np.isfinite(rewards_NR))
    if len(bad):
        raise ValueError(f"rewards must be finite, got {rewards_NR[tuple(bad[0])]} at {tuple(bad[0].tolist())}")
    return rewards_NR
