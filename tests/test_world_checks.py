"""What following a world costs: nothing where it is exact, and the square of what is wrong where it is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from linear_system import ACTIONS, GAMMA, Asked, Deterministic, linear_log

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.world import checks
from icrl_gym.evaluator.world.actors import ActionFeatures
from icrl_gym.evaluator.world.checks import check_walks
from icrl_gym.evaluator.world.imagination import _without_gaps
from icrl_gym.evaluator.world.model import World
from icrl_gym.evaluator.world.walks import Walker

HORIZONS = (1, 2, 6, 12)


class Silent(Deterministic):
    """Nobody who is asked."""

    def actions(self, features_BD, noise_BU):
        raise AssertionError("where actions are given nobody is asked")


class Case:
    """A log, its world, and the comparison of the two."""

    def __init__(self, log, actor=Asked):
        self.log, self.prompt = log, Prompt.from_trajectory(log, GAMMA)
        self.features = ActionFeatures(log.actions, ACTIONS)
        self.successors = self.prompt.feature_map(log.next_observations)
        world = World.fit(self.prompt, self.successors, self.features(log.actions), np.zeros(2), "cpu")
        assert world is not None
        self.world, self.actor = world, actor(self.prompt) if actor is Asked else actor()

    def noise(self):
        """The noise behind the log."""
        return self.actor.noise_behind(self.prompt.source_features, self.log.actions, np.zeros((len(self.log), 1)))

    def check(self, noise, world=None, horizons=HORIZONS, leaf=lambda features: features @ np.array([2.0, -1.0])):
        walker = Walker(world or self.world, (self.actor,), self.features, GAMMA)
        return check_walks(walker, self.prompt, self.successors, self.features(self.log.actions), noise, horizons, leaf)

    def shifted(self, by):
        """The world with rewards that are off by so much."""
        centres = self.world.regression.centres_KO.clone()
        centres[:, -1] += by
        return replace(self.world, regression=replace(self.world.regression, centres_KO=centres))


@pytest.fixture(scope="module")
def case():
    return Case(linear_log())


def spent(steps):
    """Sum of the discounts."""
    return (1 - GAMMA**steps) / (1 - GAMMA)


def test_an_exact_world_costs_nothing(case):
    found = case.check(case.noise())
    assert found.horizons == HORIZONS
    assert (found.squares_H < 1e-8).all()
    assert (found.errors_H <= found.squares_H).all()


def test_other_noise_is_other_paths(case):
    noise = np.random.default_rng(5).uniform(0.01, 0.99, (len(case.log), 1))
    assert case.check(noise).squares_H[-1] > 1e-3


@pytest.mark.parametrize("shift", [0.3, -0.1])
def test_rewards_that_are_off_cost_the_square_of_their_sum(case, shift):
    found = case.check(case.noise(), case.shifted(shift), leaf=lambda features: np.zeros(len(features)))
    expected = [(shift * spent(steps)) ** 2 for steps in HORIZONS]
    np.testing.assert_allclose(found.errors_H, expected, rtol=1e-3)
    np.testing.assert_allclose(found.squares_H, expected, rtol=1e-3)


def test_the_place_that_is_reached_counts_by_its_value(case):
    """A leaf that is off at every walked end, and nowhere else, is a difference of discount^H."""
    calls = []

    def leaf(features):
        calls.append(len(features))
        return np.concatenate([np.ones(len(features) // 2), np.zeros(len(features) // 2)])

    found = case.check(case.noise(), leaf=leaf)
    np.testing.assert_allclose(found.squares_H, [GAMMA ** (2 * steps) for steps in HORIZONS], rtol=1e-3)
    assert len(calls) == 1


def test_a_log_of_another_policy_is_followed_by_its_own_actions():
    found = Case(linear_log(), Silent).check(None)
    assert (found.squares_H < 1e-8).all()


def test_endings_count():
    log = linear_log(600, wall=0.2)
    assert log.terminated.sum() > 10
    case = Case(log)
    blind = replace(case.world, endings=None)
    seeing = case.check(case.noise()).squares_H[-1]
    assert case.check(case.noise(), blind).squares_H[-1] > 4 * seeing


def test_a_path_that_is_cut_counts_up_to_there():
    case = Case(linear_log(limit=6))
    found = case.check(case.noise(), case.shifted(0.1), leaf=lambda features: np.zeros(len(features)))
    expected = [(0.1 * spent(steps)) ** 2 for steps in (1, 2, 6)]
    np.testing.assert_allclose(found.errors_H[:3], expected, rtol=1e-3)
    assert np.isnan(found.errors_H[3])


def test_transitions_without_order_show_one_step():
    found = (case := Case(linear_log(limit=1))).check(case.noise())
    assert found.squares_H[0] < 1e-8
    assert np.isnan(found.squares_H[1:]).all()


def test_chance_is_not_shared_and_errors_are():
    generator = np.random.default_rng(0)
    rows, states = np.arange(0, 3000, 10), generator.normal(size=(300, 2))
    chance, error = generator.normal(size=300), np.sin(states[:, 0]) + 2.0
    cost, square = checks._cost(chance, rows, states, 3)
    assert square == pytest.approx(np.square(chance).mean())
    assert cost == pytest.approx(checks.LEAST_SHARE * square, rel=0.6)
    cost, square = checks._cost(error, rows, states, 3)
    assert cost == pytest.approx(square, rel=0.05)
    cost, _ = checks._cost(error + chance, rows, states, 3)
    assert cost == pytest.approx(np.square(error).mean(), rel=0.15)


def test_starts_near_in_time_are_no_witnesses_of_one_another():
    generator = np.random.default_rng(0)
    rows, walk = np.arange(300), np.repeat(generator.normal(size=60), 5)  # five starts share what happened
    states = np.repeat(generator.normal(size=(60, 2)), 5, axis=0) + 1e-3 * generator.normal(size=(300, 2))
    cost, square = checks._cost(walk, rows, states, 5)
    assert cost < 0.4 * square
    cost, square = checks._cost(walk, rows * 100, states, 5)
    assert cost > 0.9 * square


def test_few_comparisons_are_none():
    assert np.isnan(checks._cost(np.ones(7), np.arange(7), np.zeros((7, 2)), 1)).all()
    nearly = np.where(np.arange(50) < 7, 1.0, np.nan)
    assert np.isnan(checks._cost(nearly, np.arange(50), np.zeros((50, 2)), 1)).all()


def test_costs_never_fall_and_gaps_are_twice_what_was_before():
    nan = np.nan
    np.testing.assert_array_equal(_without_gaps(np.array([1.0, 3.0, 2.0, nan, nan])), [1, 3, 3, 6, 12])
    np.testing.assert_array_equal(_without_gaps(np.array([nan, nan])), [np.inf, np.inf])
