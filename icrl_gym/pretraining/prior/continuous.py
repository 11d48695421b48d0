"""Continuous processes: dynamics joined with outcomes; their true values are measured by rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Batched, Draws
from icrl_gym.pretraining.prior.dynamics import Dynamics
from icrl_gym.pretraining.prior.outcomes import Outcomes, draw_outcomes
from icrl_gym.pretraining.prior.processes import Step, Truth

PILOT_COPIES, PILOT_STEPS = 24, 200
FEATURE_LIMIT = 10.0  # normalised features beyond this are cut before they make rewards
NEGLIGIBLE_WEIGHT = 0.01
CHECK_EVERY = 16


@dataclass(frozen=True)
class ContinuousProcess(Batched):
    """B tasks: dynamics, and outcomes read off their normalised features (z = features * inverse - shift)."""

    dynamics: Dynamics
    outcomes: Outcomes
    inverse_B1F: Tensor
    shift_B1F: Tensor

    @classmethod
    def draw(cls, draws: Draws, dynamics: Dynamics, gamma: Tensor, end_weights: Sequence[float]) -> Self:
        """Run a pilot of the dynamics, then draw outcomes that fit it."""
        pilot_BMTF = _pilot(dynamics, draws.generator)
        spread_BF, mean_BF = torch.std_mean(pilot_BMTF, dim=(1, 2))
        varies_BF = spread_BF > 1e-5 * (1 + mean_BF.abs())
        inverse_BF = torch.where(varies_BF, 1 / spread_BF.clamp(min=1e-6), 0.0)
        shift_BF = mean_BF * inverse_BF
        normal_BMTF = pilot_BMTF * inverse_BF[:, None, None] - shift_BF[:, None, None]
        outcomes = draw_outcomes(draws, normal_BMTF.clamp_(-FEATURE_LIMIT, FEATURE_LIMIT), gamma, end_weights)
        return cls(dynamics, outcomes, inverse_BF.unsqueeze(1), shift_BF.unsqueeze(1))

    def start(self, num_copies: int, generator: torch.Generator) -> Tensor:
        return self.dynamics.start(num_copies, generator)

    def step(self, states: Tensor, generator: torch.Generator) -> Step:
        states = self.dynamics.advance(states, generator)
        normal = torch.addcmul(-self.shift_B1F, self.dynamics.features(states), self.inverse_B1F)
        rewards, stop = self.outcomes(normal.clamp_(-FEATURE_LIMIT, FEATURE_LIMIT))
        return Step(states, rewards, stop, self.outcomes.terminal_B1, self.outcomes.noise_B1, self.outcomes.effort_B1)

    def features(self, states: Tensor) -> Tensor:
        return self.dynamics.features(states)

    def true_values(self, states: Tensor, gamma: Tensor, num_rollouts: int, generator: torch.Generator) -> Truth:
        """Rollouts without time limit until what is left weighs at most 0.01; then a tail of the task's mean value.

        The chance of a hazard is carried as a weight instead of being sampled, and reward noise is left out: both
        have the same expectation. Half of the rollouts go to ``values``, half to ``values_second``. Tasks without
        noise need one rollout only.
        """
        truth = torch.empty((3, *states.shape[:2]), device=states.device)
        random_B = self.dynamics.is_random_B
        for tasks_B, copies in ((random_B, num_rollouts), (~random_B, 1)):
            index = tasks_B.nonzero().squeeze(-1)
            if len(index):
                starts = states[index].repeat_interleave(copies, dim=1)
                total, weight = _rollouts(self.select(index), starts, gamma[index], generator)
                truth[:, index] = _summary(total.unflatten(1, (-1, copies)), weight.unflatten(1, (-1, copies)))
        return Truth(*truth)


def _summary(total_BQR: Tensor, weight_BQR: Tensor) -> Tensor:
    """Two estimates from the halves of the rollouts and their common standard error, (3, B, Q).

    Copies that are still alive get the half's own mean value, so that the halves stay independent.
    """
    copies = total_BQR.shape[-1]
    halves = [slice(0, 1)] * 2 if copies == 1 else [slice(0, copies // 2), slice(copies // 2, None)]
    parts = [_with_tail(total_BQR[..., half], weight_BQR[..., half]) for half in halves]
    if copies == 1:
        return torch.stack([parts[0].squeeze(-1), parts[0].squeeze(-1), torch.zeros_like(total_BQR[..., 0])])
    spread_BQ = torch.cat(parts, dim=-1).std(dim=-1)
    return torch.stack([*(part.mean(dim=-1) for part in parts), spread_BQ / copies**0.5])


def _with_tail(total_BQR: Tensor, weight_BQR: Tensor) -> Tensor:
    level_B = total_BQR.mean(dim=(1, 2)) / (1 - weight_BQR.mean(dim=(1, 2)))
    return total_BQR + weight_BQR * level_B[:, None, None]


def _pilot(dynamics: Dynamics, generator: torch.Generator) -> Tensor:
    """Features along unended runs from resets, (B, M, T, F)."""
    states = dynamics.start(PILOT_COPIES, generator)
    features = []
    for _ in range(PILOT_STEPS):
        states = dynamics.advance(states, generator)
        features.append(dynamics.features(states))
    return torch.stack(features, dim=2)


def _rollouts(
    process: ContinuousProcess, states: Tensor, gamma: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Discounted rewards of copies (B, M) and the weight that their futures still carry."""
    num_tasks, copies, _ = states.shape
    total, weight = states.new_zeros(num_tasks, copies), states.new_ones(num_tasks, copies)
    final_total, final_weight = torch.empty_like(total), torch.empty_like(weight)
    active_A = torch.arange(num_tasks, device=states.device)
    gamma_A1 = gamma.float().unsqueeze(-1)
    while len(active_A):
        for _ in range(CHECK_EVERY):
            step = process.step(states, generator)
            states = step.states
            step.rewards.addcmul_(step.stop_probability, step.terminal_reward)
            total.addcmul_(weight, step.rewards)
            weight.mul_(gamma_A1).addcmul_(weight, step.stop_probability, value=-1.0)
        done_A = weight.amax(dim=1) <= NEGLIGIBLE_WEIGHT
        if bool(done_A.any()):
            final_total[active_A[done_A]], final_weight[active_A[done_A]] = total[done_A], weight[done_A]
            keep = (~done_A).nonzero().squeeze(-1)
            process, states, active_A = process.select(keep), states[keep], active_A[keep]
            total, weight, gamma_A1 = total[keep], weight[keep], gamma_A1[keep]
    return final_total, final_weight
