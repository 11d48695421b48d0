"""The examples about logs run, answer near the truth, and leave their pictures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(name, folder):
    """What an example prints; warnings are errors there too."""
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), str(folder)]
    result = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return result.stdout


@pytest.mark.slow
def test_the_example_of_a_log_without_a_simulator(tmp_path):
    out = printed("log_without_simulator", tmp_path)
    value, low, high = map(float, re.search(r"starts: ([\d.]+), from ([\d.]+) to ([\d.]+)", out).groups())
    truth = float(re.search(r"the truth at starts: ([\d.]+)", out)[1])
    assert low < value < high
    assert abs(value - truth) < 10


@pytest.mark.slow
def test_the_example_of_another_policy_from_the_same_log(tmp_path):
    out = printed("another_policy_from_a_log", tmp_path)
    found = [tuple(map(float, pair)) for pair in re.findall(r": ([\d.]+) on average, the truth is ([\d.]+)", out)]
    assert len(found) == 3
    assert all(abs(estimate - truth) < 4 for estimate, truth in found)
    assert found[1][1] > found[0][1] + 4  # the policies differ by more than that
