"""Pretraining of the sparse transformer from random initialisation, all seeds in one batch, under four losses.

Losses on prompts Z^(n) (query S_n) and Z^(n+1) (one transition more, query S_{n+1}) of one walk; TF is the read-out:

    td    (R_{n+1} + gamma TF(Z^(n+1)) - TF(Z^(n)))^2, no gradient through the target
    neu   || E[(R_{n+1} + gamma TF(Z^(n+1)) - TF(Z^(n))) psi(S_n)] ||^2 per process, psi one-hot, full gradient
    msve  (TF(Z^(n)) - v(S_n))^2 with the exact value
    mc    (TF(Z^(n)) - G_n)^2 with the return of the walk's continuation

The exact formula of the paper's norm of the expected update is not available; this one is ours (theory section 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from icrl_gym.reproduction.mrps import boyan_chains
from icrl_gym.reproduction.state_network import Contexts, Parameters, at_query, count, grouped, values
from icrl_gym.runs import replacing

LOSSES = ("td", "neu", "msve", "mc")
RETURN_LENGTH = 60  # steps of a return; gamma^60 = .002 at gamma = .9


@dataclass(frozen=True)
class TrainingPlan:
    """Sizes and step sizes; [WBDZ24]'s chains and context length, the rest ours.

    Attributes:
        num_steps: number of Adam's steps, with a cosine decay of the step size to zero.
        num_mrps: processes per seed and step.
        num_walks: independent walks of each process; the norm of the expected update needs at least 2.
        num_layers: number of tied layers, L.
        num_transitions: transitions of a context, n.
        gain: scale of the normal initialisation, gain / sqrt(fan).
        every: steps between checkpoints, and between points of the recorded path.
    """

    num_steps: int
    num_mrps: int = 8
    num_walks: int = 8
    num_layers: int = 3
    num_transitions: int = 30
    gamma: float = 0.9
    num_states: int = 10
    num_features: int = 4
    step_size: float = 1e-2
    gain: float = 0.1
    every: int = 50


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts of G seeds (or groups), P processes each, W walks each: leading axes (G, P, W).

    Attributes:
        now, later: Z^(n) and Z^(n+1).
        reward: R_{n+1}.
        truth: v(S_n).
        monte_carlo: the return after S_n.
    """

    now: Contexts
    later: Contexts
    reward: Tensor
    truth: Tensor
    monte_carlo: Tensor


def draw(rng: np.random.Generator, num_groups: int, plan: TrainingPlan, device: str = "cpu") -> Batch:
    """Fresh chains and walks."""
    mrps = boyan_chains(rng, num_groups * plan.num_mrps, plan.num_states, plan.num_features)
    truth = np.repeat(mrps.values(plan.gamma), plan.num_walks, axis=0)
    mrps = mrps.repeat(plan.num_walks)
    n, shape = plan.num_transitions, (num_groups, plan.num_mrps, plan.num_walks)
    states = mrps.walk(rng, n + RETURN_LENGTH)
    future = mrps.rewards_of(states)[:, n:]
    every = np.arange(len(mrps))

    def tensor(array: np.ndarray) -> Tensor:
        return torch.as_tensor(array.reshape(shape), device=device)

    return Batch(
        grouped(count(mrps, states[:, : n + 1], device), *shape),
        grouped(count(mrps, states[:, : n + 2], device), *shape),
        tensor(future[:, 0]),
        tensor(truth[every, states[:, n]]),
        tensor(future @ plan.gamma ** np.arange(RETURN_LENGTH)),
    )


def loss_of(name: str, parameters: Parameters, batch: Batch, plan: TrainingPlan) -> Tensor:
    """The loss of every group, (G,)."""
    predicted = at_query(batch.now, values(parameters, batch.now, plan.gamma, plan.num_layers))
    if name == "msve":
        return (batch.truth - predicted).square().mean((1, 2))
    if name == "mc":
        return (batch.monte_carlo - predicted).square().mean((1, 2))
    following = at_query(batch.later, values(parameters, batch.later, plan.gamma, plan.num_layers))
    if name == "td":
        return (batch.reward + plan.gamma * following.detach() - predicted).square().mean((1, 2))
    delta = batch.reward + plan.gamma * following - predicted
    return squared_norm(expected_update(delta, batch.now.query, plan.num_states)).mean(-1)


