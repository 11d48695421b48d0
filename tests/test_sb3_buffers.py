"""The buffers of Stable-Baselines3 as trajectories, filled by the algorithms themselves where an environment counts."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from icrl_gym.context.trajectory import Trajectory

ONE_STEP = np.array([0, 0, 1])


class Counting(gymnasium.Env):
    """Shows (environment, episode, step); even episodes terminate after 4 steps, odd ones are truncated after 3."""

    def __init__(self, number=0, continuous=False, structured=False):
        self.number, self.episode, self.count, self.structured = number, -1, 0, structured
        box = spaces.Box(-100, 100, (3,), np.float32)
        self.observation_space = spaces.Dict({"place": box}) if structured else box
        self.action_space = spaces.Box(-2.0, 4.0, (1,), np.float32) if continuous else spaces.Discrete(2)

    def _seen(self):
        place = np.array([self.number, self.episode, self.count], np.float32)
        return {"place": place} if self.structured else place

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action):
        self.count += 1
        even = self.episode % 2 == 0
        return (
            self._seen(),
            10.0 * self.episode + self.count,
            even and self.count == 4,
            not even and self.count == 3,
            {},
        )


def vector(num_envs, **options):
    return DummyVecEnv([lambda number=number: Counting(number, **options) for number in range(num_envs)])


def quiet(read):
    """What was read, and what was assumed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read()
    return found, " | ".join(str(warning.message) for warning in caught)


def assert_counts(found, place=lambda seen: seen):
    """Every row is one that the environment made, streams one after another and each in order of time."""
    before, after = place(found.observations), place(found.next_observations)
    where_known = ~found.terminated
    np.testing.assert_array_equal(after[where_known], (before + ONE_STEP)[where_known])
    np.testing.assert_array_equal(found.rewards, 10 * before[:, 1] + before[:, 2] + 1)
    in_time = before[:, 0] * 1e6 + before[:, 1] * 1e3 + before[:, 2]
    assert (np.diff(in_time) > 0).all()
    even = before[:, 1] % 2 == 0
    np.testing.assert_array_equal(found.terminated, even & (before[:, 2] == 3))
    goes_on = before[1:] == before[:-1] + ONE_STEP
    np.testing.assert_array_equal(found.episode_ends[:-1], ~goes_on.all(axis=1))


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 20), (2, 32), (2, 96)])  # half full, and wrapped around
def test_a_replay_buffer_comes_out_stream_by_stream_oldest_first(num_envs, steps):
    model = DQN("MlpPolicy", vector(num_envs), buffer_size=40, learning_starts=1000, seed=0)
    model.learn(steps)
    found, assumed = quiet(lambda: Trajectory.from_replay_buffer(model.replay_buffer))
    assert_counts(found)
    assert len(found) == min(40, steps)
    assert set(found.observations[:, 0]) == set(range(num_envs))
    odd = found.observations[:, 1] % 2 == 1
    np.testing.assert_array_equal(found.truncated, odd & (found.observations[:, 2] == 2))
    assert found.next_observations[found.terminated][0, 2] == 4  # the true successor, not the next start
    assert found.actions.shape == (len(found),)
    assert assumed == ""


@pytest.mark.parametrize("steps", [20, 96])
def test_a_buffer_that_shares_its_observations_loses_successors_at_ends(steps):
    options = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = DQN("MlpPolicy", vector(1), buffer_size=40, learning_starts=1000, seed=0, **options)
    model.learn(steps)
    found, assumed = quiet(lambda: Trajectory.from_replay_buffer(model.replay_buffer))
    assert len(found) == min(39, steps)  # of a full one the oldest row was half overwritten
    ended = found.terminated
    odd = found.observations[:, 1] % 2 == 1
    np.testing.assert_array_equal(ended, found.observations[:, 2] == np.where(odd, 2, 3))
    np.testing.assert_array_equal(found.next_observations[ended], found.observations[ended])
    np.testing.assert_array_equal(found.next_observations[~ended], (found.observations + ONE_STEP)[~ended])
    np.testing.assert_array_equal(found.rewards, 10 * found.observations[:, 1] + found.observations[:, 2] + 1)
    assert "every end terminates" in assumed
    assert "its last state stands for the successor" in assumed


def test_scaled_actions_come_out_as_the_environment_got_them():
    seen = []

    class Watched(Counting):
        def step(self, action):
            seen.append(float(action[0]))
            return super().step(action)

    model = SAC("MlpPolicy", DummyVecEnv([lambda: Watched(continuous=True)]), learning_starts=1000, seed=0)
    model.learn(20)
    found, _ = quiet(lambda: Trajectory.from_replay_buffer(model.replay_buffer))
    np.testing.assert_allclose(found.actions[:, 0], seen, atol=1e-5)
    assert found.actions.max() > 1.5  # in the environment's units


