"""What many queries, rewards and policies cost, beside one fit or one evaluation in the same run.

    OMP_NUM_THREADS=1 python scripts/benchmark_many.py [--repeats 5] [--num-prompts 1000]

Processor time of one thread, medians, the two that are compared in turn. Printed: attribution of 64 queries at n =
2,048 over a fit, for the construction and for the generalist without and with walks; 100 reward functions over a fit
and a prediction; 1,000 queries over the fit at n = 512; fits one by one over `evaluate_many` at n = 256; and 24 layers
at n = 8,192, with attention that is held and attention that is computed whenever it is read, over plain passes
``torch.softmax(x @ x.T, -1) @ v``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

import icrl_gym as icrl
from icrl_gym.evaluator import blocks

NUM_FEATURES, NUM_QUERIES, NUM_REWARDS = 8, 64, 100
GAMMA = 0.99
Work = Callable[[], object]


@dataclass(frozen=True)
class Config:
    """Flags of this benchmark.

    Attributes:
        repeats: timed runs of each piece, after one that is not counted; the pieces take turns.
        num_prompts: trajectories of 256 transitions.
        walks: whether attribution through walks is timed too, which takes a minute.
    """

    repeats: int = 5
    num_prompts: int = 1000
    walks: bool = True


def trajectory(num_transitions: int, seed: int = 0, ended: float = 0.0) -> icrl.Trajectory:
    """One smooth walk in 8 dimensions; a share of its transitions terminates."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((num_transitions + 1, NUM_FEATURES)).cumsum(axis=0) / np.sqrt(num_transitions)
    terminated = rng.random(num_transitions) < ended
    rewards = np.sin(states[:-1]).sum(axis=1)
    never = np.zeros(num_transitions, dtype=bool)
    return icrl.Trajectory(states[:-1], np.zeros(num_transitions), rewards, states[1:], terminated, never)


def ratio(first: Work, second: Work, repeats: int) -> float:
    """Median processor time of ``first`` over that of ``second``, the two in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats + 1):
        for work, record in zip((first, second), times, strict=True):
            start = time.process_time()
            work()
            record.append(time.process_time() - start)
    return statistics.median(times[0][1:]) / statistics.median(times[1][1:])


def on_one_context(config: Config) -> None:
    """Attribution and many reward functions."""
    log = trajectory(2048)
    queries = log.observations[:: 2048 // NUM_QUERIES]
    rewards = np.random.default_rng(1).normal(size=(2048, NUM_REWARDS))
    for name, options in (("constructed", {}), ("generalist", {"imagination": False})):
        evaluator = icrl.InContextEvaluator.from_pretrained(name, **options)
        estimates = evaluator.fit(log, GAMMA).predict(queries)

        def fit(evaluator: icrl.InContextEvaluator = evaluator) -> object:
            return evaluator.fit(log, GAMMA)

        def one(evaluator: icrl.InContextEvaluator = evaluator) -> object:
            return evaluator.fit(log, GAMMA).predict(queries)

        def hundred(evaluator: icrl.InContextEvaluator = evaluator) -> object:
            return evaluator.fit(log, GAMMA).predict_rewards(rewards, queries)

        cost = ratio(estimates.attribution, fit, config.repeats)
        print(f"{name}: attribution of {NUM_QUERIES} queries, n = 2048: {cost:.2f} fits (at most 1)")
        cost = ratio(hundred, one, config.repeats)
        print(f"{name}: {NUM_REWARDS} reward functions, n = 2048: {cost:.2f} times one (at most 3)")


def through_walks() -> None:
    """Attribution where values are walked to."""
    log = icrl.collect("Pendulum-v1", _swing, num_transitions=2048, seed=0)
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, GAMMA)
    queries = log.observations[:: 2048 // NUM_QUERIES]
    estimates = evaluator.predict(queries)
    cost = ratio(estimates.attribution, lambda: evaluator.predict(queries), 1)
    print(f"generalist with walks, Pendulum-v1: attribution of {NUM_QUERIES} queries: {cost:.1f} predictions")


def _swing(observations: np.ndarray) -> np.ndarray:
    """Pushes against the angle and the velocity."""
    _, sine, velocity = observations.T
    torque = -2.0 * sine - velocity + 0.3 * np.sin(5.0 * velocity)
    return np.clip(torque, -2.0, 2.0)[:, None].astype(np.float32)


def many_queries(config: Config) -> None:
    """1,000 queries on 512 transitions."""
    log = trajectory(512)
    queries = np.random.default_rng(0).choice(log.observations, 1000)
    for name, options in (("constructed", {}), ("generalist", {"imagination": False})):
        evaluator = icrl.InContextEvaluator.from_pretrained(name, **options).fit(log, GAMMA)
        fitting = icrl.InContextEvaluator.from_pretrained(name, **options)
        cost = ratio(
            lambda evaluator=evaluator: evaluator.predict(queries),
            lambda fitting=fitting: fitting.fit(log, GAMMA),
            config.repeats,
        )
        print(f"{name}: 1000 queries, n = 512: {cost:.2f} fits (0.1 is wanted)")


def many_policies(config: Config) -> None:
    """Trajectories of 256 transitions."""
    logs = [trajectory(256, seed, ended=0.02) for seed in range(config.num_prompts)]
    for name, options in (("equilibrium", {}), ("8 layers", {"num_layers": 8})):

        def alone(options: dict = options) -> None:
            for log in logs:
                icrl.InContextEvaluator(**options).fit(log, GAMMA).predict(log.observations[:1])

        for errors in (True, False) if not options else (True,):
            speedup = ratio(
                alone,
                lambda errors=errors, options=options: icrl.evaluate_many(
                    logs, GAMMA, standard_errors=errors, **options
                ),
                max(1, config.repeats // 2),
            )
            without = "" if errors else ", without standard errors"
            print(f"{len(logs)} prompts of 256, {name}{without}: {speedup:.1f} times faster (5 is wanted)")


def many_layers(config: Config) -> None:
    """24 layers at n = 8,192, held and in blocks."""
    log = trajectory(8192)
    queries = log.observations[:: 8192 // NUM_QUERIES]
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        x, v = torch.randn(8192, NUM_FEATURES, dtype=dtype), torch.randn(8192, 1, dtype=dtype)
        evaluator = icrl.InContextEvaluator(num_layers=24, dtype=dtype)
        for way, largest in (("held", blocks.LARGEST_STORED), ("in blocks", 0)):
            blocks.LARGEST_STORED, before = largest, blocks.LARGEST_STORED
            cost = ratio(
                lambda evaluator=evaluator: evaluator.fit(log, GAMMA).predict(queries),
                lambda x=x, v=v: torch.softmax(x @ x.T, -1) @ v,
                max(1, config.repeats // 2),
            )
            blocks.LARGEST_STORED = before
            limit = " (at most 3)" if way == "held" else ""
            print(f"24 layers + {NUM_QUERIES} queries, n = 8192, {name}, {way}: {cost:.1f} plain passes{limit}")


def main(config: Config) -> None:
    """Time the pieces and print their ratios."""
    torch.set_num_threads(1)
    on_one_context(config)
    many_queries(config)
    many_policies(config)
    many_layers(config)
    if config.walks:
        through_walks()


if __name__ == "__main__":
    main(tyro.cli(Config))
