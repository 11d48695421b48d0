"""Values by walks through the evaluator: linear in the rewards, repeatable, and the leaf's own without a world."""

import random
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from linear_system import ACTIONS, law, linear_log, true_values

import icrl_gym as icrl
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.off_policy import UniformMixture, reweight
from icrl_gym.context.target_pairs import expected_actions
from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.target_values import TargetValues
from icrl_gym.evaluator.world import ImaginedValues, imagination
from icrl_gym.evaluator.world.tabled import TabledValues
from icrl_gym.observations import take
from icrl_gym.pretraining.prior.controlled import draw_controlled_task

GAMMA, LENGTH = 0.9, 160
NAME = as_policy(law, ACTIONS).identity
RULE_ON_FIRST_STEPS = imagination.FIRST_STEP
ONE_HEAD = {"name": "constructed", "imagination": True}


@pytest.fixture(autouse=True)
def walks_in_rough_worlds_too(monkeypatch):
    """What walks compute is tested on small noisy systems, most of which the rule on rough steps would end."""
    monkeypatch.setattr(imagination, "FIRST_STEP", np.inf)


def evaluator(**options):
    return icrl.InContextEvaluator.from_pretrained(**{**ONE_HEAD, **options})


def fitted(log, policy=None, gamma=GAMMA, **options):
    return evaluator(**options).fit(log, gamma, policy=policy)


def imagined(log, policy=None, **options):
    """A fitted evaluator whose world holds."""
    found = fitted(log, policy, **options)
    assert isinstance(found.compiled_, ImaginedValues)
    return found


def scaled(log, factor):
    return replace(log, rewards=factor * log.rewards)


def same_estimates(first, second):
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.by_layer, second.by_layer)
    np.testing.assert_array_equal(first.stderr, second.stderr)
    assert first.diagnostics.warnings == second.diagnostics.warnings


@pytest.fixture(scope="module")
def log():
    return linear_log(LENGTH)


@pytest.fixture(scope="module")
def walled():
    return linear_log(LENGTH, wall=0.3)


@pytest.fixture(scope="module")
def by_its_log(log):
    return imagined(log)


@pytest.fixture(scope="module")
def of_another(log):
    """A policy that did not act."""
    found = imagined(log, law)
    assert isinstance(found.compiled_.leaf, TargetValues)
    return found


@pytest.fixture(scope="module")
def of_its_own():
    """The policy that acted, and can be asked."""
    found = imagined(linear_log(LENGTH, wall=0.3, width=0.0, policy=NAME), law)
    assert isinstance(found.compiled_.leaf, CompiledMixture)
    return found


FITTED = ["by_its_log", "of_another", "of_its_own"]


# Linear in the rewards


@pytest.mark.parametrize("name", FITTED)
def test_values_are_attribution_times_rewards(name, request):
    found = request.getfixturevalue(name)
    log = found.trajectory_
    estimates = found.predict(log.observations[:2])
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-8)


def test_values_of_the_mixture_are_attribution_times_rewards(walled):
    found = icrl.InContextEvaluator.from_pretrained().fit(walled, GAMMA)
    assert isinstance(found.compiled_, ImaginedValues)
    estimates = found.predict(walled.observations[:1])
    np.testing.assert_allclose(estimates.attribution() @ walled.rewards, estimates.values, rtol=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 250.0])
@pytest.mark.parametrize("policy", [None, law])
def test_the_scale_of_rewards_is_that_of_values_and_errors(walled, policy, factor):
    queries = walled.observations[:6]
    one = imagined(walled, policy).predict(queries)
    other = imagined(scaled(walled, factor), policy).predict(queries)
    np.testing.assert_allclose(other.values, factor * one.values, rtol=1e-6)
    np.testing.assert_allclose(other.stderr, factor * one.stderr, rtol=1e-6)


# Near the truth


