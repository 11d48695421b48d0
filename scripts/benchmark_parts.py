"""What a log in parts costs: a synthetic log of a million transitions on disk, evaluated part by part.

    python scripts/benchmark_parts.py [--quick] [--workers 2]

The log is a linear process with noise, in stretches of 1,000 steps that are all cut, so that its values are known. It
is written to a temporary folder, fitted with `InContextEvaluator.fit_parts`, and asked for 64 values. Printed: seconds
of every phase, peak memory, the error against the known values beside that of the held context alone, and the constants
of docs/large_logs.md: time per transition and system (a head's sums), also in units of one product of a block's
attention with itself, timed between the parts; bytes of the systems; and what they make of larger logs.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import tyro

import icrl_gym as icrl
from icrl_gym.evaluator.landmarks import BLOCK
from icrl_gym.evaluator.parts import SUMMING, PartsSum

GAMMA, DECAY, NOISE = 0.99, 0.97, 0.25
STRETCH = 1000  # transitions
NUM_QUERIES = 64
QUICK = 65_536 // STRETCH * STRETCH
PLANNED = 10**9  # transitions
POLICIES = 10**5


@dataclass(frozen=True)
class Config:
    """Flags of this benchmark.

    Attributes:
        transitions: of the log, a multiple of 1,000 times the parts.
        parts: files that it is cut into.
        features: numbers of an observation.
        held: transitions that are held in memory.
        workers: processes; 0 sums in this one.
        quick: a log of 64,000 transitions in 4 parts, of which 8,192 are held.
    """

    transitions: int = 1_000_000
    parts: int = 20
    features: int = 17
    held: int = 32_768
    workers: int = 0
    quick: bool = False


@dataclass
class Clock:
    """Seconds at which the phases began and ended, as a progress callback, and the yardstick between the parts."""

    began: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    products: list[float] = field(default_factory=list)

    def __call__(self, name: str, done: int, total: int) -> None:
        self.ended[name] = time.perf_counter() - sum(self.products)
        if name == SUMMING:
            self.products += product_seconds()
        self.began.setdefault(name, time.perf_counter() - sum(self.products))
        print(f"\r{name}: {done} of {total}   ", end="" if done < total else "\n", file=sys.stderr, flush=True)

    def seconds(self, name: str) -> float:
        """How long a phase took."""
        return self.ended[name] - self.began[name]


@dataclass(frozen=True)
class Process:
    """x' = DECAY x R + NOISE e with a rotation R, and reward w x + |x|^2 / (10 D) + noise: values are known.

    Attributes:
        rotation_DD: R.
        weights_D: w.
    """

    rotation_DD: np.ndarray
    weights_D: np.ndarray

    @classmethod
    def drawn(cls, num_features: int) -> Process:
        rng = np.random.default_rng(0)
        rotation_DD = np.linalg.qr(np.eye(num_features) + 0.05 * rng.standard_normal((num_features, num_features)))[0]
        return cls(rotation_DD * np.sign(np.diag(rotation_DD)), rng.standard_normal(num_features))

    def part(self, num_stretches: int, seed: int) -> icrl.Trajectory:
        """Stretches that start anywhere and are cut."""
        rng, num_features = np.random.default_rng(seed), len(self.weights_D)
        states = np.empty((num_stretches, STRETCH + 1, num_features))
        states[:, 0] = rng.standard_normal((num_stretches, num_features))
        for step in range(STRETCH):
            noise = NOISE * rng.standard_normal((num_stretches, num_features))
            states[:, step + 1] = DECAY * states[:, step] @ self.rotation_DD + noise
        sources, following = states[:, :-1].reshape(-1, num_features), states[:, 1:].reshape(-1, num_features)
        rewards = self.rewards(sources) + 0.1 * rng.standard_normal(len(sources))
        cut = np.arange(len(sources)) % STRETCH == STRETCH - 1
        actions = np.zeros(len(sources))
        return icrl.Trajectory(sources, actions, rewards, following, np.zeros_like(cut), cut, policy="none")

    def rewards(self, states: np.ndarray) -> np.ndarray:
        """Mean rewards (B,)."""
        return states @ self.weights_D + np.square(states).sum(axis=1) / (10 * len(self.weights_D))

    def values(self, states: np.ndarray) -> np.ndarray:
        """Values (B,) with discount GAMMA."""
        num_features = len(self.weights_D)
        linear_D = np.linalg.solve(np.eye(num_features) - GAMMA * DECAY * self.rotation_DD, self.weights_D)
        share = 1 / (1 - GAMMA * DECAY**2)
        noise = GAMMA / (1 - GAMMA) * NOISE**2 * num_features
        return states @ linear_D + share * (np.square(states).sum(axis=1) + noise) / (10 * num_features)


def written(process: Process, config: Config, folder: Path) -> list[Path]:
    """The files of the log."""
    count = config.transitions // config.parts // STRETCH
    return [process.part(count, 1 + n).save(folder / f"part-{n:03}.npz") for n in range(config.parts)]


def product_seconds() -> list[float]:
    """The yardstick: a product of a block's attention over 512 keys with itself, three times."""
    attention = torch.rand(BLOCK, 512, dtype=torch.float64)
    total, seconds = torch.zeros(512, 512, dtype=torch.float64), []
    for _ in range(3):
        start = time.perf_counter()
        total.addmm_(attention.mT, attention)
        seconds.append(time.perf_counter() - start)
    return seconds


