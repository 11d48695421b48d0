"""The script that tries every registered id: what becomes of good and bad ones, of crashes and hangs, and its page."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "run_coverage.py"


@pytest.fixture(scope="module")
def coverage():
    spec = importlib.util.spec_from_file_location("run_coverage", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_coverage"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["run_coverage"]


@pytest.mark.filterwarnings("ignore:.*is out of date")
def test_an_id_is_evaluated_or_refused_with_a_reason(coverage):
    good = coverage.attempt("gymnasium", "CartPole-v1")
    assert (good.evaluated, good.seen, good.reason) == (True, "Box 4", "")
    bad = coverage.attempt("gymnasium", "Ant-v3")
    assert not bad.evaluated
    assert bad.reason.startswith("the environment failed in make: ImportError")


def test_several_rewards_are_weighed(coverage):
    class Several(gymnasium.Env):
        observation_space = gymnasium.spaces.Discrete(9)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return 0, {}

        def step(self, action):
            self.time += 1
            return self.time, [1.0, float(action)], self.time == 8, False, {}

    gymnasium.register("Several-v0", Several, disable_env_checker=True)
    try:
        found = coverage.attempt("gymnasium", "Several-v0")
    finally:
        gymnasium.registry.pop("Several-v0")
    assert found.evaluated, found.reason
    assert found.notes == ("--reward-weights 1,1",)


def test_the_page_counts_and_names_every_id_without_paths_of_this_machine(coverage):
    records = [
        coverage.Record("gymnasium", "A-v0", True, seen="Box 3", notes=("without ['mission'] (Text)",)),
        coverage.Record("gymnasium", "B-v0", False, reason="FileNotFoundError: '/home/me/lib/x.png' for B-v0"),
        coverage.Record("minigrid", "C-v0", False, reason="over the limit of 3 seconds, see https://x.org/a/b"),
    ]
    page = coverage.page(records)
    assert "| all |  | 3 | 1 | 2 |" in page
    assert "| `A-v0` | evaluated | Box 3; without ['mission'] (Text) |" in page
    assert "| 1 | FileNotFoundError: '...' for ID |" in page
    assert "/home/me" not in page
    assert "https://x.org/a/b" in page
    assert "Not installed when this was made: highway-env" in page


@pytest.mark.slow
def test_a_run_keeps_one_record_per_id_and_goes_on_from_them(tmp_path):
    command = [
        sys.executable, SCRIPT, "--modules", "gymnasium", "--only", "^(CartPole-v1|Ant-v3)$",
        "--out", tmp_path / "records", "--page", tmp_path / "page.md",
    ]  # fmt: skip
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2))
    assert "gymnasium:CartPole-v1  evaluated" in first.stdout
    assert {path.name for path in tmp_path.glob("records/*/*")} == {"CartPole-v1.json", "Ant-v3.json"}
    assert second.stdout.startswith("1 of 2 ids evaluated")
    assert "| `Ant-v3` | refused |" in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_what_is_too_slow_or_crashes_is_a_reason_and_not_the_end(coverage):
    worker = coverage.Worker()
    try:
        slow = worker.ask("gymnasium", "CartPole-v1", 0.01)
        assert (slow.evaluated, slow.reason) == (False, "over the limit of 0.01 seconds")
        crashed = worker.ask("os._exit(7) is no module", "X-v0", 60)
        assert not crashed.evaluated
        assert worker.ask("gymnasium", "CartPole-v1", 60).evaluated
        worker._process.kill()
        assert worker.ask("gymnasium", "CartPole-v1", 60).reason.startswith("the process crashed with exit code")
        assert worker.ask("gymnasium", "CartPole-v1", 60).evaluated
    finally:
        worker.stop()
