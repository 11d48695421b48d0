"""Suites as data: which policies in which environments, at which context lengths."""

from __future__ import annotations

from dataclasses import dataclass

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


def _trained(env: str, algorithm: str, steps: int, extra: str, seeds: tuple[int, ...] = (0, 1, 2)) -> tuple[Task, ...]:
    return tuple(Task(env, f"{env}/{algorithm}-seed{seed}/steps{steps}.zip", extra=extra) for seed in seeds)


_SMALL = (Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact"), Task("CartPole-v1", extra="classic"))
_EXACT = (
    Task("icrl_envs:icrl/BoyanChain-v0", truth="exact"),
    Task("icrl_envs:icrl/RandomMRP-v0", truth="exact"),
    Task("icrl_envs:icrl/Loop-v0", truth="exact"),
    Task("FrozenLake-v1", truth="exact", extra="classic"),
    Task("FrozenLake-v1", "FrozenLake-v1/ppo-seed0/steps30000.zip", truth="exact", extra="classic"),
    Task("CliffWalking-v1", truth="exact", extra="classic"),
    Task("Taxi-v4", truth="exact", extra="classic"),
)
_CLASSIC = (
    *_trained("CartPole-v1", "ppo", 30000, extra="classic"),
    *_trained("Acrobot-v1", "ppo", 30000, extra="classic"),
    *_trained("Pendulum-v1", "ppo", 30000, extra="classic"),
    Task("MountainCar-v0", "MountainCar-v0/dqn-seed0/steps120000.zip", extra="classic"),
    Task("MountainCarContinuous-v0", "MountainCarContinuous-v0/sac-seed0/steps20000.zip", extra="classic"),
)
_BOX2D = _trained("LunarLander-v3", "ppo", 50000, extra="box2d")
_MUJOCO = (
    Task("InvertedPendulum-v5", "InvertedPendulum-v5/ppo-seed0/steps20000.zip", extra="mujoco"),
    *_trained("Hopper-v5", "ppo", 40000, seeds=(0, 1), extra="mujoco"),
)
_GRID = (
    Task(
        "MiniGrid-Empty-5x5-v0",
        "MiniGrid-Empty-5x5-v0/ppo-seed0/steps10000.zip",
        wrapper="minigrid.wrappers:ImgObsWrapper",
        extra="minigrid",
    ),
)

SUITES: dict[str, Suite] = {
    "small": Suite(_SMALL, context_lengths=(64, 256), seeds=(0, 1)),
    "exact": Suite(_EXACT),
    "classic": Suite(_CLASSIC),
    "box2d": Suite(_BOX2D),
    "mujoco": Suite(_MUJOCO),
    "grid": Suite(_GRID),
}
