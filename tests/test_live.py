"""Live values: what is published and when, what it costs, for one environment and for vectors."""

from __future__ import annotations

import json
import pickle
from copy import copy, deepcopy
from dataclasses import replace
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from cartpole_streams import MODES, cartpole, lean, same
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from icrl_gym.context.collection import collect
from icrl_gym.context.recorder import Recorder, Tape, batch_of_one
from icrl_gym.context.wrappers import RecordTrajectory
from icrl_gym.evaluator import heads
from icrl_gym.evaluator.estimator import InContextEvaluator
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.live import INFO_KEY, LIVE_TAG, LONGEST_BLOCK, EvaluateInContext, VectorEvaluateInContext
from icrl_gym.observations import batch_size, stack


class MeanReward:
    """An evaluator that answers the window's sum of rewards plus the pole's angle, and remembers what it was given."""

    def __init__(self) -> None:
        self.windows = []
        self.gammas = []
        self.policies = []
        self.num_predictions = 0
        self.batches = []

    def fit(self, trajectory, gamma, policy=None):
        self.windows.append(trajectory)
        self.policies.append(policy)
        self.gammas.append(gamma)
        return self

    def predict(self, observations):
        assert batch_size(observations) == len(observations)
        self.num_predictions += 1
        self.batches.append(len(observations))
        return SimpleNamespace(values=self.windows[-1].rewards.sum() + observations[:, 2])


class Scalars(list):
    def add_scalar(self, tag, value, step):
        self.append((tag, value, step))


def walk(env, num_steps: int, read=lambda info: None) -> list:
    """Steps of a policy that leans, with its resets; what each step and reset showed."""
    observation, info = env.reset(seed=3)
    shown = [(observation, info)]
    for _ in range(num_steps):
        observation, _, terminated, truncated, info = env.step(int(lean(observation)))
        read(info)
        shown.append((observation, info))
        if terminated or truncated:
            observation, info = env.reset()
            shown.append((observation, info))
    return shown


# --- long windows ---------------------------------------------------------------------------------------------------


class GoesOn(InContextEvaluator):
    """An evaluator of contexts made of sums, which remembers what it was asked to do."""

    def __init__(self, **options) -> None:
        chosen = (HEADS[0], replace(HEADS[3], landmarks=40))
        super().__init__(model=Generalist(chosen, SpreadHead(4)), imagination=False, **options)
        self.calls = []

    def fit(self, trajectory, gamma, policy=None):
        self.calls.append(("fit", len(trajectory)))
        return super().fit(trajectory, gamma, policy=policy)

    def update(self, trajectory, *arguments, **options):
        self.calls.append(("update", len(trajectory)))
        return super().update(trajectory, *arguments, **options)


@pytest.fixture
def short_contexts_have_landmarks(monkeypatch):
    monkeypatch.setattr(heads, "MOST_SOURCES", 100)
    monkeypatch.setattr(heads, "NUM_LANDMARKS", 30)


def read_at(steps, evaluator, num_steps=600, window=200, **options):
    """What is shown at the steps at which the value is read, with the recorded transitions."""
    recorded = RecordTrajectory(cartpole())
    env, seen = EvaluateInContext(recorded, evaluator, window=window, every=20, **options), {}
    observation, _ = env.reset(seed=3)
    for step in range(1, num_steps + 1):
        observation, _, terminated, truncated, info = env.step(int(lean(observation)))
        if step in steps:
            seen[step] = observation, info[INFO_KEY]
        if terminated or truncated:
            observation, _ = env.reset()
    return seen, recorded.trajectory


@pytest.mark.usefixtures("short_contexts_have_landmarks")
def test_of_long_windows_only_what_is_new_is_read_until_half_has_come():
    evaluator = GoesOn()
    seen, log = read_at({200, 220, 280, 300, 320, 600}, evaluator)
    assert evaluator.calls == [("fit", 200), ("update", 20), ("update", 60), ("fit", 200), ("update", 20), ("fit", 200)]
    assert len(evaluator.trajectory_) == 200
    expected = GoesOn().fit(log[:200], 0.99).update(log[200:220], window=200).update(log[220:280], window=200)
    observation, value = seen[280]
    np.testing.assert_array_equal(value, expected.predict(observation[None]).values[0])
    observation, value = seen[300]
    np.testing.assert_array_equal(value, GoesOn().fit(log[100:300], 0.99).predict(observation[None]).values[0])


