"""Values that are a sum over what the components of an observation show, and their place beside counts."""

import numpy as np
import pytest
from gymnasium import spaces
from test_tables import asked_table, world_of

import icrl_gym as icrl
from icrl_gym.acting.policies import AskedPolicy, as_policy
from icrl_gym.evaluator.world import additive
from icrl_gym.evaluator.world.additive import AdditiveValues, indicators

SUITS, RANKS, VISITS = 6, 10, 4
HANDS = np.stack(np.divmod(np.arange(SUITS * RANKS), RANKS), axis=1)
NAMED = np.random.default_rng(7).normal(size=(2, RANKS))  # worths that say nothing of their neighbours'


class Stay:
    identity = "stay"

    def action_probabilities(self, observations):
        return np.ones((len(observations), 1))


def additive_wins():
    worth = NAMED[0, HANDS[:, 1]] + 0.7 * NAMED[1, HANDS[:, 0]]
    return 0.5 + 0.42 * worth / np.abs(worth).max()


def game(wins_S, seed, encode=lambda hands: hands, space=None):
    """Every hand is bet on so many times, and each bet ends an episode."""
    which = np.repeat(np.arange(len(wins_S)), VISITS)
    np.random.default_rng([seed, 0]).shuffle(which)
    rewards = np.where(np.random.default_rng([seed, 1]).random(len(which)) < wins_S[which], 1.0, -1.0)
    hands, ended = encode(HANDS[which]), np.ones(len(which), dtype=bool)
    space = spaces.MultiDiscrete([SUITS, RANKS]) if space is None else space
    return icrl.Trajectory(
        hands, np.zeros(len(which), dtype=int), rewards, hands, ended, ~ended, observation_space=space, policy="stay"
    )


def table(log):
    policy = as_policy(Stay(), spaces.Discrete(1), log.observation_space)
    return world_of(log, AskedPolicy(policy, spaces.Discrete(1)))


def solved(log):
    """The counted values and the blend's, without a leaf."""
    world = table(log)
    found = world.solve(np.zeros((1, len(world.states))), np.zeros(len(world.states)))
    return world, world.values(np.zeros(len(world.states))), found


def one_hot(hands):
    return np.concatenate([np.eye(SUITS)[hands[:, 0]], np.eye(RANKS)[hands[:, 1]]], axis=1)


def test_there_is_a_column_for_every_value_beyond_the_first_and_none_twice():
    found = indicators(np.array([[0, 5], [1, 5], [2, 6], [2, 7]]), 5)
    np.testing.assert_array_equal(found, [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 1, 0], [1, 0, 1, 0, 1]])
    twice = indicators({"a": np.array([0, 1, 1]), "b": np.array([[3.0], [2.0], [2.0]])}, 9)
    assert twice is not None
    assert twice.shape == (3, 3)  # of two columns that say the opposite both stay
    same = indicators((np.array([0, 1, 1]), np.array([5, 9, 9])), 9)
    assert same is not None
    assert same.shape == (3, 2)


