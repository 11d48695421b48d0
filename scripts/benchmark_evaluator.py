"""How much one in-context evaluation costs, in plain softmax-attention passes timed in the same run.

    python scripts/benchmark_evaluator.py [--repeats 5]

A plain pass is ``torch.softmax(x @ x.T, -1) @ v`` with 8 features and one value, at the context's own length. Printed:
the finite-depth evaluator with cached kernel (fit and 64 queries, 24 layers) at n = 8,192, the equilibrium at n =
2,048, the generalist there per head, and the printed matrix form run once per query at n = 512, each as a ratio. Ratios
of medians; machines are noisy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro

import icrl_gym as icrl

NUM_FEATURES = 8
NUM_QUERIES = 64
NUM_LAYERS = 24


@dataclass(frozen=True)
class Config:
    """Flags of this benchmark.

    Attributes:
        repeats: timed runs of each piece, after one that is not counted; the pieces take turns.
    """

    repeats: int = 5


def trajectory(num_transitions: int) -> icrl.Trajectory:
    """One smooth walk in 8 dimensions that never ends."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((num_transitions + 1, NUM_FEATURES)).cumsum(axis=0) / np.sqrt(num_transitions)
    flags = np.zeros(num_transitions, dtype=bool)
    rewards = np.sin(states[:-1]).sum(axis=1)
    return icrl.Trajectory(states[:-1], np.zeros(num_transitions), rewards, states[1:], flags, flags)


def plain_pass(num_transitions: int, dtype: torch.dtype) -> Callable[[], object]:
    """The yardstick."""
    x = torch.randn(num_transitions, NUM_FEATURES, dtype=dtype)
    v = torch.randn(num_transitions, 1, dtype=dtype)
    return lambda: torch.softmax(x @ x.T, -1) @ v


def in_context(num_transitions: int, name: str = "constructed", **options: object) -> Callable[[], object]:
    """Fit and 64 predictions."""
    log = trajectory(num_transitions)
    queries = log.observations[:: num_transitions // NUM_QUERIES][:NUM_QUERIES]
    return lambda: icrl.InContextEvaluator.from_pretrained(name, **options).fit(log, 0.99).predict(queries)


def num_heads(num_transitions: int) -> int:
    """Heads that the generalist opens on this log."""
    log = trajectory(num_transitions)
    estimates = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.99).predict(log.observations[:1])
    return len(estimates.diagnostics.members)


def printed_form_per_query(num_transitions: int) -> Callable[[], object]:
    """The whole matrix Z, once per query (the query is the last column)."""
    log = trajectory(num_transitions)
    features = np.concatenate([log.observations, log.next_observations[-1:]])

    def run() -> None:
        for query in log.observations[:NUM_QUERIES]:
            icrl.paper_forward(np.concatenate([features[:-1], query[None]]), log.rewards, 0.99, NUM_LAYERS)

    return run


def ratio(first: Callable[[], object], second: Callable[[], object], repeats: int) -> float:
    """Median time of ``first`` over median time of ``second``, the two in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for function, record in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            record.append(time.perf_counter() - start)
    return statistics.median(times[0][1:]) / statistics.median(times[1][1:])


def main(config: Config) -> None:
    """Time the pieces and print their ratios."""
    layers: dict[str, Any] = {"num_layers": NUM_LAYERS}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        cost = ratio(in_context(8192, dtype=dtype, **layers), plain_pass(8192, dtype), config.repeats)
        print(f"{NUM_LAYERS} layers + {NUM_QUERIES} queries, n = 8192, {name}: {cost:.2f} plain passes (at most 3)")
    cost = ratio(in_context(2048), plain_pass(2048, torch.float32), config.repeats)
    print(f"equilibrium + {NUM_QUERIES} queries, n = 2048, float64: {cost:.2f} plain float32 passes")
    heads = num_heads(2048)
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        cost = ratio(in_context(2048, "generalist", dtype=dtype), plain_pass(2048, dtype), config.repeats) / heads
        print(
            f"generalist, {heads} heads + {NUM_QUERIES} queries, n = 2048, {name}: {cost:.1f} plain passes a head "
            "(5 are wanted)"
        )
    speedup = ratio(printed_form_per_query(512), in_context(512, **layers), max(1, config.repeats // 2))
    print(f"printed form once per query / evaluator, n = 512, {NUM_QUERIES} queries: {speedup:.0f} times (at least 50)")


if __name__ == "__main__":
    main(tyro.cli(Config))
