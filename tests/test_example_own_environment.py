"""The example of an environment of one's own runs as it stands, and its evaluation is as good as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_example_of_an_own_environment_runs_and_draws_its_picture(tmp_path):
    command = [sys.executable, ROOT / "examples" / "own_environment.py", "--picture", tmp_path / "river.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratio = re.search(r"\(ratio (\d\.\d\d)\)", done.stdout)
    assert ratio is not None
    assert float(ratio[1]) < 0.8
    assert (tmp_path / "river.png").read_bytes().startswith(b"\x89PNG")
