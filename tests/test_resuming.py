"""Runs that are interrupted or killed: what is finished is kept, nothing of it is computed again, nobody is blocked."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from icrl_gym import cli, runs
from icrl_gym.configuration import EvaluateConfig
from icrl_gym.main_job import job as job_module
from icrl_gym.main_job.finished_parts import interrupted_config
from icrl_gym.main_job.job import evaluate, resume
from icrl_gym.main_job.subject import Subject
from icrl_gym.stored_values import load_values, save_values
from icrl_gym.values import Estimand, ValueEstimates

ROOT = Path(__file__).parents[1]
SMALL = EvaluateConfig(context_length=60, num_queries=4, num_rollouts=2, estimator="constructed")
PARTS = ("context", "simulated_truth", "critic")


def interrupted_at(monkeypatch, part):
    """The user presses Ctrl-C when this method of the subject is called."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Subject, part, interrupt)
        with pytest.raises(KeyboardInterrupt) as caught:
            evaluate(dataclasses.replace(SMALL, run_dir=Path("mine")))
    return str(caught.value)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def forbidden(name):
    return lambda *arguments, **options: pytest.fail(f"{name} was computed again")


@pytest.mark.parametrize("number", [1, 3])
def test_a_resumed_run_computes_only_what_is_missing_and_comes_to_the_same(monkeypatch, tmp_path, number):
    whole = evaluate(dataclasses.replace(SMALL, run_dir=tmp_path / "whole"))
    if number < 3:
        message = interrupted_at(monkeypatch, PARTS[number])
    else:  # after the last part, while tables are written
        monkeypatch.setattr(job_module, "save_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt) as caught:
            evaluate(dataclasses.replace(SMALL, run_dir=Path("mine")))
        message = str(caught.value)
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
    assert message == "what is finished is kept; go on with --resume mine"
    assert not (tmp_path / "mine").exists()
    for done in PARTS[:number]:
        monkeypatch.setattr(Subject, done, forbidden(done))
    found = resume(Path("mine"))
    assert found.run_dir == tmp_path / "mine"
    for name in ("scores.csv", "estimates.csv"):
        assert (found.run_dir / name).read_bytes() == (whole.run_dir / name).read_bytes()
    names = {path.name for path in found.run_dir.iterdir()}
    assert len([name for name in names if name.startswith("events")]) == 1
    assert {name for name in names if not name.startswith("events")} == {
        "config.json", "versions.json", "trajectory.npz", "estimates.csv", "scores.csv",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_interruption_before_anything_is_finished_leaves_nothing(monkeypatch, tmp_path):
    assert interrupted_at(monkeypatch, "context") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_takes_the_place_of_an_interrupted_one(monkeypatch, tmp_path):
    interrupted_at(monkeypatch, "critic")
    (unfinished,) = tmp_path.iterdir()
    (unfinished / "half").write_text("x")
    found = evaluate(dataclasses.replace(SMALL, run_dir=Path("mine"), seed=3))
    assert json.loads((found.run_dir / "config.json").read_text())["seed"] == 3
    assert not (found.run_dir / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_command_line_says_how_to_go_on_and_does(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    flags = (
        "--context-length",
        "60",
        "--num-queries",
        "4",
        "--num-rollouts",
        "2",
        "--gamma",
        "0.7",
        "--no-tensorboard",
    )
    with monkeypatch.context() as patch:
        patch.setattr(Subject, "simulated_truth", interrupt)
        assert cli.main(["evaluate", *flags, "--run-dir", "a b"]) == 130
    assert capsys.readouterr().err.endswith("what is finished is kept; go on with --resume 'a b'\n")
    assert cli.main(["evaluate", "--resume", "a b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["context_length"] == 60
    for arguments, words in (
        (("--resume", "a b"), "this run is finished"),
        (("--resume", "nowhere"), "there is no interrupted run 'nowhere'"),
        (("--resume", "nowhere", "--seed", "3"), "seed: goes on with its own flags; leave out --seed"),
    ):
        assert cli.main(["evaluate", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_a_policy_that_changed_meanwhile_is_refused_and_the_parts_stay(monkeypatch, tmp_path):
    interrupted_at(monkeypatch, "critic")
    config = interrupted_config(Path("mine"))
    with pytest.raises(ValueError, match=r"resume: .*is about policy 'PPO:.*it has changed; start a new run"):
        evaluate(dataclasses.replace(config, policy="random"), resumed=tmp_path / "mine")
    assert resume(Path("mine")).run_dir.is_dir()


def test_flags_of_another_version_are_named(tmp_path):
    (tmp_path / ".unfinished-old").mkdir()
    (tmp_path / ".unfinished-old" / "config.json").write_text('{"colour": "red"}')
    with pytest.raises(ValueError, match="resume: 'old' holds no flags of this version's evaluate"):
        resume(Path("old"))


KILLED = """
import sys, time
from icrl_gym import runs
with runs.run_folder("mine", "Env") as folder:
    (folder.path / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def started(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_killed_run_blocks_nobody_and_a_running_one_does(tmp_path):
    process = started(tmp_path)
    try:
        with pytest.raises(FileExistsError, match="another run is filling"), runs.run_folder("mine", "Env"):
            pytest.fail("the run started")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (tmp_path / ".unfinished-mine" / "half").exists()
    with runs.run_folder("mine", "Env") as folder:
        assert not (folder.path / "half").exists()
        (folder.path / "whole").write_text("y")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_of_the_users_that_is_called_lock_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / runs.LOCK).write_text("the user's")
    with pytest.raises(FileExistsError, match="exists already"), runs.run_folder("mine", "Env"):
        pytest.fail("the run started")
    assert (tmp_path / "mine" / runs.LOCK).read_text() == "the user's"


@pytest.mark.slow
def test_a_run_that_is_killed_in_its_truth_goes_on_after_its_context(tmp_path):
    flags = ("--context-length", "100", "--num-queries", "32", "--num-rollouts", "96", "--no-tensorboard")
    command = [sys.executable, "-m", "icrl_gym", "evaluate", *flags, "--run-dir", "mine"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    context = tmp_path / ".unfinished-mine" / "finished" / "context.npz"
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if context.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = context.stat().st_mtime_ns, context.read_bytes()
    monitored = cli_resume(tmp_path, environment)
    assert monitored.returncode == 0, monitored.stderr
    assert "collecting the context" not in monitored.stderr
    with (tmp_path / "mine" / "scores.csv").open(newline="") as file:
        assert [row["estimator"] for row in csv.DictReader(file)] == ["generalist", "PPO critic"]
    assert before[1]


def cli_resume(tmp_path, environment):
    command = [sys.executable, "-m", "icrl_gym", "evaluate", "--resume", "mine", "--json"]
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_values_survive_the_way_to_disk_and_back(tmp_path):
    observations = {"a": np.arange(6.0).reshape(2, 3), "b": (np.array([1, 2]),)}
    for stderr in (None, np.ones(2)):
        values = ValueEstimates(np.array([0.1, 1 / 3]), observations, Estimand("x", None, 0.9), stderr, notes=("n",))
        save_values(tmp_path / "v.npz", values)
        back = load_values(tmp_path / "v.npz")
        np.testing.assert_array_equal(back.values, values.values)
        np.testing.assert_array_equal(back.observations["b"][0], observations["b"][0])
        assert (back.stderr is None) == (stderr is None)
        assert (back.estimand, back.notes) == (values.estimand, values.notes)
