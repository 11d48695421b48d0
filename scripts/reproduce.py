"""Measure every claim of the papers and write docs/reproduction.md: `icrl-gym reproduce --report docs/reproduction.md`.

python scripts/reproduce.py                      # all claims, about an hour; an interrupted call just goes on
python scripts/reproduce.py forward-pass --quick --report report.md
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import tyro

from icrl_gym.configuration import ReproduceConfig
from icrl_gym.reproduction.runner import reproduce

PAGE = Path("docs/reproduction.md")


def main(config: ReproduceConfig) -> None:
    """Run what is missing and write the page."""
    for result in reproduce(config):
        print(f"{result.claim.id}: {result.outcome.verdict} ({result.seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ReproduceConfig, default=replace(ReproduceConfig(), report=PAGE), description=__doc__)))
