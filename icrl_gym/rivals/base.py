"""The class of all classical estimators, and the arithmetic of prompts that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.asked import asked_policy, check_acted
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.returns import decayed_sums
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, as_batch
from icrl_gym.values import ValueEstimates


class PromptEstimator(ABC):
    """An estimator that sees a context as a `Prompt` and queries as feature vectors.

    Attributes:
        weighs_ratios: whether it weighs transitions by their importance ratios; one that does not refuses a log with
            ratios.
        can_ask: whether it asks the policy to be evaluated for its actions; one that does not knows it by the
            logged actions.
    """

    weighs_ratios = False
    can_ask = False

    def fit(self, trajectory: Trajectory, gamma: float, policy: Any = None) -> Self:
        """Learn from a log. Returns self.

        Args:
            trajectory: the log.
            gamma: discount in [0, 1).
            policy: the policy to be evaluated, anything `as_policy` takes; None: the one that acted.

        Raises:
            TypeError: not a Trajectory, observations without features, or not a policy.
            ValueError: gamma out of range, importance ratios that this method has no use for or that are all 0, a
                policy that does not fit the log, or another one than acted, where this method cannot ask it and the log
                has no importance ratios of it.
        """
        if not isinstance(trajectory, Trajectory):
            raise TypeError(f"trajectory must be a Trajectory, got {type(trajectory).__name__}")
        self._check_ratios(trajectory)
        self._asked, self._notes = self._ask(policy, trajectory)
        self.prompt_ = Prompt.from_trajectory(trajectory, gamma)
        self._trajectory = trajectory
        self._fit(self.prompt_)
        return self

    def predict(self, observations: Observations) -> ValueEstimates:
        """Values of raw observations (Q,) + shape; no standard error unless the method has one.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space.
        """
        observations = as_batch(observations, self._fitted_log().observation_space, "observations")
        features_QD = self.prompt_.queries(observations)
        return ValueEstimates(
            self._values(features_QD), observations, self.prompt_.estimand, stderr=self._stderr(features_QD),
            notes=self._notes,
        )  # fmt: skip

    def _ask(self, policy: Any, trajectory: Trajectory) -> tuple[AskedPolicy | None, tuple[str, ...]]:
        """The policy to be asked, None where the logged actions are all that is known of it, and notes."""
        if self.can_ask:
            return asked_policy(policy, trajectory)
        check_acted(policy, trajectory, type(self).__name__)
        return None, ()

    def _fitted_log(self) -> Trajectory:
        if not hasattr(self, "_trajectory"):
            raise RuntimeError(f"{type(self).__name__} has no context yet: call fit(trajectory, gamma) first")
        return self._trajectory

    def _check_ratios(self, trajectory: Trajectory) -> None:
        if trajectory.importance_ratios is None:
            return
        if not self.weighs_ratios:
            raise ValueError(
                f"{type(self).__name__} does not use importance_ratios: from this log it would estimate the values of "
                "the behaviour, not of the target"
            )
        if not trajectory.importance_ratios.any():
            raise ValueError("importance_ratios: every transition has ratio 0; at least one must count")

    @abstractmethod
    def _fit(self, prompt: Prompt) -> None: ...

    @abstractmethod
    def _values(self, features_QD: np.ndarray) -> np.ndarray: ...

    def _stderr(self, features_QD: np.ndarray) -> np.ndarray | None:
        del features_QD
        return None


def importance_ratios(prompt: Prompt) -> np.ndarray:
    """pi / mu of the logged actions, (N,); 1 where the policy itself acted."""
    return np.ones(len(prompt)) if prompt.importance_ratios is None else prompt.importance_ratios


def excess_rewards(prompt: Prompt) -> np.ndarray:
    """Rewards of the process whose values are relative to the prompt's constant, (N,)."""
    return prompt.rewards - (1.0 - prompt.discounts) * prompt.constant


def all_features(prompt: Prompt) -> np.ndarray:
    """Features of all columns, sources then ends, (C, D)."""
    return np.concatenate([prompt.source_features, prompt.end_features])


def trace_decays(prompt: Prompt, trace_decay: float) -> np.ndarray:
    """Factors discount_k lambda rho_{k+1} of `decayed_sums`, (N,); 0 where row k + 1 does not continue row k.

    The ratio of a transition's own action is not in it: it is the weight of its equation (per-decision importance
    sampling: Precup, Sutton, Singh 2000; for LSTD(lambda): Bertsekas & Yu 2009).
    """
    next_ratio_N = np.append(importance_ratios(prompt)[1:], 1.0)
    return prompt.discounts * trace_decay * prompt.trace_links * next_ratio_N


def returns(prompt: Prompt) -> np.ndarray:
    """Discounted returns from every source, (N,); an end that did not terminate is worth the prompt's constant.

    With importance ratios: per-decision weighted returns after the first action, with the prompt's constant as control
    variate (Jiang & Li 2016); the first action's own ratio is the weight of the return.
    """
    return prompt.constant + decayed_sums(excess_rewards(prompt), trace_decays(prompt, 1.0))


def scaled_distances(left_BD: np.ndarray, right_ND: np.ndarray, width: float) -> np.ndarray:
    """Squared Euclidean distances divided by width^2, (B, N)."""
    squares = (left_BD**2).sum(1)[:, None] + (right_ND**2).sum(1) - 2.0 * left_BD @ right_ND.T
    return np.maximum(squares, 0.0) / width**2


def check_positive(**options: float) -> None:
    """Raise ValueError naming the first option that is not a positive finite number."""
    for name, value in options.items():
        if not np.isfinite(value) or value <= 0:
            raise ValueError(f"{name} must be a positive finite number, got {value!r}")


def check_fraction(**options: float) -> None:
    """Raise ValueError naming the first option outside [0, 1]."""
    for name, value in options.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be in [0, 1], got {value!r}")
