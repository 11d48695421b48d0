"""Pretraining without masks: every entry of V and A is free, all seeds in one batch, td loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from icrl_gym.reproduction import dense_network
from icrl_gym.reproduction.mrps import boyan_chains
from icrl_gym.reproduction.store import Store

NUM_FEATURES, NUM_TRANSITIONS, NUM_LAYERS, GAMMA = 4, 30, 10, 0.9
GAIN, STEP_SIZE, LARGEST_GRADIENT = 0.1, 1e-2, 1.0


def trained(quick: bool, seeds: Sequence[int], device: str, store: Store) -> dict[str, np.ndarray]:
    """Per seed (G,): "row_cosine", "block_cosine", "outside", "value_difference", "loss"; and "V", "A"."""
    num_steps, num_mrps = (12, 4) if quick else (800, 16)
    name = f"free-td-seeds-{'-'.join(map(str, seeds))}"
    return store.arrays(name, lambda: _train(num_steps, num_mrps, seeds, device))


def _train(num_steps: int, num_mrps: int, seeds: Sequence[int], device: str) -> dict[str, np.ndarray]:
    size = NUM_FEATURES + 3
    start = np.stack([np.random.default_rng([55, seed]).standard_normal((2, size, size)) for seed in seeds])
    start *= GAIN / np.sqrt(size)
    V, A = (torch.tensor(start[:, i, None], device=device, dtype=torch.float32).requires_grad_() for i in range(2))
    optimiser = torch.optim.Adam([V, A], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    recent = []
    for step in range(num_steps):
        losses = td_loss(np.random.default_rng([56, step, *seeds]), V, A, num_mrps)
        optimiser.zero_grad()
        losses.sum().backward()
        _clip(V, A)
        optimiser.step()
        schedule.step()
        recent = [*recent[-19:], losses.detach().cpu().numpy()]
    V, A = (array.detach().double().cpu()[:, 0] for array in (V, A))
    return {"V": V.numpy(), "A": A.numpy(), "loss": np.mean(recent, axis=0), **_judged(V, A)}


def td_loss(rng: np.random.Generator, V: Tensor, A: Tensor, num_mrps: int) -> Tensor:
    """The semi-gradient TD error of fresh chains, (G,)."""
    mrps = boyan_chains(rng, len(V) * num_mrps, num_features=NUM_FEATURES)
    states = mrps.walk(rng, NUM_TRANSITIONS + 1)

    def read(walk: np.ndarray) -> Tensor:
        Z = torch.as_tensor(dense_network.prompts(mrps, walk), dtype=V.dtype, device=V.device)
        Z = Z.reshape(len(V), num_mrps, *Z.shape[1:])
        return dense_network.read_out(Z, V, A, GAMMA, NUM_LAYERS)[..., -1]

    with torch.no_grad():
        following = read(states)
    reward = torch.as_tensor(mrps.rewards_of(states)[:, -1], dtype=V.dtype, device=V.device).reshape(len(V), num_mrps)
    return (reward + GAMMA * following - read(states[:, :-1])).square().mean(1)


def _clip(*arrays: Tensor) -> None:
    """Bound the gradient of each seed on its own."""
    for array in arrays:
        assert array.grad is not None
        norm = array.grad.flatten(1).norm(dim=1)
        array.grad *= (LARGEST_GRADIENT / norm.clamp(min=LARGEST_GRADIENT))[:, None, None, None]


def _judged(V: Tensor, A: Tensor) -> dict[str, np.ndarray]:
    """Similarities per seed. V's target row is never read under the temporal shift module and is left out."""
    direction = torch.tensor([1.0, 1.0, -1.0], dtype=V.dtype) / 3**0.5
    row, block = V[:, -1, -3:], A[:, :-3, :-3]
    alpha, scale = row @ direction / 3**0.5, block.diagonal(dim1=1, dim2=2).mean(-1)
    used = torch.cat([V[:, :-2], V[:, -1:]], dim=1)
    total = used.square().sum((1, 2)), A.square().sum((1, 2))
    inside = row.square().sum(-1), block.square().sum((1, 2))
    found = {
        "row_cosine": row @ direction / row.norm(dim=-1),
        "block_cosine": scale * NUM_FEATURES**0.5 / block.norm(dim=(1, 2)),
        "outside": 1 - (inside[0] / total[0] + inside[1] / total[1]) / 2,
        "value_difference": _value_difference(V, A, alpha, scale),
    }
    return {name: array.numpy() for name, array in found.items()}


def _value_difference(V: Tensor, A: Tensor, alpha: Tensor, scale: Tensor) -> Tensor:
    """Mean squared difference at the query to the nearest softmax TD, over the latter's variance."""
    rng = np.random.default_rng([57, 10**6])
    mrps = boyan_chains(rng, 200, num_features=NUM_FEATURES)
    Z = torch.as_tensor(dense_network.prompts(mrps, mrps.walk(rng, NUM_TRANSITIONS)))
    nearest_V, nearest_A = torch.zeros_like(V), torch.zeros_like(A)
    nearest_V[:, -1, -3:] = alpha[:, None] * torch.tensor([1.0, 1.0, -1.0], dtype=V.dtype)
    nearest_A[:, :-3, :-3] = scale[:, None, None] * torch.eye(NUM_FEATURES, dtype=V.dtype)
    mine, nearest = (
        dense_network.read_out(Z, v[:, None], a[:, None], GAMMA, NUM_LAYERS)[..., -1]
        for v, a in ((V, A), (nearest_V, nearest_A))
    )
    return (mine - nearest).square().mean(1) / nearest.var(dim=1)
