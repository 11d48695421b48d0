"""Multi-head softmax on multi-task linear regression: do the heads divide the tasks?

Task t reads block t of the inputs, y_t = <w_t, x[block t]>, w_t ~ N(0, I). Head h attends with scores x_i^T A_h x and
adds b_ht times its read of y_t to prediction t. In the limit of infinite prompts only sum_h b_ht A_h matters and any
division is as good as any other; in finite prompts a long query is noisy, which favours a head per task (ours).

Shape legend: G seeds, P prompts, n keys, H heads, T tasks, d features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NUM_TASKS, BLOCK = 2, 2
DIMENSION = NUM_TASKS * BLOCK
NUM_KEYS, NUM_PROMPTS, STEP_SIZE, GAIN = 40, 64, 0.02, 0.1


def train(num_heads: int, num_steps: int, seeds: tuple[int, ...], divided: bool = False) -> dict[str, np.ndarray]:
    """Adam from small random parameters, all seeds in one batch.

    Args:
        num_heads: H.
        num_steps: number of Adam's steps.
        seeds: seeds of initialisation and prompts.
        divided: True holds head h to task h mod T: the division of tasks by construction.

    Returns:
        "A" (G, H, d, d), "b" (G, H, T), "risk" (G,) on 2,000 fresh prompts after training.
    """
    shapes = (num_heads, DIMENSION, DIMENSION), (num_heads, NUM_TASKS)
    starts = [np.random.default_rng([92, seed]) for seed in seeds]
    A, b = (
        torch.tensor(np.stack([GAIN * rng.standard_normal(shape) for rng in starts]), requires_grad=True)
        for shape in shapes
    )
    mask_A, mask_b = division_masks(num_heads) if divided else (torch.ones(()), torch.ones(()))
    optimiser = torch.optim.Adam([A, b], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps)
    rng = np.random.default_rng([93, num_heads, *seeds])
    for _ in range(num_steps):
        loss = risk(A * mask_A, b * mask_b, *_prompts(rng, len(seeds), NUM_PROMPTS)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        A, b = A * mask_A, b * mask_b
        rng = np.random.default_rng(94)
        final = torch.stack([risk(A, b, *_prompts(rng, len(seeds), 200)) for _ in range(10)]).mean(0)
    return {"A": A.detach().numpy(), "b": b.detach().numpy(), "risk": final.numpy()}


def risk(A: Tensor, b: Tensor, keys: Tensor, query: Tensor) -> Tensor:
    """Half the mean squared error summed over tasks, the expectation over all w_t taken exactly, (G,).

    Args:
        A: (G, H, d, d). b: (G, H, T). keys: (G, P, n, d). query: (G, P, d).
    """
    direction = torch.einsum("ghij,gpj->gphi", A, query)
    mean_GPHD = torch.softmax(direction @ keys.mT, dim=-1) @ keys
    read = torch.einsum("ght,gphtk->gptk", b, mean_GPHD.unflatten(-1, (NUM_TASKS, BLOCK)))
    return (read - query.unflatten(-1, (NUM_TASKS, BLOCK))).square().sum((-2, -1)).mean(1) / 2


def division_masks(num_heads: int) -> tuple[Tensor, Tensor]:
    """Head h may use block h mod T of A and serve task h mod T alone, (H, d, d) and (H, T)."""
    task_H = torch.arange(num_heads) % NUM_TASKS
    block_D = torch.arange(DIMENSION) // BLOCK
    inside_HD = (block_D == task_H[:, None]).double()
    return inside_HD[:, :, None] * inside_HD[:, None], torch.nn.functional.one_hot(task_H, NUM_TASKS).double()


def strength(A: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Strength with which head h serves task t, |b_ht| |A_h[block t, block t]|_F, (G, H, T)."""
    blocks = [A[..., BLOCK * t : BLOCK * (t + 1), BLOCK * t : BLOCK * (t + 1)] for t in range(NUM_TASKS)]
    return np.abs(b) * np.stack([np.linalg.norm(block, axis=(-2, -1)) for block in blocks], axis=-1)


def purity(strength_GHT: np.ndarray) -> np.ndarray:
    """Share of all strength that heads spend on their main task, (G,): 1 if every head has one task, 1/T if none."""
    return strength_GHT.max(axis=-1).sum(axis=-1) / strength_GHT.sum(axis=(-2, -1))


def _prompts(rng: np.random.Generator, num_seeds: int, num_prompts: int) -> tuple[Tensor, Tensor]:
    drawn = torch.as_tensor(rng.standard_normal((num_seeds, num_prompts, NUM_KEYS + 1, DIMENSION)))
    return drawn[:, :, 1:], drawn[:, :, 0]
