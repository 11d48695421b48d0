"""Pretraining the linear transformer of [WBDZ24] by multi-task TD, several seeds at once.

Because every column obeys the same linear map, layers act on moments alone: with G = Z M Z^T / n,

    Z <- (I + P G Q) Z,     G <- (I + P G Q) G (I + P G Q)^T,

so a layer costs products of 9 x 9 matrices, whatever n is.

Shape legend: B seeds (each its own parameters and chains), K prompts, R = 2 D + 1 rows, n transitions, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from icrl_gym.reproduction.mrps import MRPBatch, boyan_chains

GAMMA, NUM_STATES, NUM_FEATURES, NUM_TRANSITIONS, NUM_LAYERS = 0.9, 10, 4, 30, 3
NUM_ROWS = 2 * NUM_FEATURES + 1
BATCHES, WINDOWS = 5, 64  # per chain
GAIN, LEARNING_RATE, WEIGHT_DECAY = 0.1, 1e-3, 1e-6
CHUNK = 50  # chains drawn at once


def read_out_map(moment: Tensor, value: Tensor, score: Tensor, num_layers: int) -> Tensor:
    """The product of all layers, (..., R, R): a query column z_0 becomes ``map @ z_0``.

    Args:
        moment: G of the untouched prompt, (..., R, R).
        value, score: P and Q, broadcast against ``moment``.
        num_layers: L.
    """
    total = layer = _layer(moment, value, score)
    for _ in range(num_layers - 1):
        moment = layer @ moment @ layer.mT
        layer = _layer(moment, value, score)
        total = layer @ total
    return total


def _layer(moment: Tensor, value: Tensor, score: Tensor) -> Tensor:
    return torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device) + value @ moment @ score


def implicit_weight(moment: Tensor, value: Tensor, score: Tensor, num_layers: int) -> Tensor:
    """w with prediction <w, phi> for every query feature phi, (..., D): the read-out is linear in the query."""
    return -read_out_map(moment, value, score, num_layers)[..., -1, :NUM_FEATURES]


def columns(features: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """[phi; gamma phi'; R] of every transition of walks, (..., T, R), from (..., T + 1, D) and (..., T)."""
    return np.concatenate([features[..., :-1, :], GAMMA * features[..., 1:, :], rewards[..., None]], axis=-1)


def window_moments(column: np.ndarray, num_windows: int, num_transitions: int = NUM_TRANSITIONS) -> np.ndarray:
    """G of ``num_windows`` successive windows of a walk, (..., K, R, R), by differences of running sums."""
    outer = column[..., :, None] * column[..., None, :]
    running = np.concatenate([np.zeros_like(outer[..., :1, :, :]), np.cumsum(outer, axis=-3)], axis=-3)
    ends = running[..., num_transitions : num_transitions + num_windows, :, :]
    return (ends - running[..., :num_windows, :, :]) / num_transitions


def chain_data(rng: np.random.Generator, num_chains: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments (chains, K + 1, R, R), query features (chains, K + 1, D) and rewards (chains, K), K = 5 * 64 windows."""
    num_windows = BATCHES * WINDOWS + 1
    mrps = boyan_chains(rng, num_chains, NUM_STATES, NUM_FEATURES)
    states = mrps.walk(rng, NUM_TRANSITIONS + num_windows)
    features, rewards = mrps.features_of(states), mrps.rewards_of(states)
    moments = window_moments(columns(features, rewards), num_windows)
    first = NUM_TRANSITIONS
    queries = features[:, first : first + num_windows]
    return moments, queries, rewards[:, first : first + num_windows - 1]


def train(seeds: Sequence[int], num_chains: int, every: int, device: str) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (chains seen, P (B, R, R), Q (B, R, R)), first at 0 and then after every ``every`` chains.

    Semi-gradient TD: the loss of a window is (R + gamma v(next window) - v(window))^2 with the target held fixed.
    """
    generators = [np.random.default_rng([9, seed]) for seed in seeds]
    bound = GAIN * np.sqrt(6.0 / (2 * NUM_ROWS))
    start = [rng.uniform(-bound, bound, (2, NUM_ROWS, NUM_ROWS)) for rng in generators]
    value, score = (
        torch.tensor(np.stack([one[i] for one in start]), dtype=torch.float32, device=device, requires_grad=True)
        for i in range(2)
    )
    optimiser = torch.optim.Adam([value, score], lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    yield 0, value.detach().clone(), score.detach().clone()
    for chain in range(num_chains):
        if chain % CHUNK == 0:
            parts = zip(*(chain_data(rng, CHUNK) for rng in generators), strict=True)
            chunk = [torch.tensor(np.stack(part), dtype=torch.float32, device=device) for part in parts]
        moments, queries, rewards = (part[:, chain % CHUNK] for part in chunk)
        for batch in range(BATCHES):
            here = slice(batch * WINDOWS, (batch + 1) * WINDOWS)
            with_next = slice(here.start, here.stop + 1)
            weight = implicit_weight(moments[:, with_next], value[:, None], score[:, None], NUM_LAYERS)
            predicted = (weight * queries[:, with_next]).sum(dim=-1)
            target = rewards[:, here] + GAMMA * predicted[:, 1:].detach()
            optimiser.zero_grad()
            (target - predicted[:, :-1]).square().mean(dim=1).sum().backward()
            optimiser.step()
        if (chain + 1) % every == 0:
            yield chain + 1, value.detach().clone(), score.detach().clone()


def validation(seed: int, num_mrps: int, num_transitions: int) -> tuple[MRPBatch, np.ndarray, np.ndarray]:
    """New chains with one context each: the chains, moments (K, R, R) and columns (K, n, R)."""
    rng = np.random.default_rng([10, seed])
    mrps = boyan_chains(rng, num_mrps, NUM_STATES, NUM_FEATURES)
    states = mrps.walk(rng, num_transitions)
    column = columns(mrps.features_of(states), mrps.rewards_of(states))
    return mrps, window_moments(column, 1, num_transitions)[:, 0], column


def construction(step_size: float) -> tuple[Tensor, Tensor]:
    """The paper's P and Q for TD(0) with C = ``step_size`` I, each (R, R)."""
    D = NUM_FEATURES
    value, score = torch.zeros(NUM_ROWS, NUM_ROWS), torch.zeros(NUM_ROWS, NUM_ROWS)
    value[-1, -1] = 1.0
    score[:D, :D] = -step_size * torch.eye(D)
    score[:D, D : 2 * D] = step_size * torch.eye(D)
    return value.double(), score.double()
