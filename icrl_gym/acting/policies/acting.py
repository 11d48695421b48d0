"""`ActingPolicy`: how the library sees any policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies.inversion import index_by_inversion
from icrl_gym.observations import Observations

_POLICY_STREAM = 0x9E3779B9


def policy_generator(seed: int | np.random.Generator | None) -> np.random.Generator:
    """A generator apart from the one that an environment makes from the same seed."""
    if isinstance(seed, np.random.Generator):
        return seed
    return np.random.default_rng(None if seed is None else [seed, _POLICY_STREAM])


def discrete_actions(action_space: spaces.Space, what: str) -> spaces.Discrete:
    """The space, if it is Discrete; ``what`` names the thing that needs it in the ValueError."""
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"policy: {what} needs a Discrete action space, got {action_space}")
    return action_space


def one_hot(index: np.ndarray, num_actions: int) -> np.ndarray:
    """All probability on one action per row, (B, A)."""
    return np.eye(num_actions)[index]


def determinism_suffix(deterministic: bool) -> str:
    """The ending of a deterministic policy's identity."""
    return " (deterministic)" if deterministic else ""


class ActingPolicy(ABC):
    """A policy as the library uses it; B observations in, B actions out, one call per step.

    Attributes:
        identity: name for the estimand; ends in " (deterministic)" where that holds.
        recurrent: whether actions depend on a state that must be threaded through `act_recurrent`.
        action_space: of one environment, or None where the policy does not know it.
    """

    identity: str
    recurrent: bool = False
    action_space: spaces.Space | None = None

    @abstractmethod
    def act(self, observations: Observations) -> np.ndarray:
        """Actions (B,) + action shape for raw observations (B,) + observation shape."""

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        """Probability of each discrete action, (B, A); raises ValueError where the policy cannot say."""
        del observations
        raise ValueError(f"policy {self.identity!r} cannot give action probabilities; use 'random', a table, "
                         "an object with action_probabilities, or an SB3 model with discrete actions")  # fmt: skip

    @property
    def states_probabilities(self) -> bool:
        """Whether `action_probabilities` answers."""
        return type(self).action_probabilities is not ActingPolicy.action_probabilities

    @property
    def takes_noise(self) -> bool:
        """Whether `act_with_noise` is known to depend on observations and noise alone."""
        return self.states_probabilities

    @property
    def num_noise(self) -> int:
        """Uniform numbers per action that `act_with_noise` reads, at least 1."""
        return 1

    def act_with_noise(self, observations: Observations, noise_BU: np.ndarray) -> np.ndarray:
        """Actions (B,) + action shape with all chance taken from ``noise_BU`` (B, num_noise), uniform in (0, 1).

        Where `takes_noise` is False this is `act`.
        """
        if not self.states_probabilities:
            return self.act(observations)
        index_B = index_by_inversion(self.action_probabilities(observations), noise_BU[:, 0])
        return index_B + (self.action_space.start if isinstance(self.action_space, spaces.Discrete) else 0)

    def initial_state(self, batch: int) -> Any:
        """The state before the first step of ``batch`` episodes; None for policies without memory."""
        del batch
        return None

    def act_recurrent(
        self, observations: Observations, state: Any, episode_starts: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        """Actions and the next state; rows where ``episode_starts`` (B,) is True forget their state first."""
        del episode_starts
        return self.act(observations), state

    def take_state(self, state: Any, index: Any) -> Any:
        """The state of some rows of the batch (an integer array, a mask or a slice)."""
        del index
        return state
