"""Suites as data: which policies in which environments, at which context lengths."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from icrl_gym.benchmark.cells import Task


@dataclass(frozen=True)
class Suite:
    """A named set of tasks.

    Attributes:
        tasks: policies in environments.
        context_lengths: transitions per context.
        seeds: seeds of the contexts; with five of them an interval over the contexts means something.
    """

    tasks: tuple[Task, ...]
    context_lengths: tuple[int, ...] = (512, 2048)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def _stages(env: str, algorithm: str, *steps: int, extra: str, **options: Any) -> tuple[Task, ...]:
    """The policy of one training run after so many steps each."""
    folder = env.rpartition(":")[2].replace("/", "-")
    return tuple(Task(env, f"{folder}/{algorithm}-seed0/steps{n}.zip", extra=extra, **options) for n in steps)


def _each_other(env: str, algorithm: str, first: int, second: int, *, extra: str) -> tuple[Task, ...]:
    """Two stages of one training run, each from contexts in which the other acted."""
    early, late = _stages(env, algorithm, first, second, extra=extra)
    return replace(early, behaviour=late.policy), replace(late, behaviour=early.policy)


_SMALL = (Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact"), Task("CartPole-v1", extra="classic"))
_EXACT = (
    Task("icrl_envs:icrl/BoyanChain-v0", truth="exact"),
    Task("icrl_envs:icrl/RandomMRP-v0", truth="exact"),
    Task("icrl_envs:icrl/Loop-v0", truth="exact"),
    Task("FrozenLake-v1", truth="exact", extra="classic"),
    *_stages("FrozenLake-v1", "ppo", 10000, 30000, extra="classic", truth="exact"),
    Task("CliffWalking-v1", truth="exact", extra="classic"),
    *_stages("CliffWalking-v1", "dqn", 5000, 10000, extra="classic", truth="exact"),
    Task("Taxi-v4", truth="exact", extra="classic"),
    *_stages("Taxi-v4", "dqn", 25000, 50000, extra="classic", truth="exact"),
)
_CLASSIC = (
    *_stages("CartPole-v1", "ppo", 10000, 20000, 30000, extra="classic"),
    *_stages("Acrobot-v1", "ppo", 15000, 30000, 60000, extra="classic"),
    *_stages("Pendulum-v1", "ppo", 10000, 20000, 30000, extra="classic"),
    *_stages("MountainCar-v0", "dqn", 80000, 100000, 120000, extra="classic"),
    *_stages("MountainCarContinuous-v0", "sac", 10000, 20000, 30000, extra="classic"),
    *_stages("icrl_envs:icrl/PointGoal-v0", "ppo", 20000, 40000, 60000, extra=""),
)
_BOX2D = (
    *_stages("LunarLander-v3", "ppo", 25000, 50000, 100000, extra="box2d"),
    *_stages("BipedalWalker-v3", "ppo", 12500, 25000, 50000, extra="box2d"),
)
_MUJOCO = (
    *_stages("InvertedPendulum-v5", "ppo", 10000, 20000, 30000, extra="mujoco"),
    *_stages("Hopper-v5", "ppo", 20000, 40000, 60000, extra="mujoco"),
    *_stages("HalfCheetah-v5", "ppo", 10000, 20000, 40000, extra="mujoco"),
    *_stages("Walker2d-v5", "ppo", 10000, 20000, 40000, extra="mujoco"),
    *_stages("Reacher-v5", "ppo", 20000, 40000, 60000, extra="mujoco"),
    *_stages("Swimmer-v5", "ppo", 20000, 40000, 60000, extra="mujoco"),
    *_stages("InvertedDoublePendulum-v5", "ppo", 15000, 30000, 60000, extra="mujoco"),
)
_MINIGRID: dict[str, Any] = {"wrapper": "minigrid.wrappers:ImgObsWrapper", "extra": "minigrid"}
_GRID = _stages("MiniGrid-Empty-5x5-v0", "ppo", 10000, 20000, 40000, **_MINIGRID)
_PIXELS = _stages(
    "ALE/Pong-v5", "ppo", 8000,
    gamma=0.95, wrapper="icrl_envs.small_frames:SmallFrames", env_kwargs=(("obs_type", "grayscale"),), extra="atari",
    features="policy",
)  # fmt: skip
_BLACKJACK: dict[str, Any] = {
    "wrapper": "icrl_envs.late_hole_card:LateHoleCard,gymnasium.wrappers:FlattenObservation",
    "extra": "classic",
}
_BIRD: dict[str, Any] = {"env_kwargs": (("use_lidar", False),), "extra": "packages"}
_PACKAGES = (
    Task("Blackjack-v1", **_BLACKJACK),
    *_stages("Blackjack-v1", "ppo", 5000, 15000, 30000, **_BLACKJACK),
    *_stages("flappy_bird_gymnasium:FlappyBird-v0", "ppo", 50000, 100000, 150000, **_BIRD),
    *_stages("highway_env:merge-v1", "ppo", 3000, 6000, 15000, extra="packages"),
    *_stages("gymnasium_robotics:PointMaze_UMaze-v3", "ppo", 30000, 60000, 100000, extra="packages"),
)
_OFF_POLICY = (
    *_stages("FrozenLake-v1", "ppo", 10000, 30000, extra="classic", truth="exact", behaviour="random"),
    *_stages("CliffWalking-v1", "dqn", 5000, 10000, extra="classic", truth="exact", behaviour="epsilon:0.3"),
    *_stages("CartPole-v1", "ppo", 10000, 30000, extra="classic", behaviour="epsilon:0.3"),
    *_stages("Acrobot-v1", "ppo", 30000, 60000, extra="classic", behaviour="epsilon:0.3"),
    *_stages("MiniGrid-Empty-5x5-v0", "ppo", 10000, 40000, behaviour="epsilon:0.3", **_MINIGRID),
    *_each_other("CartPole-v1", "ppo", 10000, 30000, extra="classic"),
    *_each_other("Acrobot-v1", "ppo", 30000, 60000, extra="classic"),
    *_each_other("LunarLander-v3", "ppo", 50000, 100000, extra="box2d"),
    *_each_other("Pendulum-v1", "ppo", 10000, 30000, extra="classic"),
    *_each_other("Hopper-v5", "ppo", 20000, 60000, extra="mujoco"),
)

SUITES: dict[str, Suite] = {
    "small": Suite(_SMALL, context_lengths=(64, 256), seeds=(0, 1, 2)),
    "exact": Suite(_EXACT),
    "classic": Suite(_CLASSIC),
    "box2d": Suite(_BOX2D),
    "mujoco": Suite(_MUJOCO),
    "grid": Suite(_GRID),
    "pixels": Suite(_PIXELS),
    "packages": Suite(_PACKAGES),
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
    paths = [path for name in names for task in SUITES[name].tasks for path in task.snapshots]
    return tuple(dict.fromkeys(paths))
