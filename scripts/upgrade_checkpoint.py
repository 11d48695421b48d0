"""Write a checkpoint of schema 2 or 3 again, so that this version reads it; leaf values stay as they are.

python scripts/upgrade_checkpoint.py icrl_gym/checkpoints/generalist.safetensors  # how the shipped files were made

The gate of the older schemas had one more dial, a share of imagined returns, which is taken out of its last layers; the
new card says so. Cards of schema 2 named the commit of their last writing: for them --commit names that of the
training, --seconds its wall time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from icrl_gym.evaluator.checkpoint import upgrade_checkpoint


@dataclass(frozen=True)
class Config:
    """The checkpoint, and what is known of its training."""

    path: Annotated[Path, tyro.conf.Positional]
    """Weights (.safetensors), with the old card beside them."""
    commit: str | None = None
    """Commit of the code that trained the weights; without it the card's own entry stays."""
    seconds: int | None = None
    """Wall time of the training; without it the card's own entry stays."""


def main(config: Config) -> None:
    """Upgrade the checkpoint and print its hash."""
    known = {"commit": config.commit, "seconds": config.seconds}
    given = {name: value for name, value in known.items() if value is not None}
    print(upgrade_checkpoint(config.path, given).sha256)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
