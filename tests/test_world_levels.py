"""Rewards of few values: read exactly where a threshold tells them, not used where it does not."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.world import ImaginedValues, model
from icrl_gym.evaluator.world.levels import FEWEST_EVENTS, MOST_VALUES, RewardLevels
from icrl_gym.evaluator.world.scene import Scene

MEMBERS, GAMMA = 4, 0.95


def stretches(count):
    """Which transitions each member is kept from, (K, L)."""
    return np.arange(count) * 16 // count % MEMBERS == np.arange(MEMBERS)[:, None]


def fitted(successors, rewards, rows=None):
    rows = np.arange(len(rewards)) if rows is None else rows
    return RewardLevels.fit(successors, rewards, rows, stretches(len(rewards)), np.zeros(successors.shape[1]))


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
    levels = fitted(x, np.where((x[:, 0] > 0.5) | (x[:, 1] < -0.9), 1.0, 0.0))
    assert levels is not None
    told = foretold(levels, np.array([[0.9, 0.0], [0.0, -0.95], [0.0, 0.0]]))
    assert told[2].tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(told[[0, 1, 3]], np.tile([1.0, 1.0, 0.0], (3, 1)), atol=1e-3)


@pytest.mark.parametrize(
    "rewards",
    [
        lambda x: np.zeros(len(x)),  # one value
        lambda x: np.round(x[:, 0] * (MOST_VALUES + 2)),  # many
        lambda x: np.arange(len(x)) < FEWEST_EVENTS - 1,  # hardly any events
        lambda x: stretches(len(x))[1],  # a member holds no event
    ],
)
def test_other_rewards_have_no_levels(rewards):
    x = places(800)
    assert fitted(x, np.asarray(rewards(x), dtype=np.float64)) is None


@pytest.mark.parametrize("rarer", [True, False])
def test_where_thresholds_explain_one_of_two_values_it_is_the_event(rarer):
    """Outside of a stripe 0 is paid: no threshold explains the inside, whichever is rarer."""
    x, others = places(800), places(400, seed=1)
    half = 0.7 if rarer else 0.3
    levels = fitted(x, np.where(np.abs(x[:, 0]) < half, 1.0, 0.0))
    assert levels is not None
    assert levels.values_V.tolist() == [1.0, 0.0]
    assert (foretold(levels, others) == np.where(np.abs(others[:, 0]) < half, 1.0, 0.0)).mean() > 0.99


def log_that_pays(pays):
    """A point's log under random pushes, whose rewards are a function of the places that it comes to."""
    log = icrl.collect("icrl_envs:icrl/PointGoal-v0", "random", num_transitions=600, seed=0)
    return replace(log, rewards=pays(log.next_observations["achieved_goal"]).astype(float))


def world_of(log):
    """The world of a log whose policy is not given."""
    prompt = Prompt.from_trajectory(log, GAMMA)
    found = Scene.of(prompt, log, None, acted=True)
    assert found is not None
    return found.walker.world


@pytest.mark.parametrize(
    ("pays", "used"),
    [
        (lambda x: x[:, 0] > 0.3, True),
        (lambda x: np.random.default_rng(2).random(len(x)) < 0.3, False),
        (lambda x: x[:, 0], False),
    ],
)
def test_levels_are_used_where_they_foretell_what_members_left_out(pays, used):
    assert (world_of(log_that_pays(pays)).levels is not None) == used


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


def test_of_a_long_log_some_transitions_are_read(monkeypatch):
    monkeypatch.setattr(model, "MOST_LEVEL_ROWS", 100)
    levels = world_of(log_that_pays(lambda x: x[:, 0] > 0.3)).levels
    assert levels is not None
    assert sum(map(len, levels.rows_V)) == 100


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
