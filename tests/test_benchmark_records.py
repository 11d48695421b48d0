import json
import math
from dataclasses import asdict, make_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from icrl_gym.benchmark import Cell, Record, Setting, Task, runner
from icrl_gym.benchmark.records import load_record
from icrl_gym.benchmark.resources import measured
from icrl_gym.benchmark.suites import SUITES
from icrl_gym.runs import write_json

MEGABYTE = 2**20

# Written down when the first sweeps ran: a change here orphans every finished record and every truth.
TASK_IDS = {
    Task("CartPole-v1"): "ea79a081b2072275",
    Task("CartPole-v1", "CartPole-v1/ppo-seed0/steps30000.zip", extra="classic"): "c8a874fc0245e5cf",
    Task("x:Y-v0", gamma=0.9, wrapper="m:W", env_kwargs=(("size", 4),), truth="exact"): "5026dcb2be3073e1",
}


@pytest.mark.parametrize(("task", "known"), TASK_IDS.items())
def test_ids_of_tasks_are_those_written_down(task, known):
    assert task.id == known


def test_a_field_that_comes_later_is_part_of_the_id_only_where_it_is_not_at_its_default():
    later = make_dataclass("Later", [("behaviour", str | None, None)], bases=(Task,), frozen=True)
    plain = Task("CartPole-v1", gamma=0.9)
    assert later("CartPole-v1", gamma=0.9).id == plain.id
    assert later("CartPole-v1", gamma=0.9, behaviour="random").id != plain.id


def test_tasks_of_all_suites_have_ids_of_their_own():
    tasks = {task for suite in SUITES.values() for task in suite.tasks}
    assert len({task.id for task in tasks}) == len(tasks)


def a_record(**values):
    return Record(Cell(Task("CartPole-v1"), Setting("lstd"), 64, 0), {"rmse": 0.5}, 1.0, 2.0, **values)


def test_records_of_the_first_version_still_load(tmp_path):
    first = {"cell", "scores", "seconds_fit", "seconds_predict", "error"}
    write_json(tmp_path / "a.json", {name: value for name, value in asdict(a_record()).items() if name in first})
    loaded = load_record(tmp_path / "a.json")
    assert loaded == a_record()
    assert loaded.start_value is None


def test_what_a_record_holds_survives_the_round_trip(tmp_path):
    full = a_record(peak_memory_fit=5, environment_steps=64, start_value=1.5, start_value_truth_stderr=0.0, commit="a")
    write_json(tmp_path / "a.json", asdict(full))
    assert load_record(tmp_path / "a.json") == full
    failed = Record(full.cell, error="ValueError: no")
    write_json(tmp_path / "b.json", asdict(failed))
    loaded = load_record(tmp_path / "b.json")
    assert math.isnan(loaded.seconds_fit)
    assert loaded.error == failed.error


def test_records_of_a_newer_version_are_refused_by_name(tmp_path):
    stored = asdict(a_record())
    write_json(tmp_path / "a.json", {**stored, "energy": 1.0})
    with pytest.raises(ValueError, match=r"a\.json: Record has unknown fields \['energy'\]"):
        load_record(tmp_path / "a.json")
    stored["cell"]["task"]["moon"] = "full"
    write_json(tmp_path / "b.json", stored)
    with pytest.raises(ValueError, match=r"Task has unknown fields \['moon'\]"):
        load_record(tmp_path / "b.json")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resettable peak outside Linux")
@pytest.mark.parametrize("ones", [np.ones, torch.ones])
def test_peak_memory_is_that_of_the_call_whoever_allocates(ones):
    def two_arrays_at_once():
        first = ones(4 * MEGABYTE)
        return float((first + 1)[0])

    size = 4 * MEGABYTE * ones(1).itemsize
    result, cost = measured(two_arrays_at_once)
    assert result == 2.0
    assert cost.peak_memory == pytest.approx(2 * size, abs=4 * MEGABYTE)
    _, again = measured(lambda: None)  # an earlier peak does not stick
    assert again.peak_memory < MEGABYTE


def test_a_call_that_raises_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        measured(lambda: 1 / 0)


def test_the_steps_of_a_critic_are_those_of_its_card(tmp_path):
    (tmp_path / "steps10.json").write_text(json.dumps({"num_steps_taken": 16}))
    assert runner._training_steps(tmp_path / "steps10.zip") == 16
    assert runner._training_steps(tmp_path / "steps20.zip") is None
