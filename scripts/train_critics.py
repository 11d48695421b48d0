"""Train the Stable-Baselines3 agents whose policies are evaluated and whose critics are the rivals.

    python scripts/train_critics.py --suites exact classic box2d mujoco grid pixels packages off_policy   # for these
    python scripts/train_critics.py                                   # the first recipe of every environment, seed 0
    python scripts/train_critics.py --envs CartPole-v1 --seeds 0 1 2  # some environments, several seeds
    python scripts/train_critics.py --envs Pendulum-v1 --algorithms SAC TD3 TQC

Snapshots go to <out>/<env>/<algorithm>-seed<k>/steps<N>.zip, each with a JSON card. What is already there is kept, so a
run that was interrupted is simply started again. The recipes are the table in icrl_gym/rivals/recipes.py.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from icrl_gym.benchmark.suites import snapshots
from icrl_gym.rivals.critic_training import Snapshot, find_run, train
from icrl_gym.rivals.recipes import RECIPES, Recipe, find_recipes


@dataclass(frozen=True)
class Config:
    """What to train."""

    envs: tuple[str, ...] = tuple(dict.fromkeys(recipe.env for recipe in RECIPES))
    """Environments, by id."""
    algorithms: tuple[str, ...] = ()
    """Algorithms; none means the first recipe of each environment."""
    seeds: tuple[int, ...] = (0,)
    """One agent per seed."""
    suites: tuple[str, ...] = ()
    """Train what these suites of the benchmark need, and nothing else: envs, algorithms and seeds are not read."""
    out: Path = Path("runs/critics")
    """Folder of the snapshots."""
    num_evaluation_episodes: int = 20
    """Episodes behind each card's mean return."""
    num_threads: int = 1
    """Threads of torch."""


def report(snapshot: Snapshot) -> None:
    """One line per new snapshot."""
    score = f"{snapshot.mean_return:.1f} +- {snapshot.stderr_return:.1f}"
    print(f"{snapshot.env} {snapshot.algorithm} seed {snapshot.seed} steps {snapshot.num_steps}: {score}", flush=True)


def chosen_runs(config: Config) -> list[tuple[Recipe, int]]:
    """Recipes and seeds, each once."""
    if config.suites:
        runs = [find_run(path) for path in snapshots(config.suites)]
        return [run for index, run in enumerate(runs) if run not in runs[:index]]
    return [(recipe, seed) for recipe in find_recipes(config.envs, config.algorithms) for seed in config.seeds]


def main(config: Config) -> None:
    """Train every recipe with every seed."""
    torch.set_num_threads(config.num_threads)
    command = " ".join(["python", "scripts/train_critics.py", *sys.argv[1:]])
    for recipe, seed in chosen_runs(config):
        train(
            recipe,
            seed,
            config.out,
            num_evaluation_episodes=config.num_evaluation_episodes,
            command=command,
            progress=report,
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
