"""Training Stable-Baselines3 agents whose critics the estimators are compared with: recipes as data, resumable.

A *snapshot* is ``<out>/<env>/<algorithm>-seed<k>/steps<N>.zip`` with a JSON card beside it. The card is written last,
so a snapshot with a card is complete. Snapshots are taken along ONE training run: the policy after N of the recipe's
steps.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.environments import environment_spec, make_environment
from icrl_gym.acting.sb3_models import ALGORITHMS, algorithm_class
from icrl_gym.runs import replacing
from icrl_gym.values import check_gamma

CARD_VERSION = 1


@dataclass(frozen=True)
class Recipe:
    """How one agent is trained.

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


@dataclass(frozen=True)
class Snapshot:
    """One saved agent: where it is, and its card's main entries."""

    path: Path
    env: str
    algorithm: str
    seed: int
    num_steps: int
    mean_return: float
    stderr_return: float


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
        (25_000, 50_000),
        options={"n_steps": 256, "gae_lambda": 0.95, "learning_rate": 3e-4},
    ),
    Recipe("InvertedPendulum-v5", "PPO", (10_000, 20_000, 30_000), num_envs=4, options=_SHORT_ROLLOUTS),
    Recipe("HalfCheetah-v5", "PPO", (20_000, 40_000), num_envs=4, options={"n_steps": 512}),
    Recipe("Walker2d-v5", "PPO", (20_000, 40_000), num_envs=4, options={"n_steps": 512}),
    Recipe("Hopper-v5", "PPO", (20_000, 40_000, 60_000), num_envs=4, options={"n_steps": 512}),
    Recipe(
        "MiniGrid-Empty-5x5-v0",
        "PPO",
        (5_000, 10_000, 20_000, 40_000),
        wrapper="minigrid.wrappers:ImgObsWrapper",
        options=_PIXELS_AS_NUMBERS,
    ),
    Recipe("MountainCarContinuous-v0", "SAC", (10_000, 20_000, 30_000), num_envs=1, options=_CAR_SAC),
    Recipe("MountainCar-v0", "DQN", (40_000, 80_000, 120_000), num_envs=1, options=_CAR_DQN),
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


def find_run(snapshot: str) -> tuple[Recipe, int]:
    """The recipe and the seed that make a snapshot, "<env>/<algorithm>-seed<k>/steps<N>.zip".

    Raises:
        ValueError: no recipe makes it.
    """
    for recipe in RECIPES:
        for steps in recipe.snapshots:
            pattern = re.escape(str(run_folder(recipe, 0, Path())))[:-1] + rf"(\d+)/steps{steps}\.zip"
            found = re.fullmatch(pattern, snapshot)
            if found:
                return recipe, int(found[1])
    raise ValueError(f"snapshot: no recipe makes {snapshot!r}")


def run_folder(recipe: Recipe, seed: int, out: Path) -> Path:
    """Where the snapshots of one training run go."""
    return out / recipe.env.replace("/", "-") / f"{recipe.algorithm.lower()}-seed{seed}"


def train(
    recipe: Recipe,
    seed: int,
    out: Path,
    *,
    num_evaluation_episodes: int = 20,
    command: str = "",
    progress: Callable[[Snapshot], None] | None = None,
) -> tuple[Snapshot, ...]:
    """Train one agent and save its snapshots; those already there are kept, an interrupted run goes on from the last.

    A continued run is not the same in bytes as an uninterrupted one (replay buffer and generators start afresh); its
    cards say ``resumed_from``.

    Args:
        recipe: what to train.
        seed: seed of the environments and of the algorithm.
        out: folder of all runs.
        num_evaluation_episodes: episodes of the sampled policy behind each card's mean return (at least 2).
        command: the command line, for the cards.
        progress: called with each new snapshot.
    """
    if num_evaluation_episodes < 2:
        raise ValueError(f"num_evaluation_episodes must be at least 2, got {num_evaluation_episodes}")
    folder = run_folder(recipe, seed, out)
    folder.mkdir(parents=True, exist_ok=True)
    done = [steps for steps in recipe.snapshots if (folder / f"steps{steps}.json").is_file()]
    due = [steps for steps in recipe.snapshots if steps not in done]
    if due:
        _continue_training(recipe, seed, folder, done, due, num_evaluation_episodes, command, progress)
    return tuple(read_snapshot(folder / f"steps{steps}.zip") for steps in recipe.snapshots)


