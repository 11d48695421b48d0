"""Suites: ids that stay, and contexts of behaviours and of encoded observations."""

import importlib
import sys
import tomllib
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO

import icrl_gym as icrl
from icrl_gym import registry
from icrl_gym.acting.policies import as_policy
from icrl_gym.benchmark import SUITES, Suite, Task, contexts, runner
from icrl_gym.benchmark.report.errors import SELECTION
from icrl_gym.benchmark.truths import Truths
from icrl_gym.configuration import BenchmarkConfig

TABLE = np.random.default_rng(0).dirichlet(np.ones(4), size=16)


def lake(behaviour=None, policy="random", gamma=0.99):
    return Task("FrozenLake-v1", policy, gamma, truth="exact", behaviour=behaviour)


def test_tasks_keep_their_ids():
    assert Task("Taxi-v4", truth="exact").id == "f364cb5c8a32c590"  # as it was first written
    assert lake("random").id not in {lake().id, lake("epsilon:0.3").id}


def test_suites_have_three_stages_of_each_policy_and_five_contexts():
    for name in ("exact", "classic", "box2d", "mujoco", "grid", "packages", "off_policy"):
        assert len(SUITES[name].seeds) == 5
        tasks = [task for task in SUITES[name].tasks if not task.env.startswith("icrl_envs")]
        for env in {task.env for task in tasks}:
            stages = len({task.policy for task in tasks if task.env == env})
            assert stages == 2 if name == "off_policy" else stages >= 3, (name, env)
    assert all(task.behaviour for task in SUITES["off_policy"].tasks)
    assert len({task.id for suite in SUITES.values() for task in suite.tasks}) == sum(
        len(suite.tasks) for suite in SUITES.values()
    )


def test_the_environments_of_other_packages_are_tests_and_their_snapshots_are_named_without_the_package():
    tasks = SUITES["packages"].tasks
    assert not {task.env for task in tasks} & set(SELECTION)
    assert [task.env for task in tasks if task.policy == "random"] == ["Blackjack-v1"]
    for task in tasks[1:]:
        assert task.policy.startswith(f"{task.env.rpartition(':')[2]}/ppo-seed0/steps")


def test_every_extra_that_a_suite_names_is_one_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    named = {task.extra for suite in SUITES.values() for task in suite.tasks} - {""}
    assert "packages" in named
    assert named <= set(project["optional-dependencies"])


@pytest.fixture
def known_ids():
    """Ids that were known before: gymnasium-robotics registers some of gymnasium's again, which other tests need."""
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.update(before)


@pytest.mark.usefixtures("known_ids")
@pytest.mark.parametrize("env", sorted({task.env for task in SUITES["packages"].tasks}))
def test_an_environment_of_another_package_gives_contexts_and_values(env):
    module = env.rpartition(":")[0]
    if module:
        pytest.importorskip(module)
    task = replace(next(task for task in SUITES["packages"].tasks if task.env == env), policy="random")
    log = contexts.task_context(task, "random", 24, 0, Path())
    truth = icrl.monte_carlo_values(task.spec, "random", num_queries=2, num_rollouts=2, gamma=0.5, seed=1)
    estimate = icrl.make_estimator("constructed").fit(log, 0.5, contexts.evaluated_policy(task, "random"))
    assert np.isfinite(estimate.predict(truth.observations).values).all()


@pytest.mark.parametrize("behaviour", ["random", "epsilon:0.3"])
def test_a_behaviours_log_is_weighed_for_the_tasks_policy(behaviour):
    log = contexts.task_context(lake(behaviour), TABLE, 400, 0, Path())
    target = as_policy(TABLE, spaces.Discrete(4), spaces.Discrete(16))
    assert log.policy == target.identity
    pi = TABLE[log.observations, log.actions]
    mu = 0.25 if behaviour == "random" else 0.7 * pi + 0.3 / 4
    assert log.importance_ratios == pytest.approx(pi / mu)
    own = contexts.task_context(lake(), TABLE, 400, 0, Path())
    assert own.importance_ratios is None
    assert (own.actions != log.actions).any()


def test_a_behaviours_log_without_probabilities_is_for_estimators_that_ask_the_policy(tmp_path, monkeypatch):
    options = {"n_steps": 8, "batch_size": 8, "device": "cpu", "policy_kwargs": {"net_arch": [4]}}
    models = {f"{name}.zip": PPO("MlpPolicy", "Pendulum-v1", seed=seed, **options) for seed, name in enumerate("ab")}
    task = Task("Pendulum-v1", "a.zip", 0.9, behaviour="b.zip")
    monkeypatch.setattr(contexts, "task_policy", lambda name, critics: models[name])
    monkeypatch.setattr(runner, "task_policy", lambda name, critics: models[name])
    log = contexts.task_context(task, models["a.zip"], 50, 0, tmp_path)
    assert log.importance_ratios is None
    assert log.policy == as_policy(models["b.zip"], models["b.zip"].action_space).identity
    entry = registry.Registration(partial(registry._BUILT_IN["fqe"].factory, num_steps=5))
    monkeypatch.setattr(registry, "_entries", lambda: {"fqe": entry, "lstd": registry._BUILT_IN["lstd"]})
    monkeypatch.setitem(SUITES, "small", Suite((task,), (50,), (0,)))
    config = BenchmarkConfig(
        suite="small", out=tmp_path, estimators=("fqe", "lstd"), num_queries=4, num_rollouts=2, trust_model=True
    )
    asking, knowing_by_actions = runner.run_benchmark(config)
    assert asking.error is None
    assert "LSTD knows a policy by its logged actions alone" in str(knowing_by_actions.error)


