"""What the audit says that a critic said, against what the training itself computed."""

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN, PPO, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from icrl_gym.audit.critic import AuditedCritic
from icrl_gym.audit.stream import RolloutStream


class Watching(BaseCallback):
    """Copies a training, and the values that its rollouts computed."""

    def _on_training_start(self):
        self.stream = RolloutStream(self.model, 128)
        self.values = []

    def _on_step(self):
        self.stream.step(self.locals)
        self.values.append(np.asarray(self.locals.get("values", np.zeros(1))).reshape(-1).copy())
        return True

    def _on_rollout_end(self):
        if not self.stream.full:
            return
        self.parts = self.stream.split()
        critic = AuditedCritic(self.model)
        self.trajectory = critic.counted(self.parts[1])
        self.reading = critic.read(self.parts[1], self.trajectory)
        self.critic = critic


def watched(model, steps):
    callback = Watching()
    model.learn(steps, callback=callback)
    return callback


@pytest.mark.parametrize("kind", [PPO, RecurrentPPO])
def test_values_along_a_rollout_are_those_that_the_rollout_computed(kind):
    recurrent = kind is RecurrentPPO
    options = {"policy_kwargs": {"lstm_hidden_size": 8}} if recurrent else {}
    env = make_vec_env("CartPole-v1", 2, seed=0, env_kwargs={"max_episode_steps": 15})
    model = kind(
        "MlpLstmPolicy" if recurrent else "MlpPolicy", env, n_steps=64, batch_size=64, seed=0, device="cpu", **options
    )
    callback = watched(model, 256)
    newest = np.stack(callback.values[-48:]).T.reshape(-1)  # the newer three quarters, environment by environment
    np.testing.assert_allclose(callback.reading.values.values, newest, rtol=1e-4, atol=1e-5)
    trajectory = callback.trajectory
    assert trajectory.truncated.any()
    assert callback.reading.known_N.tolist() == (~trajectory.truncated if recurrent else np.ones(96, bool)).tolist()
    inside = ~trajectory.episode_ends
    expected = trajectory.rewards[:-1] + 0.99 * newest[1:] - newest[:-1]
    np.testing.assert_allclose(callback.reading.residuals_N[:-1][inside[:-1]], expected[inside[:-1]], atol=1e-4)


def test_a_q_critic_is_asked_for_the_greedy_policy_and_for_the_actions_taken():
    model = DQN("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), learning_starts=1_000, seed=0, device="cpu")
    callback = watched(model, 200)
    log = callback.trajectory
    with torch.no_grad():
        every = model.q_net(torch.as_tensor(log.observations)).numpy()
    np.testing.assert_allclose(callback.reading.values.values, every.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(callback.reading.taken_N, every[np.arange(len(log)), log.actions], rtol=1e-5)
    assert callback.critic.policy.identity.endswith("(deterministic)")
    assert log.policy is None
    assert not callback.critic.on_policy


def test_rewards_are_counted_as_they_were_clipped_in_units_of_the_environment():
    env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=0), clip_reward=0.05)
    model = TD3("MlpPolicy", env, learning_starts=1_000, seed=0, device="cpu")
    callback = watched(model, 150)
    limit = 0.05 * np.sqrt(env.ret_rms.var + env.epsilon)
    raw = callback.parts[1].trajectory.rewards
    assert (raw < -limit).any()
    np.testing.assert_allclose(callback.trajectory.rewards, np.clip(raw, -limit, limit))
