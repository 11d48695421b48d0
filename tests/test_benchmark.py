from dataclasses import replace
from pathlib import Path

import pytest

from icrl_gym import registry
from icrl_gym.benchmark import SUITES, Cell, Conditions, Record, Task, Variant, runner
from icrl_gym.benchmark.report import benchmark_tables
from icrl_gym.configuration import BenchmarkConfig

CHAIN = Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact")


def config(tmp_path, **options):
    defaults = {"suite": "small", "out": tmp_path, "estimators": ("lstd", "constructed"), "context_lengths": (64,)}
    return BenchmarkConfig(**{**defaults, "seeds": (0, 1), "num_queries": 8, "num_rollouts": 2, **options})


@pytest.fixture
def chain_only(monkeypatch):
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(CHAIN,)))


def test_failures_stand_in_the_table_with_their_reasons():
    cell = Cell(CHAIN, Variant("lstd"), 64, 0, Conditions(8, 0))
    assert "ZeroDivisionError: no" in benchmark_tables([Record(cell, error="ZeroDivisionError: no")])


def test_tuning_adds_the_grid_and_the_report_shows_both(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path, estimators=("kbrl",), tune=True))
    assert len(records) == 2 * (1 + len(registry.tuning_grid("kbrl")))
    row = next(line for line in benchmark_tables(records).splitlines() if "| kbrl" in line)
    default, tuned = (float(row.split("|")[i].split("[")[0]) for i in (5, 7))
    assert tuned <= default


def test_snapshots_named_by_the_suites_are_those_of_the_training_recipes():
    from icrl_gym.benchmark.suites import snapshots
    from icrl_gym.rivals.critic_training import find_run

    assert len(snapshots(SUITES)) > 25
    for path in snapshots(SUITES):
        recipe, seed = find_run(path)
        assert path.endswith(f"{recipe.algorithm.lower()}-seed{seed}/{Path(path).name}")
    for suite in SUITES.values():
        for task in suite.tasks:
            if task.policy != "random":
                recipe, _ = find_run(task.policy)
                assert (task.env, task.wrapper, task.gamma) == (recipe.env, recipe.wrapper, recipe.gamma)
    with pytest.raises(ValueError, match=r"no recipe makes 'CartPole-v1/ppo-seed0/steps7\.zip'"):
        find_run("CartPole-v1/ppo-seed0/steps7.zip")
    with pytest.raises(ValueError, match=r"suites must be among .*'small'.*got \['clasic'\]"):
        snapshots(["clasic"])


def test_the_example_of_the_documentation_runs(tmp_path, chain_only, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(example, names)
    monkeypatch.setattr(registry, "_entries", lambda: {"mean_return": registry.Registration(names["MeanReturn"])})
    records = runner.run_benchmark(config(tmp_path, estimators=("mean_return",), seeds=(0,)))
    assert [record.error for record in records] == [None]
    assert records[0].scores["explained_variance"] == pytest.approx(0.0, abs=1e-9)  # a constant explains nothing
