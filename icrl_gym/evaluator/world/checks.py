"""How far the world can be followed: walks from the context's own states, beside what happened there.

A walk starts where a member was not fitted. It is given the noise with which the logged actions would have been chosen,
so that it differs from the log by the model's errors alone; where the log is another policy's, it is given the logged
actions; where the policy is imitated, fresh noise, so that the imitation's errors count too. After H steps both are
valued: what was earned, and the value of the state that was reached. Their difference is what H steps in this world
cost, in units of value, endings included.

Where paths part, the difference is mostly chance, which the mean over many particles does not have. Chance is not
shared by two starts that lie near one another in space and far apart in time, and an error of the model is; so the cost
is the mean product of the differences of such pairs, at least a share of their mean square.

Shape legend: K members, B starts of each, H horizons, D features, U noise numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.world.model import World
from icrl_gym.evaluator.world.walks import NOISE_SEED, Walker

STARTS = 32  # of each member
FEWEST = 8  # starts that a horizon needs
LEAST_SHARE = 0.15  # of the mean square that is never taken for chance


@dataclass(frozen=True, eq=False)
class Check:
    """What following the world costs.

    Attributes:
        horizons: numbers of steps, rising.
        errors_H: squared error of the value after so many steps, nan where nothing could be compared.
        squares_H: mean square of single paths' differences.
    """

    horizons: tuple[int, ...]
    errors_H: np.ndarray
    squares_H: np.ndarray


def check_walks(
    walker: Walker, prompt: Prompt, successors_ND: np.ndarray, actions_NX: np.ndarray, noise_NU: np.ndarray | None,
    horizons: Sequence[int], leaf: Callable[[np.ndarray], np.ndarray],
) -> Check:  # fmt: skip
    """Compare walks with the log.

    Args:
        walker: the world and who acts.
        prompt: the context.
        successors_ND: features of its true successors.
        actions_NX: features of its actions.
        noise_NU: the noise behind them, or None to give the walks the actions themselves.
        horizons: numbers of steps, rising from 1.
        leaf: values (B,) of features (B, D).
    """
    rewards_N, ended_N, links_N = prompt.rewards, prompt.discounts == 0, prompt.trace_links
    rows_KB = np.stack([_starts(rows) for rows in walker.world.held_out])
    at_KB, last = rows_KB.copy(), len(prompt) - 1
    # A cut path shows where it came to, and not where it would have gone: one step later it is lost.
    ended_KB, cut_KB, lost_KB = (np.zeros(rows_KB.shape, bool) for _ in range(3))
    true_KBD, earned_KB, discounts_KB = prompt.source_features[rows_KB], np.zeros(rows_KB.shape), np.ones(rows_KB.shape)
    fresh = np.random.default_rng(NOISE_SEED)
    device = walker.world.low_KD.device
    walked, happened, compared = [], [], []

    def act(index: int, states_KAD: torch.Tensor, whose_KA: np.ndarray) -> torch.Tensor:
        del index
        rows_KA = np.take_along_axis(at_KB, whose_KA, axis=1)
        if noise_NU is None:
            return torch.as_tensor(actions_NX[rows_KA], device=device)
        unlogged_KBU = fresh.uniform(1e-9, 1 - 1e-9, (*rows_KB.shape, noise_NU.shape[1]))
        unlogged_KAU = np.take_along_axis(unlogged_KBU, whose_KA[..., None], axis=1)
        over_KA = np.take_along_axis(ended_KB, whose_KA, axis=1)
        return walker.act(states_KAD, np.where(over_KA[..., None], unlogged_KAU, noise_NU[rows_KA]))

    starts_KBD = torch.as_tensor(true_KBD, device=device, dtype=torch.float64)
    for index, (stop, _, _) in enumerate(walker.steps(starts_KBD, max(horizons), act)):
        if index in horizons:
            walked.append(
                (stop.states_KBD.cpu().numpy(), stop.discounts_KB.cpu().numpy(), stop.earned_KB.cpu().numpy())
            )
            happened.append((true_KBD, discounts_KB, earned_KB))
            compared.append(~lost_KB)
        going_KB, lost_KB = ~ended_KB & ~cut_KB, cut_KB
        earned_KB = earned_KB + np.where(going_KB, discounts_KB * rewards_N[at_KB], 0.0)
        true_KBD = np.where(going_KB[..., None], successors_ND[at_KB], true_KBD)
        ended_KB = ended_KB | (going_KB & ended_N[at_KB])
        discounts_KB = np.where(ended_KB, 0.0, discounts_KB * prompt.gamma)
        cut_KB = cut_KB | (~ended_KB & ~links_N[at_KB])
        at_KB = np.where(ended_KB | cut_KB, at_KB, np.minimum(at_KB + 1, last))
    leaves_SHKB = leaf(
        np.stack([np.stack([part[0] for part in parts]) for parts in (walked, happened)]).reshape(
            -1, true_KBD.shape[-1]
        )
    ).reshape(2, len(horizons), *rows_KB.shape)
    values = [
        np.stack([earned + discount * leaves_HKB[h] for h, (_, discount, earned) in enumerate(parts)])
        for parts, leaves_HKB in zip((walked, happened), leaves_SHKB, strict=True)
    ]
    differences_HB = np.where(np.stack(compared), values[0] - values[1], np.nan).reshape(len(horizons), -1)
    starts_B = rows_KB.reshape(-1)
    found = [
        _cost(differences_HB[index], starts_B, prompt.source_features[starts_B], steps)
        for index, steps in enumerate(horizons)
    ]
    return Check(tuple(horizons), np.array([cost for cost, _ in found]), np.array([square for _, square in found]))


def checked_rows(world: World, num_steps: int) -> np.ndarray:
    """Transitions that walks of so many steps are compared with, rising."""
    starts = np.concatenate([_starts(rows) for rows in world.held_out])
    return np.unique((starts[:, None] + np.arange(num_steps)).clip(max=world.num_transitions - 1))


def _cost(differences_B: np.ndarray, rows_B: np.ndarray, states_BD: np.ndarray, steps: int) -> tuple[float, float]:
    """The cost of a horizon, and the mean square."""
    kept = np.isfinite(differences_B)
    if kept.sum() < FEWEST:
        return np.nan, np.nan
    d_B, rows_B, states_BD = differences_B[kept], rows_B[kept], states_BD[kept]
    square = float(np.square(d_B).mean())
    distance_BB = np.square(states_BD[:, None] - states_BD[None]).sum(axis=-1)
    distance_BB[np.abs(rows_B[:, None] - rows_B[None]) <= steps] = np.inf
    nearest_B = distance_BB.argmin(axis=1)
    apart_B = np.isfinite(distance_BB[np.arange(len(d_B)), nearest_B])
    if apart_B.sum() < FEWEST:
        return square, square
    shared = float((d_B * d_B[nearest_B])[apart_B].mean())
    return max(shared, LEAST_SHARE * square), square


def _starts(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, STARTS).round().astype(int)]
