import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from icrl_gym import registry
from icrl_gym.acting.demo_policy import load_demo_policy
from icrl_gym.benchmark import SUITES, Cell, Conditions, Task, Variant, load_records, runner, truths
from icrl_gym.benchmark.contexts import evaluated_policy
from icrl_gym.cli import main
from icrl_gym.configuration import BenchmarkConfig
from icrl_gym.context.collection import collect

CHAIN = Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact")


def config(tmp_path, **options):
    defaults = {"suite": "small", "out": tmp_path, "estimators": ("lstd", "constructed"), "context_lengths": (64,)}
    return BenchmarkConfig(**{**defaults, "seeds": (0, 1), "num_queries": 8, "num_rollouts": 2, **options})


@pytest.fixture
def chain_only(monkeypatch):
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(CHAIN,)))


def test_ids_are_stable_and_tell_cells_apart():
    conditions = Conditions(64, 24, policy_sha256="a", weights_sha256="b")
    cell = Cell(Task("CartPole-v1"), Variant.of("lstd", {"ridge": 0.1, "width": 2.0}), 512, 0, conditions)
    same = replace(cell, task=Task("CartPole-v1", extra="classic"))
    assert same.id == replace(cell, variant=Variant.of("lstd", {"width": 2.0, "ridge": 0.1})).id == cell.id
    assert cell.id == "5a964ddc4c8f9613"  # a change here orphans every finished sweep
    others = {
        replace(cell, seed=1).id, replace(cell, context_length=256).id, replace(cell, variant=Variant("lstd")).id,
        replace(cell, task=Task("CartPole-v1", gamma=0.9)).id,
    }  # fmt: skip
    changes = ({"num_queries": 8}, {"num_rollouts": 8}, {"policy_sha256": "c"}, {"behaviour_sha256": "c"},
               {"weights_sha256": "c"})  # fmt: skip
    others |= {replace(cell, conditions=replace(conditions, **change)).id for change in changes}
    assert len(others | {cell.id}) == 10


def test_a_sweep_under_other_conditions_computes_other_cells(tmp_path, chain_only, monkeypatch):
    def ids(**options):
        return {cell.id for job in runner.suite_jobs(config(tmp_path, **options)) for cell in job}

    assert not ids() & ids(num_queries=9)
    assert ids() == ids(num_rollouts=3)  # the truth is exact
    snapshot = tmp_path / "a" / "ppo-seed0" / "steps1.zip"
    snapshot.parent.mkdir(parents=True)
    trained = Task("CartPole-v1", "a/ppo-seed0/steps1.zip", behaviour="a/ppo-seed0/steps1.zip")
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(trained,)))
    found = [ids(critics=tmp_path)]
    for content in (b"one", b"two"):
        snapshot.write_bytes(content)
        found.append(ids(critics=tmp_path))
    assert not found[0] & found[1] | found[1] & found[2]
    assert not ids(critics=tmp_path) & ids(critics=tmp_path, num_rollouts=3)
    before = ids(estimators=("generalist",))
    monkeypatch.setattr(runner, "weights_sha256", lambda name: "other weights")
    assert not before & ids(estimators=("generalist",))


def test_models_are_not_unpickled_unless_trusted(tmp_path, capsys):
    assert main(["benchmark", "--suite", "grid", "--out", str(tmp_path), "--critics", str(tmp_path)]) == 2
    assert "hold pickles, which run code when loaded: pass trust_model=True (--trust-model)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_critics_environment_steps_are_those_of_its_training(tmp_path, monkeypatch):
    trained = Task("CartPole-v1", "CartPole-v1/ppo-seed0/steps10.zip", gamma=0.5)
    model = load_demo_policy()
    model.gamma = 0.5
    card = tmp_path / "CartPole-v1" / "ppo-seed0" / "steps10.json"
    card.parent.mkdir(parents=True)
    card.write_text('{"num_steps_taken": 16}')
    monkeypatch.setattr(runner, "task_policy", lambda name, critics: model)
    cells = [Cell(trained, Variant(name), 64, 0, Conditions(4, 2)) for name in ("critic", "lstd")]
    runner.run_job(tmp_path, tmp_path, cells)
    found = {record.cell.variant.estimator: record for record in load_records(tmp_path)}
    assert [found[name].error for name in ("critic", "lstd")] == [None, None]
    assert (found["critic"].environment_steps, found["lstd"].environment_steps) == (16, 64)