def test_the_stated_error_is_that_of_the_weights_with_all_of_the_leafs(of_its_own, log):
    compiled, queries = of_its_own.compiled_, log.observations[:5]
    features = of_its_own.prompt_.queries(queries)
    expansion = imagination.expand(compiled.leaf, compiled.walker, features, compiled.horizons, imagination.PARTICLES)
    leaf_HQ = np.maximum(expansion.leaf_variance_HQ, compiled.change * expansion.discounts_HQ**2)
    disagreement_HQ = (expansion.disagreement_HQ + compiled.typical_H[:, None]) / 2
    errors_HQ = compiled.costs_H[:, None] + disagreement_HQ + leaf_HQ
    expected = np.sqrt((compiled.weights(expansion) * errors_HQ).sum(axis=0))
    np.testing.assert_allclose(of_its_own.predict(queries).stderr, expected, rtol=1e-9)
    assert (compiled.squared_errors(expansion) < errors_HQ).any()  # half of it weighs the walks


@pytest.mark.parametrize("width", [0.0, 1.0])
def test_a_policy_in_a_linear_system_has_its_true_values(width):
    found = imagined(linear_log(LENGTH, width=width, policy=NAME if width == 0 else None), law)
    queries = found.trajectory_.observations[::10]
    truth = true_values(queries, GAMMA)
    walked = np.abs(found.predict(queries).values - truth)
    read = np.abs(found.compiled_.leaf.read(found.prompt_.queries(queries)).by_layer_LQ[-1] - truth)
    assert walked.mean() < 0.05 * truth.std()
    assert walked.mean() < 0.7 * read.mean()


def test_a_controlled_task_is_nearer_its_truth_with_a_world():
    task = draw_controlled_task(np.random.default_rng(2), 300, 24, 24, "cartpole")
    errors = {}
    for walks in (True, False):
        found = fitted(task.trajectory, task.policy, task.gamma, imagination=walks)
        assert isinstance(found.compiled_, ImaginedValues) == walks
        errors[walks] = np.sqrt(np.square(found.predict(task.queries).values - task.truth).mean())
    assert errors[True] < 0.6 * errors[False]


# Nothing else has a part in them


@pytest.mark.parametrize("name", FITTED)
def test_a_query_does_not_depend_on_the_others(name, request):
    found = request.getfixturevalue(name)
    queries = found.trajectory_.observations[:70]  # more than are walked at once
    together = found.predict(queries)
    for row in (0, 33, 69):
        alone = found.predict(queries[row : row + 1])
        np.testing.assert_allclose(alone.values, together.values[[row]], rtol=1e-9)
        np.testing.assert_allclose(alone.stderr, together.stderr[[row]], rtol=1e-9)
    order = np.random.default_rng(0).permutation(70)
    np.testing.assert_allclose(found.predict(queries[order]).values, together.values[order], rtol=1e-9)


def global_states():
    return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002


@pytest.mark.parametrize("policy", [None, law])
def test_the_same_bytes_twice_and_no_global_generator_is_drawn_from(walled, policy):
    before = global_states()
    first = fitted(walled, policy).predict(walled.observations[:5])
    assert global_states() == before
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    same_estimates(first, fitted(walled, policy).predict(walled.observations[:5]))


# Without a world


@pytest.mark.parametrize("policy", [None, law])
def test_without_imagination_values_are_the_leafs_to_the_bit(walled, policy):
    queries = walled.observations[:5]
    without = fitted(walled, policy, imagination=False).predict(queries)
    found = imagined(walled, policy)
    leaf = found.compiled_.leaf
    if policy is not None:
        leaf = leaf.with_actions(expected_actions(found.asked_policy_, queries))
    np.testing.assert_array_equal(leaf.read(found.prompt_.queries(queries)).by_layer_LQ[-1], without.values)
    assert np.abs(found.predict(queries).values - without.values).max() > 1e-6


