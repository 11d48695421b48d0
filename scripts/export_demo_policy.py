"""Turn a trained CartPole snapshot into the demo policy that ships inside the package.

python scripts/train_critics.py --envs CartPole-v1
python scripts/export_demo_policy.py
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from icrl_gym.acting.demo_policy import DEMO_CARD, export_demo_policy


@dataclass(frozen=True)
class Config:
    """Snapshot to export, and the place for it."""

    snapshot: Path = Path("runs/critics/CartPole-v1/ppo-seed0/steps30000.zip")
    """A PPO snapshot of scripts/train_critics.py."""
    card: Path = DEMO_CARD
    """The card to write; the weights go beside it."""


def main(config: Config) -> None:
    """Export and say what was exported."""
    card = export_demo_policy(config.snapshot, config.card, command="python scripts/export_demo_policy.py")
    print(f"{config.card}: {card['env']} {card['algorithm']}, mean return {card['mean_return']:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
