"""Recipes for the Stable-Baselines3 agents whose critics the estimators are compared with, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.environments import environment_spec
from icrl_gym.acting.sb3_models import ALGORITHMS
from icrl_gym.values import check_gamma


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how one agent is trained, but for the seed.

    Attributes:
        env: environment id.
        algorithm: a key of ``ALGORITHMS``.
        snapshots: increasing numbers of environment steps after which the agent is saved; the last one ends the
            training.
        num_envs: environments stepped together.
        policy_class: SB3's name of the network.
        gamma: discount in [0, 1).
        wrapper: ``module:Class`` of a Gymnasium wrapper, or None.
        env_kwargs: keyword arguments of the environment.
        options: further keyword arguments of the algorithm's constructor.
    """

    env: str
    algorithm: str
    snapshots: tuple[int, ...]
    num_envs: int = 8
    policy_class: str = "MlpPolicy"
    gamma: float = 0.99
    wrapper: str | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if not self.snapshots or any(b <= a for a, b in zip((0, *self.snapshots), self.snapshots, strict=False)):
            raise ValueError(f"snapshots must be positive and increasing, got {self.snapshots}")
        check_gamma(self.gamma)

    @property
    def spec(self) -> EnvSpec:
        """The environment with its arguments and its wrapper."""
        return environment_spec(self.env, self.env_kwargs, self.wrapper)


_SHORT_ROLLOUTS = {"n_steps": 128, "batch_size": 256}
_SMALL_DQN = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
}
_TABLE_DQN = {
    "learning_rate": 1e-3,
    "batch_size": 128,
    "buffer_size": 50_000,
    "learning_starts": 1_000,
    "target_update_interval": 500,
    "train_freq": 8,
    "gradient_steps": 4,
    "exploration_fraction": 0.5,
    "exploration_final_eps": 0.1,
    "policy_kwargs": {"net_arch": [128]},
}
_CAR_DQN = {
    "learning_rate": 4e-3,
    "batch_size": 128,
    "buffer_size": 10_000,
    "learning_starts": 1_000,
    "target_update_interval": 600,
    "train_freq": 16,
    "gradient_steps": 8,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.07,
    "policy_kwargs": {"net_arch": [256, 256]},
}
_CAR_SAC = {
    "ent_coef": 0.1,
    "batch_size": 256,
    "train_freq": 32,
    "gradient_steps": 16,
    "tau": 0.02,
    "learning_starts": 0,
    "use_sde": True,
    "policy_kwargs": {"log_std_init": -3.67, "net_arch": [64, 64]},
}
_SMALL_NETS = {"policy_kwargs": {"net_arch": [64, 64]}}
_PIXELS_AS_NUMBERS = {**_SHORT_ROLLOUTS, "policy_kwargs": {"normalize_images": False}}

