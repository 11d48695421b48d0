"""Suites as data: which policies in which environments, at which context lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from icrl_gym.benchmark.cells import Task


@dataclass(frozen=True)
class Suite:
    """A named set of tasks.

    Attributes:
        tasks: policies in environments.
        context_lengths: transitions per context.
        seeds: of the contexts.
    """

    tasks: tuple[Task, ...]
    context_lengths: tuple[int, ...] = (256, 512, 2048)
    seeds: tuple[int, ...] = (0, 1, 2)


def _trained(
    env: str, algorithm: str, steps: int, extra: str, seeds: tuple[int, ...] = (0, 1, 2), **options: Any
) -> tuple[Task, ...]:
    return tuple(Task(env, f"{env}/{algorithm}-seed{seed}/steps{steps}.zip", extra=extra, **options) for seed in seeds)


_SMALL = (Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact"), Task("CartPole-v1", extra="classic"))
_EXACT = (
    Task("icrl_envs:icrl/BoyanChain-v0", truth="exact"),
    Task("icrl_envs:icrl/RandomMRP-v0", truth="exact"),
    Task("icrl_envs:icrl/Loop-v0", truth="exact"),
    Task("FrozenLake-v1", truth="exact", extra="classic"),
    *_trained("FrozenLake-v1", "ppo", 30000, extra="classic", truth="exact"),
    Task("CliffWalking-v1", truth="exact", extra="classic"),
    *_trained("CliffWalking-v1", "dqn", 10000, extra="classic", truth="exact"),
    Task("Taxi-v4", truth="exact", extra="classic"),
    *_trained("Taxi-v4", "dqn", 50000, extra="classic", truth="exact"),
)
_CLASSIC = (
    *_trained("CartPole-v1", "ppo", 30000, extra="classic"),
    *_trained("Acrobot-v1", "ppo", 30000, extra="classic"),
    *_trained("Pendulum-v1", "ppo", 30000, extra="classic"),
    *_trained("MountainCar-v0", "dqn", 120000, extra="classic"),
    *_trained("MountainCarContinuous-v0", "sac", 20000, extra="classic"),
)
_BOX2D = (
    *_trained("LunarLander-v3", "ppo", 50000, extra="box2d"),
    *_trained("BipedalWalker-v3", "ppo", 50000, extra="box2d"),
)
_MUJOCO = (
    *_trained("InvertedPendulum-v5", "ppo", 20000, extra="mujoco"),
    *_trained("Hopper-v5", "ppo", 40000, extra="mujoco"),
    *_trained("HalfCheetah-v5", "ppo", 40000, seeds=(0,), extra="mujoco"),
    *_trained("Walker2d-v5", "ppo", 40000, seeds=(0,), extra="mujoco"),
)
_MINIGRID: dict[str, Any] = {"wrapper": "minigrid.wrappers:ImgObsWrapper", "extra": "minigrid"}
_GRID = _trained("MiniGrid-Empty-5x5-v0", "ppo", 10000, **_MINIGRID)
_PIXELS = (
    Task(
        "ALE/Pong-v5",
        "ALE-Pong-v5/ppo-seed0/steps8000.zip",
        gamma=0.95,
        wrapper="icrl_envs.small_frames:SmallFrames",
        env_kwargs=(("obs_type", "grayscale"),),
        extra="atari",
        features="policy",
    ),
)
_OFF_POLICY = (
    *_trained("FrozenLake-v1", "ppo", 30000, extra="classic", truth="exact", behaviour="random"),
    *_trained("CliffWalking-v1", "dqn", 10000, extra="classic", truth="exact", behaviour="epsilon:0.3"),
    *_trained("CartPole-v1", "ppo", 30000, extra="classic", behaviour="epsilon:0.3"),
    *_trained("Acrobot-v1", "ppo", 30000, extra="classic", behaviour="epsilon:0.3"),
    *_trained("MiniGrid-Empty-5x5-v0", "ppo", 10000, behaviour="epsilon:0.3", **_MINIGRID),
)

SUITES: dict[str, Suite] = {
    "small": Suite(_SMALL, context_lengths=(64, 256), seeds=(0, 1)),
    "exact": Suite(_EXACT),
    "classic": Suite(_CLASSIC),
    "box2d": Suite(_BOX2D),
    "mujoco": Suite(_MUJOCO),
    "grid": Suite(_GRID),
    "pixels": Suite(_PIXELS, context_lengths=(256, 512), seeds=(0,)),
    "off_policy": Suite(_OFF_POLICY),
}


def snapshots(names: Iterable[str]) -> tuple[str, ...]:
    """Paths of all trained policies that these suites need, targets and behaviours.

    Raises:
        ValueError: no such suite.
    """
    unknown = sorted(set(names) - set(SUITES))
    if unknown:
        raise ValueError(f"suites must be among {sorted(SUITES)}, got {unknown}")
    tasks = [task for name in names for task in SUITES[name].tasks]
    paths = [path for task in tasks for path in (task.policy, task.behaviour) if path and path.endswith(".zip")]
    return tuple(dict.fromkeys(paths))
