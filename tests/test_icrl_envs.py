"""Our own environments: drawn as described, stepping as they say, values that agree by every route."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.utils.env_checker import check_env
from scipy import stats

import icrl_envs
from icrl_envs import BoyanChain, CartPoleFamily, CartPolePhysics, Loop, RandomMRP

IDS = ["icrl/BoyanChain-v0", "icrl/Loop-v0", "icrl/RandomMRP-v0", "icrl/CartPoleFamily-v0"]
TABULAR = [BoyanChain, Loop, RandomMRP]
VARIANTS = [
    {},
    {"observation": "features"},
    {"termination_probability": 0.2},
    {"observation": "features", "termination_probability": 0.2},
]


def rollout(env: gymnasium.Env, seed: int, length: int) -> list[tuple]:
    """Observations, rewards and flags; actions from a generator of their own."""
    generator = np.random.default_rng(0)
    rows = [(env.reset(seed=seed)[0], 0.0, False, False)]
    for _ in range(length):
        rows.append(env.step(int(generator.integers(env.action_space.n)))[:4])
        if rows[-1][2] or rows[-1][3]:
            rows.append((env.reset()[0], 0.0, False, False))
    return rows


def equal(first: list[tuple], second: list[tuple]) -> bool:
    same_length = len(first) == len(second)
    return same_length and all(
        np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(first, second, strict=True)
    )


# --- every environment ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")  # CartPole's velocities
def test_gymnasiums_checker_passes(env_id):
    for arguments in [{}] if "CartPole" in env_id else VARIANTS:
        check_env(gymnasium.make(env_id, **arguments).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", IDS)
def test_two_copies_agree_and_another_seed_does_not(env_id):
    for arguments in [{}] if "CartPole" in env_id else VARIANTS:
        copies = [gymnasium.make(env_id, **arguments) for _ in range(2)]
        copies[1].reset(seed=99)
        copies[1].step(0)
        np.random.default_rng(1).random(5)
        first, second = (rollout(env, 7, 200) for env in copies)
        assert equal(first, second)
        assert not equal(first, rollout(copies[0], 8, 200))


def test_a_fresh_process_makes_them_by_module_and_id_without_the_library():
    code = (
        "import sys, gymnasium\n"
        f"for name in {IDS}:\n"
        "    gymnasium.make('icrl_envs:' + name).reset(seed=0)\n"
        "assert not any(name.partition('.')[0] in ('icrl_gym', 'torch') for name in sys.modules)"
    )
    source = str(Path(icrl_envs.__file__).parents[1])
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("env_id", "limit"), [*((env_id, 1000) for env_id in IDS[:3]), (IDS[3], 500)])
def test_registered_time_limits(env_id, limit):
    assert gymnasium.make(env_id).spec.max_episode_steps == limit


# --- tabular processes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", TABULAR)
@pytest.mark.parametrize("termination", [0.0, 0.2])
def test_values_agree_by_solving_by_iterating_and_by_the_table(make, termination):
    env = make(num_states=7, mrp_seed=3, termination_probability=termination)
    gamma = 0.9
    solved = env.exact_values(gamma)
    iterated = np.zeros(7)
    tabulated = np.zeros(len(env.P))
    for _ in range(400):
        iterated = env.expected_rewards + gamma * env.transition_matrix @ iterated
        tabulated = np.array(
            [
                sum(p * (r + gamma * (not end) * tabulated[successor]) for p, successor, r, end in env.P[state][0])
                for state in env.P
            ]
        )
    assert np.allclose(solved, iterated, atol=1e-12)
    assert np.allclose(solved, tabulated[:7], atol=1e-12)
    assert np.abs(solved).max() > 0.1


def test_a_two_state_loop_has_the_values_found_by_hand():
    env = Loop(num_states=2, threshold=1.0, mrp_seed=0)
    (first, second), gamma = env.expected_rewards, 0.5
    # v0 = r0 + v1/2, v1 = r1 + v0/2
    assert np.allclose(env.exact_values(gamma), [(4 * first + 2 * second) / 3, (2 * first + 4 * second) / 3])
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\), got 1"):
        env.exact_values(1)


@pytest.mark.parametrize("make", TABULAR)
def test_the_table_the_matrix_and_the_features_describe_one_process(make):
    env = make(num_states=6, num_features=3, mrp_seed=5, termination_probability=0.25)
    assert set(env.P) == set(range(7))
    for state in range(6):
        outcomes = env.P[state][0]
        assert sum(p for p, *_ in outcomes) == pytest.approx(1.0, abs=1e-12)
        row = np.zeros(7)
        for probability, successor, reward, terminated in outcomes:
            row[successor] += probability
            assert reward == env.expected_rewards[state]
            assert terminated == (successor == 6)
        assert np.allclose(row[:6], env.transition_matrix[state], atol=0)
        assert row[6] == 0.25
    assert env.P[6] == {0: [(1.0, 6, 0.0, True)]}
    assert env.features.shape == (7, 3)
    assert (env.features[6] == 0).all()
    assert np.allclose(env.transition_matrix.sum(axis=1), 0.75)
    assert np.abs(env.expected_rewards).max() <= 1
    assert np.abs(env.features).max() <= 1
    without = make(num_states=6, num_features=3, mrp_seed=5)
    assert np.allclose(without.transition_matrix * 0.75, env.transition_matrix)
    assert np.array_equal(without.features, env.features[:6])
    assert set(without.P) == set(range(6))


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's statistic of counted transitions, summed over the rows."""
    expected = counts.sum(axis=1, keepdims=True) * probabilities
    possible = expected > 0
    assert (counts[~possible] == 0).all()
    return float(((counts - expected)[possible] ** 2 / expected[possible]).sum())


