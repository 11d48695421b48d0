from dataclasses import replace

import gymnasium
import numpy as np
import pytest

from icrl_gym import stored_values
from icrl_gym.benchmark import SUITES, Conditions, Task, load_records, runner, truths
from icrl_gym.configuration import BenchmarkConfig
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
    task = Task("CliffWalking-v1", gamma=0.8)
    simulated = truths.truths_of(tmp_path, task, Conditions(12, 160), "random")
    exact = truths.truths_of(tmp_path, replace(task, truth="exact"), Conditions(12, 0), "random")
    assert exact.start_value_stderr == 0.0
    assert 0 < simulated.start_value_stderr < 0.1 * abs(exact.start_value)
    assert abs(simulated.start_value - exact.start_value) < 6 * simulated.start_value_stderr


def test_the_standard_error_of_a_start_value_is_that_of_a_mean():
    start = ValueEstimates(np.array([1.0, 2.0]), np.array([0, 1]), Estimand("a", "b", 0.9), np.array([3.0, 4.0]))
    both = truths.Truths(start, start)
    assert both.start_value == 1.5
    assert both.start_value_stderr == pytest.approx(2.5)


def test_both_truths_are_measured_once(tmp_path, monkeypatch):
    task, conditions = Task("CartPole-v1", gamma=0.5), Conditions(4, 2)
    first = truths.truths_of(tmp_path, task, conditions, "random")
    stem = truths.truth_stem(task, conditions)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}-start.npz", f"{stem}.npz"]
    monkeypatch.setattr(truths, "monte_carlo_values", None)
    again = truths.truths_of(tmp_path, task, conditions, "random")
    np.testing.assert_array_equal(first.start.values, again.start.values)
    assert abs(first.start.observations).max() <= 0.05  # CartPole starts within 0.05 of rest
    assert abs(first.visited.observations).max() > 0.05


def test_truths_of_other_budgets_and_policies_are_other_files():
    task = Task("CartPole-v1", "CartPole-v1/ppo-seed0/steps30000.zip")
    stems = [
        truths.truth_stem(task, conditions)
        for conditions in (Conditions(4, 2), Conditions(8, 2), Conditions(4, 3), Conditions(4, 2, policy_sha256="a"))
    ]
    assert len(set(stems)) == 4
    assert truths.truth_stem(task, Conditions(4, 2, weights_sha256="b")) == stems[0]  # an estimator's own affair


@pytest.mark.parametrize("damage", [b"", b"torn", None])
def test_a_damaged_truth_is_named_set_aside_and_measured_again(tmp_path, damage):
    task, conditions = Task("CartPole-v1", gamma=0.5), Conditions(4, 2)
    first = truths.truths_of(tmp_path, task, conditions, "random")
    path = tmp_path / f"{truths.truth_stem(task, conditions)}.npz"
    path.write_bytes(path.read_bytes()[:-200] if damage is None else damage)
    with pytest.warns(UserWarning, match=rf"truth .*{path.name}: .*set aside as {path.name}\.damaged, measured again"):
        again = truths.truths_of(tmp_path, task, conditions, "random")
    np.testing.assert_array_equal(first.visited.values, again.visited.values)
    assert path.with_name(path.name + ".damaged").exists()
    np.testing.assert_array_equal(
        truths.truths_of(tmp_path, task, conditions, "random").visited.values, first.visited.values
    )


def test_a_truth_of_another_version_is_measured_again(tmp_path, monkeypatch):
    task, conditions = Task("CartPole-v1", gamma=0.5), Conditions(4, 2)
    monkeypatch.setattr(stored_values, "SCHEMA_VERSION", 1)
    truths.truths_of(tmp_path, task, conditions, "random")
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="schema_version must be 2, got 1"):
        truths.truths_of(tmp_path, task, conditions, "random")


def test_structured_observations_come_back_as_they_were(tmp_path):
    observations = {"a": np.arange(6.0).reshape(2, 3), "b": (np.array([1, 2]), np.zeros((2, 1)))}
    values = ValueEstimates(np.zeros(2), observations, Estimand("x", "y", 0.9), np.ones(2), notes=("n",))
    back = truths.kept(tmp_path / "t.npz", lambda: values)
    assert isinstance(back.observations["b"], tuple)
    np.testing.assert_array_equal(back.observations["a"], observations["a"])
    np.testing.assert_array_equal(back.observations["b"][1], observations["b"][1])
    assert (back.estimand, back.notes) == (values.estimand, values.notes)


def test_records_hold_the_start_value_of_estimate_and_truth(tmp_path):
    task = Task(CHAIN, gamma=0.9, truth="exact")
    cell = runner.Cell(task, runner.Variant("certainty_equivalence"), 2048, 0, Conditions(16, 0))
    runner.run_job(tmp_path, tmp_path, [cell])
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
