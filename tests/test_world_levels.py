"""Rewards of few values: read exactly where a threshold tells them, not used where it does not."""

import gymnasium
import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.evaluator.world import ImaginedValues
from icrl_gym.evaluator.world.levels import FEWEST_EVENTS, MOST_ROWS, MOST_VALUES, RewardLevels

MEMBERS, GAMMA = 4, 0.95


def stretches(count):
    """Which transitions each member is kept from, (K, L)."""
    return np.arange(count) * 16 // count % MEMBERS == np.arange(MEMBERS)[:, None]


def fitted(successors, rewards, error=1.0, rows=None):
    rows = np.arange(len(rewards)) if rows is None else rows
    return RewardLevels.fit(successors, rewards, rows, stretches(len(rewards)), np.zeros(successors.shape[1]), error)


def places(count, seed=0):
    return np.random.default_rng(seed).uniform(-1.0, 1.0, (count, 2))


def near(x):
    return np.where(np.linalg.norm(x, axis=-1) < 0.6, 1.0, 0.0)


def three(x):
    return np.select([x[..., 0] > 0.7, x[..., 1] < -0.8], [5.0, -2.0], 0.1)


def foretold(levels, x):
    """Rewards (K, B) that each member foretells."""
    return levels.rewards(levels.shares(torch.as_tensor(np.tile(x, (MEMBERS, 1, 1))))).numpy()


@pytest.mark.parametrize("pays", [near, three])
def test_rewards_that_a_place_decides_are_read_as_they_are(pays):
    x, others = places(800), places(400, seed=1)
    levels = fitted(x, pays(x))
    assert levels is not None
    assert (np.abs(foretold(levels, others) - pays(others)) > 0.01).mean() < 0.02
    shares = levels.shares(torch.as_tensor(np.tile(others, (MEMBERS, 1, 1)))).numpy()
    np.testing.assert_allclose(shares.sum(axis=-1), 1.0)
    assert (shares >= 0.0).all()
    assert levels.values_V[0] == pays(np.array([0.65, 0.65]))  # the commonest comes first


def test_a_member_has_not_seen_the_events_that_it_is_kept_from():
    """Everything that pays beyond .5 lies in one member's part: it alone does not know of it."""
    x = places(800)
    x[:, 0] = np.where(stretches(800)[2], x[:, 0], np.minimum(x[:, 0], 0.45))
    levels = fitted(x, np.where((x[:, 0] > 0.5) | (x[:, 1] < -0.9), 1.0, 0.0), error=np.inf)
    assert levels is not None
    told = foretold(levels, np.array([[0.9, 0.0], [0.0, -0.95], [0.0, 0.0]]))
    assert told[2].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(told[[0, 1, 3]], np.tile([1.0, 1.0, 0.0], (3, 1)), atol=1e-3)


@pytest.mark.parametrize(
    ("rewards", "error"),
    [
        (lambda x: np.zeros(len(x)), 1.0),  # one value
        (lambda x: np.round(x[:, 0] * (MOST_VALUES + 2)), 1.0),  # many
        (lambda x: np.arange(len(x)) < FEWEST_EVENTS - 1, 1.0),  # hardly any events
        (near, 1e-6),  # foretold better without
        (lambda x: np.random.default_rng(2).random(len(x)) < 0.3, 1.0),  # chance
    ],
)
def test_other_rewards_have_no_levels(rewards, error):
    x = places(800)
    assert fitted(x, np.asarray(rewards(x), dtype=np.float64), error) is None


def test_weights_of_rewards_fall_on_the_transitions_that_paid_them():
    x = places(800)
    rows = np.sort(np.random.default_rng(3).permutation(1000)[:800])
    levels = fitted(x, three(x), rows=rows)
    assert levels is not None
    rewards_N = np.full(1000, np.nan)
    rewards_N[rows] = three(x)
    shares_QV = np.random.default_rng(4).random((5, 3))
    weights_QN = levels.attribution(shares_QV, 1000)
    assert (weights_QN[:, np.isnan(rewards_N)] == 0.0).all()
    np.testing.assert_allclose(weights_QN @ np.nan_to_num(rewards_N), shares_QV @ levels.values_V)


def test_of_a_long_log_some_transitions_are_read():
    x = places(4 * MOST_ROWS)
    levels = fitted(x, near(x))
    assert levels is not None
    assert sum(map(len, levels.rows_V)) == MOST_ROWS


def steer(observation):
    """Push towards the goal, and brake."""
    to_goal = observation["desired_goal"] - observation["achieved_goal"]
    return np.clip(4.0 * to_goal - 30.0 * observation["observation"][..., 2:], -1.0, 1.0).astype(np.float32)


@pytest.fixture(scope="module")
def at_goals():
    log = icrl.collect("icrl_envs:icrl/PointGoal-v0", steer, num_transitions=900, seed=0)
    return icrl.InContextEvaluator.from_pretrained().fit(log, GAMMA, policy=steer)


def test_a_goal_that_is_reached_or_not_is_followed_in_the_world(at_goals):
    """The world knows the point's movement, the distance and what it pays: walks are near exact, the leaf is not."""
    assert isinstance(at_goals.compiled_, ImaginedValues)
    assert at_goals.compiled_.walker.world.levels is not None
    truth = icrl.monte_carlo_values(
        gymnasium.make("icrl_envs:icrl/PointGoal-v0"), steer, num_queries=40, num_rollouts=2, gamma=GAMMA, seed=7
    )
    found = icrl.score(at_goals.predict(truth.observations), truth).rmse_over_std
    leaf = icrl.InContextEvaluator.from_pretrained(imagination=False).fit(at_goals.trajectory_, GAMMA)
    assert found < 0.5 * icrl.score(leaf.predict(truth.observations), truth).rmse_over_std
    assert found < 0.25


def test_values_at_goals_are_weights_times_rewards(at_goals):
    estimate = at_goals.predict({key: part[:6] for key, part in at_goals.trajectory_.observations.items()})
    np.testing.assert_allclose(estimate.attribution() @ at_goals.trajectory_.rewards, estimate.values, atol=1e-8)


def test_imagined_states_hold_their_goal_features(at_goals):
    """Where the point goes to, its distance from the goal is that of the place it came to."""
    walker, prompt = at_goals.compiled_.walker, at_goals.prompt_
    stop = walker.follow(prompt.source_features[:5], (12,), 2)[-1]
    states = stop.states_KBD.numpy().reshape(-1, prompt.source_features.shape[1])
    np.testing.assert_allclose(prompt.feature_map(prompt.feature_map.inverse(states)), states, atol=1e-5)
    assert np.abs(states - np.tile(np.repeat(prompt.source_features[:5], 2, axis=0), (MEMBERS, 1))).max() > 0.1
