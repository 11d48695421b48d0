"""``icrl-gym evaluate --log``: values from a log alone, what it prints, what it writes and what it refuses."""

import csv
import json
import time

import numpy as np
import pandas
import pytest

import icrl_gym
from icrl_gym import cli
from icrl_gym.acting.policies import as_policy
from icrl_gym.configuration import LogConfig
from icrl_gym.context.collection import collect
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.main_job.log_job import default_length, evaluate_log, whole_episodes

FILES = {"config.json", "versions.json", "trajectory.npz", "starts.csv", "episodes.csv"}
QUICK = ("--estimator", "constructed")
PICTURES = {"value_at_starts.png", "value_along_episodes.png"}


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(trajectory, path="log.csv", **more):
    """A trajectory as a table without successors."""
    columns = {f"obs_{i}": trajectory.observations[:, i] for i in range(trajectory.observations.shape[1])}
    columns |= {"action": trajectory.actions, "reward": trajectory.rewards, "terminated": trajectory.terminated}
    pandas.DataFrame({**columns, "truncated": trajectory.truncated, **more}).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def walked():
    return collect("CartPole-v1", "random", num_transitions=300, seed=0)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_gives_a_value_tables_and_pictures(walked, capsys, tmp_path):
    written(walked)
    assert cli.main(["evaluate", "--log", "log.csv", "--run-dir", "mine"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Value at starts: ", "with 90 % confidence", "Read: observations = obs_0 ... obs_3 (4 columns), actions",
        "Assumed: no column of next_observations", "Assumed: gamma 0.99 is the default", "mean return of",
        "Written to mine",
    ):  # fmt: skip
        assert words in out
    names = {path.name for path in (tmp_path / "mine").iterdir()}
    assert len([name for name in names if name.startswith("events")]) == 1
    assert {name for name in names if not name.startswith("events")} == FILES | PICTURES
    rows = table(tmp_path / "mine" / "starts.csv")
    starts = [0, *(np.flatnonzero(walked.episode_ends)[:-1] + 1)]
    assert [int(row["row"]) for row in rows] == starts
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in rows)


def test_the_values_are_those_of_the_same_transitions_in_python(walked, tmp_path):
    walked.save("log.npz")
    found = evaluate_log(LogConfig("log.npz", gamma=0.9, tensorboard=False, run_dir=tmp_path / "mine"))
    evaluator = icrl_gym.InContextEvaluator.from_pretrained().fit(walked, gamma=0.9)
    expected = evaluator.predict(walked.observations[found.start_rows])
    np.testing.assert_array_equal(found.starts.values, expected.values)
    assert found.start_value.mean == pytest.approx(expected.values.mean())
    assert found.start_value.low < found.start_value.mean < found.start_value.high
    shown = found.episodes[0]
    rewards = walked.rewards[: np.flatnonzero(walked.episode_ends)[0] + 1]
    assert shown.returns[0] == pytest.approx(sum(0.9**k * r for k, r in enumerate(rewards)))
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= PICTURES


def test_the_interval_at_starts_joins_the_starts_spread_and_the_estimates_errors(walked, tmp_path):
    walked.save("log.npz")
    found = evaluate_log(LogConfig("log.npz", tensorboard=False, run_dir=tmp_path / "mine", estimator="constructed"))
    spread = found.starts.values.std(ddof=1) ** 2 / len(found.starts)
    half = 1.6448536 * np.sqrt(found.starts.stderr.mean() ** 2 + spread)
    assert found.start_value.high - found.start_value.mean == pytest.approx(half, rel=1e-5)


def test_returns_of_whole_episodes_are_the_logs_own_check(walked, tmp_path):
    walked.save("log.npz")
    found = evaluate_log(LogConfig("log.npz", run_dir=tmp_path / "mine", tensorboard=False, estimator="constructed"))
    assert len(found.returns) == walked.terminated.sum() == found.num_episodes - 1
    starts = {"num_queries": 16, "num_rollouts": 16, "states": "start"}
    truth = icrl_gym.monte_carlo_values("CartPole-v1", "random", gamma=0.99, seed=1, **starts).values.mean()
    assert found.mean_return.low <= truth <= found.mean_return.high
    assert found.start_value.low <= truth <= found.start_value.high
    assert found.notes == ()


