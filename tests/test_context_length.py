"""Error against context length: what is made of records, what is run again and what is refused. Records are made up."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from icrl_gym.benchmark.cells import CRITIC, Cell, Conditions, Task, Variant
from icrl_gym.benchmark.context_length import measurements
from icrl_gym.benchmark.context_length.curves import Curves, error_of
from icrl_gym.benchmark.context_length.measurements import FROM_LOG, TOLD, Place, run_missing
from icrl_gym.benchmark.context_length.page import figure, origin, ratio_table, summary, wanted, write_page
from icrl_gym.benchmark.context_length.subjects import TEST, subjects
from icrl_gym.benchmark.isolation import Outcome
from icrl_gym.benchmark.records import Record, load_record, record_path, write_record

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "measure_context_length.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_context_length", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["measure_context_length"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["measure_context_length"]


def cell(env="Made-up-v0", estimator=TOLD, length=512, seed=0):
    return Cell(Task(env), Variant(estimator), length, seed, Conditions(32, 6))


def record(env, estimator, length, error, seed=0, noise=0.0):
    scores = {"rmse_over_std_corrected": error, "truth_std_corrected": 2.0, "noise_floor": noise, "n": 32}
    return Record(cell(env, estimator, length, seed), scores, 1.0, 0.5, peak_memory_fit=2**20)


def made_up(lengths=(512, 32_768, 65_536)):
    """Two environments; at the first length errors are half the critic's, at every further one half of that."""
    found = []
    for env, level in (("Made-up-v0", 1.0), ("Made-up-v1", 2.0)):
        found.append(record(env, CRITIC, 60_000, level))
        for step, length in enumerate(lengths):
            for seed in (0, 1):
                found.append(record(env, TOLD, length, level * 0.5 ** (step + 1), seed))
                found.append(record(env, FROM_LOG, length, level, seed))
    return found


def test_the_ratio_is_a_geometric_mean_over_environments():
    records = [record("Made-up-v0", CRITIC, 60_000, 1.0), record("Made-up-v1", CRITIC, 60_000, 2.0)]
    records += [record("Made-up-v0", TOLD, 512, error, seed) for seed, error in enumerate((0.25, 1.0))]
    records += [record("Made-up-v1", TOLD, 512, 0.5)]
    found = Curves.of(records).ratio(TOLD, 512)
    assert found is not None
    assert found.value == pytest.approx(math.sqrt(0.5 * 0.25))  # .5 of two contexts, .25 of one
    assert found.low < found.value < found.high


def test_an_error_within_the_truths_noise_counts_as_the_smallest_that_it_could_tell():
    assert error_of(record("Made-up-v0", TOLD, 512, 0.3, noise=0.1)) == 0.3
    assert error_of(record("Made-up-v0", TOLD, 512, 0.0, noise=0.1)) == pytest.approx(0.1 * 0.5 / 2.0)


def test_cells_without_a_score_are_said_and_not_averaged(tmp_path):
    failed = Record(cell(length=32_768, seed=7), error="over the limit of 3 seconds")
    curves = Curves.of([*made_up(), failed, record("Made-up-v0", TOLD, 512, None, seed=8)])
    assert len(curves.failed) == 2
    assert curves.ratio(TOLD, 32_768) == Curves.of(made_up()).ratio(TOLD, 32_768)
    write_page(tmp_path / "page.md", [*made_up(), failed], "python made_up.py")
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "seed 7: over the limit of 3 seconds" in written


def test_the_page_has_the_wanted_figures_at_their_lengths(tmp_path):
    curves = Curves.of(made_up())
    assert [wanted(curves, length) for length in curves.lengths] == [None, 0.6, 0.5]
    said = (
        "32,768 transitions, told the policy: 0.25 of the critic's error over 2 environments; at most 0.60 is wanted."
    )
    assert said in summary(curves)
    assert [row[0].text for row in ratio_table(curves).rows] == ["512", "32,768", "65,536"]
    assert [axes.get_title() for axes in figure(curves).axes if axes.get_title()] == ["Made-up-v0", "Made-up-v1"]
    write_page(tmp_path / "page.md", made_up(), "python made_up.py")
    assert (tmp_path / "page" / "error_by_length.png").stat().st_size > 1000
    assert "`python made_up.py`" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_the_page_says_where_the_design_was_chosen():
    assert origin(Curves.of(made_up())).startswith("None of these environments")
    known = [record("CartPole-v1", CRITIC, 60_000, 1.0), record("CartPole-v1", TOLD, 512, 0.5)]
    assert "chosen on CartPole-v1" in origin(Curves.of([*made_up(), *known]))