def check_leaf(log, policy=None, queries=None, **options):
    """The world does not hold: the answer is that without it."""
    queries = log.observations if queries is None else queries
    found = fitted(log, policy, **options)
    assert not isinstance(found.compiled_, ImaginedValues)
    estimates = found.predict(queries)
    same_estimates(estimates, fitted(log, policy, imagination=False, **options).predict(queries))
    assert np.isfinite(estimates.values).all()


def noise_log(length=150, columns=2, seed=0, **more):
    """States without any law."""
    generator = np.random.default_rng(seed)
    ended = generator.random(length) < 0.1
    return icrl.Trajectory(
        generator.normal(size=(length, columns)), generator.integers(2, size=length), generator.normal(size=length),
        generator.normal(size=(length, columns)), ended, np.zeros(length, bool), **more,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["constructed", "generalist"])
def test_a_world_that_does_not_hold_gives_the_leaf_to_the_bit(name, seed, monkeypatch):
    monkeypatch.setattr(imagination, "FIRST_STEP", RULE_ON_FIRST_STEPS)
    log = noise_log(seed=seed)
    check_leaf(log, queries=log.observations[:20], name=name)


def observed(draw, length=100, space=None):
    """A log of drawn observations, any actions."""
    generator = np.random.default_rng(0)
    states = draw(generator, length + 1)
    return icrl.Trajectory(
        take(states, slice(-1)), generator.integers(2, size=length), generator.normal(size=length),
        take(states, slice(1, None)), generator.random(length) < 0.1, np.zeros(length, bool), observation_space=space,
    )  # fmt: skip


def test_images_ids_and_mixtures_of_them_have_no_world():
    check_leaf(observed(lambda g, n: g.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8), space=spaces.Box(
        0, 255, (4, 4, 3), np.uint8)))  # fmt: skip
    check_leaf(observed(lambda g, n: g.integers(0, 90, n)))
    mixed = spaces.Dict({"id": spaces.Discrete(5), "x": spaces.Box(-9, 9, (2,), np.float64)})
    check_leaf(observed(lambda g, n: {"id": g.integers(0, 5, n), "x": g.normal(size=(n, 2))}, space=mixed))


def test_features_of_ones_own_have_no_world(log):
    check_leaf(log, features=lambda states: np.concatenate([states, states**2], axis=1))


def test_importance_ratios_have_no_world(log):
    check_leaf(log.with_importance_ratios(np.linspace(0.5, 1.5, len(log)), "other"))


def test_states_that_recur_are_counted_and_have_no_smooth_world(log):
    rounded = replace(log, observations=np.round(log.observations), next_observations=np.round(log.next_observations),
                      episode_ends=None)  # fmt: skip
    assert isinstance(fitted(rounded).compiled_, TabledValues)
    check_leaf(replace(rounded, actions=None))  # nothing is read of a log without actions but states and rewards


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 63])
@pytest.mark.parametrize("policy", [None, law])
def test_short_logs_have_no_world(length, policy):
    check_leaf(linear_log(length), policy)


@pytest.mark.parametrize("policy", [None, law])
def test_without_a_future_there_is_nothing_to_imagine(log, policy):
    check_leaf(log, policy, gamma=0.0, queries=log.observations[:9])


# Logs and spaces of all kinds


def finite(found, queries):
    estimates = found.predict(queries)
    assert np.isfinite(estimates.values).all()
    assert (estimates.stderr >= 0).all()
    return estimates


@pytest.mark.parametrize("length", [96, 130])
@pytest.mark.parametrize("limit", [1, 5, 10**6])
def test_logs_with_truncations_or_none_and_no_endings(length, limit):
    log = linear_log(length, limit=limit)
    assert not log.terminated.any()
    finite(fitted(log), log.observations[:4])
    finite(fitted(log, law), log.observations[:4])


def test_a_log_of_nothing_but_endings():
    log = noise_log(100)
    log = replace(log, terminated=np.ones(100, bool), episode_ends=np.ones(100, bool))
    check_leaf(log, queries=log.observations[:9])