RECIPES: tuple[Recipe, ...] = (
    Recipe("CartPole-v1", "PPO", (5_000, 10_000, 15_000, 20_000, 30_000), options=_SHORT_ROLLOUTS),
    Recipe("Acrobot-v1", "PPO", (15_000, 30_000, 60_000), options=_SHORT_ROLLOUTS),
    Recipe("Pendulum-v1", "PPO", (10_000, 20_000, 30_000), num_envs=4, options={"n_steps": 256, "learning_rate": 1e-3}),
    Recipe(
        "LunarLander-v3",
        "PPO",
        (25_000, 50_000, 100_000),
        options={"n_steps": 256, "gae_lambda": 0.98, "ent_coef": 0.01},
    ),
    Recipe("FrozenLake-v1", "PPO", (10_000, 30_000), options=_SHORT_ROLLOUTS),
    Recipe(
        "CliffWalking-v1",  # it has no time limit of its own, and a half-trained policy may walk for ever
        "DQN",
        (5_000, 10_000),
        num_envs=1,
        env_kwargs={"max_episode_steps": 200},
        options=_TABLE_DQN,
    ),
    Recipe("Taxi-v4", "DQN", (25_000, 50_000), num_envs=1, options=_TABLE_DQN),
    Recipe(
        "BipedalWalker-v3",
        "PPO",
        (12_500, 25_000, 50_000),
        options={"n_steps": 256, "gae_lambda": 0.95, "learning_rate": 3e-4},
    ),
    Recipe("InvertedPendulum-v5", "PPO", (10_000, 20_000, 30_000), num_envs=4, options=_SHORT_ROLLOUTS),
    Recipe("HalfCheetah-v5", "PPO", (10_000, 20_000, 40_000), num_envs=4, options={"n_steps": 512}),
    Recipe("Walker2d-v5", "PPO", (10_000, 20_000, 40_000), num_envs=4, options={"n_steps": 512}),
    Recipe("Hopper-v5", "PPO", (20_000, 40_000, 60_000), num_envs=4, options={"n_steps": 512}),
    Recipe("Reacher-v5", "PPO", (20_000, 40_000, 60_000), num_envs=4, options={"n_steps": 256}),
    Recipe("Swimmer-v5", "PPO", (20_000, 40_000, 60_000), num_envs=4, options={"n_steps": 512}),
    Recipe("InvertedDoublePendulum-v5", "PPO", (15_000, 30_000, 60_000), num_envs=4, options=_SHORT_ROLLOUTS),
    Recipe(
        "MiniGrid-Empty-5x5-v0",
        "PPO",
        (5_000, 10_000, 20_000, 40_000),
        wrapper="minigrid.wrappers:ImgObsWrapper",
        options=_PIXELS_AS_NUMBERS,
    ),
    Recipe("MountainCarContinuous-v0", "SAC", (10_000, 20_000, 30_000), num_envs=1, options=_CAR_SAC),
    Recipe("MountainCar-v0", "DQN", (80_000, 100_000, 120_000), num_envs=1, options=_CAR_DQN),
    Recipe(
        "ALE/Pong-v5",
        "PPO",
        (4_000, 8_000),
        num_envs=4,
        policy_class="CnnPolicy",
        gamma=0.95,
        wrapper="icrl_envs.small_frames:SmallFrames",
        env_kwargs={"obs_type": "grayscale"},
        options={**_SHORT_ROLLOUTS, "policy_kwargs": {"features_extractor_kwargs": {"features_dim": 64}}},
    ),
    Recipe("CartPole-v1", "A2C", (20_000, 40_000)),
    Recipe("CartPole-v1", "DQN", (25_000, 50_000), num_envs=1, options=_SMALL_DQN),
    Recipe("CartPole-v1", "QRDQN", (25_000, 50_000), num_envs=1, options=_SMALL_DQN),
    Recipe("CartPole-v1", "TRPO", (20_000, 40_000), options={"n_steps": 128}),
    Recipe("CartPole-v1", "RecurrentPPO", (20_000, 40_000), policy_class="MlpLstmPolicy", options=_SHORT_ROLLOUTS),
    Recipe("Pendulum-v1", "SAC", (5_000, 10_000), num_envs=1, options=_SMALL_NETS),
    Recipe("Pendulum-v1", "TD3", (5_000, 10_000), num_envs=1, options=_SMALL_NETS),
    Recipe("Pendulum-v1", "TQC", (5_000, 10_000), num_envs=1, options=_SMALL_NETS),
    Recipe(
        "Blackjack-v1",  # SB3 knows no tuples, so they are flattened to one-hot numbers
        "PPO",
        (5_000, 15_000, 30_000),
        wrapper="icrl_envs.late_hole_card:LateHoleCard,gymnasium.wrappers:FlattenObservation",
        options=_SHORT_ROLLOUTS,
    ),
    Recipe(
        "flappy_bird_gymnasium:FlappyBird-v0",  # without lidar it is told how fast it falls
        "PPO",
        (50_000, 100_000, 150_000),
        env_kwargs={"use_lidar": False},
        options=_SHORT_ROLLOUTS,
    ),
    Recipe("highway_env:merge-v1", "PPO", (3_000, 6_000, 15_000), num_envs=4, options=_SHORT_ROLLOUTS),
    Recipe(
        "gymnasium_robotics:PointMaze_UMaze-v3",
        "PPO",
        (30_000, 60_000, 100_000),
        num_envs=4,
        policy_class="MultiInputPolicy",
        options={"n_steps": 512},
    ),
    Recipe(
        "icrl_envs:icrl/PointGoal-v0",
        "PPO",
        (20_000, 40_000, 60_000),
        num_envs=4,
        policy_class="MultiInputPolicy",
        options={"n_steps": 512},
    ),
)


def find_recipes(envs: tuple[str, ...], algorithms: tuple[str, ...] = ()) -> tuple[Recipe, ...]:
    """The recipes of these environments and algorithms, in the table's order; no algorithm means each env's first
    recipe.

    Raises:
        ValueError: an environment or an algorithm has no recipe.
    """
    known = list(dict.fromkeys(recipe.env for recipe in RECIPES))
    for env in envs:
        if env not in known:
            raise ValueError(f"envs: no recipe for {env!r}; there are recipes for {', '.join(known)}")
    if not algorithms:
        return tuple(next(recipe for recipe in RECIPES if recipe.env == env) for env in known if env in envs)
    found = tuple(recipe for recipe in RECIPES if recipe.env in envs and recipe.algorithm in algorithms)
    missing = set(algorithms) - {recipe.algorithm for recipe in found}
    if missing:
        raise ValueError(f"algorithms: no recipe for {', '.join(sorted(missing))} on {', '.join(envs)}")
    return found
