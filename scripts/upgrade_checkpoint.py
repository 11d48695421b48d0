"""Write the card of a checkpoint of schema 2 again, so that this version reads it; the weights stay as they are.

python scripts/upgrade_checkpoint.py icrl_gym/checkpoints/generalist.safetensors \\
    --commit dbd2bd504dbcc8b4ed70301e7c0fffdfb13c16a7 --seconds 158     # how the shipped card was written

Cards of schema 2 named the commit of their last writing. --commit names that of the training, --seconds its wall time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from icrl_gym.evaluator.checkpoint import upgrade_card


@dataclass(frozen=True)
class Config:
    """The checkpoint, and what is known of its training."""

    path: Annotated[Path, tyro.conf.Positional]
    """Weights (.safetensors), with the old card beside them."""
    commit: str = "unknown"
    """Commit of the code that trained the weights."""
    seconds: int | None = None
    """Wall time of the training."""


def main(config: Config) -> None:
    """Upgrade the card and print its hash."""
    known = {"commit": config.commit, "seconds": config.seconds}
    print(upgrade_card(config.path, known).sha256)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
