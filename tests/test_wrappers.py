"""Recording: what is recorded, for one environment and for vectors."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from cartpole_streams import MODES, cartpole, lean, same
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from icrl_gym.context.collection import collect
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.wrappers import RecordTrajectory, VectorRecordTrajectory


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


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")
def test_gymnasiums_checker_passes_with_the_wrapper_on():
    check_env(RecordTrajectory(gymnasium.make("CartPole-v1")), skip_render_check=True)


def test_wrapped_environments_can_be_made_again_from_their_spec():
    again = gymnasium.make(RecordTrajectory(cartpole()).spec)
    assert type(again) is RecordTrajectory
    again.reset(seed=0)