def test_short_windows_are_always_fitted_anew():
    evaluator = GoesOn()
    seen, log = read_at({200, 220, 240}, evaluator, num_steps=250)
    assert evaluator.calls == [("fit", 200)] * 3
    for step, (observation, value) in seen.items():
        expected = GoesOn().fit(log[step - 200 : step], 0.99).predict(observation[None]).values[0]
        np.testing.assert_array_equal(value, expected)


@pytest.mark.usefixtures("short_contexts_have_landmarks")
@pytest.mark.parametrize(
    ("options", "live"), [({"imagination": True}, {}), ({"averaging": 0.5}, {}), ({}, {"policy": "random"})], ids=str
)
def test_where_going_on_saves_nothing_windows_are_fitted_anew(options, live):
    evaluator = GoesOn()
    evaluator.imagination = options.pop("imagination", False)
    if options:
        evaluator.model = GoesOn(**options).model
    read_at({200, 220}, evaluator, num_steps=220, **live)
    assert evaluator.calls == [("fit", 200)] * 2


@pytest.mark.usefixtures("short_contexts_have_landmarks")
def test_an_old_info_read_after_a_newer_one_has_its_own_window():
    evaluator, kept = GoesOn(), {}
    env = EvaluateInContext(cartpole(), evaluator, window=200, every=20)
    shown = walk(env, 240)
    infos = [info for _, info in shown if INFO_KEY in info]
    kept = [infos[-1][INFO_KEY], infos[-40][INFO_KEY], infos[-1][INFO_KEY]]
    assert evaluator.calls[0][0] == evaluator.calls[1][0] == "fit"
    assert kept[0] == kept[2]


# --- what is published ----------------------------------------------------------------------------------------------


def test_values_are_published_from_the_first_window_on_and_belong_to_the_observation_returned():
    evaluator = MeanReward()
    env = EvaluateInContext(cartpole(), evaluator, gamma=0.9, window=20, every=10)
    observation, info = env.reset(seed=3)
    assert INFO_KEY not in info
    for step in range(1, 65):
        observation, _, terminated, truncated, info = env.step(int(lean(observation)))
        assert (INFO_KEY in info) == (step >= 10)
        if step >= 10:
            value = info[INFO_KEY]
            assert len(evaluator.windows) == step // 10
            assert value == evaluator.windows[-1].rewards.sum() + observation[2]
            assert type(value) is float
        if terminated or truncated:
            observation, info = env.reset()
            assert (INFO_KEY in info) == (step >= 10)
            assert info.get(INFO_KEY, observation[2]) - observation[2] in (0.0, 10.0, 20.0)
    assert evaluator.gammas == [0.9] * 6


def test_the_window_holds_the_latest_transitions_across_episodes():
    evaluator = MeanReward()
    walk(EvaluateInContext(cartpole(), evaluator, window=20, every=7), 70, lambda info: info.get(INFO_KEY))
    whole = collect(cartpole(), lean, 70, seed=3)
    assert [len(window) for window in evaluator.windows] == [7, 14, *[20] * 8]
    for fits, window in enumerate(evaluator.windows, start=1):
        assert same(window, whole[max(0, 7 * fits - 20) : 7 * fits])
        assert (window.env_id, window.observation_space) == (whole.env_id, whole.observation_space)