@pytest.mark.parametrize("make", TABULAR)
@pytest.mark.parametrize("termination", [0.0, 0.2])
def test_sampled_transitions_have_the_frequencies_of_the_matrix(make, termination):
    """A correct environment fails with probability 1e-6 per case; rows in another order must fail."""
    env = make(num_states=5, mrp_seed=2, termination_probability=termination)
    stated = np.hstack([env.transition_matrix, np.full((5, 1), termination)])
    counts = np.zeros((5, 6))
    state, _ = env.reset(seed=0)
    for _ in range(20_000):
        successor, reward, terminated, _, info = env.step(0)
        assert reward == env.expected_rewards[state]
        assert info["state"] == successor
        assert terminated == (successor == 5)
        counts[state, successor] += 1
        state = env.reset()[0] if terminated else successor
    freedom = int((stated > 0).sum()) - 5
    limit = stats.chi2.ppf(1 - 1e-6, max(freedom, 1))
    assert chi_square(counts, stated) < limit
    even = np.where(stated > 0, 1.0, 0.0)
    even /= even.sum(axis=1, keepdims=True)
    assert chi_square(counts, even) > limit


def test_every_state_is_as_likely_to_start_in():
    """False alarm 1e-6."""
    env = RandomMRP(num_states=5)
    env.reset(seed=0)
    counts = np.bincount([env.reset()[0] for _ in range(5000)], minlength=5)
    assert env.initial_state_distrib.tolist() == [0.2] * 5
    assert ((counts - 1000) ** 2 / 1000).sum() < stats.chi2.ppf(1 - 1e-6, 4)


@pytest.mark.parametrize("make", TABULAR)
def test_features_show_the_state_that_ids_show(make):
    by_id = make(mrp_seed=4, termination_probability=0.2)
    by_features = make(mrp_seed=4, termination_probability=0.2, observation="features")
    ids, features = rollout(by_id, 3, 100), rollout(by_features, 3, 100)
    assert all(
        np.array_equal(by_id.features[a[0]], b[0]) and a[1:] == b[1:] for a, b in zip(ids, features, strict=True)
    )
    assert all(by_features.observation_space.contains(row[0]) for row in features)
    shown = by_features.reset(seed=0)[0]
    shown += 100.0
    assert np.abs(by_features.features).max() <= 1


