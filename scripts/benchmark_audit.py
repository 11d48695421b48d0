"""What share of training time the critic audit takes at its defaults, within one run.

    python scripts/benchmark_audit.py [--envs CartPole-v1 HalfCheetah-v5] [--steps 100000]

PPO with Stable-Baselines3's own settings, one environment, TensorBoard on. The time spent inside the callback (copying
steps, auditing, drawing, writing) is divided by that of all the rest of ``learn`` in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import tyro
from stable_baselines3 import PPO

import icrl_gym as icrl


@dataclass(frozen=True)
class Config:
    """Flags of this benchmark."""

    envs: tuple[str, ...] = ("CartPole-v1", "HalfCheetah-v5")
    """Environments to train in."""
    steps: int = 100_000
    """Steps of each training; one audit for every 10,000."""
    figures: bool = True
    """Whether the audit draws."""


class TimedAudit(icrl.CriticAuditCallback):
    """The audit with a clock around everything that Stable-Baselines3 calls."""

    seconds = 0.0
    copying = 0.0

    def on_training_start(self, locals_: dict, globals_: dict) -> None:
        """Timed."""
        self._timed(lambda: super(TimedAudit, self).on_training_start(locals_, globals_))

    def on_rollout_start(self) -> None:
        """Timed."""
        self._timed(super().on_rollout_start)

    def on_step(self) -> bool:
        """Timed, on a clock of its own."""
        start = time.perf_counter()
        going_on = super().on_step()
        self.copying += time.perf_counter() - start
        return going_on

    def on_rollout_end(self) -> None:
        """Timed."""
        self._timed(super().on_rollout_end)

    def _timed(self, work: Callable[[], None]) -> None:
        start = time.perf_counter()
        work()
        self.seconds += time.perf_counter() - start


def measure(env: str, config: Config) -> str:
    """One training, in a line."""
    with tempfile.TemporaryDirectory() as folder:
        model = PPO("MlpPolicy", env, seed=0, device="cpu", tensorboard_log=folder)
        callback = TimedAudit(figures=config.figures)
        start = time.perf_counter()
        model.learn(config.steps, callback=callback)
        rest = time.perf_counter() - start - callback.seconds - callback.copying
    audits, inside = len(callback.audits), callback.seconds + callback.copying
    return (
        f"{env}: {audits} audits in {config.steps:,} steps take {inside / rest:.1%} of the training's own {rest:.1f} s "
        f"({callback.copying / rest:.1%} for calls at each step, {callback.seconds / max(audits, 1):.2f} s an audit)"
    )


def main(config: Config) -> None:
    """Measure each environment."""
    for env in config.envs:
        print(measure(env, config), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
