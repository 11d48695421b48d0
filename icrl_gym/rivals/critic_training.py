"""Training Stable-Baselines3 agents whose critics the estimators are compared with; resumable.

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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.sb3_models import algorithm_class
from icrl_gym.rivals.recipes import RECIPES, Recipe
from icrl_gym.runs import replacing

CARD_VERSION = 1


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
    """Folder of the snapshots of one training run."""
    return out / recipe.env.rpartition(":")[2].replace("/", "-") / f"{recipe.algorithm.lower()}-seed{seed}"


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
        recipe: recipe of the agent.
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
