from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from icrl_gym.benchmark import SUITES, Task, load_records, runner, truths
from icrl_gym.configuration import BenchmarkConfig
from icrl_gym.context.collection import collect
from icrl_gym.ground_truth.values import exact_values
from icrl_gym.values import Estimand, ValueEstimates

CHAIN = "icrl_envs:icrl/BoyanChain-v0"


@pytest.mark.parametrize("env_id", [CHAIN, "icrl_envs:icrl/RandomMRP-v0", "FrozenLake-v1", "Taxi-v4"])
def test_exact_values_at_resets_are_those_of_the_states_shown(env_id):
    with gymnasium.make(env_id) as env:
        exact = exact_values(env, "random", 0.9)
        start = truths.values_at_resets(env, exact, 40, seed=3)
        by_state = dict(zip(exact.observations.tolist(), exact.values, strict=True))
        possible = {int(env.reset(seed=seed)[0]) for seed in range(2000)}
    assert [by_state[state] for state in start.observations.tolist()] == start.values.tolist()
    assert set(start.observations.tolist()) <= possible


def test_a_start_that_the_table_does_not_list_is_an_error():
    values = ValueEstimates(np.zeros(2), np.array([5, 6]), Estimand("FrozenLake-v1", "random", 0.9))
    with (
        gymnasium.make("FrozenLake-v1") as env,
        pytest.raises(ValueError, match="FrozenLake-v1 starts in a state that its transition table does not list"),
    ):
        truths.values_at_resets(env, values, 2, 0)


def test_simulated_and_exact_start_values_agree(tmp_path):
    # Six standard errors of the rollouts. CliffWalking starts in one state, so both means are over the same one.
    config = BenchmarkConfig(out=tmp_path, num_queries=12, num_rollouts=160)
    task = Task("CliffWalking-v1", gamma=0.8)
    context = collect(task.env, "random", 1, 0)
    simulated = truths.truths_of(config, task, "random", context)
    exact = truths.truths_of(config, replace(task, truth="exact"), "random", context)
    assert exact.start_value_stderr == 0.0
    assert 0 < simulated.start_value_stderr < 0.1 * abs(exact.start_value)
    assert abs(simulated.start_value - exact.start_value) < 6 * simulated.start_value_stderr


def test_the_standard_error_of_a_start_value_is_that_of_a_mean():
    start = ValueEstimates(np.array([1.0, 2.0]), np.array([0, 1]), Estimand("a", "b", 0.9), np.array([3.0, 4.0]))
    both = truths.Truths(start, start)
    assert both.start_value == 1.5
    assert both.start_value_stderr == pytest.approx(2.5)


def test_both_truths_are_measured_once(tmp_path, monkeypatch):
    config = BenchmarkConfig(out=tmp_path, num_queries=4, num_rollouts=2)
    task = Task("CartPole-v1", gamma=0.5)
    context = collect(task.env, "random", 1, 0)
    first = truths.truths_of(config, task, "random", context)
    assert sorted(path.name for path in (tmp_path / "truth").iterdir()) == [
        f"{task.id}-q4-r2.npz", f"{task.id}-start-q4-r2.npz",
    ]  # fmt: skip
    monkeypatch.setattr(truths, "monte_carlo_values", None)
    again = truths.truths_of(config, task, "random", context)
    np.testing.assert_array_equal(first.start.values, again.start.values)
    assert abs(first.start.observations).max() <= 0.05  # CartPole starts within 0.05 of rest
    assert abs(first.visited.observations).max() > 0.05


def test_records_hold_the_start_value_of_estimate_and_truth(tmp_path):
    config = BenchmarkConfig(suite="small", out=tmp_path, estimators=("certainty_equivalence",), num_queries=16)
    task = Task(CHAIN, gamma=0.9, truth="exact")
    cell = runner.Cell(task, runner.Setting("certainty_equivalence"), 2048, 0)
    runner.run_job(config, [cell])
    (record,) = load_records(tmp_path)
    assert record.error is None
    assert record.environment_steps == 2048
    assert record.start_value == pytest.approx(record.start_value_truth, rel=0.1)
    assert record.start_value_truth_stderr == 0.0
    assert record.peak_memory_fit >= 0
    with gymnasium.make(CHAIN) as env:
        exact = exact_values(env, "random", 0.9)
    assert exact.values.min() <= record.start_value_truth <= exact.values.max()


def test_tasks_that_differ_in_their_contexts_alone_share_one_truth(tmp_path, monkeypatch):
    on_policy = Task(CHAIN, gamma=0.9, truth="exact")
    off_policy = replace(on_policy, behaviour="epsilon:0.5")
    assert off_policy.id != on_policy.id
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(on_policy, off_policy)))
    measured = []
    real = truths.exact_values
    monkeypatch.setattr(truths, "exact_values", lambda *a, **k: measured.append(1) or real(*a, **k))
    config = BenchmarkConfig(out=tmp_path, estimators=("lstd",), context_lengths=(64,), seeds=(0,), num_queries=4)
    records = runner.run_benchmark(config)
    assert [record.error for record in records] == [None, None]
    assert len(measured) == 1
    assert records[0].start_value_truth == records[1].start_value_truth