def test_every_estimator_is_told_the_policy_to_be_evaluated(tmp_path, monkeypatch):
    told = []

    class Asking(registry._BUILT_IN["fqe"].factory):
        def fit(self, trajectory, gamma, policy=None):
            told.append(policy)
            return super().fit(trajectory, gamma, policy)

    entries = {name: registry.Registration(partial(Asking, num_steps=2)) for name in ("fqe", "another")}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    lake = Task("FrozenLake-v1", truth="exact", behaviour="random")
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(lake,)))
    records = runner.run_benchmark(config(tmp_path, estimators=("fqe", "another"), seeds=(0,)))
    assert [record.error for record in records] == [None] * 2
    assert [(policy.identity, policy.action_space.n) for policy in told] == [("random", 4)] * 2


def test_estimators_of_encoded_observations_are_told_no_policy():
    assert evaluated_policy(Task("CartPole-v1", features="policy"), None) is None


def test_a_suite_runs_and_its_records_say_what_was_found(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path))
    assert [r.cell.variant.estimator for r in records] == ["lstd", "constructed"] * 2
    assert all(r.error is None and r.scores["rmse_over_std"] > 0 and r.seconds_fit > 0 for r in records)
    assert sorted(r.cell.id for r in records) == [r.cell.id for r in load_records(tmp_path)]
    assert all(r.environment_steps == 64 and r.start_value_truth_stderr == 0 for r in records)


def test_records_count_the_ends_of_their_context(tmp_path, monkeypatch):
    lake = Task("FrozenLake-v1", truth="exact")
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(lake,)))
    for record in runner.run_benchmark(config(tmp_path, estimators=("lstd",), context_lengths=(512,))):
        context = collect(lake.env, "random", 512, record.cell.seed)
        assert record.context_terminations == context.terminated.sum() > 20
        assert record.context_episodes == (context.terminated | context.truncated).sum()


def test_finished_cells_are_kept_and_only_missing_ones_run(tmp_path, chain_only, monkeypatch):
    runner.run_benchmark(config(tmp_path))
    records = sorted((tmp_path / "records").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    records[0].unlink()
    ran = []
    real = runner._run_estimator
    monkeypatch.setattr(runner, "_run_estimator", lambda cell, *rest: ran.append(cell.id) or real(cell, *rest))
    monkeypatch.setattr(truths, "exact_values", None)  # the truth is read, not measured again
    runner.run_benchmark(config(tmp_path))
    assert ran == [records[0].stem]
    assert all(path.stat().st_mtime_ns == before[path] for path in records[1:])


@pytest.mark.slow  # starts processes
def test_results_do_not_depend_on_the_number_of_processes(tmp_path, chain_only):
    one = runner.run_benchmark(config(tmp_path / "one"))
    two = runner.run_benchmark(config(tmp_path / "two", jobs=2))
    assert [r.scores for r in one] == [r.scores for r in two]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda queries: 1 / 0, "ZeroDivisionError"),
        (lambda queries: np.full(len(queries), np.nan), "is not finite"),
        (lambda queries: np.zeros(3), "values must have shape"),
    ],
)
def test_a_failing_estimator_is_a_recorded_failure_and_the_sweep_goes_on(
    tmp_path, chain_only, monkeypatch, fault, reason
):
    class Faulty:
        def fit(self, trajectory, gamma, policy=None):
            self.good = registry.make_estimator("lstd").fit(trajectory, gamma)
            return self

        def predict(self, observations):
            return replace(self.good.predict(observations), values=fault(observations))

    entries = {"lstd": registry._BUILT_IN["lstd"], "faulty": registry.Registration(Faulty)}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    records = runner.run_benchmark(config(tmp_path, estimators=("faulty", "lstd")))
    failed = [r for r in records if r.cell.variant.estimator == "faulty"]
    assert len(failed) == 2
    assert all(reason in r.error for r in failed)
    assert all(r.error is None for r in records if r.cell.variant.estimator == "lstd")


