import json
import math
from dataclasses import make_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from icrl_gym.benchmark import Cell, Conditions, Record, Task, Variant, runner
from icrl_gym.benchmark.records import load_record, load_records, record_path, write_record
from icrl_gym.benchmark.resources import measured
from icrl_gym.benchmark.suites import SUITES

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
    cell = Cell(Task("CartPole-v1"), Variant("lstd"), 64, 0, Conditions(8, 2))
    return Record(cell, {"rmse": 0.5}, 1.0, 2.0, **values)


def test_what_a_record_holds_survives_the_round_trip(tmp_path):
    full = a_record(peak_memory_fit=5, environment_steps=64, start_value=1.5, start_value_truth_stderr=0.0, commit="a")
    write_record(tmp_path, full)
    assert load_records(tmp_path) == [full]
    path = record_path(tmp_path, full.cell)
    path.unlink()
    failed = Record(full.cell, error="ValueError: no")
    write_record(tmp_path, failed)
    loaded = load_record(path)
    assert math.isnan(loaded.seconds_fit)
    assert loaded.error == failed.error


def test_a_changed_digit_is_noticed(tmp_path):
    write_record(tmp_path, a_record())
    (path,) = (tmp_path / "records").iterdir()
    path.write_text(path.read_text().replace("0.5", "0.4"))
    with pytest.raises(ValueError, match=rf"record .*{path.name} was changed after it was written; remove it"):
        load_record(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{torn", r"is not JSON .*remove it, and the cell runs again"),
        (json.dumps({"cell": {}, "scores": {}}), "has schema_version 1, this version reads 2; .*give another folder"),
        (json.dumps({"schema_version": 3}), "has schema_version 3, this version reads 2"),
        ("[]", "has schema_version None"),
        (json.dumps({"schema_version": 2, "record": {}}), "was changed after it was written"),
    ],
)
def test_damaged_records_and_those_of_other_versions_are_named(tmp_path, content, complaint):
    path = tmp_path / "records" / "a.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"record .*a\.json {complaint}"):
        load_records(tmp_path)


def test_records_of_other_conditions_are_never_mixed(tmp_path):
    one = a_record()
    other = replace(one, cell=replace(one.cell, conditions=Conditions(8, 24)))
    assert other.cell.id != one.cell.id
    for record in (one, other):
        write_record(tmp_path, record)
    with pytest.raises(ValueError, match=r"records of different conditions are in one folder: lstd on CartPole-v1"):
        load_records(tmp_path)


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
