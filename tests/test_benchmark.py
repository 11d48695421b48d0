import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from icrl_gym import registry
from icrl_gym.benchmark import SUITES, Cell, Setting, Task, load_records, runner
from icrl_gym.benchmark import aggregates as agg
from icrl_gym.benchmark.report import benchmark_tables
from icrl_gym.configuration import BenchmarkConfig

CHAIN = Task("icrl_envs:icrl/BoyanChain-v0", gamma=0.9, truth="exact")


def config(tmp_path, **options):
    defaults = {"suite": "small", "out": tmp_path, "estimators": ("lstd", "constructed"), "context_lengths": (64,)}
    return BenchmarkConfig(**{**defaults, "seeds": (0, 1), "num_queries": 8, "num_rollouts": 2, **options})


@pytest.fixture
def chain_only(monkeypatch):
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=(CHAIN,)))


def test_ids_are_stable_and_tell_cells_apart():
    cell = Cell(Task("CartPole-v1"), Setting.of("lstd", {"ridge": 0.1, "width": 2.0}), 512, 0)
    assert (
        cell.id
        == Cell(Task("CartPole-v1", extra="classic"), Setting.of("lstd", {"width": 2.0, "ridge": 0.1}), 512, 0).id
    )
    assert cell.id == "137b4f49c9a70b2e"  # a change here orphans every finished sweep
    others = {
        replace(cell, seed=1).id, replace(cell, context_length=256).id, replace(cell, setting=Setting("lstd")).id,
        replace(cell, task=Task("CartPole-v1", gamma=0.9)).id,
    }  # fmt: skip
    assert len(others | {cell.id}) == 5


def test_a_suite_runs_and_its_records_say_what_was_found(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path))
    assert [r.cell.setting.estimator for r in records] == ["lstd", "constructed"] * 2
    assert all(r.error is None and r.scores["rmse_over_std"] > 0 and r.seconds_fit > 0 for r in records)
    assert sorted(r.cell.id for r in records) == [r.cell.id for r in load_records(tmp_path)]
    table = benchmark_tables(records)
    assert "| lstd | 2 |" in table
    assert "| constructed | 2 |" in table


def test_finished_cells_are_kept_and_only_missing_ones_run(tmp_path, chain_only, monkeypatch):
    runner.run_benchmark(config(tmp_path))
    records = sorted((tmp_path / "records").glob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in records}
    records[0].unlink()
    ran = []
    real = runner._run_cell
    monkeypatch.setattr(
        runner, "_run_cell", lambda config, cell, *rest: ran.append(cell.id) or real(config, cell, *rest)
    )
    monkeypatch.setattr(runner, "exact_values", None)  # the truth is read, not measured again
    runner.run_benchmark(config(tmp_path))
    assert ran == [records[0].stem]
    assert all(path.stat().st_mtime_ns == before[path] for path in records[1:])


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
        def fit(self, trajectory, gamma):
            self.good = registry.make_estimator("lstd").fit(trajectory, gamma)
            return self

        def predict(self, observations):
            return replace(self.good.predict(observations), values=fault(observations))

    entries = {"lstd": registry._BUILT_IN["lstd"], "faulty": registry.Entry(Faulty)}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    records = runner.run_benchmark(config(tmp_path, estimators=("faulty", "lstd")))
    failed = [r for r in records if r.cell.setting.estimator == "faulty"]
    assert len(failed) == 2
    assert all(reason in r.error for r in failed)
    assert all(r.error is None for r in records if r.cell.setting.estimator == "lstd")
    assert reason in benchmark_tables(records)


def test_a_missing_environment_names_the_extra_and_skips_only_its_cells(tmp_path, monkeypatch):
    tasks = (Task("Nowhere-v9", extra="box2d"), CHAIN)
    monkeypatch.setitem(SUITES, "small", replace(SUITES["small"], tasks=tasks))
    records = runner.run_benchmark(config(tmp_path, estimators=("lstd",), seeds=(0,)))
    errors = {r.cell.task.env: r.error for r in records}
    assert 'pip install "icrl-gym[box2d]"' in errors["Nowhere-v9"]
    assert errors[CHAIN.env] is None


