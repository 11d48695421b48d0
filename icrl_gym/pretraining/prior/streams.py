"""Episodes as they would be logged: resets, time limits, noise on rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.processes import Process

NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Streams:
    """M independent streams of T steps for each of B tasks, each beginning at a reset.

    Attributes:
        states, next_states: (B, M, T, S); successors are true ones, before any reset.
        rewards: (B, M, T) as logged.
        terminated, truncated: (B, M, T) bool, never both.
    """

    states: Tensor
    next_states: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor

    @property
    def ended(self) -> Tensor:
        return self.terminated | self.truncated


def run_streams(
    process: Process, limits: Tensor, num_streams: int, num_steps: int, generator: torch.Generator
) -> Streams:
    """Run episode after episode under time limits (B,)."""
    states = process.start(num_streams, generator)
    shape = states.shape[:2]
    age = torch.zeros(shape, dtype=torch.int64, device=states.device)
    rows: list[tuple[Tensor, ...]] = []
    for _ in range(num_steps):
        step = process.step(states, generator)
        chance, noise = _uniform_and_normal(shape, generator)
        terminated = chance < step.stop_probability
        rewards = (
            step.rewards
            + step.terminal_reward * terminated
            + step.reward_noise * torch.where(step.effort, one_sided(noise), noise)
        )
        age += 1
        truncated = (age >= limits.unsqueeze(-1)) & ~terminated
        rows.append((states, step.states, rewards, terminated, truncated))
        ended = terminated | truncated
        age.masked_fill_(ended, 0)
        states = torch.where(ended.unsqueeze(-1), process.start(num_streams, generator), step.states)
    return Streams(*(torch.stack(column, dim=2) for column in zip(*rows, strict=True)))


def one_sided(normal: Tensor) -> Tensor:
    """Minus the square of standard normal numbers, with mean 0 and standard deviation 1."""
    return (1 - normal * normal) * 0.5**0.5


def _uniform_and_normal(shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    device = generator.device
    return torch.rand(shape, generator=generator, device=device), torch.randn(shape, generator=generator, device=device)


def drift_along(
    ended_BN: Tensor, num_channels: int, memory_BK: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Irrelevant autocorrelated coordinates along one stream: at the states and at the successors, (B, N, K) each.

    They are drawn afresh at every reset.
    """
    num_tasks, num_steps = ended_BN.shape
    shape = (num_steps + 1, num_tasks, 2, num_channels)
    normal = torch.randn(shape, generator=generator, device=ended_BN.device)
    fresh_share = (1 - memory_BK.square()).sqrt()
    now, rows = normal[0, :, 1], []
    for t in range(num_steps):
        after = memory_BK * now + fresh_share * normal[t + 1, :, 0]
        rows.append((now, after))
        now = torch.where(ended_BN[:, t].unsqueeze(-1), normal[t + 1, :, 1], after)
    before, after = zip(*rows, strict=True)
    return torch.stack(before, dim=1), torch.stack(after, dim=1)
