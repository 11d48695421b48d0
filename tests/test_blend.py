"""Counted values blended with a smooth leaf and with their mean, by what noise does to each."""

import numpy as np
import pytest
from gymnasium import spaces
from test_tables import asked_table, bets, share_of_counts, world_of

import icrl_gym as icrl
from icrl_gym.evaluator.world.blend import Blend, Estimate, least

STATES, VISITS = 60, 5
PLACE_S = np.arange(STATES) / STATES


def smoother(width):
    """A linear leaf: means of the rewards of all visits, near states first, (S, N)."""
    near_SS = np.exp(-0.5 * np.square((PLACE_S[:, None] - PLACE_S) / width))
    near_SN = np.repeat(near_SS, VISITS, axis=1)
    return near_SN / near_SN.sum(axis=1, keepdims=True)


def blended(wins_S, leaf_SN, seed):
    """Counted values and the blend's, with their standard errors and what they are made of."""
    log = bets(wins_S, VISITS, seed)
    world = world_of(log, asked_table(np.ones((STATES, 1))))
    solved = world.solve((leaf_SN @ log.rewards)[None], np.zeros(STATES), lambda rewards: leaf_SN @ rewards)
    return world.values(np.zeros(STATES)), solved


def squared_errors(wins_S, leaf_SN):
    truth, found = 2 * wins_S - 1, []
    for seed in range(12):
        counted, solved = blended(wins_S, leaf_SN, seed)
        values, stderr = solved.by_layer_LS[0], solved.stderr_S
        inside = (np.abs(values - truth) < 1.645 * stderr).mean()
        leaf = leaf_SN @ bets(wins_S, VISITS, seed).rewards
        found.append([np.square(x - truth).mean() for x in (counted, leaf, values)] + [inside, solved.blend.leaf])
    return np.mean(found, axis=0)


def test_a_leaf_that_knows_neighbours_is_believed():
    wins_S = 0.5 + 0.4 * np.sin(2 * np.pi * PLACE_S)
    counted, leaf, both, inside, share = squared_errors(wins_S, smoother(0.05))
    assert both < 0.35 * counted
    assert both < 1.2 * leaf
    assert share > 0.7
    assert 0.8 < inside < 0.995


def test_a_leaf_that_smooths_what_is_rough_is_not():
    wins_S = 0.5 + 0.45 * np.sign(np.random.default_rng(1).normal(size=STATES))
    counted, leaf, both, inside, share = squared_errors(wins_S, smoother(0.1))
    assert leaf > 3 * counted
    assert both < 1.05 * counted
    assert share < 0.2
    assert inside > 0.8


def test_between_the_two_both_are_used():
    wins_S = 0.5 + 0.25 * np.sin(2 * np.pi * PLACE_S) + 0.2 * np.sign(np.random.default_rng(1).normal(size=STATES))
    counted, leaf, both, inside, share = squared_errors(wins_S, smoother(0.1))
    assert both < 0.95 * min(counted, leaf)
    assert 0.2 < share < 0.8
    assert 0.8 < inside < 0.995


def test_a_leaf_whose_noise_is_not_known_has_no_share():
    log = bets(np.full(STATES, 0.5), VISITS, 0)
    world = world_of(log, asked_table(np.ones((STATES, 1))))
    solved = world.solve(np.linspace(0.0, 1.0, STATES)[None], None)
    assert solved.blend.leaf == 0.0
    assert solved.blend.counts == share_of_counts(world)


def test_the_least_risk_is_found_inside_and_on_every_face():
    generator, kinds = np.random.default_rng(0), set()
    steps = np.linspace(0, 1, 26)
    grid = np.array([x for x in np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3) if x.sum() <= 1])
    for _ in range(80):
        root = generator.normal(size=(3, 3))
        gram, target = root @ root.T, generator.normal(size=3)
        found = least(gram, target)
        risk = lambda x, gram=gram, target=target: np.einsum("...i,ij,...j", x, gram, x) - 2 * x @ target  # noqa: E731
        assert (found >= 0).all()
        assert found.sum() <= 1 + 1e-12
        assert risk(found) <= risk(grid).min() + 1e-12
        kinds.add((*(found > 1e-9), found.sum() < 1 - 1e-9))
    assert len(kinds) >= 12


