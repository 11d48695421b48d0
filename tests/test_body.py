"""Made-up bodies: each number another one, that falls, runs or swims, and can be copied in the middle of a step."""

import copy

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from icrl_envs import Body

pytest.importorskip("mujoco")


def rollout(env, steps, seed=0):
    """Observations, rewards and flags under random torques."""
    generator, rows = np.random.default_rng(seed), [env.reset(seed=seed)[0]]
    rewards, ends = [], []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(generator.uniform(-1, 1, env.action_space.shape))
        rows.append(observation)
        rewards.append(reward)
        ends.append((terminated, truncated))
        if terminated or truncated:
            env.reset()
    return np.array(rows), np.array(rewards), np.array(ends)


@pytest.mark.parametrize("body", range(4))
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")
def test_gymnasiums_checker_passes(body):
    check_env(gymnasium.make("icrl_envs:icrl/Body-v0", body=body).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("body", range(12))
def test_a_number_is_a_body_and_a_seed_its_path(body):
    first, again = (rollout(Body(body), 60) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(first[0][0] - rollout(Body(body), 1, seed=1)[0][0]).max() > 0
    assert np.isfinite(first[0]).all()
    assert first[0][:, -Body(body).unwrapped.action_space.shape[0] :].std() > 0.1  # the joints move


def test_bodies_that_can_fall_do_and_the_others_go_on_until_the_time_limit():
    for body, kind in enumerate(("falls", "falls", "runs", "swims") * 2):
        env = gymnasium.make("icrl_envs:icrl/Body-v0", body=body)
        assert env.unwrapped.kind == kind
        _, _, ends = rollout(env, 1000)
        assert (ends[:, 0].sum() > 5) == (kind == "falls")
        if kind != "falls":
            np.testing.assert_array_equal(np.flatnonzero(ends[:, 1]), [999])


def test_the_reward_is_forward_speed_less_the_torques_cost():
    env = Body(2)
    env.reset(seed=0)
    still, torque = np.zeros(env.action_space.shape), np.ones(env.action_space.shape)
    before = env._data.qpos[0]
    _, reward, _, _, _ = env.step(torque)
    speed = (env._data.qpos[0] - before) / (4 * 0.005)
    assert reward == pytest.approx(speed - env._cost * len(torque))
    before = env._data.qpos[0]
    assert env.step(still)[1] == pytest.approx((env._data.qpos[0] - before) / (4 * 0.005))


def test_a_copy_goes_on_from_the_same_state():
    env = Body(0)
    rollout(env, 7)
    other, torque = copy.deepcopy(env), np.full(env.action_space.shape, 0.3)
    for _ in range(5):
        np.testing.assert_array_equal(env.step(torque)[0], other.step(torque)[0])
    other.step(torque)
    assert np.abs(env.step(-torque)[0] - other.step(torque)[0]).max() > 0


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="body must be an integer >= 0, got -1"):
        Body(-1)