def test_a_page_without_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no environment with scores of both"):
        write_page(tmp_path / "page.md", [record("Made-up-v0", CRITIC, 60_000, 1.0)], "python made_up.py")


def test_a_finished_cell_is_never_run_again(tmp_path, monkeypatch):
    place, ran = Place(tmp_path, tmp_path), []
    monkeypatch.setattr(measurements, "truth_of", lambda *_: None)
    monkeypatch.setattr(measurements, "context_file", lambda *_: tmp_path)

    def run(call, where, one, *_, seconds):
        ran.append(one)
        return Outcome(None, "made up") if one.seed else Outcome(record("Made-up-v0", TOLD, 512, 0.5))

    monkeypatch.setattr(measurements, "isolated", run)
    cells = [cell(seed=0), cell(seed=1)]
    first = run_missing(place, cells, 1, 10.0, retry=False)
    assert [each.error for each in first] == [None, "made up"]
    assert run_missing(place, cells, 1, 10.0, retry=False) == [load_record(record_path(tmp_path, one)) for one in cells]
    assert ran == cells
    run_missing(place, cells, 1, 10.0, retry=True)
    assert ran == [*cells, cells[1]]


def test_records_of_other_flags_stay_off_the_page(script, tmp_path):
    config = script.Config(envs=("Hopper-v5",), lengths=(512,), out=tmp_path, critics=tmp_path)
    chosen = script.check(config)
    path = tmp_path / chosen[0].task.policy
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not read")
    place = Place(tmp_path, tmp_path)
    mine = measurements.cells_of(place, chosen[0], (512, 1024), (0,))
    for one in mine:
        write_record(tmp_path, Record(one, error="made up"))
    assert [found.cell for found in script.finished(config, place, chosen)] == mine[:3]


def test_large_bodies_get_fewer_states_and_a_noisy_truth_more_rollouts():
    found = {one.env: (one.num_queries, one.num_rollouts) for one in subjects(False, (), 48, 12)}
    assert found["Hopper-v5"] == (48, 12)
    assert found["HalfCheetah-v5"] == (48, 48)
    assert found["Ant-v5"] == found["Humanoid-v5"] == (32, 6)
    assert all(recipe.snapshots == (60_000,) for recipe in TEST)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (1,)}, "lengths"),
        ({"seeds": (-1,)}, "seeds"),
        ({"limit": 0.0}, "limit"),
        ({"num_rollouts": 1}, "num_rollouts"),
        ({"envs": ("CartPole-v1",)}, "not among the test environments"),
        ({"envs": ("Hopper-v5",), "development": True}, "not among the development environments"),
        ({"prepare_only": True, "report_only": True}, "exclude each other"),
    ],
)
def test_bad_flags_are_refused(script, flags, words):
    with pytest.raises(ValueError, match=words):
        script.check(replace(script.Config(), **flags))


@pytest.mark.slow
def test_the_script_trains_measures_resumes_and_writes_its_page(tmp_path):
    command = [
        sys.executable, str(SCRIPT), "--development", "--envs", "CartPole-v1", "--lengths", "64", "128", "--seeds", "0",
        "--num-queries", "8", "--num-rollouts", "2", "--out", str(tmp_path / "out"), "--critics",
        str(tmp_path / "critics"), "--page", str(tmp_path / "page.md"),
    ]  # fmt: skip
    subprocess.run([*command, "--prepare-only"], cwd=ROOT, check=True, capture_output=True)
    assert not list((tmp_path / "out").glob("records/*"))
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    records = sorted((tmp_path / "out" / "records").iterdir())
    assert len(records) == 5
    assert all(load_record(path).error is None for path in records)
    times = [path.stat().st_mtime_ns for path in records]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [path.stat().st_mtime_ns for path in records] == times
    assert "| CartPole-v1 |" in (tmp_path / "page.md").read_text(encoding="utf-8")