@pytest.mark.parametrize("make", TABULAR)
def test_the_process_follows_mrp_seed_and_not_the_seed_of_reset(make):
    def process(env):
        return np.concatenate([env.transition_matrix.ravel(), env.expected_rewards, env.features.ravel()])

    env = make(mrp_seed=1)
    before = process(env).copy()
    rollout(env, 5, 50)
    assert np.array_equal(process(env), before)
    assert np.array_equal(process(make(mrp_seed=1)), before)
    assert not np.array_equal(process(make(mrp_seed=2)), before)


def test_boyans_chain_steps_one_or_two_and_is_thrown_back_from_its_end():
    matrix = BoyanChain(num_states=8, mrp_seed=1).transition_matrix
    for state in range(6):
        assert np.flatnonzero(matrix[state]).tolist() == [state + 1, state + 2]
    assert np.all((matrix[range(6), range(1, 7)] >= 0.01) & (matrix[range(6), range(1, 7)] <= 0.99))
    assert np.flatnonzero(matrix[6]).tolist() == [7]
    assert (matrix[7] > 0).all()
    assert np.allclose(matrix.sum(axis=1), 1.0)
    drawn = np.concatenate(
        [BoyanChain(10, mrp_seed=seed).transition_matrix[range(8), range(1, 9)] for seed in range(300)]
    )
    assert stats.kstest(drawn, stats.uniform(0.01, 0.98).cdf).pvalue > 1e-4
    rewards = np.concatenate([BoyanChain(10, mrp_seed=seed).expected_rewards for seed in range(300)])
    assert stats.kstest(rewards, stats.uniform(-1, 2).cdf).pvalue > 1e-4


def test_a_loop_keeps_its_ring_and_loses_shortcuts_as_the_threshold_rises():
    ring = np.eye(10)[(np.arange(10) + 1) % 10]
    assert np.array_equal(Loop(10, threshold=1.0).transition_matrix, ring)
    assert (Loop(10, threshold=0.0).transition_matrix > 0).all()
    shortcuts = [
        [(Loop(10, threshold=threshold, mrp_seed=seed).transition_matrix[ring == 0] > 0).mean() for seed in range(100)]
        for threshold in (0.3, 0.8)
    ]
    assert np.allclose(np.mean(shortcuts, axis=1), [0.7, 0.2], atol=0.03)  # over 5 standard errors
    assert (Loop(10, threshold=0.9, mrp_seed=7).transition_matrix[ring == 1] > 0).all()


def test_concentration_decides_how_even_a_random_process_is():
    largest = [RandomMRP(10, concentration=c, mrp_seed=0).transition_matrix.max(axis=1) for c in (0.01, 1.0, 1000.0)]
    assert largest[0].mean() > 0.9
    assert 0.2 < largest[1].mean() < 0.5
    assert largest[2].max() < 0.15


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (BoyanChain, {"num_states": 2}, "num_states must be at least 3, got 2"),
        (Loop, {"num_states": 1}, "num_states must be at least 2, got 1"),
        (Loop, {"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        (RandomMRP, {"num_states": 0}, "num_states must be at least 1, got 0"),
        (RandomMRP, {"concentration": 0.0}, "concentration must be above 0, got 0.0"),
        (RandomMRP, {"num_features": 0}, "num_features must be at least 1, got 0"),
        (RandomMRP, {"observation": "pixels"}, "observation must be 'id' or 'features', got 'pixels'"),
        (RandomMRP, {"termination_probability": 1.0}, r"termination_probability must be in \[0, 1\), got 1.0"),
        (CartPoleFamily, {"spread": 0.5}, "spread must be at least 1 and finite, got 0.5"),
    ],
)
def test_arguments_out_of_range_are_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


