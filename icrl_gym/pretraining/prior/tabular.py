"""Random processes with finitely many states, solved exactly: unstructured, chains, loops and queues.

Shapes: B tasks, n states, M copies; a state is an index, (B, M, 1) int64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Batched, Draws, gather_rows
from icrl_gym.pretraining.prior.outcomes import BOX, GOAL, HAZARDOUS, MAX_HAZARD, NO_END
from icrl_gym.pretraining.prior.processes import Step, Truth

OCCUPANCY_STEPS = 200


@dataclass(frozen=True)
class Skeleton(Batched):
    """Transitions, starts and a geometry of B tables, before rewards.

    Attributes:
        transition_Bnn: rows sum to one.
        start_Bn: distribution after a reset.
        coordinates_BnC: places of the states, for observations and smooth rewards.
        end_Bn: states that end the process in any case (chance per arrival), or None.
    """

    transition_Bnn: Tensor
    start_Bn: Tensor
    coordinates_BnC: Tensor
    end_Bn: Tensor | None = None


@dataclass(frozen=True)
class TabularProcess(Batched):
    """B tables with rewards and stop probabilities of the state arrived in."""

    transition_Bnn: Tensor
    cumulative_Bnn: Tensor
    cumulative_start_B1n: Tensor
    features_BnF: Tensor
    reward_Bn: Tensor
    stop_Bn: Tensor
    terminal_B1: Tensor
    noise_B1: Tensor
    effort_B1: Tensor

    def start(self, num_copies: int, generator: torch.Generator) -> Tensor:
        return _sample(self.cumulative_start_B1n.expand(-1, num_copies, -1), generator)

    def step(self, states: Tensor, generator: torch.Generator) -> Step:
        arrived = _sample(gather_rows(self.cumulative_Bnn, states.squeeze(-1)), generator)
        index_BM = arrived.squeeze(-1)
        rewards, stop = self.reward_Bn.gather(1, index_BM), self.stop_Bn.gather(1, index_BM)
        return Step(arrived, rewards, stop, self.terminal_B1, self.noise_B1, self.effort_B1)

    def features(self, states: Tensor) -> Tensor:
        return gather_rows(self.features_BnF, states.squeeze(-1))

    def all_values(self, gamma: Tensor) -> Tensor:
        """V = (I - gamma P (1 - stop))^-1 P (reward + stop * terminal), (B, n) float64."""
        stop, transition = self.stop_Bn.double(), self.transition_Bnn.double()
        gain_Bn1 = (self.reward_Bn.double() + stop * self.terminal_B1.double()).unsqueeze(-1)
        onward_Bnn = gamma[:, None, None] * transition * (1 - stop).unsqueeze(1)
        matrix_Bnn = torch.eye(stop.shape[1], dtype=torch.float64, device=stop.device) - onward_Bnn
        solved = np.linalg.solve(matrix_Bnn.cpu().numpy(), (transition @ gain_Bn1).cpu().numpy())
        return torch.from_numpy(solved).to(stop.device).squeeze(-1)

    def true_values(self, states: Tensor, gamma: Tensor, num_rollouts: int, generator: torch.Generator) -> Truth:
        """Exact; nothing is sampled."""
        values = self.all_values(gamma).gather(1, states.squeeze(-1)).float()
        return Truth(values, values.clone(), torch.zeros_like(values))


def _sample(cumulative_BMn: Tensor, generator: torch.Generator) -> Tensor:
    shape = (*cumulative_BMn.shape[:2], 1)
    uniform = torch.rand(shape, generator=generator, device=generator.device)
    return (uniform > cumulative_BMn[..., :-1]).sum(dim=-1, keepdim=True)


def draw_table(draws: Draws, skeleton: Skeleton, features_BnF: Tensor, gamma: Tensor) -> TabularProcess:
    """Draw rewards and termination for tables, termination at a wanted frequency on their own paths."""
    occupancy_Bn = _occupancy(skeleton)
    kind_B = draws.choice((0.3, 0.2, 0.2, 0.3))  # per step, sparse, rough, smooth
    end_B = draws.choice((0.25, 0.0, 0.5, 0.25))
    ends_anyway_B = torch.zeros_like(end_B, dtype=torch.bool)
    if skeleton.end_Bn is not None:
        ends_anyway_B = skeleton.end_Bn.sum(dim=-1) > 0
    lost_B = (kind_B == 0) & (end_B == NO_END) & ~ends_anyway_B
    end_B = torch.where(lost_B, HAZARDOUS, end_B)
    stop_Bn = _stops(draws, skeleton, occupancy_Bn, end_B)
    unit_B1 = draws.log_uniform(0.3, 3.0, 1)
    sign_B1, horizon_B1 = draws.sign(1), 1 / (1 - gamma.float()).unsqueeze(-1)
    size_B1 = (draws.uniform(0.0, 0.85, 1) * horizon_B1.log()).exp()
    terminal_B1 = sign_B1 * size_B1 * draws.chance(0.6, 1)
    terminal_B1 = torch.where((kind_B == 1).unsqueeze(-1) & ends_anyway_B.unsqueeze(-1), size_B1, terminal_B1)
    cumulative_Bnn = skeleton.transition_Bnn.double().cumsum(dim=-1).float()
    return TabularProcess(
        transition_Bnn=skeleton.transition_Bnn,
        cumulative_Bnn=cumulative_Bnn,
        cumulative_start_B1n=skeleton.start_Bn.double().cumsum(dim=-1).float().unsqueeze(1),
        features_BnF=features_BnF,
        reward_Bn=_rewards(draws, skeleton, kind_B) * unit_B1,
        stop_Bn=stop_Bn,
        terminal_B1=terminal_B1 * unit_B1,
        noise_B1=unit_B1 * draws.log_uniform(0.03, 1.0, 1) * draws.chance(0.3, 1),
        effort_B1=draws.chance(0.35, 1),
    )


def _occupancy(skeleton: Skeleton) -> Tensor:
    """Mean state distribution over the first steps of an unended run, (B, n)."""
    now_B1n = skeleton.start_Bn.unsqueeze(1)
    total = torch.zeros_like(now_B1n)
    for _ in range(OCCUPANCY_STEPS):
        now_B1n = torch.bmm(now_B1n, skeleton.transition_Bnn)
        total += now_B1n
    return total.squeeze(1) / OCCUPANCY_STEPS


def _stops(draws: Draws, skeleton: Skeleton, occupancy_Bn: Tensor, end_B: Tensor) -> Tensor:
    """Chance of ending at each arrival: one state certainly, or a hazard that differs between states."""
    rate_B1 = draws.log_uniform(1 / 2000, 1 / 20, 1)
    gap_Bn = (occupancy_Bn.clamp(min=1e-9).log() - rate_B1.log()).abs() + 100.0 * (skeleton.start_Bn > 0)
    single_Bn = torch.nn.functional.one_hot(gap_Bn.argmin(dim=-1), gap_Bn.shape[1]).float()
    uneven_Bn = (draws.normal(gap_Bn.shape[1]) * draws.uniform(0.5, 3.0, 1)).exp()
    typical_B1 = (uneven_Bn * occupancy_Bn).sum(dim=-1, keepdim=True)
    hazard_Bn = (uneven_Bn * rate_B1 / typical_B1).clamp(max=MAX_HAZARD)
    end_B1 = end_B.unsqueeze(-1)
    stop_Bn = single_Bn * ((end_B1 == GOAL) | (end_B1 == BOX)) + hazard_Bn * (end_B1 == HAZARDOUS)
    return stop_Bn if skeleton.end_Bn is None else torch.maximum(stop_Bn, skeleton.end_Bn)


def _rewards(draws: Draws, skeleton: Skeleton, kind_B: Tensor) -> Tensor:
    """Reward of arriving in each state: constant, at few states, rough, or smooth in the coordinates, (B, n)."""
    coordinates_BnC = skeleton.coordinates_BnC
    num_states, num_coordinates = coordinates_BnC.shape[1:]
    centred = coordinates_BnC - coordinates_BnC.mean(dim=1, keepdim=True)
    normal_BnC = centred / centred.std(dim=1, keepdim=True).clamp(min=1e-6)
    slope_BC1, bend_BC1 = draws.normal(num_coordinates, 1), -draws.uniform(0.0, 1.0, num_coordinates, 1)
    smooth_Bn = (normal_BnC @ slope_BC1 + normal_BnC.square() @ bend_BC1).squeeze(-1)
    rough_Bn = draws.normal(num_states)
    table_KBn = torch.stack(
        [
            draws.sign(1).expand(-1, num_states),
            torch.where(draws.chance(0.12, num_states), rough_Bn + draws.sign(1), 0.0),
            rough_Bn + draws.normal(1) * 0.5,
            smooth_Bn,
        ]
    )
    reward_Bn = table_KBn.gather(0, kind_B.view(1, -1, 1).expand(1, -1, num_states)).squeeze(0)
    if skeleton.end_Bn is not None:  # ends may pay differently
        reward_Bn = reward_Bn + skeleton.end_Bn * rough_Bn * draws.log_uniform(1.0, 20.0, 1) * draws.chance(0.4, 1)
    return reward_Bn


def unstructured(draws: Draws, num_states: int) -> Skeleton:
    """Dirichlet rows over a few successors each, in some tasks only near ones; random points as geometry."""
    index_n = torch.arange(num_states, device=draws.generator.device)
    gap_nn = (index_n - index_n.unsqueeze(-1)).abs()
    gap_nn = torch.minimum(gap_nn, num_states - gap_nn) / num_states
    reach_B11 = torch.where(draws.chance(0.5, 1, 1), draws.log_uniform(0.03, 0.3, 1, 1), 1.0)
    share_Bnn = draws.uniform(0.5, 4.0, 1, 1) / num_states / reach_B11.clamp(max=0.5) / 2
    kept_Bnn = (draws.uniform(0.0, 1.0, num_states, num_states) < share_Bnn) & (gap_nn <= reach_B11)
    certain_Bn = (
        index_n + (draws.uniform(-1.0, 1.0, num_states) * reach_B11.squeeze(-1) * num_states / 2).round()
    ).long()
    certain_Bnn = torch.nn.functional.one_hot(certain_Bn % num_states, num_states).bool()
    weight_Bnn = -draws.uniform(1e-6, 1.0, num_states, num_states).log()  # exponential: Dirichlet(1) once normalised
    transition_Bnn = weight_Bnn ** draws.uniform(0.5, 3.0, 1, 1) * (kept_Bnn | certain_Bnn)
    transition_Bnn = transition_Bnn / transition_Bnn.sum(dim=-1, keepdim=True)
    stay_B11 = draws.uniform(0.0, 0.95, 1, 1) * draws.chance(0.5, 1, 1)
    transition_Bnn = transition_Bnn * (1 - stay_B11) + stay_B11 * torch.eye(num_states, device=gap_nn.device)
    start_Bn = draws.subset(num_states, most=3).float()
    return Skeleton(transition_Bnn, start_Bn / start_Bn.sum(dim=-1, keepdim=True), draws.normal(num_states, 2))


def _shifted(num_states: int, shift: int, wrap: bool, device: torch.device) -> Tensor:
    """The table of moving by ``shift``, stopping at the ends or going round, (n, n)."""
    index = torch.arange(num_states, device=device)
    to = (index + shift) % num_states if wrap else (index + shift).clamp(0, num_states - 1)
    return torch.nn.functional.one_hot(to, num_states).float()


def _moves(draws: Draws, num_states: int, shifts: range, forward: Tensor, wrap: bool) -> Tensor:
    """State-dependent random mixtures of shifts; ``forward`` (B, 1, 1) tilts them, (B, n, n)."""
    table_Jnn = torch.stack([_shifted(num_states, shift, wrap, forward.device) for shift in shifts])
    uneven_BnJ = draws.normal(num_states, len(shifts)) * draws.uniform(0.0, 1.5, 1, 1)
    tilt_J = torch.tensor(list(shifts), device=forward.device)
    weight_BnJ = (uneven_BnJ + forward * tilt_J).softmax(dim=-1)
    return torch.einsum("bnj,jnm->bnm", weight_BnJ, table_Jnn)


def chain(draws: Draws, num_states: int) -> Skeleton:
    """States in a row, moving by -1 to 2, mostly forward; the last one usually ends the process."""
    forward_B11 = draws.uniform(0.1, 1.0, 1, 1)
    transition_Bnn = _moves(draws, num_states, range(-1, 3), forward_B11, wrap=False)
    end_Bn = torch.zeros(draws.num_tasks, num_states, device=forward_B11.device)
    ends_B1 = draws.chance(0.7, 1)
    end_Bn[:, -1:] = ends_B1.float()
    back_Bn = torch.nn.functional.one_hot(draws.integer(max(1, num_states // 2)), num_states).float()
    transition_Bnn[:, -1] = torch.where(ends_B1, transition_Bnn[:, -1], back_Bn)
    start_Bn = torch.zeros_like(end_Bn)
    start_Bn[:, : max(1, num_states // 10)] = 1.0
    return Skeleton(
        transition_Bnn, start_Bn / start_Bn.sum(dim=-1, keepdim=True), _positions(draws, num_states), end_Bn
    )


def _positions(draws: Draws, num_states: int) -> Tensor:
    return torch.arange(num_states, device=draws.generator.device).float().view(1, -1, 1).expand(draws.num_tasks, -1, 1)


def loop(draws: Draws, num_states: int) -> Skeleton:
    """States in a circle; each step goes round, slips, or (in some tasks) jumps to a fixed state."""
    forward_B11 = draws.uniform(0.3, 3.0, 1, 1)
    transition_Bnn = _moves(draws, num_states, range(-1, 3), forward_B11, wrap=True)
    jump_Bn1 = draws.uniform(0.0, 0.3, num_states, 1) * draws.chance(0.3, num_states, 1) * draws.chance(0.5, 1, 1)
    target_B1n = torch.nn.functional.one_hot(draws.integer(num_states), num_states).float().unsqueeze(1)
    transition_Bnn = transition_Bnn * (1 - jump_Bn1) + jump_Bn1 * target_B1n
    angle_n = torch.arange(num_states, device=forward_B11.device) * (2 * torch.pi / num_states)
    circle_BnC = torch.stack([angle_n.cos(), angle_n.sin()], dim=-1).expand(draws.num_tasks, -1, -1)
    start_Bn = draws.subset(num_states, most=2).float()
    return Skeleton(transition_Bnn, start_Bn / start_Bn.sum(dim=-1, keepdim=True), circle_BnC)


def queue(draws: Draws, num_states: int) -> Skeleton:
    """A count that arrivals raise and services lower, with a level it hovers around; overflow may end the process."""
    level_B11 = draws.uniform(0.1, 0.7, 1, 1) * num_states
    pull_B11 = draws.log_uniform(0.02, 1.0, 1, 1)
    position_1n1 = torch.arange(num_states, device=level_B11.device).float().view(1, -1, 1)
    tilt_Bn1 = ((level_B11 - position_1n1) * pull_B11).clamp(-3, 3)
    transition_Bnn = _moves(draws, num_states, range(-2, 3), tilt_Bn1, wrap=False)
    end_Bn = torch.zeros(draws.num_tasks, num_states, device=level_B11.device)
    end_Bn[:, -1:] = draws.chance(0.5, 1).float()
    start_Bn = torch.nn.functional.one_hot(draws.integer(max(1, num_states // 4)), num_states).float()
    return Skeleton(transition_Bnn, start_Bn, _positions(draws, num_states), end_Bn)