def expected_update(delta: Tensor, query: Tensor, num_states: int) -> Tensor:
    """delta psi(S_n) with one-hot psi, (..., W, S)."""
    return delta.unsqueeze(-1) * torch.nn.functional.one_hot(query, num_states)


def squared_norm(samples_WS: Tensor) -> Tensor:
    """Unbiased || E[sample] ||^2 from W >= 2 independent samples: the mean of <g_i, g_j> over pairs i != j, (...)."""
    num_samples = samples_WS.shape[-2]
    total, own = samples_WS.sum(-2).square().sum(-1), samples_WS.square().sum((-2, -1))
    return (total - own) / (num_samples * (num_samples - 1))


def plug_in_squared_norm(samples_WS: Tensor) -> Tensor:
    """The biased || mean of W samples ||^2, too large by the trace of the covariance over W."""
    return samples_WS.mean(-2).square().sum(-1)


def initial(seeds: tuple[int, ...], plan: TrainingPlan, device: str = "cpu") -> Parameters:
    """Normal with standard deviation gain / sqrt(fan), one draw per seed, with two axes for processes and walks."""
    rows, scores = [], []
    for seed in seeds:
        rng = np.random.default_rng([5, seed])
        rows.append(plan.gain * rng.standard_normal(3) / np.sqrt(3))
        shape = (plan.num_features, plan.num_features)
        scores.append(plan.gain * rng.standard_normal(shape) / np.sqrt(plan.num_features))
    value_row, score = (torch.as_tensor(np.stack(part), device=device)[:, None, None] for part in (rows, scores))
    return Parameters(value_row.requires_grad_(), score.requires_grad_())


def train(
    loss: str,
    seeds: tuple[int, ...],
    plan: TrainingPlan,
    checkpoint: Path,
    device: str = "cpu",
    progress: Callable[[int], None] = lambda step: None,
) -> dict[str, np.ndarray]:
    """Train all seeds; goes on from ``checkpoint`` where there is one.

    Batches are drawn from a generator seeded by the loss, the seeds and the step, so that an interrupted run gives the
    numbers of an uninterrupted one.

    Returns:
        "value_row" (T, G, 3) and "score" (T, G, D, D) along the path, "steps" (T,), the last row after training, and
        "loss" (T, G).
    """
    parameters = initial(seeds, plan, device)
    optimiser = torch.optim.Adam([parameters.value_row, parameters.score], lr=plan.step_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.num_steps)
    path = _load(checkpoint, parameters, optimiser, schedule)
    for step in range(schedule.last_epoch, plan.num_steps):
        batch = draw(np.random.default_rng([LOSSES.index(loss), step, *seeds]), len(seeds), plan, device)
        losses = loss_of(loss, parameters, batch, plan)
        if step % plan.every == 0:
            path.append(_point(step, parameters, losses))
            _save(checkpoint, path, parameters, optimiser, schedule)
            progress(step)
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        schedule.step()
    path.append(_point(plan.num_steps, parameters, losses))
    return {name: np.stack([point[name] for point in path]) for name in path[0]}


def _point(step: int, parameters: Parameters, losses: Tensor) -> dict[str, np.ndarray]:
    value_row, score = (array.detach().cpu().numpy()[:, 0, 0].copy() for array in vars(parameters).values())
    return {"steps": np.array(step), "value_row": value_row, "score": score, "loss": losses.detach().cpu().numpy()}


def _save(file: Path, path: list, parameters: Parameters, optimiser, schedule) -> None:
    state = {
        "path": [{name: torch.as_tensor(array) for name, array in point.items()} for point in path],
        "parameters": [array.detach() for array in vars(parameters).values()],
        "optimiser": optimiser.state_dict(),
        "schedule": schedule.state_dict(),
    }
    with replacing(file) as unfinished:
        torch.save(state, unfinished)


def _load(file: Path, parameters: Parameters, optimiser, schedule) -> list[dict[str, np.ndarray]]:
    """Restore everything in place and return the path so far, without its last point, which is recorded again."""
    if not file.exists():
        return []
    state = torch.load(file, weights_only=True, map_location=parameters.score.device)
    with torch.no_grad():
        for mine, stored in zip(vars(parameters).values(), state["parameters"], strict=True):
            mine.copy_(stored)
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return [{name: array.cpu().numpy() for name, array in point.items()} for point in state["path"][:-1]]
