"""Transitions in expectation over the policy's action: unbiased, nearer the truth, linear in rewards, or not at all."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from linear_system import GAMMA, MOVES, PUSH, law, linear_log, true_values

import icrl_gym as icrl
from icrl_gym.acting.policies import ActingPolicy
from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.world import ExpectedValues, ImaginedValues, scene, variates

LENGTH = 240
SPACE = spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACTIONS = spaces.Box(-9.0, 9.0, (1,), np.float64)


class Noisy(ActingPolicy):
    """`law` with uniform noise of a width."""

    takes_noise = True

    def __init__(self, width):
        self.identity, self.action_space, self.width = f"noisy{width}", ACTIONS, width

    def act(self, observations):
        raise NotImplementedError

    def act_with_noise(self, observations, noise_BU):
        return law(observations) + self.width * (noise_BU - 0.5)


class Choosing(ActingPolicy):
    """One of three pushes, the likelier the nearer to `law`."""

    takes_noise = True

    def __init__(self):
        self.identity, self.action_space = "choosing", spaces.Discrete(3)

    def action_probabilities(self, observations):
        score = -4.0 * np.abs(np.arange(3) - 1 - 2 * law(observations))
        return np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)

    def act(self, observations):
        raise NotImplementedError

    def act_with_noise(self, observations, noise_BU):
        below = np.cumsum(self.action_probabilities(observations), axis=1) <= noise_BU
        return np.minimum(below.sum(axis=1), 2)


def noisy_log(length=LENGTH, width=6.0, **more):
    return linear_log(length, width=width, policy=f"noisy{width}", **more)


def chosen_log(length=LENGTH, seed=0):
    """The linear system under `Choosing`."""
    generator, policy, rows, x = np.random.default_rng(seed), Choosing(), [], np.zeros(2)
    for index in range(length):
        action = policy.act_with_noise(x[None], generator.uniform(size=(1, 1)))[0]
        following = x @ MOVES + 3.0 * (action - 1) * PUSH
        cut = index % 25 == 24
        rows.append((x, action, x[0] + action, following, False, cut))
        x = generator.uniform(-1, 1, 2) if cut else following
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return icrl.Trajectory(*columns, observation_space=SPACE, policy="choosing")


def fitted(log, policy, imagination="expected", name="generalist"):
    return icrl.InContextEvaluator.from_pretrained(name, imagination=imagination).fit(log, GAMMA, policy=policy)


CASES = {
    "numbers": lambda: (noisy_log(), Noisy(6.0)),
    "endings": lambda: (noisy_log(wall=0.6), Noisy(6.0)),
    "choices": lambda: (chosen_log(), Choosing()),
}


@pytest.fixture(scope="module", params=CASES)
def expected(request):
    found = fitted(*CASES[request.param]())
    assert isinstance(found.compiled_, ExpectedValues)
    return found


def errors(imagination, name="generalist", seeds=6, length=400):
    """Mean error over logs of as many seeds, in standard deviations of the truth."""
    queries = np.random.default_rng(1).uniform(-1, 1, (60, 2))
    truth = true_values(queries, GAMMA)
    logs = [noisy_log(length, seed=seed) for seed in range(seeds)]
    found = [fitted(log, Noisy(6.0), imagination, name).predict(queries).values for log in logs]
    return np.mean([np.sqrt(np.square(values - truth).mean()) for values in found]) / truth.std()


@pytest.mark.parametrize("name", ["constructed", "generalist"])
def test_values_are_nearer_the_truth_where_actions_are_the_noise(name):
    assert errors("expected", name) < 0.75 * errors(False, name)


def test_values_are_attribution_times_rewards(expected):
    log = expected.trajectory_
    estimates = expected.predict(log.observations[:5])
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-8)


def test_walks_over_such_a_leaf_are_linear_too():
    log = noisy_log()
    found = fitted(log, Noisy(6.0), None)
    assert isinstance(found.compiled_, ImaginedValues)
    assert isinstance(found.compiled_.leaf, ExpectedValues)
    estimates = found.predict(log.observations[:3])
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-8)


def test_values_under_other_rewards_are_those_of_a_fit_to_them(expected):
    log, queries = expected.trajectory_, expected.trajectory_.observations[:4]
    found = expected.predict_rewards(np.stack([log.rewards, 2 * log.rewards], axis=1), queries).values
    values = expected.predict(queries).values
    np.testing.assert_allclose(found, np.stack([values, 2 * values], axis=1), rtol=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 250.0])
def test_the_scale_of_rewards_is_that_of_values(expected, factor):
    log, policy = expected.trajectory_, expected.asked_policy_._acting
    other = fitted(replace(log, rewards=factor * log.rewards), policy).predict(log.observations[:6])
    one = expected.predict(log.observations[:6])
    np.testing.assert_allclose(other.values, factor * one.values, rtol=1e-6)


def test_a_query_does_not_depend_on_the_others(expected):
    queries = expected.trajectory_.observations[:40]
    together = expected.predict(queries).values
    np.testing.assert_allclose(expected.predict(queries[7:8]).values, together[7:8], rtol=1e-9)


def test_the_same_bytes_twice(expected):
    log, policy = expected.trajectory_, expected.asked_policy_._acting
    again = fitted(log, policy).predict(log.observations[:9])
    np.testing.assert_array_equal(again.values, expected.predict(log.observations[:9]).values)


def test_every_transition_is_foretold_once_by_a_member_without_it(expected):
    world = expected.compiled_.variates.world
    rows, members = [], []
    for rows_KB, counted_KB in variates._blocks(world):
        for member in range(len(rows_KB)):
            rows.extend(rows_KB[member][counted_KB[member]])
            members.extend([member] * int(counted_KB[member].sum()))
    assert sorted(rows) == list(range(world.num_transitions))
    assert not any(row in world.rows_KM[member] for row, member in zip(rows, members, strict=True))


def test_by_its_share_a_known_system_is_turned_into_its_mean():
    log = noisy_log(2000)
    found = fitted(log, Noisy(6.0)).compiled_.variates
    assert found.share > 0.95
    live = log.terminated == 0
    mean = log.observations @ MOVES + law(log.observations) * PUSH  # the policy's noise has mean zero
    shares = found.share * mean + (1 - found.share) * log.next_observations
    features = found.prompt.feature_map(shares)[live]
    np.testing.assert_allclose(found.expected.end_features, features, atol=0.05)
    assert np.abs(found.prompt.feature_map(log.next_observations)[live] - features).max() > 0.2


def share_with(values_of):
    """The share where the leaf gives these values to raw observations."""
    log = noisy_log(1000)
    found = fitted(log, Noisy(6.0)).compiled_.variates
    features = found.prompt.feature_map
    made = variates.ActionVariates.of(
        found.prompt, found.world, features(log.next_observations), found.actions,
        lambda features_BD: values_of(features.inverse(features_BD)),
    )  # fmt: skip
    return 0.0 if made is None else made.share


def test_the_share_is_what_the_leaf_knows_of_states_that_nobody_visited():
    exact = lambda states: true_values(states, GAMMA)  # noqa: E731
    log = noisy_log(1000)
    visited = np.concatenate([log.observations, log.next_observations])

    def rough(states):
        """Exact at the states of the log, and noise between them, as an interpolation's."""
        apart = np.array([np.abs(visited - state).max(axis=1).min() for state in states])
        return exact(states) + 3 * exact(visited).std() * (apart > 1e-9) * np.sin(1e5 * states.sum(axis=1))

    known, unknown = share_with(exact), share_with(rough)
    assert known > 0.97
    assert unknown < 0.3 * known


