"""Recording and live evaluation: what is recorded, what is published and when, for one environment and for vectors."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from icrl_gym.context.collection import collect
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.wrappers import RecordTrajectory, VectorRecordTrajectory
from icrl_gym.live import INFO_KEY, LIVE_TAG, EvaluateInContext, VectorEvaluateInContext
from icrl_gym.observations import batch_size

MODES = list(AutoresetMode)
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "episode_ends")


def cartpole(**options) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=12, **options)


def lean(observations: np.ndarray) -> np.ndarray:
    """Pushes the wrong way where the cart is left of the centre: some episodes terminate, some reach the limit."""
    wrong = observations[..., 0] < 0
    return np.where(wrong, observations[..., 2] < 0, observations[..., 2] > 0).astype(int)


def same(first, second) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in COLUMNS)


class MeanReward:
    """An evaluator that answers mean window reward plus the pole's angle, and remembers what it was given."""

    def __init__(self) -> None:
        self.windows = []
        self.gammas = []
        self.policies = []

    def fit(self, trajectory, gamma, policy=None):
        self.windows.append(trajectory)
        self.policies.append(policy)
        self.gammas.append(gamma)
        return self

    def predict(self, observations):
        assert batch_size(observations) == len(observations)
        return SimpleNamespace(values=self.windows[-1].rewards.sum() + observations[:, 2])


class Scalars(list):
    def add_scalar(self, tag, value, step):
        self.append((tag, value, step))


# --- recording ------------------------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_collect_collects():
    env = RecordTrajectory(cartpole())
    observation, _ = env.reset(seed=3)
    for _ in range(80):
        observation, _, terminated, truncated, _ = env.step(int(lean(observation)))
        if terminated or truncated:
            observation, _ = env.reset()
    expected = collect(cartpole(), lean, 80, seed=3)
    assert same(env.trajectory, expected)
    assert expected.terminated.any()
    assert expected.truncated.any()
    assert (env.trajectory.env_id, env.trajectory.policy) == ("CartPole-v1", None)
    assert env.trajectory.observation_space == env.observation_space


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_is_recorded_in_every_mode_like_collect_does(mode):
    env = VectorRecordTrajectory(SyncVectorEnv([cartpole] * 3, autoreset_mode=mode))
    observations, _ = env.reset(seed=3)
    for _ in range(60):
        observations, _, terminated, truncated, _ = env.step(lean(observations))
        done = terminated | truncated
        if mode is AutoresetMode.DISABLED and done.any():
            observations, _ = env.reset(options={"reset_mask": done})
    recorded = env.trajectory
    plain = SyncVectorEnv([cartpole] * 3, autoreset_mode=mode)
    assert same(recorded, collect(plain, lean, len(recorded), seed=3))
    assert (len(recorded) == 180) == (mode is not AutoresetMode.NEXT_STEP)
    assert recorded.env_id == "CartPole-v1"


def test_the_agent_sees_the_environment_as_it_is():
    plain, recorded = cartpole(), RecordTrajectory(cartpole())
    for env in (plain, recorded):
        env.reset(seed=1)
    for action in (0, 1, 1):
        expected, seen = plain.step(action), recorded.step(action)
        assert np.array_equal(expected[0], seen[0])
        assert expected[1:] == seen[1:]


def test_a_reset_in_mid_episode_ends_it_without_a_flag():
    env = RecordTrajectory(gymnasium.make("Pendulum-v1"))
    for seed, length in ((0, 4), (0, 3), (1, 1)):
        env.reset(seed=seed)
        for _ in range(length):
            env.step(np.array([0.5], np.float32))
    trajectory = env.trajectory
    assert trajectory.episode_ends.tolist() == [False] * 3 + [True] + [False] * 2 + [True, True]
    assert not (trajectory.terminated | trajectory.truncated).any()
    assert np.array_equal(trajectory.observations[0], trajectory.observations[4])


def test_two_resets_in_a_row_leave_no_trace():
    env = RecordTrajectory(cartpole())
    for _ in range(3):
        env.reset(seed=3)
    env.step(0)
    assert len(env.trajectory) == 1


def test_resetting_a_whole_vector_ends_every_episode():
    env = VectorRecordTrajectory(SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 2))
    for _ in range(2):
        env.reset(seed=0)
        for _ in range(3):
            env.step(np.zeros((2, 1), np.float32))
    assert np.flatnonzero(env.trajectory.episode_ends).tolist() == [2, 5, 8, 11]


def test_recording_gives_a_prompt():
    env = RecordTrajectory(cartpole())
    with pytest.raises(ValueError, match="no transition has been recorded"):
        env.prompt(0.9)
    env.reset(seed=0)
    for _ in range(5):
        env.step(0)
    prompt = env.prompt(0.9)
    assert isinstance(prompt, Prompt)
    assert prompt.discounts.tolist() == [0.9] * 5
    assert prompt.estimand.env == "CartPole-v1"