def test_a_missing_environment_names_the_extra_and_skips_only_its_cells(tmp_path, monkeypatch):
    tasks = (Task("Nowhere-v9", extra="box2d"), CHAIN)
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=tasks))
    records = runner.run_benchmark(config(tmp_path, estimators=("lstd",), seeds=(0,)))
    errors = {r.cell.task.env: r.error for r in records}
    assert 'pip install "icrl-gym[box2d]"' in errors["Nowhere-v9"]
    assert errors[CHAIN.env] is None


@pytest.mark.parametrize(
    ("package", "task"),
    [
        ("Box2D", Task("LunarLander-v3", extra="box2d")),
        ("mujoco", Task("InvertedPendulum-v5", extra="mujoco")),
        ("nowhere", Task("CartPole-v1", wrapper="nowhere.wrappers:Some", extra="minigrid")),
        ("highway_env", Task("highway_env:merge-v1", extra="packages")),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package, task):
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(task,)))
    (record,) = runner.run_benchmark(config(tmp_path, estimators=("lstd",), seeds=(0,)))
    assert record.error.endswith(f'(pip install "icrl-gym[{task.extra}]")')


def test_a_missing_snapshot_is_the_failure_of_its_cells(tmp_path, monkeypatch):
    tasks = (Task("CartPole-v1", "CartPole-v1/ppo-seed9/steps1.zip", extra="classic"), CHAIN)
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=tasks))
    options = {"estimators": ("lstd", "critic"), "seeds": (0,), "critics": tmp_path, "trust_model": True}
    records = runner.run_benchmark(config(tmp_path / "run", **options))
    assert ["steps1.zip" in (r.error or "") for r in records] == [True, True, False]
    assert not any("pip install" in (r.error or "") for r in records)


def test_failed_cells_stay_finished_until_they_are_asked_for_again(tmp_path, chain_only, monkeypatch):
    class Raising:
        def fit(self, trajectory, gamma, policy=None):
            raise RuntimeError("out of luck")

    good = registry._BUILT_IN["lstd"]
    entries = {"lstd": good, "faulty": registry.Registration(Raising)}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    options = {"estimators": ("lstd", "faulty"), "seeds": (0,)}
    fine, failed = runner.run_benchmark(config(tmp_path, **options))
    assert (fine.error, failed.error) == (None, "RuntimeError: out of luck")
    kept = (tmp_path / "records" / f"{fine.cell.id}.json").stat().st_mtime_ns
    entries["faulty"] = good
    assert runner.run_benchmark(config(tmp_path, **options))[1] == failed
    assert [r.error for r in runner.run_benchmark(config(tmp_path, retry_failed=True, **options))] == [None, None]
    assert (tmp_path / "records" / f"{fine.cell.id}.json").stat().st_mtime_ns == kept


def test_estimates_at_the_start_states_are_checked_too(tmp_path, chain_only, monkeypatch):
    class GoodOnce:
        def fit(self, trajectory, gamma, policy=None):
            self.good, self.asked = registry.make_estimator("lstd").fit(trajectory, gamma), False
            return self

        def predict(self, observations):
            estimate, asked = self.good.predict(observations), self.asked
            self.asked = True
            return replace(estimate, values=np.full(len(estimate), np.inf)) if asked else estimate

    monkeypatch.setattr(
        registry, "_entries", lambda: {"lstd": registry._BUILT_IN["lstd"], "once": registry.Registration(GoodOnce)}
    )
    (record,) = runner.run_benchmark(config(tmp_path, estimators=("once",), seeds=(0,)))
    assert record.error == "ValueError: values[0] is not finite"
    assert record.scores == {}


