"""Measure the tasks of each family that are simulated per second of processor time.

    python scripts/benchmark_prior.py [--num-tasks 64] [--num-transitions 256]

Printed per family: tasks per second of one core, true values and redrawn tasks included, the median over the
repetitions with the range, and at the end the rate of the mixture that the weights of the table give.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
import tyro

from icrl_gym.pretraining.prior import FAMILIES, sample_tasks


@dataclass(frozen=True)
class Config:
    """Sizes of the measurement."""

    families: tuple[str, ...] = tuple(FAMILIES)
    """Families to time."""
    num_tasks: int = 64
    """Tasks per batch."""
    num_transitions: int = 256
    """Length of the contexts."""
    num_queries: int = 32
    """Queries per task."""
    num_rollouts: int = 16
    """Rollouts per query where the truth is not exact."""
    num_repetitions: int = 3
    """Batches per family, each of its own seed."""
    num_threads: int = 1
    """Threads of torch; processor time counts all of them."""


def seconds_per_task(config: Config, family: str, seed: int) -> float:
    began = time.process_time()
    sample_tasks(
        family,
        num_tasks=config.num_tasks,
        num_transitions=config.num_transitions,
        num_queries=config.num_queries,
        num_rollouts=config.num_rollouts,
        seed=seed,
    )
    return (time.process_time() - began) / config.num_tasks


def main(config: Config) -> None:
    torch.set_num_threads(config.num_threads)
    weighted, total = 0.0, 0.0
    for family in config.families:
        seconds = sorted(seconds_per_task(config, family, seed) for seed in range(config.num_repetitions))
        weighted += FAMILIES[family].weight * statistics.mean(seconds)
        total += FAMILIES[family].weight
        low, high = 1 / seconds[-1], 1 / seconds[0]
        print(f"{family:15} {1 / statistics.median(seconds):7.1f} tasks/s ({low:.1f} to {high:.1f})", flush=True)
    print(f"{'mixture':15} {total / weighted:7.1f} tasks/s")


if __name__ == "__main__":
    main(tyro.cli(Config))