def lines(config: Config) -> Iterator[str]:
    """Measure, and say what was found."""
    process, clock = Process.drawn(config.features), Clock()
    queries = process.part(NUM_QUERIES, 0).observations[::STRETCH]
    truth = process.values(queries)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        paths = written(process, config, Path(folder))
        yield f"written: {config.transitions:,} transitions in {len(paths)} parts, {time.perf_counter() - start:.0f} s"
        workers = icrl.open_workers(config.workers) if config.workers else nullcontext()
        start = time.perf_counter()
        with workers as opened:
            evaluator = icrl.InContextEvaluator.from_pretrained()
            evaluator.fit_parts(paths, GAMMA, held=config.held, workers=opened, progress=clock)
        fitted = time.perf_counter()
        values = evaluator.predict(queries).values
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for name in clock.began:
        yield f"  {name}: {clock.seconds(name):.1f} s"
    yield f"fit {fitted - start:.0f} s, with {NUM_QUERIES} values {seconds:.0f} s; peak of this process {peak:.2f} GB"
    start = time.perf_counter()
    held = icrl.InContextEvaluator.from_pretrained().fit(evaluator.trajectory_, GAMMA).predict(queries).values
    alone = time.perf_counter() - start
    errors = [np.sqrt(np.mean(np.square(found - truth))) / truth.std() for found in (values, held)]
    yield f"RMSE / std: {errors[0]:.3f}, of the {len(evaluator.trajectory_):,} held transitions alone {errors[1]:.3f}"
    yield from constants(evaluator, clock.seconds(SUMMING), config, statistics.mean(clock.products))
    yield f"{POLICIES:.0e} policies, {len(evaluator.trajectory_):,} transitions each, by fit: {alone:.1f} s each, " + (
        f"{alone * POLICIES / 3600:,.0f} core hours"
    )


def constants(evaluator: icrl.InContextEvaluator, summing: float, config: Config, product: float) -> Iterator[str]:
    """What the plan in docs/large_logs.md is made from."""
    total = evaluator._stream
    assert isinstance(total, PartsSum)
    of_one = [sum(part.nbytes for part in vars(system).values()) for system in total.systems]
    cores = max(1, config.workers)
    each = summing * cores / config.transitions / len(of_one)
    yield f"{len(of_one)} systems; one system {max(of_one) / 1e6:.2f} MB, all-reduce of all {sum(of_one) / 1e6:.1f} MB"
    yield f"seconds per transition and system on a core: {each:.2e}, {each * BLOCK / product:.1f} products of a block"
    hours = each * len(of_one) * PLANNED / 3600
    yield f"{PLANNED:.0e} transitions: {hours:.0f} core hours, {hours * 60 / 1000:.0f} minutes on 1,000 cores"


def main(config: Config) -> None:
    if config.quick:
        config = replace(config, transitions=QUICK // 4000 * 4000, parts=4, held=8192)
    if config.transitions % (config.parts * STRETCH):
        raise SystemExit(f"transitions must be a multiple of {STRETCH} times the parts, got {config.transitions}")
    for line in lines(config):
        print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
