from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from icrl_gym import registry
from icrl_gym.benchmark import SUITES, Cell, Record, Setting, Task, runner
from icrl_gym.benchmark.report import benchmark_tables
from icrl_gym.configuration import BenchmarkConfig
from icrl_gym.scoring import statistics as agg

CHAIN = Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact")


def config(tmp_path, **options):
    defaults = {"suite": "small", "out": tmp_path, "estimators": ("lstd", "constructed"), "context_lengths": (64,)}
    return BenchmarkConfig(**{**defaults, "seeds": (0, 1), "num_queries": 8, "num_rollouts": 2, **options})


@pytest.fixture
def chain_only(monkeypatch):
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(CHAIN,)))


def test_failures_stand_in_the_table_with_their_reasons():
    cell = Cell(CHAIN, Setting("lstd"), 64, 0)
    assert "ZeroDivisionError: no" in benchmark_tables([Record(cell, error="ZeroDivisionError: no")])


def test_tuning_adds_the_grid_and_the_report_shows_both(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path, estimators=("kbrl",), tune=True))
    assert len(records) == 2 * (1 + len(registry.tuning_grid("kbrl")))
    row = next(line for line in benchmark_tables(records).splitlines() if "| kbrl" in line)
    default, tuned = (float(row.split("|")[i].split("[")[0]) for i in (5, 9))
    assert tuned <= default


def test_snapshots_named_by_the_suites_are_those_of_the_training_recipes():
    from icrl_gym.benchmark.suites import snapshots
    from icrl_gym.rivals.critic_training import find_run

    assert len(snapshots(SUITES)) > 30
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


def test_interquartile_mean_drops_a_quarter_at_each_end():
    scores = np.array([[0.0, 1.0, 2.0, 100.0], [3.0, 4.0, 5.0, -100.0]])
    assert agg.interquartile_mean(scores) == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_probability_of_improvement_is_the_mann_whitney_statistic_averaged_over_tasks():
    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 5, (6, 3)).astype(float), rng.integers(0, 5, (8, 3)).astype(float)
    expected = np.mean([stats.mannwhitneyu(ours[:, t], theirs[:, t]).statistic / 48 for t in range(3)])
    assert agg.probability_of_improvement(ours, theirs) == pytest.approx(expected)


def test_the_interval_of_a_comparison_resamples_both_sides():
    rng = np.random.default_rng(1)
    ours, theirs = rng.standard_normal((2, 5, 4))
    result = agg.with_paired_interval(agg.probability_of_improvement, ours, theirs)
    draws = [
        agg.probability_of_improvement(
            np.take_along_axis(ours, rng.integers(5, size=(5, 4)), 0),
            np.take_along_axis(theirs, rng.integers(5, size=(5, 4)), 0),
        )
        for _ in range(4000)
    ]
    # Percentiles of 2,000 and of 4,000 draws of a figure with standard deviation 0.1 are within 0.03 of each other.
    np.testing.assert_allclose((result.low, result.high), np.percentile(draws, [2.5, 97.5]), atol=0.03)
    assert result.value == agg.probability_of_improvement(ours, theirs)
    with pytest.raises(ValueError, match="same tasks"):
        agg.with_paired_interval(agg.probability_of_improvement, ours, theirs[:, :2])


def test_profiles_gaps_and_medians_by_hand():
    scores = np.array([[0.2, 1.5], [0.6, 0.9]])
    np.testing.assert_allclose(agg.performance_profile(scores, np.array([0.0, 0.5, 1.0])), [1.0, 0.75, 0.25])
    assert agg.optimality_gap(scores) == pytest.approx(1 - (0.2 + 1.0 + 0.6 + 0.9) / 4)
    assert agg.median(scores) == pytest.approx((0.4 + 1.2) / 2)
    assert agg.geometric_mean(np.array([[1.0, 4.0]])) == pytest.approx(2.0)


def test_stratified_bootstrap_covers_the_true_mean_and_keeps_tasks_apart():
    # 200 data sets, 95 % intervals of the mean over 12 runs of 3 tasks with far apart levels. Percentile intervals of
    # 12 runs cover a little less than they say; fewer than 170 of 200 has probability below 1e-6 at 93 %.
    rng = np.random.default_rng(0)
    levels, covered = np.array([0.0, 100.0, 1000.0]), 0
    for seed in range(200):
        result = agg.with_interval(agg.mean, levels + rng.standard_normal((12, 3)), 300, seed)
        covered += result.low <= levels.mean() <= result.high
        assert result.high - result.low < 2.0  # tasks are never mixed
    assert covered >= 170


def test_a_task_with_fewer_runs_weighs_as_much_as_any_other_and_keeps_its_own_runs():
    scores = np.array([[1.0, 10.0], [2.0, np.nan], [3.0, np.nan]])
    result = agg.with_interval(agg.mean, scores)
    assert result.value == pytest.approx((2.0 + 10.0) / 2)
    assert (1.0 + 10.0) / 2 <= result.low < result.high <= (3.0 + 10.0) / 2


def test_matrices_that_cannot_be_averaged_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        agg.with_interval(agg.mean, np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="must be finite"):
        agg.with_interval(agg.mean, np.array([[1.0, np.inf]]))
    with pytest.raises(ValueError, match="non-empty"):
        agg.with_interval(agg.mean, np.zeros((0, 3)))


def test_the_example_of_the_documentation_runs(tmp_path, chain_only, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(example, names)
    monkeypatch.setattr(registry, "_entries", lambda: {"mean_return": registry.Registration(names["MeanReturn"])})
    records = runner.run_benchmark(config(tmp_path, estimators=("mean_return",), seeds=(0,)))
    assert [record.error for record in records] == [None]
    assert records[0].scores["explained_variance"] == pytest.approx(0.0, abs=1e-9)  # a constant explains nothing