def test_structured_observations_and_normalised_training():
    env = VecNormalize(vector(2, structured=True))
    model = DQN("MultiInputPolicy", env, buffer_size=40, learning_starts=1000, seed=0)
    model.learn(60)
    found, _ = quiet(lambda: Trajectory.from_replay_buffer(model.replay_buffer))
    np.testing.assert_allclose(found.observations["place"], np.round(found.observations["place"]), atol=1e-3)
    assert found.observation_space == spaces.Dict({"place": spaces.Box(-100, 100, (3,), np.float32)})


def rollouts(num_envs=2, steps=8, updated=False, **options):
    """A PPO after one rollout, before or after the update of its network, and where time limits stopped it."""
    from stable_baselines3.common.callbacks import BaseCallback

    cut = []

    class Limits(BaseCallback):
        def _on_step(self):
            cut.append([info.get("TimeLimit.truncated", False) for info in self.locals["infos"]])
            return True

    model = PPO("MlpPolicy", vector(num_envs, **options), n_steps=steps, batch_size=steps, n_epochs=1, seed=0)
    if not updated:
        model.train = lambda: None
    model.learn(steps * num_envs, callback=Limits())
    return model, np.array(cut)


@pytest.mark.parametrize("updated", [False, True])
def test_rollouts_hold_their_successors_inside_and_the_critics_bootstrap_at_time_limits(updated):
    model, _ = rollouts(updated=updated)
    assert model.rollout_buffer.generator_ready == updated
    found, assumed = quiet(lambda: Trajectory.from_rollouts(model.rollout_buffer))
    assert len(found) == 2 * 7  # the last step of each environment is left out
    odd = found.observations[:, 1] % 2 == 1
    np.testing.assert_array_equal(found.terminated, found.observations[:, 2] == np.where(odd, 2, 3))
    plain = 10 * found.observations[:, 1] + found.observations[:, 2] + 1
    bootstrapped = odd & found.terminated
    np.testing.assert_allclose(found.rewards[~bootstrapped], plain[~bootstrapped])
    assert bootstrapped.any()
    assert (found.rewards[bootstrapped] != plain[bootstrapped]).all()
    assert "critic's own value" in assumed


@pytest.mark.parametrize("updated", [False, True])
def test_rollouts_without_the_rows_that_a_time_limit_stopped(updated):
    model, cut = rollouts(updated=updated)
    found, assumed = quiet(lambda: Trajectory.from_rollouts(model.rollout_buffer, truncated=cut))
    assert_counts(found)
    assert not found.truncated.any()
    assert "critic's own value" not in assumed
    with pytest.raises(ValueError, match=r"truncated must have shape \(steps, environments\), \(8, 2\)"):
        Trajectory.from_rollouts(model.rollout_buffer, truncated=cut[:5])


def test_rollouts_drawn_outside_of_a_box_are_clipped():
    model, cut = rollouts(num_envs=1, steps=64, continuous=True)
    with_wide_noise = model.rollout_buffer.actions
    with_wide_noise *= 20
    found, _ = quiet(lambda: Trajectory.from_rollouts(model.rollout_buffer, truncated=cut))
    assert found.actions.shape == (len(found), 1)
    assert (found.actions.min(), found.actions.max()) == (-2.0, 4.0)


def test_rollouts_of_a_normalised_training_are_unnormalised_on_demand():
    env = VecNormalize(vector(2), clip_obs=1e6, clip_reward=1e6)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0)
    env.training = True
    env.reset()
    for _ in range(50):
        env.step(np.zeros(2, dtype=int))
    env.training = False  # still statistics: what they did can be undone exactly
    model.train = lambda: None
    model.learn(32)
    plain, _ = quiet(lambda: Trajectory.from_rollouts(model.rollout_buffer))
    raw, _ = quiet(lambda: Trajectory.from_rollouts(model.rollout_buffer, vec_normalize=env))
    np.testing.assert_allclose(raw.observations, np.round(raw.observations), atol=1e-3)
    assert not np.allclose(plain.observations, raw.observations)
    going_on = ~raw.terminated
    expected = 10 * raw.observations[:, 1] + raw.observations[:, 2] + 1
    np.testing.assert_allclose(raw.rewards[going_on], expected[going_on], rtol=1e-4)


def test_what_is_no_buffer_or_an_empty_one_is_refused():
    space = spaces.Box(-1, 1, (1,), np.float32)
    with pytest.raises(ValueError, match="buffer is empty"):
        Trajectory.from_replay_buffer(ReplayBuffer(10, space, space))
    with pytest.raises(TypeError, match="must be a ReplayBuffer of Stable-Baselines3, got dict"):
        Trajectory.from_replay_buffer({})
    with pytest.raises(TypeError, match="must be a RolloutBuffer of Stable-Baselines3, got ReplayBuffer"):
        Trajectory.from_rollouts(ReplayBuffer(10, space, space))