def test_columns_are_given_up_as_soon_as_they_are_too_many():
    frames = np.random.default_rng(0).integers(256, size=(1000, 100, 100), dtype=np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        unique = np.unique
        patch.setattr(np, "unique", lambda *args, **options: (seen.append(1), unique(*args, **options))[1])
        assert indicators(frames, 999) is None
    assert len(seen) < 10  # of 10,000 pixels


def test_values_that_are_sums_are_found_from_a_process_that_is_known(monkeypatch):
    monkeypatch.setattr(additive, "RIDGE", 1e-12)
    generator, gamma = np.random.default_rng(0), 0.9
    moves_SS = generator.dirichlet(np.ones(len(HANDS)), len(HANDS))
    truth_S = NAMED[0, HANDS[:, 1]] + NAMED[1, HANDS[:, 0]]
    equations_SS = np.eye(len(HANDS)) - gamma * moves_SS
    found = AdditiveValues.of(HANDS, np.full(len(HANDS), 1 / len(HANDS)), equations_SS)
    assert found is not None
    np.testing.assert_allclose(found((equations_SS @ truth_S)[:, None])[:, 0], truth_S, atol=1e-8)


def test_the_ridge_leaves_the_level_alone(monkeypatch):
    monkeypatch.setattr(additive, "RIDGE", 1e9)
    visits_S = np.random.default_rng(0).dirichlet(np.ones(len(HANDS)))
    found = AdditiveValues.of(HANDS, visits_S, np.eye(len(HANDS)))
    assert found is not None
    rewards_S = np.random.default_rng(1).normal(size=len(HANDS))
    np.testing.assert_allclose(found(rewards_S[:, None])[:, 0], visits_S @ rewards_S, atol=1e-6)


def test_reach_is_the_transpose_of_the_values():
    generator = np.random.default_rng(0)
    found = AdditiveValues.of(HANDS, np.full(60, 1 / 60), np.eye(60) - 0.9 * generator.dirichlet(np.ones(60), 60))
    assert found is not None
    one_step_S2, weights_3S = generator.normal(size=(60, 2)), generator.normal(size=(3, 60))
    np.testing.assert_allclose(found.reach(weights_3S) @ one_step_S2, weights_3S @ found(one_step_S2), atol=1e-10)


def test_there_are_none_where_a_state_is_one_name_or_as_simple_as_a_sum():
    assert AdditiveValues.of(np.arange(5), np.full(5, 0.2), np.eye(5)) is None
    corner = np.array([[0, 0], [1, 0], [0, 1]])
    assert AdditiveValues.of(corner, np.full(3, 1 / 3), np.eye(3)) is None


def test_sums_are_believed_where_hands_are_worth_the_sum_of_their_cards():
    truth_S, found = 2 * additive_wins() - 1, []
    for seed in range(12):
        _, counted_S, values = solved(game(additive_wins(), seed))
        inside = (np.abs(values.by_layer_LS[0] - truth_S) < 1.645 * values.stderr_S).mean()
        errors = [np.square(x - truth_S).mean() for x in (counted_S, values.by_layer_LS[0])]
        found.append((*errors, inside, values.blend.additive))
    counted, blended, inside, share = np.mean(found, axis=0)
    assert blended < 0.4 * counted
    assert share > 0.5
    assert 0.8 < inside < 0.995


def test_sums_are_not_believed_where_only_the_whole_hand_counts():
    rough_S = np.sign(np.random.default_rng(3).normal(size=len(HANDS)))
    truth_S, found = 0.9 * rough_S, []
    for seed in range(12):
        _, counted_S, values = solved(game((1 + truth_S) / 2, seed))
        found.append([np.square(x - truth_S).mean() for x in (counted_S, values.by_layer_LS[0])])
    counted, blended = np.mean(found, axis=0)
    assert blended < 1.05 * counted


@pytest.mark.parametrize("kind", ["numbers", "one-hot columns"])
def test_the_generalist_adds_up_what_cards_are_worth(kind):
    """However the cards are written down; the values are the attribution times the rewards."""
    log = game(additive_wins(), 0)
    if kind == "one-hot columns":
        log = game(additive_wins(), 0, one_hot, spaces.Box(0.0, 1.0, (SUITS + RANKS,), np.float64))
    estimate = (
        icrl.InContextEvaluator.from_pretrained("generalist")
        .fit(log, 0.9, policy=Stay())
        .predict(HANDS if kind == "numbers" else one_hot(HANDS))
    )
    truth_S, (_, counted_S, _) = 2 * additive_wins() - 1, solved(log)
    np.testing.assert_allclose(estimate.attribution() @ log.rewards, estimate.values, atol=1e-9)
    if kind == "numbers":  # the table's states are in order of the hands
        assert np.square(estimate.values - truth_S).mean() < 0.5 * np.square(counted_S - truth_S).mean()
    assert np.corrcoef(estimate.values, truth_S)[0, 1] > 0.9


def test_a_log_of_another_policy_is_not_added_up():
    log = game(additive_wins(), 0)
    policy = AskedPolicy(as_policy(Stay(), spaces.Discrete(1), log.observation_space), spaces.Discrete(1))
    world = world_of(log, policy, acted=False)
    assert world.solve(np.zeros((1, len(world.states))), None).blend.additive == 0.0


def test_a_state_with_one_name_is_blended_as_before():
    log = icrl.Trajectory(
        np.arange(40) % 8, np.zeros(40, dtype=int), np.random.default_rng(0).normal(size=40), np.arange(40) % 8,
        np.ones(40, dtype=bool), np.zeros(40, dtype=bool), observation_space=spaces.Discrete(8),
    )  # fmt: skip
    world = world_of(log, asked_table(np.ones((8, 1))))
    assert world.solve(np.zeros((1, 8)), None).blend.additive == 0.0
