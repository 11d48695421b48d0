"""The main job as a library function: what it writes, what it compares, and what it leaves when it fails."""

import csv
import dataclasses
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from icrl_gym.acting.demo_policy import load_demo_policy
from icrl_gym.configuration import EvaluateConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.ground_truth.values import query_histories
from icrl_gym.main_job import job as job_module
from icrl_gym.main_job import subject as subject_module
from icrl_gym.main_job.job import evaluate
from icrl_gym.main_job.result import Evaluation
from icrl_gym.registry import make_estimator
from icrl_gym.rivals.critics import sb3_critic_values
from icrl_gym.scoring import figures
from icrl_gym.scoring.score import score
from icrl_gym.values import Estimand, ValueEstimates

SMALL = EvaluateConfig(policy="random", context_length=80, gamma=0.8, num_queries=6, num_rollouts=3, tensorboard=False)
FIGURES = {"2_figures/estimates_against_truth", "2_figures/value_along_episode", "details/attention"}


def run(tmp_path, **changes):
    return evaluate(dataclasses.replace(SMALL, run_dir=tmp_path / "run", **changes))


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def lean_left(observations):
    return np.zeros(len(observations), dtype=int)


class Rightwards:
    """Goes right four times out of five."""

    def action_probabilities(self, observations):
        return np.tile([0.1, 0.1, 0.8, 0.0], (len(observations), 1))


rightwards = Rightwards()


