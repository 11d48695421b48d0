"""Who acts in imagined states: noise gives logged actions back, and imitation comes near the policy that acted."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from icrl_gym.acting.policies import AskedPolicy, as_policy
from icrl_gym.context.features import FeatureMap
from icrl_gym.evaluator.world.actors import (
    ACTION_SCALE,
    ActionFeatures,
    AskedActor,
    ImitatedChoices,
    ImitatedNumbers,
    discrete_components,
    imitated,
    logged_space,
)

ROWS = 1500


def states(rows=ROWS, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def uniform(rows, columns, seed=1):
    return np.random.default_rng(seed).uniform(1e-6, 1 - 1e-6, (rows, columns))


def true_probabilities(x_BD, num_actions=3):
    scores_BA = x_BD @ np.random.default_rng(7).normal(size=(x_BD.shape[1], num_actions))
    exponentials_BA = np.exp(scores_BA - scores_BA.max(axis=1, keepdims=True))
    return exponentials_BA / exponentials_BA.sum(axis=1, keepdims=True)


def drawn(probability_BA, seed=2):
    chance_B = np.random.default_rng(seed).random(len(probability_BA))
    return (np.cumsum(probability_BA, axis=1) <= chance_B[:, None]).sum(axis=1)


def frequencies(actor, x_D, values, draws=4000):
    chosen = actor.actions(np.tile(x_D, (draws, 1)), uniform(draws, actor.num_noise))
    return np.array([(chosen == value).mean(axis=0) for value in values])


def test_imitated_choices_are_about_as_likely_as_the_policys():
    x = states()
    actor = imitated(x, drawn(true_probabilities(x)), spaces.Discrete(3))
    for row in states(6, seed=3):
        np.testing.assert_allclose(frequencies(actor, row, range(3)), true_probabilities(row[None])[0], atol=0.1)


def test_the_statistical_test_notices_another_policy():
    x = states()
    actor = imitated(x, drawn(true_probabilities(x)[:, ::-1]), spaces.Discrete(3))
    worst = [np.abs(frequencies(actor, row, range(3)) - true_probabilities(row[None])[0]).max()
             for row in states(6, seed=3)]  # fmt: skip
    assert max(worst) > 0.3


def test_actions_that_start_elsewhere_are_imitated_as_they_are():
    x = states(300)
    actions = drawn(true_probabilities(x)) - 1
    actor = imitated(x, actions, spaces.Discrete(3, start=-1))
    noise = actor.noise_behind(x, actions, uniform(300, 1))
    np.testing.assert_array_equal(actor.actions(x, noise), actions)
    assert set(actor.actions(x, uniform(300, 1))) <= {-1, 0, 1}


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([3, 2], start=[5, 0]), spaces.MultiBinary(2)])
def test_every_component_of_a_choice_is_imitated(space):
    x = states()
    starts, counts = discrete_components(space)
    parts = [start + drawn(true_probabilities(x, count), seed) for seed, (start, count) in
             enumerate(zip(starts, counts, strict=True))]  # fmt: skip
    actions = np.stack(parts, axis=1).astype(space.dtype)
    actor = imitated(x, actions, space)
    assert actor.num_noise == 2
    noise = actor.noise_behind(x, actions, uniform(ROWS, 2))
    assert ((noise > 0) & (noise < 1)).all()
    again = actor.actions(x, noise)
    assert again.dtype == actions.dtype
    np.testing.assert_array_equal(again, actions)
    for row in states(3, seed=3):
        for component, (start, count) in enumerate(zip(starts, counts, strict=True)):
            found = frequencies(actor, row, range(start, start + count))[:, component]
            np.testing.assert_allclose(found, true_probabilities(row[None], count)[0], atol=0.12)


def test_imitated_numbers_follow_the_state_and_stay_within_the_log():
    x = states()
    actions = np.stack([x[:, 0] - 0.5 * x[:, 1] ** 2, 2.0 * x[:, 2]], axis=1)
    actions = (actions + 0.05 * np.random.default_rng(1).normal(size=actions.shape)).astype(np.float32)
    actor = imitated(x, actions, spaces.Box(-9, 9, (2,)))
    assert isinstance(actor, ImitatedNumbers)
    chosen = actor.actions(x, uniform(ROWS, 1))
    assert chosen.dtype == np.float32
    assert np.abs(chosen - actions).mean() < 0.1
    far = actor.actions(100.0 * x, uniform(ROWS, 1))
    assert (far >= actions.min(axis=0)).all()
    assert (far <= actions.max(axis=0)).all()


def test_noise_behind_imitated_numbers_gives_them_back():
    x = states(200)
    actions = x[:, :2] + 0.1 * np.random.default_rng(1).normal(size=(200, 2))
    actor = imitated(x, actions, spaces.Box(-9, 9, (2,)))
    noise = actor.noise_behind(x, actions, uniform(200, 1))
    assert np.abs(actor.actions(x, noise) - actions).max() < 0.05
    assert np.abs(actor.actions(x, uniform(200, 1)) - actions).max() > 0.2


def test_a_switching_rule_that_no_quadratic_tells_is_imitated_by_bumps():
    x, fresh = states(1200), states(400, seed=5)
    space = spaces.Discrete(2)

    def rule(features):
        return (np.sin(3.0 * features[:, 0]) > 0).astype(int)

    actor = imitated(x, rule(x), space)
    assert isinstance(actor, ImitatedChoices)
    assert len(actor.bases[0].centres_LD) > 0
    wrong = (actor.actions(fresh, uniform(400, 1)) != rule(fresh)).mean()
    assert wrong < 0.2


def test_a_curved_mean_is_imitated_by_bumps():
    x, fresh = states(1200), states(400, seed=5)
    actions = np.sin(3.0 * x[:, :1]) + 0.1 * np.random.default_rng(1).normal(size=(1200, 1))
    actor = imitated(x, actions, spaces.Box(-2, 2, (1,)))
    assert isinstance(actor, ImitatedNumbers)
    assert len(actor.basis.centres_LD) > 0
    error = actor.basis(fresh) @ actor.weights_PC - np.sin(3.0 * fresh[:, :1])
    assert np.sqrt(np.square(error).mean()) < 0.4  # the rule's own spread is .7


def test_noise_does_not_pay_for_bumps():
    x = states(600)
    generator = np.random.default_rng(2)
    numbers = imitated(x, x[:, :1] + generator.normal(size=(600, 1)), spaces.Box(-9, 9, (1,)))
    choices = imitated(x, generator.integers(0, 2, 600), spaces.Discrete(2))
    assert isinstance(numbers, ImitatedNumbers)
    assert len(numbers.basis.centres_LD) == 0
    assert isinstance(choices, ImitatedChoices)
    assert len(choices.bases[0].centres_LD) == 0


def test_imitated_integers_are_rounded_not_cut():
    x = states(400)
    actions = np.stack([np.round(40 * x[:, 0]), np.round(-30 * x[:, 1])], axis=1).astype(np.int64)
    actor = ImitatedNumbers.fit(x, actions)
    chosen = actor.actions(x, uniform(400, 1))
    assert chosen.dtype == np.int64
    assert np.abs((chosen - actions).mean(axis=0)).max() < 0.1


class Stated:
    """Probabilities that depend on the raw observation."""

    def action_probabilities(self, observations):
        return true_probabilities(np.asarray(observations, dtype=float))


def asked_actor(policy, action_space, observations, **more):
    box = spaces.Box(-np.inf, np.inf, observations.shape[1:], observations.dtype.type)
    features = FeatureMap(box).fit(observations)
    acting = as_policy(policy, action_space, box, seed=0, **more)
    return AskedActor(AskedPolicy(acting, action_space), features), features(observations)


def test_noise_behind_stated_choices_gives_them_back():
    raw = 0.3 + 0.5 * states(400)
    space = spaces.Discrete(3, start=2)
    actor, features = asked_actor(Stated(), space, raw)
    actions = 2 + drawn(true_probabilities(raw))
    noise = actor.noise_behind(features, actions, uniform(400, actor.num_noise))
    np.testing.assert_array_equal(actor.actions(features, noise), actions)
    assert (actor.actions(features, uniform(400, actor.num_noise)) != actions).mean() > 0.1


def test_noise_behind_stated_choices_is_spread_over_what_could_have_been():
    raw = states(400)
    actor, features = asked_actor(Stated(), spaces.Discrete(3), raw)
    actions = drawn(true_probabilities(raw))
    noise = actor.noise_behind(features, actions, uniform(400, 1))[:, 0]
    assert np.abs(np.histogram(noise, 4, (0, 1))[0] - 100).max() < 35


def test_noise_behind_gaussian_actions_gives_them_back():
    from stable_baselines3 import PPO

    model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, n_steps=8, batch_size=8, device="cpu",
                seed=0)  # fmt: skip
    env = gymnasium.make("Pendulum-v1")
    raw = np.stack([env.observation_space.sample() for _ in range(300)])
    actor, features = asked_actor(model, env.action_space, raw)
    actions = actor.actions(features, uniform(300, actor.num_noise))
    assert np.abs(actions).std() > 0.1
    noise = actor.noise_behind(features, actions, np.full((300, actor.num_noise), 0.5))
    np.testing.assert_allclose(actor.actions(features, noise), actions, atol=2e-3)


def test_actions_are_asked_at_the_observations_that_features_stand_for():
    raw = 100.0 + 7.0 * states(50)
    seen = []

    def policy(observations):
        seen.append(np.array(observations))
        return observations[:, :1]

    actor, features = asked_actor(policy, spaces.Box(-np.inf, np.inf, (1,)), raw)
    np.testing.assert_allclose(actor.actions(features, uniform(50, 1)), raw[:, :1])
    np.testing.assert_allclose(seen[-1][:50], raw)


# Features of actions


def test_discrete_actions_are_equally_far_apart():
    features = ActionFeatures(np.arange(5) - 1, spaces.Discrete(4, start=-1))(np.array([-1, 0, 2]))
    np.testing.assert_array_equal(features, ACTION_SCALE * np.eye(4)[[0, 1, 3]])


def test_components_of_a_choice_stand_side_by_side():
    space = spaces.MultiDiscrete([2, 3], start=[0, 1])
    features = ActionFeatures(np.array([[0, 1]]), space)(np.array([[1, 3], [0, 2]]))
    np.testing.assert_array_equal(features, ACTION_SCALE * np.array([[0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]))


def test_bits_are_bits():
    features = ActionFeatures(np.zeros((2, 3), np.int8), spaces.MultiBinary(3))(np.array([[0, 1, 1]], np.int8))
    np.testing.assert_array_equal(features, ACTION_SCALE * np.array([[0, 1, 1]]))


def test_numbers_are_standardised_by_the_log():
    actions = np.random.default_rng(0).normal(3.0, 2.0, (500, 2, 1))
    features = ActionFeatures(actions, spaces.Box(-9, 9, (2, 1)))
    np.testing.assert_allclose(features(actions).mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(features(actions).std(axis=0), 1.0)
    np.testing.assert_allclose(features(actions[:3]), features(actions)[:3])


# The space of actions that a log shows


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (np.array([0, 2, 1]), spaces.Discrete(3)),
        (np.array([-1, 1, 0]), spaces.Discrete(3, start=-1)),
        (np.array([5, 7]), spaces.Discrete(8)),
        (np.array([[0, 3], [1, 0]]), spaces.MultiDiscrete([2, 4])),
        (np.array([[0, -3], [1, 0]]), spaces.MultiDiscrete([2, 4], start=[0, -3])),
        (np.array([0.0, 1.0]), spaces.Box(-np.inf, np.inf, (), np.float64)),
        (np.array([0, 10**6]), spaces.Box(-np.inf, np.inf, (), np.float64)),
        (np.array([[0, 10**6]]), spaces.Box(-np.inf, np.inf, (2,), np.float64)),
    ],
)
def test_the_space_of_logged_actions(actions, expected):
    assert logged_space(actions) == expected


def test_a_log_of_one_action_is_imitated():
    x = states(64)
    actor = imitated(x, np.zeros(64, int), logged_space(np.zeros(64, int)))
    assert isinstance(actor, ImitatedChoices)
    np.testing.assert_array_equal(actor.actions(x, uniform(64, 1)), 0)
