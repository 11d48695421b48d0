"""Train the demo policy that ships inside the package, and export it as weights without pickle.

    python scripts/export_demo_policy.py

A policy that still falls now and then, with a critic that has had the time to learn its values: a large bonus for
entropy keeps the policy from getting better.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from icrl_gym.acting.demo_policy import DEMO_CARD, export_demo_policy
from icrl_gym.rivals.critic_training import train
from icrl_gym.rivals.recipes import Recipe

COMMAND = "python scripts/export_demo_policy.py"
RECIPE = Recipe(
    "CartPole-v1", "PPO", (40_000,),
    options={"n_steps": 128, "batch_size": 256, "ent_coef": 1.0, "learning_rate": 1e-3},
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Where the training leaves its snapshot, and the place for the export."""

    runs: Path = Path("runs/demo")
    """Folder of the training run; a finished one is kept."""
    card: Path = DEMO_CARD
    """The card to write; the weights go beside it."""


def main(config: Config) -> None:
    """Train, export and say what was exported."""
    torch.set_num_threads(1)
    (snapshot,) = train(RECIPE, 0, config.runs, command=COMMAND)
    card = export_demo_policy(snapshot.path, config.card, command=COMMAND)
    print(f"{config.card}: {card['env']} {card['algorithm']}, mean return {card['mean_return']:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