@pytest.mark.parametrize("mode", MODES)
def test_vectors_publish_one_value_per_environment(mode):
    evaluator, writer = MeanReward(), Scalars()
    vector = SyncVectorEnv([cartpole] * 3, autoreset_mode=mode)
    env = VectorEvaluateInContext(vector, evaluator, gamma=0.9, window=50, every=5, writer=writer)
    observations, infos = env.reset(seed=3)
    assert INFO_KEY not in infos
    for step in range(1, 31):
        observations, _, terminated, truncated, infos = env.step(lean(observations))
        assert (INFO_KEY in infos) == (step >= 5)
        done = terminated | truncated
        if step >= 5:
            values = infos[INFO_KEY]
            assert values.dtype == np.float64
            assert np.array_equal(values, evaluator.predict(observations).values)
        if mode is AutoresetMode.DISABLED and done.any():
            observations, infos = env.reset(options={"reset_mask": done})
            assert (INFO_KEY in infos) == (step >= 5)
    assert [step for _, _, step in writer] == [5 * k for k in range(1, 7)]
    assert [len(window) for window in evaluator.windows[-2:]] == [50, 50]
    assert len(evaluator.windows[0]) == 15


def test_the_environments_own_info_is_kept_and_not_written_into():
    class Telling(gymnasium.Wrapper):
        kept: dict

        def step(self, action):
            observation, reward, terminated, truncated, info = self.env.step(action)
            self.kept = {**info, "mine": 1}
            return observation, reward, terminated, truncated, self.kept

    inner = Telling(cartpole())
    env = EvaluateInContext(inner, MeanReward(), every=1)
    env.reset(seed=0)
    info = env.step(0)[4]
    assert info["mine"] == 1
    assert INFO_KEY in info
    assert INFO_KEY not in inner.kept


def test_live_evaluation_is_told_the_policy_in_its_environment():
    env = gymnasium.make("Pendulum-v1")
    evaluator = MeanReward()
    live = EvaluateInContext(env, evaluator, window=8, every=4, policy="random")
    live.reset(seed=0)
    for _ in range(4):
        info = live.step(env.action_space.sample())[4]
    assert info[INFO_KEY] < 0
    assert evaluator.policies[0].action_space == env.action_space
    envs = gymnasium.make_vec("Pendulum-v1", 2)
    several = VectorEvaluateInContext(envs, evaluator, window=8, every=4, policy="random")
    several.reset(seed=0)
    for _ in range(4):
        info = several.step(envs.action_space.sample())[4]
    assert info[INFO_KEY].shape == (2,)
    assert evaluator.policies[1].action_space == envs.single_action_space
    with pytest.raises(ValueError, match="policy: the only policy known by name is 'random', got 'some'"):
        EvaluateInContext(env, evaluator, policy="some")


# --- what it costs --------------------------------------------------------------------------------------------------


def test_nothing_is_fitted_for_a_value_that_nobody_reads():
    evaluator = MeanReward()
    env = EvaluateInContext(cartpole(), evaluator, window=20, every=10)
    shown = walk(env, 60)
    assert all(INFO_KEY in info and "other" not in info and list(info)[-1] == INFO_KEY for _, info in shown[20:])
    assert (evaluator.windows, evaluator.num_predictions) == ([], 0)
    assert shown[-1][1][INFO_KEY] == evaluator.windows[0].rewards.sum() + shown[-1][0][2]
    assert (len(evaluator.windows), evaluator.num_predictions) == (1, 1)


def test_infos_that_are_read_later_have_the_values_that_they_had_at_their_step():
    at_once, later = MeanReward(), MeanReward()
    options = {"window": 20, "every": 10}
    read = []
    walk(EvaluateInContext(cartpole(), at_once, **options), 70, lambda info: read.append(info.get(INFO_KEY)))
    kept = []
    walk(EvaluateInContext(cartpole(), later, **options), 70, kept.append)
    assert [info.get(INFO_KEY) for info in reversed(kept)] == read[::-1]  # the oldest window last
    assert later.num_predictions == 7
    assert at_once.num_predictions == 61


def test_a_long_block_is_predicted_in_parts():
    evaluator = MeanReward()
    shown = walk(EvaluateInContext(cartpole(), evaluator, window=400, every=300), 300 + LONGEST_BLOCK + 10)
    for index in (-1, -LONGEST_BLOCK):  # of two blocks
        assert shown[index][1][INFO_KEY] == 300 + shown[index][0][2]
    assert len(evaluator.batches) == 2
    assert max(evaluator.batches) == LONGEST_BLOCK