def test_returns_that_contradict_the_estimate_are_pointed_out(monkeypatch, tmp_path):
    from icrl_gym.main_job import log_job

    collect("FrozenLake-v1", "random", num_transitions=200, seed=0).save("log.npz")
    monkeypatch.setattr(log_job, "_known_returns", lambda *_: np.array([1e3, 1e3 + 1] * 200))
    flags = {"tensorboard": False, "estimator": "constructed"}
    found = evaluate_log(LogConfig("log.npz", run_dir=tmp_path / "mine", **flags))
    assert any("at starts, trust the returns" in note for note in found.notes)


def test_one_json_object_for_programs(walked, capsys):
    written(walked)
    assert cli.main(["evaluate", "--log", "log.csv", "--json", "--no-tensorboard", "--gamma", "0.9", *QUICK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimand"] == {"env": None, "policy": None, "gamma": 0.9, "reward_scale": 1.0}
    assert found["num_starts"] == walked.episode_ends.sum()
    value = found["value_at_starts"]
    assert value["low"] < value["mean"] < value["high"]
    assert any("(--gamma)" in note for note in found["assumptions"]) is False


def test_columns_of_other_names_are_mapped_on_the_command_line(walked, capsys):
    written(walked)
    frame = pandas.read_csv("log.csv").rename(columns={"obs_0": "x", "obs_1": "v", "obs_2": "angle", "obs_3": "spin"})
    frame.rename(columns={"reward": "r"}).to_csv("renamed.csv", index=False)
    common = ("--json", "--no-tensorboard", "--estimator", "constructed")
    assert cli.main(["evaluate", "--log", "log.csv", *common]) == 0
    plain = json.loads(capsys.readouterr().out)["value_at_starts"]
    mapped = ("--columns", "observations=x,v,angle,spin", "rewards=r")
    assert cli.main(["evaluate", "--log", "renamed.csv", *mapped, *common]) == 0
    assert json.loads(capsys.readouterr().out)["value_at_starts"] == plain
    assert cli.main(["evaluate", "--log", "renamed.csv", *common]) == 2
    assert "--columns observations=COLUMN" in capsys.readouterr().err


def test_another_policys_value_comes_from_its_model(walked, capsys):
    model = icrl_gym.load_demo_policy()
    model.save("model.zip")
    written(walked[:100])
    common = ("evaluate", "--log", "log.csv", "--json", "--no-tensorboard", "--estimator", "constructed")
    assert cli.main([*common, "--policy", "model"]) == 2
    assert "--trust-model" in capsys.readouterr().err
    assert cli.main([*common, "--policy", "model", "--trust-model"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimand"]["policy"] == as_policy(model, model.action_space).identity
    assert found["mean_return"] is None  # returns of the log are those of the policy that acted
    assert "gamma 0.99 is the model's own" in found["assumptions"]
    assert cli.main([*common, "--policy", "model", "--trust-model", "--deterministic"]) == 0
    assert json.loads(capsys.readouterr().out)["estimand"]["policy"].endswith("(deterministic)")


def test_another_policys_value_comes_from_a_column_of_probabilities(capsys):
    """A policy that always goes right, on a line where the log goes either way: its value is known by hand."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(60):
        place = 0
        while True:
            right = rng.random() < 0.5
            ended = place == 2
            rows.append((place, int(right), float(right), ended))
            if ended:
                break
            place += 1
    place, action, reward, ended = map(np.array, zip(*rows, strict=True))
    columns = {"obs": place, "action": action, "reward": reward, "terminated": ended, "truncated": False * ended}
    columns |= {"target_probability": (action == 1) * 1.0, "behaviour_probability": 0.5}
    pandas.DataFrame(columns).to_csv("log.csv", index=False)
    flags = ("--json", "--no-tensorboard", "--gamma", "0.5", "--estimator", "lstd")
    assert cli.main(["evaluate", "--log", "log.csv", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["estimand"]["policy"] == "target"
    assert found["value_at_starts"]["mean"] == pytest.approx(1 + 0.5 + 0.25, abs=0.1)
    frame = pandas.DataFrame(columns).drop(columns=["target_probability"])
    frame.to_csv("log.csv", index=False)
    assert cli.main(["evaluate", "--log", "log.csv", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["value_at_starts"]["mean"] == pytest.approx(1.75 / 2, abs=0.15)


def test_of_a_long_log_whole_episodes_are_seen(walked):
    part = whole_episodes(walked, 100)
    assert 50 < len(part) <= 100
    assert part.episode_ends[-1]
    lengths = np.diff(np.concatenate([[-1], np.flatnonzero(part.episode_ends)]))
    assert set(lengths) <= set(np.diff(np.concatenate([[-1], np.flatnonzero(walked.episode_ends)])))
    assert whole_episodes(walked, 300) is walked
    one = collect("Pendulum-v1", "random", num_transitions=150, seed=0)
    assert len(whole_episodes(one, 60)) == 60


def test_a_log_is_cut_in_a_moment_however_many_episodes_it_has():
    num_rows, rng = 400_000, np.random.default_rng(0)
    ended = rng.random(num_rows) < 0.2
    log = Trajectory(np.zeros((num_rows, 1)), None, np.ones(num_rows), np.zeros((num_rows, 1)), ended, ~ended)
    begin = time.process_time()
    part = whole_episodes(log, 100_000)
    assert 90_000 < len(part) <= 100_000
    assert time.process_time() - begin < 2.0  # trying one count after another takes minutes


def test_as_much_of_a_log_is_seen_by_default_as_its_observations_allow(walked):
    assert default_length(walked) == 100_000
    images = Trajectory(np.zeros((3, 64, 64, 3)), None, np.ones(3), np.zeros((3, 64, 64, 3)), *np.zeros((2, 3), bool))
    assert default_length(images) == 2**25 // (64 * 64 * 3)


def test_stretches_by_their_numbers(walked):
    ends = np.flatnonzero(walked.episode_ends)
    chosen = walked.episodes([2, 0])
    rows = [*range(ends[0] + 1), *range(ends[1] + 1, ends[2] + 1)]
    np.testing.assert_array_equal(chosen.observations, walked.observations[rows])
    np.testing.assert_array_equal(np.flatnonzero(chosen.episode_ends), [ends[0], len(rows) - 1])
    with pytest.raises(IndexError):
        walked.episodes([len(ends)])


def test_a_log_of_ids_and_one_without_actions(tmp_path):
    log = collect("FrozenLake-v1", "random", num_transitions=120, seed=0)
    bare = Trajectory(
        log.observations, None, log.rewards, log.next_observations, log.terminated, log.truncated,
        observation_space=log.observation_space,
    )  # fmt: skip
    for number, each in enumerate((log, bare)):
        each.save("log.npz")
        flags = {"tensorboard": False, "run_dir": tmp_path / str(number), "estimator": "constructed"}
        found = evaluate_log(LogConfig("log.npz", **flags))
        assert np.isfinite(found.starts.values).all()


BAD_INPUT = {
    "no such file": (("--log", "nothing.csv"), "log 'nothing.csv': no such file"),
    "unknown ending": (("--log", "log.txt"), "the format is told by the ending"),
    "an environment too": (("Acrobot-v1", "--log", "log.csv"), "env: a log has no environment; leave out ENV"),
    "rollouts": (("--log", "log.csv", "--num-rollouts", "3"), "leave out --num-rollouts"),
    "columns without a log": (("--columns", "rewards=r"), "columns belong to a log (--log FILE)"),
    "gamma": (("--log", "log.csv", "--gamma", "1"), "gamma must be in [0, 1), got 1.0"),
    "no context": (("--log", "log.csv", "--context-length", "0"), "context_length must be an integer of at least 1"),
    "unknown field": (("--log", "log.csv", "--columns", "prize=reward"), "there is no field 'prize'"),
    "unknown policy": (("--log", "log.csv", "--policy", "nobody"), "policy must be"),
    "another action space": (("--log", "other.csv", "--policy", "demo"), "its action space Discrete(2)"),
    "other observations": (("--log", "narrow.csv", "--policy", "demo"), "its observation space Box of shape (4,)"),
    "no minari dataset": (("--log", "minari:no/such-v0"), "minari download no/such-v0"),
    "a folder that exists": (("--log", "log.csv", "--run-dir", "taken"), "exists already"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_leaves_nothing(walked, capsys, tmp_path, monkeypatch, case):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "log.txt").write_text("")
    (tmp_path / "taken").mkdir()
    written(walked)
    written(walked, "other.csv", action=walked.actions + 5)
    pandas.read_csv("log.csv").drop(columns=["obs_3"]).to_csv("narrow.csv", index=False)
    before = {path.name for path in tmp_path.iterdir()} | {"minari", "runs"}
    arguments, message = BAD_INPUT[case]
    assert cli.main(["evaluate", *arguments]) == 2
    out, err = capsys.readouterr()
    last = err.rstrip("\n").splitlines()[-1]
    assert out == ""
    assert last.startswith("icrl-gym: error: ")
    assert message in last
    assert {path.name for path in tmp_path.iterdir()} <= before
    assert not list(tmp_path.glob("runs/*"))