def test_a_behaviour_that_cannot_be_made_is_named():
    with pytest.raises(ValueError, match=r'behaviour must be like "epsilon:0.3".*got \'epsilon:high\''):
        contexts.task_context(lake("epsilon:high"), TABLE, 4, 0, Path())


def test_an_off_policy_cell_is_scored_against_the_targets_values(tmp_path, monkeypatch):
    upwards = np.tile([0.7, 0.1, 0.1, 0.1], (48, 1))
    task = Task("CliffWalking-v1", "a table", 0.9, truth="exact", behaviour="random")
    monkeypatch.setattr(runner, "task_policy", lambda name, critics: upwards)
    monkeypatch.setitem(SUITES, "small", Suite((task,), (4000,), (0,)))
    names = ("certainty_equivalence", "gptd")
    config = BenchmarkConfig(suite="small", out=tmp_path, estimators=names, num_queries=8, num_rollouts=2)
    found = {record.cell.variant.estimator: record for record in runner.run_benchmark(config)}
    assert found["certainty_equivalence"].error is None
    env = gymnasium.make("CliffWalking-v1")
    truth, of_behaviour = (icrl.exact_values(env, policy, 0.9) for policy in (upwards, "random"))
    without_weights = np.sqrt(np.mean((of_behaviour.values - truth.values) ** 2))
    error = found["certainty_equivalence"].scores["rmse"]
    assert error is not None
    assert error < without_weights / 3
    assert "does not use importance_ratios" in str(found["gptd"].error)


class Doubler:
    """The least of an SB3 model: a policy with a feature extractor."""

    policy = SimpleNamespace(
        features_extractor=None,
        critic=SimpleNamespace(features_extractor=None),
        obs_to_tensor=lambda observations: (torch.as_tensor(observations), False),
        extract_features=lambda tensor, extractor: 2 * tensor,
    )

    def get_vec_normalize_env(self):
        return None

    def __call__(self, observations):
        return np.zeros(len(observations), int)


def test_estimators_see_the_features_of_the_policy_and_critics_the_observations():
    task = Task("CartPole-v1", features="policy")
    log = icrl.collect("CartPole-v1", "random", 50)
    encoded = contexts._encoded_log(log, task, Doubler())
    np.testing.assert_allclose(encoded.observations, 2.0 * log.observations)
    np.testing.assert_allclose(encoded.next_observations, 2.0 * log.next_observations)
    np.testing.assert_array_equal(encoded.episode_ends, log.episode_ends)
    values = icrl.ValueEstimates(np.arange(3.0), log.observations[:3], icrl.Estimand("CartPole-v1", "random", 0.99))
    truths = Truths(values, values)
    seen = contexts.truths_as_seen(task, Doubler(), truths)
    np.testing.assert_allclose(seen.start.observations, 2.0 * log.observations[:3])
    np.testing.assert_array_equal(seen.visited.values, values.values)
    assert contexts.truths_as_seen(Task("CartPole-v1"), Doubler(), truths) is truths
    with pytest.raises(ValueError, match="are those of a trained policy, but the task's is 'random'"):
        contexts.task_context(task, "random", 5, 0, Path())
    with pytest.raises(ValueError, match="features must be None or 'policy', got 'pixels'"):
        contexts.task_context(Task("CartPole-v1", features="pixels"), Doubler(), 5, 0, Path())


def test_the_documented_estimator_and_environment_run_from_outside_the_package(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    estimator, environment, script = (block.split("```")[0] for block in page.split("```python\n")[1:])
    (tmp_path / "my_package.py").write_text(estimator + environment)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gymnasium, "registry", gymnasium.registry.copy())
    entry_point = EntryPoint("mean_return", "my_package:MeanReturn", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry_point])
    monkeypatch.setitem(SUITES, "mine", Suite(()))  # taken away again after the test
    registry._entries.cache_clear()
    try:
        importlib.import_module("my_package")
        names: dict = {}
        exec(script.replace('suite="mine"', 'suite="mine", num_queries=8, num_rollouts=4'), names)
    finally:
        monkeypatch.undo()
        registry._entries.cache_clear()
        sys.modules.pop("my_package", None)
    records = names["records"]
    assert [record.error for record in records] == [None] * 9
    assert {record.cell.task.env for record in records} == {"my_package:Drift-v0"}
    for record in records:
        is_constant = record.scores["explained_variance"] == pytest.approx(0.0, abs=1e-9)
        assert is_constant == (record.cell.variant.estimator == "mean_return")