def test_rewards_keep_their_mean_over_many_transitions():
    log = noisy_log(4000)
    found = fitted(log, Noisy(6.0)).compiled_.variates
    moved = found.expected.rewards - found.prompt.rewards
    assert moved.std() > 0.3
    assert abs(moved.mean()) < 4 * moved.std() / np.sqrt(len(moved))


def test_transitions_that_ended_stay_as_they_were():
    log = noisy_log(wall=0.6)
    found = fitted(log, Noisy(6.0)).compiled_.variates
    ended = log.terminated
    assert ended.any()
    np.testing.assert_array_equal(found.expected.rewards[ended], log.rewards[ended])
    np.testing.assert_array_equal(found.expected.discounts, found.prompt.discounts)


def check_plain(log, policy, name="generalist"):
    """Nothing is taken in expectation: the answer is that without a world."""
    found = fitted(log, policy, name=name)
    assert isinstance(found.compiled_, CompiledMixture)
    queries = log.observations[:9]
    plain = fitted(log, policy, False, name).predict(queries)
    np.testing.assert_array_equal(found.predict(queries).values, plain.values)
    np.testing.assert_array_equal(found.predict(queries).stderr, plain.stderr)


def test_a_policy_without_chance_has_no_noise_to_be_taken_out():
    check_plain(linear_log(LENGTH, width=0.0, policy="noisy0.0"), Noisy(0.0))


def test_a_world_that_does_not_know_what_actions_do_takes_nothing_out():
    log, order = noisy_log(), np.random.default_rng(0).permutation(LENGTH)
    check_plain(replace(log, next_observations=log.next_observations[order], episode_ends=np.ones(LENGTH, bool)),
                Noisy(6.0))  # fmt: skip


def test_in_a_long_context_chance_averages_out_by_itself(monkeypatch):
    monkeypatch.setattr(scene, "MOST_VARIED", LENGTH - 1)
    check_plain(noisy_log(), Noisy(6.0))


def test_a_policy_that_is_known_by_its_log_alone_has_none(expected):
    log = expected.trajectory_
    assert isinstance(fitted(log, None).compiled_, CompiledMixture)
    policy = expected.asked_policy_._acting
    by_log = fitted(log, policy, "log").compiled_
    assert isinstance(getattr(by_log, "leaf", by_log), CompiledMixture)


def test_a_context_that_goes_on_is_that_of_its_transitions():
    log = noisy_log(1400)
    going = fitted(log[:1300], Noisy(6.0)).update(log[1300:], refit=True)
    whole = fitted(log, Noisy(6.0))
    np.testing.assert_allclose(
        going.predict(log.observations[:5]).values, whole.predict(log.observations[:5]).values, rtol=1e-8
    )