@pytest.mark.parametrize(
    "read",
    [
        lambda info: info.get(INFO_KEY),
        lambda info: info.get(INFO_KEY, 5),
        lambda info: info.setdefault(INFO_KEY, 5),
        lambda info: dict(info)[INFO_KEY],
        lambda info: {**info}[INFO_KEY],
        lambda info: dict(info.items())[INFO_KEY],
        lambda info: list(info.values())[-1],
        lambda info: info.copy()[INFO_KEY],
        lambda info: copy(info)[INFO_KEY],
        lambda info: deepcopy(info)[INFO_KEY],
        lambda info: pickle.loads(pickle.dumps(info))[INFO_KEY],
        lambda info: json.loads(json.dumps(info))[INFO_KEY],
        lambda info: (info | {"more": 1})[INFO_KEY],
        lambda info: ({"more": 1} | info)[INFO_KEY],
        lambda info: info.pop(INFO_KEY),
        lambda info: info.popitem()[1],
        lambda info: eval(repr(info))[INFO_KEY],
    ],
)
def test_the_value_is_there_however_the_info_is_read(read):
    env = EvaluateInContext(cartpole(), MeanReward(), every=3)
    env.reset(seed=0)
    observation, info = [env.step(0) for _ in range(3)][-1][::4]
    assert read(info) == 3 + observation[2]


def test_an_info_can_be_compared_and_written_into_like_any_other():
    env = EvaluateInContext(cartpole(), evaluator := MeanReward(), every=1)
    env.reset(seed=0)
    first, second, third = (env.step(0)[4] for _ in range(3))
    first[INFO_KEY], first["mine"] = 7.0, 1
    assert first == {INFO_KEY: 7.0, "mine": 1}
    assert evaluator.windows == []
    second.update(mine=1)
    assert second == {INFO_KEY: second[INFO_KEY], "mine": 1}
    assert second != {INFO_KEY: None, "mine": 1}
    del third[INFO_KEY]
    assert third == {}


def test_a_copy_by_deepcopy_as_in_vectors_of_stable_baselines_stays_lazy():
    from stable_baselines3.common.vec_env import DummyVecEnv

    evaluator = MeanReward()
    vector = DummyVecEnv([lambda: EvaluateInContext(cartpole(), evaluator, window=20, every=10)])
    vector.reset()
    for _ in range(30):
        observations, _, _, infos = vector.step([1])
    assert evaluator.windows == []
    terminal = infos[0].get("terminal_observation", observations[0])
    assert infos[0][INFO_KEY] == 20 + terminal[2]


# --- the writer -----------------------------------------------------------------------------------------------------


def test_the_writer_is_given_all_marks_of_a_window_at_once_when_it_is_full():
    evaluator, writer = MeanReward(), Scalars()
    env = EvaluateInContext(cartpole(), evaluator, window=8, every=4, writer=writer)
    env.reset(seed=0)
    angles = {}
    for step in range(1, 10):
        angles[step] = env.step(step % 2)[0][2]
        assert len(writer) == (0 if step < 8 else 2)
    assert writer == [(LIVE_TAG, 8 + angles[4], 4), (LIVE_TAG, 8 + angles[8], 8)]
    assert (len(evaluator.windows), evaluator.num_predictions) == (1, 1)


def test_the_writer_is_given_the_rest_when_the_environment_is_closed():
    writer = Scalars()
    env = EvaluateInContext(cartpole(), MeanReward(), every=4, writer=writer)
    env.reset(seed=0)
    angle = [env.step(step % 2)[0][2] for step in range(6)][3]
    assert writer == []
    env.close()
    assert writer == [(LIVE_TAG, 4 + angle, 4)]
    env.close()
    assert len(writer) == 1
    vector = VectorEvaluateInContext(SyncVectorEnv([cartpole] * 2), MeanReward(), every=3, writer=writer)
    vector.reset(seed=0)
    seen = [vector.step(np.array([0, 1]))[0] for _ in range(3)][-1]
    vector.close()
    assert writer[1:] == [(LIVE_TAG, 6 + seen[:, 2].mean(), 3)]