@pytest.mark.parametrize("wrap", [RecordTrajectory, lambda env: EvaluateInContext(env, MeanReward())])
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")
def test_gymnasiums_checker_passes_with_the_wrapper_on(wrap):
    check_env(wrap(gymnasium.make("CartPole-v1")), skip_render_check=True)


@pytest.mark.parametrize("name", ["RecordTrajectory", "EvaluateInContext"])
def test_wrapped_environments_can_be_made_again_from_their_spec(name):
    env = cartpole()
    wrapped = RecordTrajectory(env) if name == "RecordTrajectory" else EvaluateInContext(env, MeanReward(), window=7)
    again = gymnasium.make(wrapped.spec)
    assert type(again) is type(wrapped)
    again.reset(seed=0)


# --- live evaluation ------------------------------------------------------------------------------------------------


def test_values_are_published_from_the_first_fit_on_and_belong_to_the_observation_returned():
    evaluator = MeanReward()
    env = EvaluateInContext(cartpole(), evaluator, gamma=0.9, window=20, every=10)
    observation, info = env.reset(seed=3)
    assert INFO_KEY not in info
    for step in range(1, 65):
        observation, _, terminated, truncated, info = env.step(int(lean(observation)))
        assert (INFO_KEY in info) == (step >= 10)
        if step >= 10:
            fits = step // 10
            assert len(evaluator.windows) == fits
            assert info[INFO_KEY] == evaluator.windows[-1].rewards.sum() + observation[2]
            assert type(info[INFO_KEY]) is float
        if terminated or truncated:
            observation, info = env.reset()
            assert (INFO_KEY in info) == (step >= 10)
            assert info.get(INFO_KEY, observation[2]) - observation[2] in (0.0, 10.0, 20.0)
    assert evaluator.gammas == [0.9] * 6


def test_the_window_holds_the_latest_transitions_across_episodes():
    evaluator = MeanReward()
    env = EvaluateInContext(cartpole(), evaluator, window=20, every=7)
    observation, _ = env.reset(seed=3)
    for _ in range(70):
        observation, _, terminated, truncated, _ = env.step(int(lean(observation)))
        if terminated or truncated:
            observation, _ = env.reset()
    whole = collect(cartpole(), lean, 70, seed=3)
    assert [len(window) for window in evaluator.windows] == [7, 14, *[20] * 8]
    for fits, window in enumerate(evaluator.windows, start=1):
        assert same(window, whole[max(0, 7 * fits - 20) : 7 * fits])


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
        expected = None if step < 5 else evaluator.predict(observations).values
        if step >= 5:
            assert np.array_equal(infos[INFO_KEY], expected)
        if step % 5 == 0:
            assert writer[-1] == (LIVE_TAG, expected.mean(), step)
        if mode is AutoresetMode.DISABLED and done.any():
            observations, infos = env.reset(options={"reset_mask": done})
            assert (INFO_KEY in infos) == (step >= 5)
    assert len(writer) == 6
    assert [len(window) for window in evaluator.windows[-2:]] == [50, 50]
    assert len(evaluator.windows[0]) == 15


def test_the_writer_is_told_at_each_fit():
    writer = Scalars()
    env = EvaluateInContext(cartpole(), MeanReward(), every=4, writer=writer)
    env.reset(seed=0)
    values = [env.step(step % 2)[4].get(INFO_KEY) for step in range(9)]
    assert writer == [("in_context/value", values[3], 4), ("in_context/value", values[7], 8)]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0"),
        ({"window": 0}, "window must be at least 1 transition, got 0"),
        ({"every": 0}, "every must be at least 1 step, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateInContext(cartpole(), MeanReward(), **options)
    with pytest.raises(ValueError, match=message):
        VectorEvaluateInContext(SyncVectorEnv([cartpole]), MeanReward(), **options)


def test_live_evaluation_is_told_the_policy_in_its_environment():
    env = gymnasium.make("Pendulum-v1")
    evaluator = MeanReward()
    live = EvaluateInContext(env, evaluator, window=8, every=4, policy="random")
    live.reset(seed=0)
    for _ in range(4):
        live.step(env.action_space.sample())
    assert evaluator.policies[0].action_space == env.action_space
    envs = gymnasium.make_vec("Pendulum-v1", 2)
    several = VectorEvaluateInContext(envs, evaluator, window=8, every=4, policy="random")
    several.reset(seed=0)
    for _ in range(4):
        several.step(envs.action_space.sample())
    assert evaluator.policies[1].action_space == envs.single_action_space
    with pytest.raises(ValueError, match="policy: the only policy known by name is 'random', got 'some'"):
        EvaluateInContext(env, evaluator, policy="some")
