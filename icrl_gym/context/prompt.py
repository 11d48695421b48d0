"""`Prompt`: the one place where gamma, terminated and truncated become discounts, links and masks.

Columns are the N source states followed by the E true successors of stretches that did not terminate (truncated, or
the log stops); those are destinations only. Everybody after this point reads discounts and links, nobody reads the
flags.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, take
from icrl_gym.values import Estimand, check_gamma


@dataclass(frozen=True, eq=False)
class EndMixtures:
    """End columns that stand for an expectation: their attention is the weighted mean of that of their parts.

    Attributes:
        features_MED: (M, E, D) features of the M parts of each end column.
        weights_ME: (M, E) weights of the parts; over M they sum to 1.
    """

    features_MED: np.ndarray
    weights_ME: np.ndarray

    @property
    def mean_ED(self) -> np.ndarray:
        """Features of the ends in the mean, (E, D)."""
        return np.einsum("me,med->ed", self.weights_ME, self.features_MED)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A context, ready for attention.

    Attributes:
        source_features: (N, D) features of S_0 .. S_{n-1}.
        end_features: (E, D) features of the true successors of unterminated ends; of mixtures the mean.
        rewards: (N,).
        discounts: (N,) gamma * (1 - terminated).
        successors: (N,) int, the column (source k + 1, or N + e for an end) that holds S_k's successor; where the
            discount is 0 the entry is k itself and is never read with weight.
        trace_links: (N,) bool, True where row k + 1 continues row k, so that a trace may pass.
        gamma: discount in [0, 1).
        feature_map: fitted on the sources; `queries` uses it.
        estimand: the quantity that values of this prompt estimate.
        importance_ratios: (N,) pi / mu of the logged actions, or None where the policy itself acted.
        end_mixtures: what the end columns are mixtures of, or None where each is one state.
        log_weights: (N,) log weights of the transitions, where older ones count less, or None.
        log_rewards: least and largest reward of a longer log that this context was taken from, or None.
    """

    source_features: np.ndarray
    end_features: np.ndarray
    rewards: np.ndarray
    discounts: np.ndarray
    successors: np.ndarray
    trace_links: np.ndarray
    gamma: float
    feature_map: FeatureMap
    estimand: Estimand
    importance_ratios: np.ndarray | None = None
    end_mixtures: EndMixtures | None = None
    log_weights: np.ndarray | None = None
    log_rewards: tuple[float, float] | None = None

    @classmethod
    def from_trajectory(cls, trajectory: Trajectory, gamma: float, feature_map: FeatureMap | None = None) -> Prompt:
        """Build the prompt of a log.

        Args:
            trajectory: n transitions.
            gamma: discount in [0, 1).
            feature_map: an already fitted map, or None to fit the space's default on the log's sources.

        Raises:
            ValueError: gamma is outside [0, 1).
            TypeError: the observation space has no features.
        """
        gamma = check_gamma(gamma)
        if feature_map is None:
            feature_map = FeatureMap(trajectory.observation_space).fit(trajectory.observations)
        n = len(trajectory)
        open_ends = np.flatnonzero(trajectory.episode_ends & ~trajectory.terminated)
        successors = np.arange(1, n + 1)
        successors[trajectory.terminated] = np.flatnonzero(trajectory.terminated)
        successors[open_ends] = n + np.arange(len(open_ends))
        return cls(
            source_features=feature_map(trajectory.observations),
            end_features=feature_map(take(trajectory.next_observations, open_ends)),
            rewards=trajectory.rewards,
            discounts=gamma * (1.0 - trajectory.terminated),
            successors=successors,
            trace_links=~trajectory.episode_ends,
            gamma=gamma,
            feature_map=feature_map,
            estimand=Estimand(trajectory.env_id, trajectory.policy, gamma),
            importance_ratios=trajectory.importance_ratios,
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def effective_dimension(self) -> int:
        """Number of coordinates that vary in the context (features.py)."""
        return self.feature_map.effective_dimension

    def kernel_width(self, bandwidth: float) -> float:
        """Width of a Gaussian kernel in feature units: ``bandwidth * sqrt(effective_dimension / 4)``, with the
        bandwidth in standard deviations of the context.
        """
        return bandwidth * math.sqrt(self.effective_dimension / 4)

    @property
    def constant(self) -> float:
        """The one value that balances the context's Bellman equations: sum R / sum (1 - discount), both sums weighted
        by the importance ratios and log weights where there are any.
        """
        ratio_N = np.ones(len(self)) if self.importance_ratios is None else self.importance_ratios
        if self.log_weights is not None:
            ratio_N = ratio_N * np.exp(self.log_weights)
        return float((ratio_N * self.rewards).sum() / (ratio_N * (1.0 - self.discounts)).sum())

    @property
    def num_terminations(self) -> int:
        """How many transitions ended an episode; 0 where gamma is, since nothing follows there anyway."""
        return int((self.discounts == 0).sum()) if self.gamma > 0 else 0

    @property
    def reward_range(self) -> tuple[float, float]:
        """The least and the largest reward that was seen."""
        return self.log_rewards or (float(self.rewards.min()), float(self.rewards.max()))

    @cached_property
    def first_visits(self) -> np.ndarray:
        """Rows of the first visits of the distinct source states, rising."""
        _, first = np.unique(self.source_features, axis=0, return_index=True)
        return np.sort(first)

    def queries(self, observations: Observations) -> np.ndarray:
        """Features (Q, D) of raw observations (Q,) + shape."""
        return self.feature_map(observations)