# --- evaluators by name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluator", [None, "constructed"])
def test_an_evaluator_is_given_by_name_and_goes_through_json(evaluator):
    env = EvaluateInContext(gymnasium.make("CartPole-v1"), evaluator, window=40, every=20, policy="random")
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json()))
    assert type(again) is EvaluateInContext
    again.reset(seed=0)
    values = [again.step(step % 2)[4].get(INFO_KEY) for step in range(21)]
    assert values[:19] == [None] * 19
    assert np.isfinite(values[19:]).all()


def test_the_default_evaluator_is_the_one_without_walks():
    trajectory = collect("CartPole-v1", lean, 60, seed=3)
    env = EvaluateInContext(gymnasium.make("CartPole-v1"), window=60, every=60)
    observation, info = env.reset(seed=3)
    while INFO_KEY not in info:
        observation, _, terminated, truncated, info = env.step(int(lean(observation)))
        if (terminated or truncated) and INFO_KEY not in info:
            observation, _ = env.reset()
    evaluator = InContextEvaluator.from_pretrained("generalist", imagination=False).fit(trajectory, 0.99)
    assert info[INFO_KEY] == evaluator.predict(observation[None]).values[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0"),
        ({"window": 0}, "window must be at least 1 transition, got 0"),
        ({"every": 0}, "every must be at least 1 step, got 0"),
        ({"evaluator": "generalists"}, r"estimator must be one of \[.*'generalist'.*\], got 'generalists'"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    options = {"evaluator": MeanReward(), **options}
    with pytest.raises(ValueError, match=message):
        EvaluateInContext(cartpole(), **options)
    with pytest.raises(ValueError, match=message):
        VectorEvaluateInContext(SyncVectorEnv([cartpole]), **options)


def test_what_is_no_evaluator_is_refused_at_once():
    with pytest.raises(TypeError, match=r"evaluator must be a name, something with fit.* or None, got int"):
        EvaluateInContext(cartpole(), 3)


# --- as a wrapper ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")
def test_gymnasiums_checker_passes_with_the_wrapper_on():
    check_env(EvaluateInContext(gymnasium.make("CartPole-v1"), MeanReward()), skip_render_check=True)


def test_wrapped_environments_can_be_made_again_from_their_spec():
    again = gymnasium.make(EvaluateInContext(cartpole(), MeanReward(), window=7).spec)
    assert type(again) is EvaluateInContext
    again.reset(seed=0)


# --- the tape -------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*You are calling 'step")
@pytest.mark.parametrize("capacity", [1, 7, 64])
def test_a_tape_holds_what_a_recorder_holds(capacity):
    env, rng = cartpole(), np.random.default_rng(0)
    recorder, tape = Recorder(env, capacity=capacity), Tape(env, capacity)
    for step in range(100):
        if step == 0 or rng.random() < 0.1:  # in the middle of an episode too, and some steps come after an end
            observation, _ = env.reset(seed=step)
            recorder.reset(stack([observation]))
            tape.reset(observation)
        action = int(lean(observation))
        outcome = env.step(action)
        observation = outcome[0]
        recorder.step(np.array([action]), *batch_of_one(*outcome))
        tape.step(action, *outcome[:4])
        assert same(tape.stretch().trajectory(), recorder.trajectory())


def test_a_tape_copies_what_it_is_shown():
    shown = np.zeros(2)
    tape = Tape(gymnasium.make("MountainCar-v0"), 4)
    tape.reset(shown)
    shown += 1
    tape.step(action := np.array(0), shown, 0.5, False, False)
    shown += 1
    action += 1
    tape.step(action, shown, 0.5, False, True)
    trajectory = tape.stretch().trajectory()
    assert trajectory.observations[:, 0].tolist() == [0, 1]
    assert trajectory.next_observations[:, 0].tolist() == [1, 2]
    assert trajectory.actions.tolist() == [0, 1]


def test_a_tape_says_what_it_lacks():
    tape = Tape(cartpole(), 4)
    with pytest.raises(ValueError, match="no transition has been recorded yet"):
        tape.stretch().trajectory()
    with pytest.raises(RuntimeError, match="before the first reset"):
        tape.step(0, np.zeros(4), 0.0, False, False)
