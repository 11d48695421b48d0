"""Grids with integer coordinates, walls, pits and a goal, walked by a noisy shortest-path policy; solved exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from icrl_gym.pretraining.prior.draws import Draws
from icrl_gym.pretraining.prior.tabular import Skeleton

MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))
FAR = 1e4


def grid(draws: Draws, width: int, height: int) -> Skeleton:
    """Cells of a ``width`` x ``height`` grid, row by row.

    The policy walks towards the goal with a sharpness of its own and slips; in most tasks the goal ends the process,
    in the others it sends back to the start. Some tasks have pits that end the process as well.
    """
    num_cells, device = width * height, draws.generator.device
    wall_Bn = draws.uniform(0.0, 1.0, num_cells) < draws.uniform(0.0, 0.3, 1) * draws.chance(0.75, 1)
    goal_B = draws.integer(num_cells)
    goal_Bn = torch.nn.functional.one_hot(goal_B, num_cells).bool()
    wall_Bn = wall_Bn & ~goal_Bn
    targets_BnA = _targets(wall_Bn, width, height)
    distance_Bn = _distances(targets_BnA, goal_Bn, num_cells)
    start_Bn = _start(draws, distance_Bn)
    policy_BnA = _policy(draws, targets_BnA, distance_Bn)
    transition_Bnn = torch.zeros(draws.num_tasks, num_cells, num_cells, device=device)
    transition_Bnn.scatter_add_(2, targets_BnA, policy_BnA)
    ends_B1 = draws.chance(0.75, 1)
    back_Bnn = torch.where(ends_B1.unsqueeze(-1), transition_Bnn, start_Bn.unsqueeze(1))
    transition_Bnn = torch.where(goal_Bn.unsqueeze(-1), back_Bnn, transition_Bnn)
    pits_Bn = draws.chance(0.06, num_cells) & draws.chance(0.4, 1) & (start_Bn == 0)
    end_Bn = ((goal_Bn & ends_B1) | pits_Bn).float()
    index = torch.arange(num_cells, device=device)
    coordinates_nC = torch.stack([index % width, index // width], dim=-1).float()
    return Skeleton(transition_Bnn, start_Bn, coordinates_nC.expand(draws.num_tasks, -1, -1), end_Bn)


def _targets(wall_Bn: Tensor, width: int, height: int) -> Tensor:
    """Successor of each cell under each of the four moves; walls and the border hold back, (B, n, 4)."""
    index_n = torch.arange(width * height, device=wall_Bn.device)
    columns = []
    for right, down in MOVES:
        x, y = index_n % width + right, index_n // width + down
        inside_n = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        to_n = torch.where(inside_n, y * width + x, index_n)
        columns.append(torch.where(wall_Bn[:, to_n], index_n, to_n))
    return torch.stack(columns, dim=-1)


def _distances(targets_BnA: Tensor, goal_Bn: Tensor, num_sweeps: int) -> Tensor:
    """Moves needed to reach the goal, (B, n); FAR where it cannot be reached."""
    distance_Bn = torch.where(goal_Bn, 0.0, FAR)
    for _ in range(num_sweeps):
        shorter_Bn = _lookup(distance_Bn, targets_BnA).amin(dim=-1) + 1
        shorter_Bn = torch.minimum(distance_Bn, shorter_Bn)
        if torch.equal(shorter_Bn, distance_Bn):
            break
        distance_Bn = shorter_Bn
    return distance_Bn.clamp(max=FAR)


def _lookup(table_Bn: Tensor, index_BnA: Tensor) -> Tensor:
    return table_Bn.gather(1, index_BnA.flatten(1)).view(index_BnA.shape)


def _start(draws: Draws, distance_Bn: Tensor) -> Tensor:
    """One cell, or a few, preferably far from the goal; always one from which it can be reached, (B, n)."""
    reachable_Bn = (distance_Bn < FAR) & (distance_Bn > 0)
    reachable_Bn = reachable_Bn | ((distance_Bn == 0) & ~reachable_Bn.any(dim=-1, keepdim=True))
    preference_Bn = distance_Bn * draws.uniform(0.0, 1.0, distance_Bn.shape[1]) * reachable_Bn + reachable_Bn
    best_Bk = preference_Bn.topk(3, dim=-1).indices
    chosen_Bn = torch.nn.functional.one_hot(best_Bk, distance_Bn.shape[1]).float()
    weight_B3 = torch.tensor([1.0, 0.0, 0.0], device=distance_Bn.device) + draws.chance(0.4, 1).float()
    start_Bn = (chosen_Bn * weight_B3.unsqueeze(-1)).sum(dim=1) * reachable_Bn
    return start_Bn / start_Bn.sum(dim=-1, keepdim=True)


def _policy(draws: Draws, targets_BnA: Tensor, distance_Bn: Tensor) -> Tensor:
    """Chance of each move after slipping, (B, n, 4)."""
    sharpness_B11 = draws.log_uniform(0.2, 8.0, 1, 1)
    taste_BnA = draws.normal(distance_Bn.shape[1], len(MOVES)) * draws.uniform(0.0, 0.7, 1, 1)
    policy_BnA = (taste_BnA - sharpness_B11 * _lookup(distance_Bn, targets_BnA).clamp(max=1e3)).softmax(dim=-1)
    slip_B11 = draws.uniform(0.0, 0.5, 1, 1) * draws.chance(0.5, 1, 1)
    return policy_BnA * (1 - slip_B11) + slip_B11 / len(MOVES)
