"""Exact copies of running simulators."""

import copy
import threading
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, TimeLimit, TransformReward

from icrl_gym.ground_truth import simulators
from icrl_gym.ground_truth.copies import refresh_randomness
from icrl_gym.ground_truth.simulators import Simulator, choose_strategy, environment_factory

STRATEGY_OF = {
    "CartPole-v1": "deepcopy",
    "FrozenLake-v1": "deepcopy",
    "Pendulum-v1": "deepcopy",
    "minigrid:MiniGrid-Dynamic-Obstacles-5x5-v0": "deepcopy",
    "LunarLander-v3": "replay",
    "BipedalWalker-v3": "replay",
    "Hopper-v5": "mujoco",
    "Ant-v5": "mujoco",
    "ale_py:ALE/Pong-v5": "ale",
}


def running(env_or_id, num_steps=20, seed=5):
    factory = environment_factory(env_or_id)
    simulator = Simulator(factory, choose_strategy(factory))
    simulator.reset(seed)
    for action in actions_of(simulator.env, num_steps, seed):
        _, _, terminated, truncated = simulator.step(action)
        if terminated or truncated:
            seed += 1
            simulator.reset(seed)
    return simulator


def actions_of(env, number, seed):
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(number)]


def observations_after(env, actions):
    seen = []
    for action in actions:
        observation, reward, terminated, *_ = env.step(action)
        leaves = observation.values() if isinstance(observation, dict) else [observation]
        seen.append(
            np.concatenate([*(np.ravel(leaf) for leaf in leaves if not isinstance(leaf, str)), [float(reward)]])
        )
        if terminated:
            break
    return np.concatenate(seen)


@pytest.mark.parametrize(("env_id", "strategy"), STRATEGY_OF.items())
def test_a_copy_reproduces_what_the_original_sees(env_id, strategy):
    simulator = running(env_id)
    assert simulator.strategy == strategy
    saved = simulator.save()
    actions = actions_of(simulator.env, 25, seed=9)
    first = observations_after(saved.restore(), actions)
    original = observations_after(simulator.env, actions)
    second = observations_after(saved.restore(), actions)
    np.testing.assert_array_equal(first, original)
    np.testing.assert_array_equal(second, original)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "LunarLander-v3", "minigrid:MiniGrid-Dynamic-Obstacles-8x8-v0",
                                    pytest.param("ale_py:ALE/Pong-v5", marks=pytest.mark.slow)])  # fmt: skip
def test_copies_of_a_stochastic_simulator_have_noise_of_their_own(env_id):
    saved = running(env_id, num_steps=3).save()
    env = saved.restore()
    engine_on = [2] * 30 if "Lunar" in env_id else [1 + (k // 5) % 2 for k in range(30)]

    def future(seed):
        return observations_after(saved.branch(np.random.SeedSequence(seed)), engine_on)

    np.testing.assert_array_equal(future(1), future(1))
    others = [future(seed) for seed in (2, 3)]
    assert any(len(other) != len(future(1)) or (other != future(1)).any() for other in others)
    shared = [observations_after(saved.restore(), engine_on) for _ in range(3)]  # the partner: exact copies share it
    assert all(np.array_equal(shared[0], one) for one in shared)
    env.close()


def test_a_plain_deepcopy_of_a_mujoco_environment_is_caught_by_the_check(monkeypatch):
    def naive(simulator):
        saved = copy.deepcopy(simulator.env)
        return lambda: copy.deepcopy(saved)

    monkeypatch.setitem(simulators.STRATEGIES, "naive", naive)
    assert not simulators._reproduces(environment_factory("Hopper-v5"), "naive", seed=0)
    assert simulators._reproduces(environment_factory("CartPole-v1"), "naive", seed=0)


def test_wrappers_are_copied_with_their_state():
    def stack():
        return FrameStackObservation(TransformReward(gymnasium.make("Pendulum-v1"), lambda reward: 2 * reward), 4)

    simulator = running(stack(), num_steps=7)
    restored = simulator.save().restore()
    actions = actions_of(simulator.env, 3, seed=1)
    np.testing.assert_array_equal(observations_after(restored, actions), observations_after(simulator.env, actions))
    assert type(restored).__name__ == "FrameStackObservation"


def test_copies_run_past_the_time_limit_and_the_original_does_not():
    simulator = running(TimeLimit(gymnasium.make("Pendulum-v1").unwrapped, 8), num_steps=5)
    branch = simulator.save().branch(np.random.SeedSequence(0))
    assert not any(branch.step(np.zeros(1))[3] for _ in range(20))
    assert [simulator.step(np.zeros(1))[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("own_limit", [5, 6, 7])
def test_the_time_limit_and_the_environments_own_truncation_are_told_apart(own_limit):
    class LimitsItself(Nested):
        def reset(self, *, seed=None, options=None):
            self.time = 0
            return super().reset(seed=seed)

        def step(self, action):
            self.time += 1
            observation, reward, terminated, _, info = super().step(action)
            return observation, reward, terminated, self.time == own_limit, info

    simulator = Simulator(lambda: TransformReward(TimeLimit(LimitsItself(), 6), float), "independent")
    simulator.reset(0)
    while not simulator.step(0)[3]:
        assert not simulator.stopped_by_time_limit
    assert simulator.stopped_by_time_limit == (own_limit > 6)


def test_an_environment_that_is_handed_over_is_left_alone():
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    before = env.unwrapped.state.copy(), env.unwrapped.np_random.bit_generator.state
    running(env)
    np.testing.assert_array_equal(env.unwrapped.state, before[0])
    assert env.unwrapped.np_random.bit_generator.state == before[1]


class Nested(gymnasium.Env):
    """Noise comes from a part that has a generator of its own."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (1,)), spaces.Discrete(2)

    class Part:
        def __init__(self, generator):
            self.generator = generator

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.part = self.Part(np.random.default_rng(self.np_random.integers(2**31)))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return self.part.generator.normal(size=1).astype(np.float32), 0.0, False, False, {}


def test_a_generator_held_by_a_part_is_refreshed_too():
    saved = running(Nested()).save()
    draws = [saved.branch(np.random.SeedSequence(seed)).step(0)[0][0] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_generator_never_seeded_is_seeded():
    env = gymnasium.Env()
    refresh_randomness(env, np.random.SeedSequence(3))
    first = env.np_random.normal()
    refresh_randomness(env, np.random.SeedSequence(3))
    assert env.np_random.normal() == first


class Unrepeatable(Nested):
    """Holds what cannot be copied and ignores the seed."""

    def reset(self, *, seed=None, options=None):
        self.lock = threading.Lock()
        return super().reset(seed=None)


def test_what_cannot_be_copied_is_said_to_be_independent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_strategy(Unrepeatable) == "independent"
    simulator = Simulator(Unrepeatable, "independent")
    simulator.reset(0)
    with pytest.raises(ValueError, match="cannot be copied"):
        simulator.save()
