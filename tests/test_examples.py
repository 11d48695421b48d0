"""The examples run as they stand, answer near the truth, and leave their pictures."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def printed(name, folder):
    """What an example prints; warnings are errors there too."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), str(folder)]
    result = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (folder / f"{name}.png").stat().st_size > 10_000
    return result.stdout


def audit_example():
    specification = importlib.util.spec_from_file_location("audit_while_training", EXAMPLES / "audit_while_training.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_audit_trains_says_its_verdicts_and_leaves_its_table_and_picture(tmp_path, capsys):
    audit_example().main(["--steps", "21000", "--out", str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == ["step 10,240", "step 20,480"]
    assert (tmp_path / "audits.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "audits.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert list(tmp_path.glob("PPO_1/events.out.tfevents.*"))


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


@pytest.mark.slow
def test_the_example_of_an_own_environment_runs_and_draws_its_picture(tmp_path):
    command = [sys.executable, EXAMPLES / "own_environment.py", "--picture", tmp_path / "river.png"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ratio = re.search(r"\(ratio (\d\.\d\d)\)", done.stdout)
    assert ratio is not None
    assert float(ratio[1]) < 0.8
    assert (tmp_path / "river.png").read_bytes().startswith(b"\x89PNG")