def test_no_query_has_no_answer(by_its_log, of_another):
    for found in (by_its_log, of_another):
        estimates = found.predict(np.zeros((0, 2)))
        assert estimates.values.shape == (0,)
        assert estimates.attribution().shape == (0, LENGTH)


def restructured(log, split, space):
    return replace(log, observations=split(log.observations), next_observations=split(log.next_observations),
                   observation_space=space)  # fmt: skip


ONE_NUMBER = spaces.Box(-np.inf, np.inf, (1,), np.float64)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_structures_of_numbers_are_their_numbers(log, by_its_log, of_another, kind):
    if kind is dict:
        space = spaces.Dict({"a": ONE_NUMBER, "b": ONE_NUMBER})
        split, joined = (lambda x: {"a": x[:, :1], "b": x[:, 1:]}), lambda x: np.concatenate([x["a"], x["b"]], axis=1)
    else:
        space = spaces.Tuple((ONE_NUMBER, ONE_NUMBER))
        split, joined = (lambda x: (x[:, :1], x[:, 1:])), lambda x: np.concatenate(x, axis=1)
    parts, queries = restructured(log, split, space), log.observations[:5]
    for policy, flat in ((None, by_its_log), (lambda x: law(joined(x)), of_another)):
        found = imagined(parts, policy).predict(split(queries))
        np.testing.assert_allclose(found.values, flat.predict(queries).values, rtol=1e-9)


def chosen_log(actions, length=LENGTH, seed=1):
    """The linear system pushed by the sum of an action's numbers."""
    generator = np.random.default_rng(seed)
    x, rows = generator.uniform(-1, 1, 2), []
    for index in range(length):
        action = actions(generator)
        following = np.array([0.95 * x[0] + 0.1 * x[1], 0.95 * x[1] - 0.1 * x[0]]) + 0.2 * np.sum(action)
        cut = index % 20 == 19
        rows.append((x, action, x[0] + np.sum(action), following, False, cut))
        x = generator.uniform(-1, 1, 2) if cut else following
    return icrl.Trajectory(*(np.array(column) for column in zip(*rows, strict=True)))


@pytest.mark.parametrize(
    ("space", "draw"),
    [
        (spaces.Discrete(3, start=-1), lambda g: int(g.integers(-1, 2))),
        (spaces.MultiDiscrete([2, 3], start=[0, -1]), lambda g: g.integers([0, -1], [2, 2])),
        pytest.param(spaces.MultiBinary(3), lambda g: g.integers(0, 2, 3).astype(np.int8), marks=pytest.mark.slow),
        (spaces.Box(-1, 1, (2,), np.float32), lambda g: g.uniform(-1, 1, 2).astype(np.float32)),
        pytest.param(spaces.Box(-1, 1, (), np.float64), lambda g: g.uniform(-1, 1), marks=pytest.mark.slow),
    ],
)
def test_actions_of_every_space(space, draw):
    log = chosen_log(draw)
    for policy in (None, as_policy("random", space, seed=0)):
        finite(imagined(log, policy), log.observations[:1])


def test_more_transitions_are_taken_in(log):
    found = imagined(log[:110]).update(log[110:], refit=True)
    assert isinstance(found.compiled_, ImaginedValues)
    same_estimates(found.predict(log.observations[:4]), fitted(log).predict(log.observations[:4]))
    frozen = fitted(log[:30]).update(log[30:])
    assert isinstance(frozen.compiled_, ImaginedValues)
    finite(frozen, log.observations[:4])


def test_action_values_are_the_leafs(log):
    found, actions = imagined(log), log.actions[:4]
    without = fitted(log, imagination=False).predict_q(log.observations[:4], actions)
    np.testing.assert_array_equal(found.predict_q(log.observations[:4], actions).values, without.values)


