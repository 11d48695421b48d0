"""How much live in-context values slow down the loop of a policy of Stable-Baselines3 in CartPole-v1.

python scripts/benchmark_live.py
python scripts/benchmark_live.py --window 4096 --steps 8000 --repetitions 3

With a window above 1,024 transitions the default evaluator goes on from window to window; it is then held against one
that is fitted anew at each read.
The plain loop, the recorded one and the evaluated ones alternate within one run, since a machine's speed drifts; a row
is the median over repetitions of its time over the plain loop's time right before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import gymnasium
import torch
import tyro

import icrl_gym as icrl
from icrl_gym.evaluator.heads import MOST_SOURCES
from icrl_gym.live import INFO_KEY


@dataclass(frozen=True)
class Config:
    """Sizes of the measurement."""

    steps: int = 4_000
    """Steps of each loop."""
    repetitions: int = 5
    """Times that each loop is run."""
    window: int = 512
    """Transitions in the window."""
    every: int = 100
    """Steps between windows."""
    threads: int = 1
    """Threads of torch."""


class FittedAnew(icrl.InContextEvaluator):
    """The default evaluator of live values, fitted anew on each window."""

    goes_on = False


class Points:
    """A writer that keeps nothing."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None:
        """Nothing."""


def never(step: int, info: dict[str, Any]) -> None:
    """Do not read the value."""


def loop(env: gymnasium.Env, model: Any, steps: int, read: Callable[[int, dict[str, Any]], None]) -> float:
    """Seconds that the policy's own loop takes."""
    observation, _ = env.reset(seed=0)
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        action, _ = model.predict(observation)
        observation, _, terminated, truncated, info = env.step(action)
        read(step, info)
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    return time.perf_counter() - begin


def cases(config: Config) -> dict[str, tuple[Callable[[gymnasium.Env], gymnasium.Env], Callable[..., None]]]:
    """Name -> the wrapper, and what is done with each info."""

    def live(evaluator: Any = None, every: int = config.every, writer: Any = None) -> Any:
        return lambda env: icrl.EvaluateInContext(env, evaluator, window=config.window, every=every, writer=writer)

    def at_multiples(of: int) -> Callable[[int, dict[str, Any]], None]:
        return lambda step, info: info[INFO_KEY] if step % of == 0 else None

    if config.window > MOST_SOURCES:
        anew = FittedAnew.from_pretrained("generalist", imagination=False)
        return {
            f"live, read at every {config.every}th step, fitted anew": (live(anew), at_multiples(config.every)),
            f"live, read at every {config.every}th step": (live(), at_multiples(config.every)),
        }
    rare = config.steps // 2
    return {
        "recorded only (RecordTrajectory)": (icrl.RecordTrajectory, never),
        "live, nobody reads": (live(), never),
        f"live, read at every {rare:,}th step": (live(every=rare), at_multiples(rare)),
        f"live, read at every {config.every}th step": (live(), at_multiples(config.every)),
        f"live, read at every {config.every}th step, constructed": (live("constructed"), at_multiples(config.every)),
        "live, read at every step": (live(), lambda _, info: info.get(INFO_KEY)),
        "live, with a writer": (live(writer=Points()), never),
    }


def main(config: Config) -> None:
    """Measure and print a table."""
    torch.set_num_threads(config.threads)
    model = icrl.load_demo_policy()
    ratios: dict[str, list[float]] = {name: [] for name in cases(config)}
    plain = []
    for _ in range(config.repetitions):
        for name, (wrap, read) in cases(config).items():
            plain.append(loop(gymnasium.make("CartPole-v1"), model, config.steps, never))
            ratios[name].append(loop(wrap(gymnasium.make("CartPole-v1")), model, config.steps, read) / plain[-1])
    speed = config.steps / median(plain)
    print(f"plain loop: {speed:,.0f} steps a second; window {config.window}, every {config.every}")
    for name, found in ratios.items():
        spread = f"{min(found):.2f} to {max(found):.2f}"
        print(f"{name:<46} time x {median(found):5.2f} ({spread}), {speed / median(found):,.0f} steps a second")
        if config.window > MOST_SOURCES:
            num_reads = config.steps // config.every
            print(f"{'':<46} {(median(found) - 1) * config.steps / speed / num_reads:.3f} seconds a read")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