class HalvedRewards(gymnasium.RewardWrapper):
    def reward(self, reward):
        return 0.5 * float(reward)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The bundled policy with its critic, small, with events; and what its progress said."""
    heard = []
    config = dataclasses.replace(
        SMALL, policy="demo", gamma=None, num_rollouts=2, tensorboard=True, run_dir=tmp_path_factory.mktemp("d") / "run"
    )
    return evaluate(config, lambda *said: heard.append(said)), heard


def test_a_run_folder_holds_everything(demo):
    found, _ = demo
    names = {path.name for path in found.run_dir.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents")}
    assert len(events) == 1
    assert names - events == {"config.json", "versions.json", "trajectory.npz", "estimates.csv", "scores.csv"}
    config = json.loads((found.run_dir / "config.json").read_text())
    assert config == {**dataclasses.asdict(found.config), "run_dir": str(found.config.run_dir)}
    assert json.loads((found.run_dir / "versions.json").read_text())["packages"]["torch"]
    stored = Trajectory.load(found.run_dir / "trajectory.npz")
    assert len(stored) == 80
    np.testing.assert_array_equal(stored.observations, found.trajectory.observations)


def test_the_tables_hold_the_numbers_to_the_last_digit(demo):
    found, _ = demo
    rows = table(found.run_dir / "estimates.csv")
    assert [int(row["query"]) for row in rows] == list(range(6))
    np.testing.assert_array_equal([float(row["truth"]) for row in rows], found.truth.values)
    np.testing.assert_array_equal([float(row["truth_stderr"]) for row in rows], found.truth.stderr)
    for name, estimate in found.estimates.items():
        np.testing.assert_array_equal([float(row[name]) for row in rows], estimate.values)
    low, high = found.estimates["generalist"].interval(0.9)
    np.testing.assert_array_equal([float(row["generalist_low"]) for row in rows], low)
    np.testing.assert_array_equal([float(row["generalist_high"]) for row in rows], high)
    assert {row["PPO critic_stderr"] for row in rows} == {""}


def test_scores_follow_from_the_table_of_estimates(demo):
    found, _ = demo
    rows = table(found.run_dir / "estimates.csv")
    for line in table(found.run_dir / "scores.csv"):
        errors = np.array([float(row[line["estimator"]]) - float(row["truth"]) for row in rows])
        assert float(line["rmse"]) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-12)
        assert float(line["bias"]) == pytest.approx(errors.mean(), rel=1e-9)


def test_the_critic_of_the_same_policy_is_scored_beside_the_estimate(demo):
    found, _ = demo
    assert list(found.scores) == ["generalist", "PPO critic"]
    assert found.steps["generalist"] == 80
    assert found.steps["PPO critic"] == load_demo_policy().num_timesteps == 40_960
    assert "PPO critic (40,960 environment steps)" in found.verdict
    rows = table(found.run_dir / "scores.csv")
    assert {row["estimator"]: row["environment_steps"] for row in rows} == {"generalist": "80", "PPO critic": "40960"}
    assert found.gamma == 0.99  # the model's own
    for name, estimate in found.estimates.items():
        assert repr(found.scores[name]) == repr(score(estimate, found.truth))  # NaN equals NaN


def test_progress_is_reported_to_the_end_of_every_long_part(demo):
    _, heard = demo
    last = {part: (done, total) for part, done, total in heard}
    assert list(last) == ["collecting the context", "fitting", "measuring the truth", "values in context", "figures"]
    assert all(done == total for done, total in last.values())


def events_of(found):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    return EventAccumulator(str(found.run_dir), size_guidance={"images": 0}).Reload()


def test_events_hold_scalars_hyperparameters_and_figures(demo):
    found, _ = demo
    events = events_of(found)
    tags = events.Tags()
    assert set(tags["images"]) == FIGURES
    headlines = [f"1_headlines/rmse_over_std {name}" for name in found.scores]
    assert sorted(tags["scalars"]) == sorted(headlines)  # a card each, and no more
    for tag, result in zip(headlines, found.scores.values(), strict=True):
        (point,) = events.Scalars(tag)
        assert (point.step, point.value) == (80, pytest.approx(result.rmse_over_std, rel=1e-6))
    (text,) = events.Tensors("summary/text_summary")
    said = text.tensor_proto.string_val[0].decode()
    assert said.startswith(found.verdict)
    assert "| figure | generalist | PPO critic |" in said
    assert f"| rmse | {found.scores['generalist'].rmse:.4g} | {found.scores['PPO critic'].rmse:.4g} |" in said
    assert not [path for path in found.run_dir.iterdir() if path.is_dir()]


def test_a_critic_of_another_discount_is_left_out_with_the_reason(tmp_path):
    found = run(tmp_path, policy="demo", gamma=0.8)
    assert list(found.scores) == ["generalist"]
    assert any("the critic is left out: estimands differ in gamma" in note for note in found.notes)


def test_a_recurrent_critic_gets_its_memory(tmp_path):
    """By hand: run the critic from the start of each query's episode; the last value is the query's."""
    from sb3_contrib import RecurrentPPO

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", seed=0, gamma=0.8)
    model.save(tmp_path / "model.zip")
    common = {"policy": str(tmp_path / "model.zip"), "trust_model": True, "tensorboard": True}
    found = run(tmp_path, **common)
    critic = found.estimates["RecurrentPPO critic"]
    histories = query_histories("CartPole-v1", model, num_queries=6, seed=0)
    for query, history in enumerate(histories):
        np.testing.assert_array_equal(history[-1], found.truth.observations[query])
        starts = np.arange(len(history)) == 0
        states = tuple(np.zeros((1, 1, 256), dtype=np.float32) for _ in range(2))
        along = sb3_critic_values(model, history, states, starts).values
        assert critic.values[query] == pytest.approx(along[-1], abs=1e-5)
        if len(history) > 5:
            forgetful = sb3_critic_values(model, history[-1:], states, np.array([True])).values[0]
            assert abs(critic.values[query] - forgetful) > 1e-4


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name, seed=3)
    other = run(tmp_path / "c", seed=4)
    texts = [(tmp_path / name / "run" / "estimates.csv").read_text() for name in "abc"]
    assert texts[0] == texts[1] != texts[2]
    first = run(tmp_path / "d", seed=3)
    assert not np.array_equal(first.trajectory.observations, other.trajectory.observations)
    assert not np.array_equal(first.truth.observations, other.truth.observations)


def test_no_query_comes_from_the_context(tmp_path):
    found = run(tmp_path, seed=3)
    context = {row.tobytes() for row in found.trajectory.observations}
    assert not [row for row in found.truth.observations if row.tobytes() in context]


def test_a_deterministic_policy_is_another_estimand_throughout(tmp_path):
    found = run(tmp_path, policy="demo", deterministic=True, gamma=None)
    assert list(found.scores) == ["generalist", "PPO critic"]
    for record in (found.truth, *found.estimates.values()):
        assert (record.estimand.policy or "").endswith(" (deterministic)")
    assert any("trained for the policy that samples" in note for note in found.notes)


@pytest.mark.parametrize("truth", ["exact", "monte_carlo"])
def test_a_deterministic_policy_has_its_own_truth_in_tables(tmp_path, truth):
    policy = f"{__name__}:rightwards"
    kwargs = '{"is_slippery": false, "map_name": null, "desc": ["SFG"]}'
    common = {"env": "FrozenLake-v1", "policy": policy, "env_kwargs": kwargs, "truth": truth}
    surely = run(tmp_path / "greedy", deterministic=True, **common).truth
    start = surely.values[np.asarray(surely.observations) == 0]
    np.testing.assert_allclose(start, 0.8, atol=1e-9)  # two steps right, the second one pays 1
    sampled = run(tmp_path / "sampled", num_rollouts=20, **common).truth
    assert (sampled.values[np.asarray(sampled.observations) == 0] < 0.79).all()


def test_the_wrapper_is_around_the_environment_everywhere(tmp_path):
    """Rewards are halved for the context and for the truth alike; CartPole pays 1 per step."""
    plain = run(tmp_path / "plain")
    halved = run(tmp_path / "halved", wrapper=f"{__name__}:HalvedRewards")
    assert set(halved.trajectory.rewards) == {0.5}
    np.testing.assert_allclose(halved.truth.values, plain.truth.values / 2, rtol=1e-12)
    assert "HalvedRewards" in (halved.truth.estimand.env or "")


def test_tabular_environments_get_the_exact_truth_at_every_state(tmp_path):
    found = run(tmp_path, env="FrozenLake-v1")
    assert len(found.truth) == 11
    np.testing.assert_array_equal(found.truth.observations, [0, 1, 2, 3, 4, 6, 8, 9, 10, 13, 14])  # no hole, no goal
    assert found.scores["generalist"].noise_floor == 0.0
    assert any("11 non-terminal states weigh alike" in note for note in found.notes)


def test_exact_truth_agrees_with_simulated_truth(tmp_path):
    """Two routes to the truth; 5 standard errors: false-alarm rate below 1e-6 per query."""
    exact = run(tmp_path / "exact", env="FrozenLake-v1", gamma=0.5).truth
    simulated = run(tmp_path / "sim", env="FrozenLake-v1", gamma=0.5, truth="monte_carlo", num_rollouts=200).truth
    at = dict(zip(np.asarray(exact.observations).tolist(), exact.values.tolist(), strict=True))
    expected = np.array([at[state] for state in np.asarray(simulated.observations).tolist()])
    assert (np.abs(simulated.values - expected) <= 5 * simulated.stderr + 1e-3).all()


def test_a_policy_without_probabilities_gets_simulated_truth_with_a_note(tmp_path):
    found = run(tmp_path, env="FrozenLake-v1", policy=f"{__name__}:lean_left")
    assert found.scores["generalist"].n == SMALL.num_queries
    assert any("the truth is simulated although" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": "exact"}, "transition table P"),
        ({"env": "FrozenLake-v1", "truth": "exact", "policy": f"{__name__}:lean_left"}, "action probabilities"),
        ({"estimator": "nonsense"}, "estimator must be one of"),
        ({"vec_normalize": Path("stats.pkl")}, "vec_normalize belongs to"),
        ({"deterministic": True}, "no deterministic form"),
        ({"env_kwargs": "3"}, "env_kwargs must be a JSON object"),
        ({"num_rollouts": 1}, "num_rollouts must be an integer of at least 2"),
        ({"context_length": 0}, "context_length must be an integer of at least 1"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_what_can_be_refused_is_refused_before_any_work(tmp_path, monkeypatch, changes, message):
    def no_work(*args, **kwargs):
        pytest.fail("work was started")

    monkeypatch.setattr(subject_module, "collect", no_work)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (subject_module, "collect"),
        (subject_module, "monte_carlo_values"),
        (job_module, "save_tables"),
        (job_module, "_log"),
    ],
)
def test_a_run_that_fails_midway_leaves_no_folder(tmp_path, monkeypatch, module, part):
    def fail(*args, **kwargs):
        raise RuntimeError("midway")

    monkeypatch.setattr(module, part, fail)
    with pytest.raises(RuntimeError, match="midway"):
        run(tmp_path, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_only_an_estimator_with_layers_has_a_figure_by_layer_and_it_is_its_own(tmp_path, monkeypatch):
    drawn = []
    draw = figures.error_by_layer
    monkeypatch.setattr(figures, "error_by_layer", lambda rows, *others: drawn.append(rows) or draw(rows, *others))
    found = run(tmp_path, estimator="theorem_1", tensorboard=True)
    ((name, rows),) = drawn[0].items()
    assert name == "theorem_1"
    assert rows is found.estimates["theorem_1"].by_layer
    assert set(events_of(found).Tags()["images"]) == {*FIGURES, "details/error_by_layer"}
    assert "theorem_1" in found.verdict


def test_the_attention_that_is_drawn_is_that_of_what_answered(tmp_path, monkeypatch):
    drawn = []
    draw = figures.attention_map
    monkeypatch.setattr(figures, "attention_map", lambda *given: drawn.append(given) or draw(*given))
    found = run(tmp_path, tensorboard=True)
    ((weights, at_queries, at_sources),) = drawn
    evaluator = make_estimator("generalist").fit(found.trajectory, found.gamma)
    np.testing.assert_array_equal(weights, evaluator.attention(found.truth.observations))
    np.testing.assert_array_equal(at_queries, found.estimates["generalist"].values)
    np.testing.assert_array_equal(at_sources, evaluator.predict(found.trajectory.observations).values)


@pytest.mark.parametrize(
    ("env", "length", "ending"),
    [
        ("CartPole-v1", 80, "ended in a terminal state"),
        ("Pendulum-v1", 80, "still going when the context ended"),
        ("Pendulum-v1", 230, "cut by the time limit"),
    ],
)
def test_the_return_of_an_episode_is_shown_only_where_it_is_known(tmp_path, monkeypatch, env, length, ending):
    calls = []
    draw = figures.value_along_episode

    def spy(values, realised=None, *, ending=None):
        calls.append((values["generalist"], realised, ending))
        return draw(values, realised, ending=ending)

    monkeypatch.setattr(figures, "value_along_episode", spy)
    found = run(tmp_path, env=env, context_length=length, tensorboard=True, num_queries=2, num_rollouts=2)
    ((shown, realised, how),) = calls
    assert how == ending
    lengths = np.diff(np.flatnonzero(np.concatenate([[True], found.trajectory.episode_ends])))
    assert len(shown) == lengths.max()
    if env == "CartPole-v1":  # one reward per step
        np.testing.assert_allclose(realised, (1 - 0.8 ** np.arange(lengths.max(), 0, -1)) / (1 - 0.8))
    else:
        assert realised is None


def a_result(values, others=None, truth=(1.0, 2.0, 3.0, 4.0)):
    """An Evaluation of given numbers."""
    estimand, queries = Estimand("Toy-v0", "random", 0.9), np.arange(len(truth))

    def record(numbers):
        return ValueEstimates(np.array(numbers, dtype=np.float64), queries, estimand)

    estimates = {"ours": record(values), **({} if others is None else {"PPO critic": record(others)})}
    scores = {name: score(estimate, record(truth)) for name, estimate in estimates.items()}
    trajectory = Trajectory([0], [0], [0.0], [1], [True], [False])
    steps = {"ours": 512, "PPO critic": 20_000}
    return Evaluation(SMALL, 0.9, trajectory, record(truth), estimates, scores, steps, (), Path("run"))


def test_the_verdict_names_the_nearer_one():
    good, bad = [1.1, 2.1, 2.9, 4.1], [3.0, 4.1, 1.0, 2.0]
    assert a_result(good, bad).verdict.startswith("ours is nearer to the truth: RMSE 0.1 for ours (512 environment")
    assert a_result(bad, good).verdict.startswith("PPO critic is nearer to the truth")
    assert "PPO critic (20,000 environment steps)" in a_result(bad, good).verdict


@pytest.mark.parametrize("others", [[1.1, 2.1, 2.9, 4.1], [1.0, 2.0, 3.0, 4.9]])
def test_the_verdict_admits_what_few_queries_cannot_tell(others):
    assert a_result([1.1, 2.1, 2.9, 4.1], others).verdict.startswith("Too close to call on 4 queries")


def test_one_query_is_too_few():
    assert a_result([1.0], [9.0], truth=(2.0,)).verdict.startswith("Too close to call on 1 query:")


def test_without_a_critic_the_verdict_compares_with_a_constant():
    verdict = a_result([2.0, 3.0, 4.0, 5.0]).verdict
    assert f"{1 / math.sqrt(1.25):.2g} of the truth's standard deviation" in verdict
    assert "no spread" in a_result([2.0, 3.0], truth=(1.0, 1.0)).verdict


def test_of_a_very_long_episode_the_first_steps_are_drawn_with_their_whole_returns(monkeypatch):
    monkeypatch.setattr(job_module, "MOST_STEPS", 5)
    zeros, ends = np.zeros((9, 1)), np.arange(9) == 8
    log = Trajectory(zeros, np.zeros(9), np.ones(9), zeros, ends, np.zeros(9, dtype=bool))
    asked = []

    def predict(observations):
        asked.append(len(observations))
        return ValueEstimates(np.zeros(len(observations)), observations, Estimand(None, None, 0.5))

    evaluation = SimpleNamespace(trajectory=log, ours="ours", estimates={}, gamma=0.5)
    subject = SimpleNamespace(source=SimpleNamespace(critic_name="critic"))
    figure = job_module._episode_figure(evaluation, subject, SimpleNamespace(predict=predict))
    assert asked == [5]
    assert figure.axes[0].get_title().endswith("(ended in a terminal state; its first 5 steps)")
    np.testing.assert_allclose(figure.axes[0].lines[-1].get_ydata(), [2 - 0.5 ** (8 - k) for k in range(5)])
