"""The copied steps of a training against what the environments themselves saw."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from icrl_gym.audit.stream import RolloutStream, with_last_successors
from icrl_gym.observations import batch_size


class Diary(gymnasium.Wrapper):
    """Writes down every transition as the environment itself sees it."""

    def __init__(self, env):
        super().__init__(env)
        self.rows: list[tuple[Any, ...]] = []

    def reset(self, **options):
        self.seen, info = self.env.reset(**options)
        return self.seen, info

    def step(self, action):
        result = self.env.step(action)
        self.rows.append((self.seen, action, float(result[1]), result[0], result[2], result[3]))
        self.seen = result[0]
        return result


class Goal(gymnasium.Env):
    """Dict observations, episodes of 4 to 7 steps that terminate or, by a wrapper, are cut."""

    observation_space = spaces.Dict({"place": spaces.Box(-1, 1, (2,)), "count": spaces.Discrete(20)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self._observation(), {}

    def step(self, action):
        self.count += 1
        return self._observation(), float(action), bool(self.np_random.random() < 0.1), False, {}

    def _observation(self):
        return {"place": self.np_random.uniform(-1, 1, 2).astype(np.float32), "count": self.count}


class Copying(BaseCallback):
    """Copies a whole training."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = capacity

    def _on_training_start(self):
        self.stream = RolloutStream(self.model, self.capacity)

    def _on_rollout_start(self):
        self.stream.policy_number += 1

    def _on_step(self):
        self.stream.step(self.locals)
        return True


def pendulums(count, limit=30):
    return [Diary(gymnasium.make("Pendulum-v1", max_episode_steps=limit)) for _ in range(count)]


def vector(envs):
    return DummyVecEnv([lambda env=env: env for env in envs])


def copied(model, capacity, steps):
    callback = Copying(capacity)
    model.learn(steps, callback=callback)
    return callback.stream.split()


def ppo(env, **options):
    settings = {"n_steps": 64, "batch_size": 32, "n_epochs": 1, "seed": 0, "device": "cpu"}
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return PPO(policy, env, **(settings | options))


def newest(diary, count):
    """The newest transitions of one environment, column by column."""
    return [list(column) for column in zip(*diary.rows[-count:], strict=True)]


@pytest.mark.parametrize("wrap", [lambda env: env, VecNormalize, lambda env: VecNormalize(env, norm_obs=False)])
def test_what_is_copied_is_what_each_environment_saw(wrap):
    diaries = pendulums(3)
    older, newer = copied(ppo(wrap(vector(diaries))), capacity=96, steps=128)
    assert (len(older.trajectory), len(newer.trajectory)) == (24, 72)  # 8 and 24 of the 32 newest steps of three
    for index, diary in enumerate(diaries):
        for first, stretch, length in ((32, older, 8), (24, newer, 24)):
            seen, actions, rewards, successors, terminated, truncated = newest(diary, first)
            log, rows = stretch.trajectory, slice(index * length, (index + 1) * length)
            np.testing.assert_allclose(log.observations[rows], seen[:length], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(log.next_observations[rows], successors[:length], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(log.actions[rows], actions[:length], rtol=1e-6)
            np.testing.assert_allclose(log.rewards[rows], rewards[:length], rtol=1e-5)
            assert log.truncated[rows].tolist() == truncated[:length]
            assert log.terminated[rows].tolist() == terminated[:length]
            assert log.episode_ends[rows][-1]


def test_dict_observations_keep_their_structure_and_true_successors():
    diaries = [Diary(gymnasium.wrappers.TimeLimit(Goal(), 7)) for _ in range(2)]
    _, newer = copied(ppo(vector(diaries)), capacity=80, steps=64)
    log = newer.trajectory
    _, _, rewards, successors, terminated, truncated = newest(diaries[1], 30)
    assert log.next_observations["count"][30:].tolist() == [one["count"] for one in successors]
    assert log.terminated[30:].tolist() == terminated
    assert log.truncated[30:].tolist() == truncated
    assert log.rewards[30:].tolist() == rewards
    assert log.terminated.any()
    assert log.truncated.any()


def test_stacked_frames_are_copied_as_the_model_sees_them():
    diaries = pendulums(2)
    _, newer = copied(ppo(VecNormalize(VecFrameStack(vector(diaries), 3))), capacity=64, steps=64)
    _, _, _, successors, _, truncated = newest(diaries[0], 24)
    np.testing.assert_allclose(newer.trajectory.next_observations[:24, -3:], successors, rtol=1e-4, atol=1e-4)
    assert newer.trajectory.truncated[:24].tolist() == truncated


def test_frames_stacked_above_a_normalisation_are_refused():
    with pytest.raises(ValueError, match="wrap VecNormalize around the stacked frames"):
        RolloutStream(ppo(VecFrameStack(VecNormalize(vector(pendulums(1))), 3)), 64)


def test_off_policy_steps_are_copied_too():
    diary = Diary(gymnasium.make("CartPole-v1", max_episode_steps=9))
    model = DQN("MlpPolicy", vector([diary]), learning_starts=10, seed=0, device="cpu")
    _, newer = copied(model, capacity=64, steps=100)
    seen, actions, _, _, terminated, truncated = newest(diary, 48)
    np.testing.assert_allclose(newer.trajectory.observations, seen, rtol=1e-6)
    assert newer.trajectory.actions.tolist() == [int(action) for action in actions]
    assert newer.trajectory.terminated.tolist() == terminated
    assert newer.trajectory.truncated.tolist() == [
        cut and not end for cut, end in zip(truncated, terminated, strict=True)
    ]
    assert newer.num_policies == 12  # an update may follow every fourth step


def test_a_stretch_knows_how_many_policies_made_it():
    older, newer = copied(ppo(vector(pendulums(1))), capacity=64, steps=128)
    assert (older.num_policies, newer.num_policies) == (1, 1)
    older, newer = copied(ppo(vector(pendulums(1)), n_steps=16, batch_size=16), capacity=64, steps=128)
    assert (older.num_policies, newer.num_policies) == (1, 3)


def test_after_it_was_cleared_a_stream_goes_on_without_what_it_did_not_see():
    model = ppo(vector(pendulums(1)))
    callback = Copying(64)
    model.learn(64, callback=callback)
    callback.stream.clear()
    with pytest.raises(ValueError, match="at least 4 steps"):
        callback.stream.split()
    assert len(callback.stream) == 0


def test_sequences_carry_the_observation_after_their_last_step():
    _, newer = copied(ppo(vector(pendulums(2))), capacity=64, steps=64)
    joined, log = with_last_successors(newer), newer.trajectory
    assert batch_size(joined) == len(log) + 2
    np.testing.assert_array_equal(joined[24], log.next_observations[23])
    np.testing.assert_array_equal(joined[25:49], log.observations[24:])