def test_the_overhead_is_what_jobs_take_beyond_their_estimators(tmp_path, chain_only, monkeypatch):
    class Sleeping:
        def fit(self, trajectory, gamma, policy=None):
            time.sleep(0.2)
            self.good = registry.make_estimator("lstd").fit(trajectory, gamma)
            return self

        def predict(self, observations):
            time.sleep(0.1)
            return self.good.predict(observations)

    entries = {"lstd": registry._BUILT_IN["lstd"], "sleeping": registry.Registration(Sleeping)}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    options = {"estimators": ("sleeping", "lstd"), "seeds": (0, 1)}
    cost = runner.run_missing(config(tmp_path, **options))
    assert cost.num_jobs == 2
    assert cost.seconds_own >= 2 * (0.2 + 0.1 + 0.1)  # one prediction at visited states, one at start states
    assert 1.0 <= cost.overhead == cost.seconds_jobs / cost.seconds_own
    assert f"{cost.overhead:.2f} times the estimators' own fit and predict" in str(cost)
    again = runner.run_missing(config(tmp_path, **options))
    assert (again.num_jobs, again.num_kept) == (0, 4)
    assert str(again) == "all 4 cells were finished before and kept; nothing was run"
    assert "1 jobs took 2.0 s of computing, and no cell succeeded" in str(runner.SweepCost(1, 0, 0.5, 2.0, 0.0))


def test_an_interrupted_sweep_says_what_it_keeps_and_the_next_one_what_it_kept(
    tmp_path, chain_only, monkeypatch, capsys
):
    run_job, called = runner.run_job, []

    def interrupted(*arguments):
        called.append(arguments)
        if len(called) > 1:
            raise KeyboardInterrupt
        return run_job(*arguments)

    flags = [
        "benchmark",
        "--suite",
        "small",
        "--out",
        str(tmp_path / "out"),
        "--estimators",
        "lstd",
        "--seeds",
        "0",
        "1",
    ]
    flags += ["--context-lengths", "64", "--num-queries", "8"]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run_job", interrupted)
        assert main(flags) == 130
    assert "1 of 2 cells are finished and kept below" in capsys.readouterr().err
    heard = []
    settings = config(tmp_path / "out", estimators=("lstd",), num_rollouts=BenchmarkConfig.num_rollouts)
    cost = runner.run_missing(settings, lambda *said: heard.append(said))
    assert heard[0] == ("cells kept", 1, 2)
    assert (cost.num_jobs, cost.num_kept) == (1, 1)
    assert main(flags) == 0
    assert "all 2 cells were finished before and kept; nothing was run" in capsys.readouterr().err


def test_sharing_keeps_the_overhead_of_all_estimators_below_one_and_a_half(tmp_path, chain_only):
    names = tuple(name for name in registry.estimators() if name not in ("fitted_value_network", "fqe"))  # slow ones
    config_of = BenchmarkConfig(out=tmp_path, estimators=names, context_lengths=(512,), seeds=(0,))
    assert runner.run_missing(config_of).overhead < 1.5


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="suite must be one of"):
        runner.check_config(BenchmarkConfig(suite="nope"))
    with pytest.raises(ValueError, match=r"unknown \['lsdt'\]"):
        runner.check_config(BenchmarkConfig(estimators=("lsdt",)))
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        runner.check_config(BenchmarkConfig(jobs=0))
    with pytest.raises(ValueError, match=r"context_lengths must be integers of at least 1, got \[64, 0\]"):
        runner.check_config(BenchmarkConfig(context_lengths=(64, 0)))
    with pytest.raises(ValueError, match=r"seeds must be integers of at least 0, got \[-1\]"):
        runner.check_config(BenchmarkConfig(seeds=(-1,)))
    with pytest.raises(ValueError, match='backend must be "joblib" or "ray", got \'slurm\''):
        runner.check_config(BenchmarkConfig(backend="slurm"))
    with pytest.raises(ValueError, match='with it, backend must be "ray"'):
        runner.check_config(BenchmarkConfig(address="auto"))


def test_a_suite_can_be_cut_to_some_environments(tmp_path):
    jobs = runner.suite_jobs(config(tmp_path, envs=("CartPole-v1",)))
    assert {cell.task.env for job in jobs for cell in job} == {"CartPole-v1"}
    with pytest.raises(ValueError, match="envs must be environments of suite 'small'"):
        runner.check_config(config(tmp_path, envs=("CartPole",)))
