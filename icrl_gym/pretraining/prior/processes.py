"""The interface of synthetic Markov reward processes: start, step, show its features, and give its true values.

Shapes: B tasks, M copies, S state numbers, F natural features, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One step of every copy, in expectation over what happens after the new state is known.

    Attributes:
        states: (B, M, S) new states.
        rewards: (B, M) expected reward of the step, the terminal one excluded.
        stop_probability: (B, M) chance that the step terminates.
        terminal_reward: (B, 1) extra reward if it does.
        reward_noise: (B, 1) standard deviation of what is added to the reward of a log.
        effort: (B, 1) bool, whether that noise is one-sided, as the cost of a random action is.
    """

    states: Tensor
    rewards: Tensor
    stop_probability: Tensor
    terminal_reward: Tensor
    reward_noise: Tensor
    effort: Tensor


@dataclass(frozen=True)
class Truth:
    """True values, (B, Q) each; two independent estimates and the standard error of their mean (0 where exact)."""

    values: Tensor
    values_second: Tensor
    stderr: Tensor


class Process(Protocol):
    """B Markov reward processes with the policy folded in, all of one family and size."""

    def start(self, num_copies: int, generator: torch.Generator) -> Tensor:
        """States after a reset, (B, M, S)."""
        ...

    def step(self, states: Tensor, generator: torch.Generator) -> Step:
        """One step from (B, M, S)."""
        ...

    def features(self, states: Tensor) -> Tensor:
        """Features that lose nothing of the states, (B, M, F)."""
        ...

    def true_values(self, states: Tensor, gamma: Tensor, num_rollouts: int, generator: torch.Generator) -> Truth:
        """Values of (B, Q, S) states under the discounts (B,), time limits ignored."""
        ...