def test_tuning_adds_the_grid_and_the_report_shows_both(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path, estimators=("kbrl",), tune=True))
    assert len(records) == 2 * (1 + len(registry.tuning_grid("kbrl")))
    row = next(line for line in benchmark_tables(records).splitlines() if line.startswith("| kbrl"))
    default, tuned = (float(row.split("|")[i].split("[")[0]) for i in (3, 5))
    assert tuned <= default


def test_the_report_command_writes_tables_and_a_figure(tmp_path, chain_only, capsys):
    from icrl_gym.cli import main

    runner.run_benchmark(config(tmp_path, context_lengths=(64, 128)))
    assert main(["report", str(tmp_path), "--show", "lstd"]) == 0
    written = (tmp_path / "report.md").read_text()
    assert written.strip() in capsys.readouterr().out
    assert "### Context of 128 transitions" in written
    assert (tmp_path / "error_by_context.png").read_bytes().startswith(b"\x89PNG")
    assert main(["report", str(tmp_path / "nothing")]) == 2


def test_the_figure_draws_one_panel_per_environment_and_the_critic_as_a_line():
    from icrl_gym.figures import error_by_context

    curves = {"A-v0": {"lstd": {64: 0.5, 128: 0.3}, "critic": {64: 0.8, 128: 0.8}}, "B-v0": {"lstd": {64: 1.5}}}
    figure = error_by_context(curves, "critic")
    first, second = figure.axes[:2]
    assert (first.get_title(), second.get_title()) == ("A-v0", "B-v0")
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.5, 0.3])
    np.testing.assert_allclose(first.lines[1].get_ydata(), [0.8, 0.8])


def test_records_survive_the_round_trip(tmp_path, chain_only):
    records = runner.run_benchmark(config(tmp_path))
    stored = json.loads((tmp_path / "records" / f"{records[0].cell.id}.json").read_text())
    assert stored["cell"]["task"]["env"] == CHAIN.env
    assert runner.load_record(tmp_path / "records" / f"{records[0].cell.id}.json").cell == records[0].cell


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="suite must be one of"):
        runner.check_config(BenchmarkConfig(suite="nope"))
    with pytest.raises(ValueError, match=r"unknown \['lsdt'\]"):
        runner.check_config(BenchmarkConfig(estimators=("lsdt",)))
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        runner.check_config(BenchmarkConfig(jobs=0))


def test_snapshots_named_by_the_suites_are_those_of_the_training_recipes():
    from icrl_gym.critic_training import RECIPES

    known = {(r.env, r.algorithm.lower(), steps) for r in RECIPES for steps in r.snapshots}
    for suite in SUITES.values():
        for task in suite.tasks:
            if task.policy != "random":
                env, run, snapshot = Path(task.policy).parts
                assert (env, run.split("-seed")[0], int(snapshot[5:-4])) in known, task


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


def test_matrices_that_cannot_be_averaged_are_refused():
    with pytest.raises(ValueError, match="must be finite"):
        agg.with_interval(agg.mean, np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match="non-empty"):
        agg.with_interval(agg.mean, np.zeros((0, 3)))


def test_the_example_of_the_documentation_runs(tmp_path, chain_only, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "benchmark.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(example, names)
    monkeypatch.setattr(registry, "_entries", lambda: {"mean_return": registry.Entry(names["MeanReturn"])})
    records = runner.run_benchmark(config(tmp_path, estimators=("mean_return",), seeds=(0,)))
    assert [record.error for record in records] == [None]
    assert records[0].scores["explained_variance"] == pytest.approx(0.0, abs=1e-9)  # a constant explains nothing