def test_estimates_that_are_one_share_what_the_one_would_have():
    gram, target = np.ones((2, 2)), np.array([0.6, 0.6])
    assert least(gram, target).sum() == pytest.approx(0.6)
    assert (least(np.zeros((3, 3)), np.zeros(3)) == 0).all()


def test_without_noise_counts_are_believed():
    visits_S, counted_S, noise_SR = np.full(3, 1 / 3), np.array([1.0, 2.0, 4.0]), np.zeros((3, 4))
    other = Estimate(np.array([1.0, 0.0, 0.0]), noise_SR)
    blend = Blend.best(visits_S, Estimate(counted_S, noise_SR), other, other)
    assert (blend.counts, blend.leaf, blend.additive, blend.misfit) == (1.0, 0.0, 0.0, 0.0)
    np.testing.assert_allclose(blend(counted_S, np.zeros(3), np.zeros(3)), counted_S)


def test_a_factor_that_all_values_share_calls_for_no_shrinkage():
    """A goal that was reached once: all values are as wrong as the chance to reach it."""
    visits_S, values_S = np.full(5, 0.2), np.array([0.1, 0.3, 0.2, 0.9, 0.5])
    generator = np.random.default_rng(0)
    factor_SR, own_SR = np.outer(values_S, generator.normal(size=64)), 0.3 * generator.normal(size=(5, 64))
    nothing = Estimate(np.zeros(5), np.zeros((5, 64)))
    assert Blend.best(visits_S, Estimate(values_S, factor_SR), nothing, nothing).counts == pytest.approx(1.0)
    alone = Blend.best(visits_S, Estimate(values_S, own_SR), nothing, nothing)
    both = Blend.best(visits_S, Estimate(values_S, own_SR + factor_SR), nothing, nothing)
    assert 0.0 < both.counts < 0.5
    assert both.counts == pytest.approx(alone.counts, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_generalist_reads_neighbours_off_a_table_of_places(seed):
    """The same game twice: its states shown as places on a line, and as names that say nothing."""
    wins_S = 0.5 + 0.4 * np.sin(2 * np.pi * PLACE_S)
    named, errors = bets(wins_S, 8, seed), []
    for space, shown in (
        (spaces.Discrete(STATES), np.arange(STATES)),
        (spaces.Box(0.0, 1.0, (1,), np.float64), PLACE_S[:, None]),
    ):
        log = icrl.Trajectory(
            shown[named.observations], named.actions, named.rewards, shown[named.next_observations],
            named.terminated, named.truncated, observation_space=space, policy="stay",
        )  # fmt: skip
        evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.9, policy=Stay())
        estimate = evaluator.predict(shown)
        errors.append(np.sqrt(np.square(estimate.values - (2 * wins_S - 1)).mean()))
        np.testing.assert_allclose(estimate.attribution() @ log.rewards, estimate.values, atol=1e-9)
    assert errors[1] < 0.8 * errors[0]


def test_attribution_is_the_tables_where_it_knows_the_state_and_the_leafs_elsewhere():
    named = bets(0.5 + 0.4 * np.sin(2 * np.pi * PLACE_S), 4, 0)
    log = icrl.Trajectory(
        PLACE_S[named.observations][:, None], named.actions, named.rewards, PLACE_S[named.next_observations][:, None],
        named.terminated, named.truncated, observation_space=spaces.Box(0.0, 2.0, (1,), np.float64), policy="stay",
    )  # fmt: skip
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.9, policy=Stay())
    queries = np.array([[0.5], [0.505], [0.0], [1.3]])  # the second and the last were never seen
    estimate = evaluator.predict(queries)
    np.testing.assert_allclose(estimate.attribution() @ log.rewards, estimate.values, atol=1e-9)
    leaf = icrl.InContextEvaluator.from_pretrained("generalist", imagination=False).fit(log, 0.9).predict(queries)
    np.testing.assert_allclose(estimate.values[[1, 3]], leaf.values[[1, 3]], atol=1e-9)
    assert np.abs(estimate.values - leaf.values)[[0, 2]].min() > 1e-4


class Stay:
    """The one action there is."""

    identity = "stay"

    def action_probabilities(self, observations):
        return np.ones((len(observations), 1))