def test_far_queries_have_the_leafs_value(by_its_log, log):
    far = np.full((1, 2), 1e6)
    found = by_its_log.predict(np.concatenate([log.observations[:2], far]))
    leaf = by_its_log.compiled_.leaf.read(by_its_log.prompt_.queries(far)).by_layer_LQ[-1]
    np.testing.assert_allclose(found.values[-1:], leaf, rtol=1e-9)
    np.testing.assert_allclose(found.values[:2], by_its_log.predict(log.observations[:2]).values, rtol=1e-9)


def test_a_policy_that_acted_can_be_known_by_its_log_alone(of_its_own):
    log, queries = of_its_own.trajectory_, of_its_own.trajectory_.observations[:4]
    by_log = fitted(log, law, imagination="log").predict(queries)
    np.testing.assert_array_equal(by_log.values, fitted(log).predict(queries).values)
    assert np.abs(by_log.values - of_its_own.predict(queries).values).max() > 0
    with pytest.raises(ValueError, match=r"imagination must be one of .*'log', 'expected'.*, got 'dream'"):
        evaluator(imagination="dream")


# Policies that fail


class Remembering(ActingPolicy):
    identity, recurrent, action_space = "remembering", True, ACTIONS

    def act(self, observations):
        return law(observations)


def test_a_recurrent_policy_is_known_by_its_log(log, by_its_log):
    found = imagined(replace(log, policy="remembering"), Remembering())
    estimates = found.predict(log.observations[:4])
    assert any("remembering" in note and "log instead" in note for note in estimates.diagnostics.warnings)
    np.testing.assert_array_equal(estimates.values, by_its_log.predict(log.observations[:4]).values)


@pytest.mark.parametrize(("broken", "message"), [(np.nan, "finite actions, got nan"), (None, "raised RuntimeError")])
@pytest.mark.parametrize("acted", [True, False])
def test_a_policy_that_fails_where_nobody_was_is_named(broken, message, acted):
    log = linear_log(LENGTH, wall=0.3, width=0.0, policy=NAME if acted else None)
    seen = np.concatenate([log.observations, log.next_observations])

    def fragile(states):
        distance = np.abs(states[:, None] - seen[None]).max(axis=2).min(axis=1)
        if broken is None and (distance > 1e-6).any():
            raise RuntimeError("nobody was here")
        return np.where(distance[:, None] > 1e-6, np.nan if broken is None else broken, law(states))

    log = replace(log, policy=as_policy(fragile, ACTIONS).identity if acted else None)
    fitted(log, fragile, imagination=False).predict(log.observations[:3])
    with pytest.raises(ValueError, match=f"policy .*fragile.*{message}"):
        fitted(log, fragile).predict(log.observations[:3])


def test_a_log_with_importance_ratios_is_walked_in_where_the_target_can_be_asked():
    target = as_policy(icrl.load_demo_policy(), gymnasium.make("CartPole-v1").action_space, seed=0)
    behaviour = UniformMixture(target, 0.3)
    log = icrl.collect("CartPole-v1", behaviour, num_transitions=200, seed=0)
    weighted = reweight(log, target, behaviour, gymnasium.make("CartPole-v1").action_space)
    found = icrl.InContextEvaluator.from_pretrained("generalist")
    assert isinstance(found.fit(weighted, 0.99, policy=target).compiled_, ImaginedValues)
    assert not isinstance(found.fit(weighted, 0.99).compiled_, ImaginedValues)  # the ratios are all that is known


def test_rough_first_steps_give_the_leaf(monkeypatch):
    log = icrl.collect("CartPole-v1", "random", num_transitions=200, seed=0)
    found = icrl.InContextEvaluator.from_pretrained("generalist")
    assert isinstance(found.fit(log, 0.99).compiled_, ImaginedValues)
    monkeypatch.setattr(imagination, "FIRST_STEP", 0.0)
    assert not isinstance(found.fit(log, 0.99).compiled_, ImaginedValues)
