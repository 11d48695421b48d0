"""Pretrain the mixture: `icrl-gym pretrain`, with lines instead of bars, so that torchrun's processes can share a log.

python scripts/pretrain.py --jobs 2                                       # an interrupted call just goes on
torchrun --nproc-per-node 2 scripts/pretrain.py --out runs/pretrain-two   # on several machines: one shared folder
"""

from __future__ import annotations

import os
import sys

import tyro

from icrl_gym.configuration import PretrainConfig
from icrl_gym.pretraining import pretrain


def main(config: PretrainConfig) -> None:
    """Do what is missing and name the checkpoint; the first process speaks for all."""
    first = os.environ.get("RANK", "0") == "0"

    def say(part: str, done: int, total: int) -> None:
        if first:
            print(f"{part}: {done} of {total}", flush=True)

    path = pretrain(config, say)
    if first:
        print(path)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(PretrainConfig, description=__doc__)))
