"""Measurements of speed: the logs, the rows, the page and what is refused. Rows are made up."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.benchmark.scale import measurements
from icrl_gym.benchmark.scale.machine import Machine, measured_machine
from icrl_gym.benchmark.scale.measurements import Subject, attribution, difference, in_turn
from icrl_gym.benchmark.scale.page import TOPICS, cost_table, figure, machine_table, topic_table, write_page
from icrl_gym.benchmark.scale.processes import PROCESSES, Pole, Walker, log_of
from icrl_gym.benchmark.scale.rivals import FIRST_STEPS, MOST_STEPS, Trained, error, finished_returns, longer_and_longer
from icrl_gym.benchmark.scale.rows import (
    CONSTRUCTED,
    TOLD,
    Measurement,
    Row,
    check_sizes,
    finished_row,
    plan,
    read_row,
    write_row,
)

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "benchmark_scale.py"
MACHINE = Machine(2, 2**34, 2, 0.1, 60.0, 30.0, 2e10, "made up", "0")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmark_scale", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_scale"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["benchmark_scale"]


def made_up():
    """A row of every measurement; those of rewards do not exist."""
    rows = []
    for each in plan((512, 32_768), 8_192, largest=True, quick=False):
        row = Row(each, each.size / 1e4, 2**20, 0.5, 1e9, each.size / 1e6, each.size / 5e5, 0.25, commit="c" * 40)
        rows.append(Row(each, reason="not available") if each.topic == "rewards" else row)
    return rows


def test_a_pole_without_shocks_moves_as_gymnasiums():
    still, env = Pole(), gymnasium.make("CartPole-v1").unwrapped
    still.shock = 0.0
    rng = np.random.default_rng(0)
    states, actions = rng.uniform(-0.2, 0.2, (20, 4)), rng.integers(0, 2, 20)
    found = still.step(rng, states, actions)
    for state, action, moved, ended in zip(states, actions, found.next_states, found.terminated, strict=True):
        env.reset()
        env.state = state
        observation, reward, terminated, _, _ = env.step(int(action))
        assert observation == pytest.approx(moved, abs=1e-6)
        assert (reward, terminated) == (1.0, ended)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_rows_of_a_log_continue_each_other_within_episodes(name):
    log = log_of(PROCESSES[name](), 2_500)
    going = ~log.episode_ends[:-1]
    assert len(log) == 2_500
    assert (log.next_observations[:-1][going] == log.observations[1:][going]).all()
    assert not (log.next_observations[:-1][~going] == log.observations[1:][~going]).all(axis=1).any()
    again = log_of(PROCESSES[name](), 2_500)
    assert log.observations.tobytes() == again.observations.tobytes()


def test_the_walker_is_only_cut_and_the_pole_falls():
    walker, pole = log_of(Walker(), 2_500), log_of(Pole(), 2_500)
    assert list(np.flatnonzero(walker.truncated)) == [999, 1999]
    assert not walker.terminated.any()
    assert pole.terminated.sum() > 5


def test_policies_are_those_that_acted_and_can_be_asked():
    walker = log_of(Walker(), 200)
    assert Walker()(walker.observations) == pytest.approx(walker.actions)
    for process in (Walker(), Pole()):
        log = log_of(process, 200)
        fitted = icrl.InContextEvaluator.from_pretrained(imagination=False).fit(log, 0.99, policy=process)
        assert fitted.asked_policy_ is not None
        assert fitted.asked_policy_.identity == log.policy


def test_empty_logs_and_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_transitions must be at least 1, got 0"):
        log_of(Walker(), 0)
    with pytest.raises(ValueError, match="sizes must be at least 128 transitions, got 64"):
        check_sizes((512, 64), 512)
    with pytest.raises(ValueError, match="middle must be at least 128"):
        check_sizes((512,), 1)
    with pytest.raises(ValueError, match="at least one number"):
        check_sizes((), 512)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"sizes": (3,)}, "sizes"),
        ({"num_threads": 0}, "num_threads"),
        ({"limit": -1.0}, "limit"),
        ({"topics": ("speed",)}, "topics must be among cost, streaming"),
        ({"before": Path("no/such/folder")}, "before must be the folder"),
    ],
)
def test_bad_flags_are_refused(script, flags, words):
    with pytest.raises(ValueError, match=words):
        script.chosen(replace(script.Config(), **flags))


def test_a_quick_plan_is_small_and_the_largest_has_a_million(script):
    assert max(each.size for each in script.chosen(script.Config(quick=True))) == 512
    assert max(each.size for each in script.chosen(script.Config())) == 100_000
    assert max(each.size for each in script.chosen(script.Config(largest=True))) == 1_000_000
    names = [each.file_name for each in script.chosen(script.Config(largest=True))]
    assert len(names) == len(set(names))


def test_rows_come_back_as_they_were_and_failures_are_measured_again_only_when_asked(tmp_path):
    done = Row(Measurement("cost", TOLD, 512), 1.5, 7, 0.5, note="made up")
    failed = Row(Measurement("cost", CONSTRUCTED, 512), reason="over the limit of 3 seconds")
    for row in (done, failed):
        write_row(tmp_path, row)
        assert finished_row(tmp_path, row.measurement) == row
    assert done.ratio == 3.0
    assert finished_row(tmp_path, done.measurement, retry=True) == done
    assert finished_row(tmp_path, failed.measurement, retry=True) is None
    assert finished_row(tmp_path, Measurement("cost", TOLD, 513)) is None
    path = tmp_path / done.measurement.file_name
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"row .* cannot be read"):
        read_row(path)


def test_a_finished_measurement_is_not_measured_again(script, tmp_path, monkeypatch):
    config = script.Config(out=tmp_path)
    done = Row(Measurement("cost", TOLD, 512), 1.5)
    write_row(tmp_path / "rows", done)
    monkeypatch.setattr(script, "isolated", lambda *_, **__: pytest.fail("measured again"))
    assert script.row_of(config, done.measurement) == done


def test_training_ends_at_equal_error_or_where_it_does_not_help():
    def falling(num_steps):
        return Trained(num_steps, 1_000 / num_steps, 1.0)

    assert longer_and_longer(falling, 0.3).num_steps == 4_000
    assert longer_and_longer(falling, 0.0).num_steps == MOST_STEPS
    asked = []

    def stuck(num_steps):
        asked.append(num_steps)
        return Trained(num_steps, 0.5 + num_steps / 1e6, 1.0)

    assert longer_and_longer(stuck, 0.1).num_steps == FIRST_STEPS
    assert asked == [FIRST_STEPS, 2 * FIRST_STEPS, 4 * FIRST_STEPS]


def test_returns_end_with_their_episode_and_those_that_were_cut_are_left_out():
    ends = np.array([False, True, False, True, False, False, False, False, False, True])
    terminated = np.arange(10) == 1
    truncated = np.arange(10) == 3
    states = np.arange(11.0)[:, None]
    log = icrl.Trajectory(states[:-1], None, np.ones(10), states[1:], terminated, truncated, ends)
    found = finished_returns(log, 0.5)
    assert list(found.states_MD[:, 0]) == [
        0.0,
        1.0,
        4.0,
        5.0,
    ]  # terminated; then 6 and 5 rewards, beyond which weighs 1/64, 1/32
    assert found.returns_M == pytest.approx([1.5, 1.0, 2 - 2**-5, 2 - 2**-4])
    assert list(found.episodes_M) == [0, 0, 2, 2]
    with pytest.raises(ValueError, match="none of its 2 returns"):
        finished_returns(log[2:4], 0.5)


def test_an_error_within_the_truths_noise_is_a_goal_that_can_be_reached():
    estimand = icrl.Estimand("made up", None, 0.9)
    states, values = np.arange(8.0)[:, None], np.arange(8.0)
    truth = icrl.ValueEstimates(values, states, estimand, np.full(8, 0.1))
    assert error(icrl.ValueEstimates(values, states, estimand), truth) > 0.02
    with pytest.raises(ValueError, match="no spread beyond its noise"):
        error(icrl.ValueEstimates(values, states, estimand), replace(truth, stderr=np.full(8, 9.0)))


def test_two_calls_take_turns():
    calls = []
    in_turn(lambda: calls.append("a"), lambda: calls.append("b"), repeats=3)
    assert calls == ["a", "b"] * 3


def test_a_rival_that_solves_large_systems_is_tried_with_less_too():
    sizes = {each.size for each in plan((512,), 8_192, largest=False, quick=False) if each.topic == "rivals"}
    assert sizes == {2_048, 8_192}


def test_the_machines_speeds_are_positive():
    machine = measured_machine(1, product_size=32, copy_bytes=2**12)
    assert min(machine.gflops_float32, machine.gflops_float64, machine.bandwidth, machine.cores) > 0
    assert machine.threads == 1


def test_attribution_is_measured_against_the_values_themselves():
    row = attribution(Measurement("attribution", CONSTRUCTED, 128))
    assert row.error is not None
    assert row.error < 1e-8
    assert row.seconds is not None
    assert row.reference_seconds is not None
    assert difference(np.array([1.0, 2.0]), np.array([0.0, 2.0])) == 1.0


def test_what_the_library_does_not_have_yet_is_said(monkeypatch):
    class Bare:
        pass

    monkeypatch.setattr(measurements, "evaluator", lambda *_, **__: Bare())
    assert measurements.rewards(Measurement("rewards", CONSTRUCTED, 128)).reason == "not available"


def test_queries_are_spread_over_the_log():
    subject = Subject.of("walker", 300)
    states = subject.queries(3)
    assert (states[[0, 2]] == subject.log.observations[[0, 299]]).all()


def test_the_page_says_what_is_wanted_what_is_missing_and_what_was_before(tmp_path):
    rows = made_up()
    write_page(tmp_path / "performance.md", MACHINE, rows, [], "python made_up.py")
    written = (tmp_path / "performance.md").read_text(encoding="utf-8")
    for words in (
        "10 s, 1,536 MiB",
        "480 s, 4,096 MiB",
        "not available",
        "60.0 GFLOP/s",
        "`cccccccccccc`",
        "`python made_up.py`",
    ):
        assert words in written
    assert (tmp_path / "performance" / "cost_by_length.png").stat().st_size > 1000
    assert [axes.get_title() for axes in figure(rows).axes] == [
        "walker: 17 features, 6 actions", "pole: 4 features, endings"
    ]  # fmt: skip
    with_before = cost_table(rows, rows, "walker")
    assert with_before.columns[-1] == "before, s"
    assert with_before.rows[0][-1] == with_before.rows[0][2]
    assert topic_table(rows, "depth").rows[0][4].text == "1.638"  # 8192 / 1e4 over .5
    assert set(TOPICS) | {"cost", "rivals"} == {row.measurement.topic for row in rows}


def test_a_busy_machine_is_said():
    assert "only ratios" in machine_table(replace(MACHINE, load=3.0)).note
    assert machine_table(MACHINE).note == ""


def test_a_page_of_part_of_the_rows_leaves_the_rest_out(tmp_path):
    write_page(
        tmp_path / "page.md",
        MACHINE,
        [row for row in made_up() if row.measurement.topic == "depth"],
        [],
        "python made_up.py",
    )
    written = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "Finite depth" in written
    assert "1,000 prompts" not in written
    assert "cost_by_length" not in written


@pytest.mark.slow
def test_the_script_measures_resumes_and_writes_its_page(tmp_path):
    command = [
        sys.executable, str(SCRIPT), "--sizes", "128", "--middle", "512", "--num-queries", "16", "--num-rollouts", "16",
        "--num-threads", "1", "--out", str(tmp_path / "out"), "--page", str(tmp_path / "page.md"),
        "--topics", "cost", "streaming", "depth", "rivals",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    rows = [read_row(path) for path in sorted((tmp_path / "out" / "rows").glob("*.json"))]
    assert {row.measurement.topic for row in rows} == {"cost", "streaming", "depth", "rivals"}
    assert [row.reason for row in rows if row.reason] == []
    begun = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "rows").glob("*.json"))]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "rows").glob("*.json"))] == begun
    assert "Against what people use" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_products_that_are_added_in_place_are_counted():
    matrix = torch.zeros(8, 6)
    with measurements.product_counter() as counter:
        matrix.addmm_(torch.ones(8, 5), torch.ones(5, 6))
        torch.mm(torch.ones(8, 5), torch.ones(5, 6))
    assert counter.get_total_flops() == 2 * 2 * 8 * 5 * 6
