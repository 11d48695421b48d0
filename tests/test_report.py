import csv
import json

import numpy as np
import pytest

from icrl_gym.benchmark.run_tables import compare, load_run, main_job_table


def write_run(folder, seed, error, critic_error, env="Env-v0"):
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal(40)
    folder.mkdir()
    config = {
        "env": env,
        "policy": "runs/a.zip",
        "wrapper": None,
        "seed": seed,
        "context_length": 512,
        "num_rollouts": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "versions.json").write_text(json.dumps({"commit": "abc"}))
    signs = rng.choice([-1, 1], 40)
    with open(folder / "estimates.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "truth", "truth_stderr", "constructed", "PPO critic"])
        for i, t in enumerate(truth):
            writer.writerow([i, t, 0.1, t + error * signs[i], t + critic_error * signs[i]])
    with open(folder / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["estimator", "environment_steps"])
        writer.writerows([["constructed", 512], ["PPO critic", 30000]])
    return truth.std()


def test_figures_are_geometric_means_over_runs(tmp_path):
    spreads = [write_run(tmp_path / str(seed), seed, 0.5, 1.0) for seed in range(3)]
    result = compare([load_run(tmp_path / str(seed)) for seed in range(3)])
    # Every query is off by exactly 0.5 (1.0), so RMSE / std is 0.5 / spread, and the ratio is 0.5 with no width.
    expected = np.exp(np.mean(np.log(0.5 / np.array(spreads))))
    assert result.ours[0] == pytest.approx(expected)
    assert result.critic[0] == pytest.approx(2 * expected)
    np.testing.assert_allclose(result.ratio, 0.5)
    assert result.nearer == "in context"
    assert result.ours[1] < result.ours[0] < result.ours[2]


def test_a_baseline_that_wins_is_named_and_equal_errors_are_not_called(tmp_path):
    write_run(tmp_path / "lost", 0, 1.0, 0.5)
    write_run(tmp_path / "drawn", 1, 1.0, 1.0, env="Other-v0")
    table = main_job_table([load_run(tmp_path / "lost"), load_run(tmp_path / "drawn")])
    lost, drawn = (next(line for line in table.splitlines() if name in line) for name in ("| Env-v0", "Other-v0"))
    assert lost.endswith("| critic |")
    assert drawn.endswith("| too close to call |")
    assert "PPO critic, 30,000 steps" in lost


def test_commands_reproduce_the_run(tmp_path):
    write_run(tmp_path / "a", 7, 1.0, 1.0)
    flags = "--policy runs/a.zip --trust-model --estimator constructed --context-length 512 --num-rollouts 8 --seed 7"
    assert load_run(tmp_path / "a").command == f"icrl-gym evaluate Env-v0 {flags}"


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not the folder of a finished run"):
        load_run(tmp_path)