# --- the CartPole family --------------------------------------------------------------------------------------------


def test_without_spread_the_family_is_cartpole():
    assert equal(rollout(CartPoleFamily(physics_seed=4, spread=1.0), 3, 100), rollout(CartPoleEnv(), 3, 100))


def test_a_member_moves_by_its_own_physics():
    member = CartPoleFamily(physics_seed=4)
    assert not equal(rollout(member, 3, 100), rollout(CartPoleEnv(), 3, 100))
    by_hand = CartPoleEnv()
    for name in ("gravity", "masscart", "masspole", "length", "force_mag"):
        setattr(by_hand, name, getattr(member.physics, name))
    by_hand.total_mass = member.physics.masscart + member.physics.masspole
    by_hand.polemass_length = member.physics.masspole * member.physics.length
    assert equal(rollout(member, 3, 100), rollout(by_hand, 3, 100))


def test_physics_follow_their_seed_and_stay_within_the_spread():
    assert CartPoleFamily(physics_seed=4).physics == CartPoleFamily(physics_seed=4).physics
    assert CartPoleFamily(physics_seed=4).physics != CartPoleFamily(physics_seed=5).physics
    drawn = np.array([list(vars(CartPolePhysics.draw(seed, 3.0)).values()) for seed in range(300)])
    factors = drawn / list(vars(CartPolePhysics()).values())
    assert ((factors >= 1 / 3) & (factors <= 3)).all()
    logarithms = np.log(factors) / np.log(3)
    assert all(stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > 1e-5 for column in logarithms.T)


# --- small frames ---------------------------------------------------------------------------------------------------


class Screen(gymnasium.Env):
    """Grey frames of a counter: pixel (i, j) of frame t is 4 t + 2 (i odd) + (j odd)."""

    observation_space = gymnasium.spaces.Box(0, 255, (5, 6), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)
    time = 0

    def frame(self) -> np.ndarray:
        return (4 * self.time + 2 * (np.arange(5)[:, None] % 2) + np.arange(6) % 2).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.frame(), {}

    def step(self, action):
        self.time += 1
        return self.frame(), 0.0, False, False, {}


def test_small_frames_are_block_means_with_the_previous_one_first():
    small_frames = pytest.importorskip("icrl_envs.small_frames")
    env = small_frames.SmallFrames(Screen())
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (2, 2, 3), np.uint8)
    first, _ = env.reset()
    second = env.step(0)[0]
    assert (first == 2).all()  # 1.5 rounded to even
    assert (second[0] == 2).all()
    assert (second[1] == 6).all()
    assert second.dtype == np.uint8
    again, _ = env.reset()
    assert (again == first).all()
    with pytest.raises(ValueError, match=r"grey frames of shape \(height, width\).*got \(4,\)"):
        small_frames.SmallFrames(gymnasium.make("CartPole-v1"))


# --- a goal ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*Box observation space m..imum value is .*infinity")
def test_a_point_is_paid_where_it_is_at_its_goal():
    env = gymnasium.make("icrl_envs:icrl/PointGoal-v0")
    check_env(env.unwrapped, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    paid = []
    for _ in range(150):
        to_goal = observation["desired_goal"] - observation["achieved_goal"]
        action = np.clip(4.0 * to_goal - 30.0 * observation["observation"][2:], -1.0, 1.0).astype(np.float32)
        observation, reward, terminated, truncated, info = env.step(action)
        there = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]) < 0.15
        assert reward == float(there)
        assert reward == env.unwrapped.compute_reward(observation["achieved_goal"], observation["desired_goal"], info)
        assert not terminated
        paid.append(reward)
    assert truncated
    assert paid[0] == 0.0
    assert paid[-1] == 1.0
    rewards = env.unwrapped.compute_reward(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.1, 0.0], [0.0, 0.0]]), None)
    assert rewards.tolist() == [1.0, 0.0]