def _continue_training(
    recipe: Recipe,
    seed: int,
    folder: Path,
    done: list[int],
    due: list[int],
    num_episodes: int,
    command: str,
    progress: Callable[[Snapshot], None] | None,
) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    def vec_env(env_seed: int) -> Any:
        return make_vec_env(lambda: make_environment(recipe.spec), n_envs=recipe.num_envs, seed=env_seed)

    start = max((steps for steps in done if steps < due[0]), default=0)
    env, evaluation_env = vec_env(seed), vec_env(seed + 10_000)
    model = _start(recipe, seed, env, folder / f"steps{start}.zip" if start else None)

    def save(steps: int) -> None:
        card = _card(recipe, seed, steps, model, start, command)
        _save_snapshot(model, folder / f"steps{steps}.zip", card, evaluation_env, num_episodes)
        if progress is not None:
            progress(read_snapshot(folder / f"steps{steps}.zip"))

    def save_what_is_due(local_names: dict[str, Any], global_names: dict[str, Any]) -> bool:
        while due and recipe.snapshots[-1] > due[0] <= model.num_timesteps:
            save(due.pop(0))
        return bool(due)  # False ends the training

    model.learn(recipe.snapshots[-1] - start, callback=save_what_is_due, reset_num_timesteps=False)
    for steps in due:
        save(steps)
    env.close()
    evaluation_env.close()


def _start(recipe: Recipe, seed: int, env: Any, resume_from: Path | None) -> Any:
    kind: Any = algorithm_class(recipe.algorithm)
    if resume_from is not None:
        return kind.load(resume_from, env=env, device="cpu")  # our own snapshot, written by this module
    options = {"gamma": recipe.gamma, **copy.deepcopy(dict(recipe.options))}  # SB3 adds to the dictionaries it is given
    return kind(recipe.policy_class, env, seed=seed, device="cpu", **options)


def _card(recipe: Recipe, seed: int, steps: int, model: Any, resumed_from: int, command: str) -> dict[str, Any]:
    packages = ("stable-baselines3", "sb3-contrib", "gymnasium", "torch", "numpy")
    return {
        "card_version": CARD_VERSION,
        **asdict(replace(recipe, env_kwargs=dict(recipe.env_kwargs), options=dict(recipe.options))),
        "seed": seed,
        "num_steps": steps,
        "num_steps_taken": int(model.num_timesteps),
        "resumed_from": resumed_from or None,
        "command": command,
        "versions": dict(_versions(packages)),
    }


def _versions(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _save_snapshot(model: Any, path: Path, card: dict[str, Any], evaluation_env: Any, num_episodes: int) -> None:
    import torch
    from stable_baselines3.common.evaluation import evaluate_policy

    with replacing(path) as unfinished, open(unfinished, "wb") as file:
        model.save(file)
    with torch.random.fork_rng(devices=[]):  # an evaluation must not change the training that goes on after it
        torch.manual_seed(card["seed"])
        episode_returns, _ = evaluate_policy(
            model, evaluation_env, num_episodes, deterministic=False, return_episode_rewards=True, warn=False
        )
    returns = np.array(episode_returns)
    card["mean_return"] = float(np.mean(returns))
    card["stderr_return"] = float(np.std(returns, ddof=1) / np.sqrt(len(returns)))
    card["num_evaluation_episodes"] = len(returns)
    card["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with replacing(path.with_suffix(".json")) as unfinished:
        unfinished.write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def read_snapshot(path: Path) -> Snapshot:
    """The snapshot at ``path`` (a zip) as its card describes it.

    Raises:
        FileNotFoundError: the zip or its card is missing.
    """
    card_path = path.with_suffix(".json")
    for needed in (path, card_path):
        if not needed.is_file():
            raise FileNotFoundError(f"snapshot {path}: {needed.name} is missing")
    card = json.loads(card_path.read_text(encoding="utf-8"))
    names = ("env", "algorithm", "seed", "num_steps", "mean_return", "stderr_return")
    return Snapshot(path, **{name: card[name] for name in names})
