"""Run `icrl-gym evaluate` on the environments of RESULTS.md: one run folder per environment, context length and seed.

python scripts/train_critics.py          # the policies and their critics, once
python scripts/run_main_job.py           # the runs; finished ones are kept, so an interrupted call just goes on
python scripts/make_report.py            # RESULTS.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from icrl_gym.configuration import EvaluateConfig
from icrl_gym.main_job.job import evaluate

# environment id, snapshot below the critics' folder, wrapper
JOBS: tuple[tuple[str, str, str | None], ...] = (
    ("CartPole-v1", "CartPole-v1/ppo-seed0/steps30000.zip", None),
    ("Acrobot-v1", "Acrobot-v1/ppo-seed0/steps30000.zip", None),
    ("Pendulum-v1", "Pendulum-v1/ppo-seed0/steps30000.zip", None),
    ("LunarLander-v3", "LunarLander-v3/ppo-seed0/steps50000.zip", None),
    ("FrozenLake-v1", "FrozenLake-v1/ppo-seed0/steps30000.zip", None),
    ("InvertedPendulum-v5", "InvertedPendulum-v5/ppo-seed0/steps20000.zip", None),
    ("Hopper-v5", "Hopper-v5/ppo-seed0/steps40000.zip", None),
    (
        "MiniGrid-Empty-5x5-v0",
        "MiniGrid-Empty-5x5-v0/ppo-seed0/steps20000.zip",
        "minigrid.wrappers:ImgObsWrapper",
    ),
)


@dataclass(frozen=True)
class Config:
    """What to run."""

    critics: Path = Path("runs/critics")
    """Snapshots, as scripts/train_critics.py leaves them."""
    out: Path = Path("runs/main")
    """Folder of the run folders."""
    context_lengths: tuple[int, ...] = (512, 2048)
    """Transitions in the context."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    num_rollouts: int = 24
    """Simulated continuations per query state."""


def main(config: Config) -> None:
    """Run what is missing."""
    torch.set_num_threads(1)
    for env, snapshot, wrapper in JOBS:
        for length in config.context_lengths:
            for seed in config.seeds:
                folder = config.out / f"{env}-n{length}-seed{seed}"
                if folder.exists():
                    continue
                job = EvaluateConfig(
                    env=env, policy=str(config.critics / snapshot), trust_model=True, wrapper=wrapper, seed=seed,
                    context_length=length, num_rollouts=config.num_rollouts, run_dir=folder,
                )  # fmt: skip
                print(f"{folder}: {evaluate(job).verdict}", flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
