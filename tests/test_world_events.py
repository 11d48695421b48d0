"""Events read off a context: rules and quadrics that are right where it tells, and several where it does not."""

import numpy as np
import pytest

from icrl_gym.evaluator.world.events import MOST_OTHERS, Events, Rules

MEMBERS = 4


def half_space(x):
    return x[:, 0] > 1.3


def box(x):
    return (np.abs(x[:, 0]) > 1.6) | (np.abs(x[:, 1]) > 1.8)


def ball(x):
    return np.square(x[:, :3]).sum(axis=1) > 5.0


def hilly(x):
    """Acrobot's height in (cos, sin) of two angles."""
    return -x[:, 0] - (x[:, 0] * x[:, 2] - x[:, 1] * x[:, 3]) > 1.0


def normal(rows, seed):
    return np.random.default_rng(seed).normal(size=(rows, 4))


def angles(rows, seed):
    generator = np.random.default_rng(seed)
    first, second = generator.uniform(-2.2, 2.2, (2, rows))
    return np.stack(
        [np.cos(first), np.sin(first), np.cos(second), np.sin(second), *generator.normal(size=(2, rows))], axis=1
    )


CASES = {"half space": (half_space, normal), "box": (box, normal), "ball": (ball, normal), "hilly": (hilly, angles)}


def fitted(ends, draw, rows=600, seed=0):
    x = draw(rows, seed)
    ended = ends(x)
    endings = Events.fit(x[~ended], x[ended], np.zeros(x.shape[1]), MEMBERS)
    assert endings is not None
    return endings, x[~ended], x[ended]


def says(endings, x):
    """Probabilities (K, B)."""
    return endings(np.repeat(x[None], MEMBERS, axis=0))


@pytest.mark.parametrize("name", CASES)
def test_endings_are_found_and_few_alarms_are_false(name):
    endings, went_on, ended = fitted(*CASES[name])
    assert says(endings, went_on).max() == 0.0
    assert says(endings, ended).mean() > 0.97
    draw = CASES[name][1]
    new = draw(2000, 1)
    truth = CASES[name][0](new)
    wrong = np.abs(says(endings, new) - truth)
    assert wrong[:, ~truth].mean() < 0.02
    assert wrong[:, truth].mean() < 0.1


@pytest.mark.parametrize("name", CASES)
def test_the_statistical_test_notices_endings_elsewhere(name):
    ends, draw = CASES[name]
    endings, _, _ = fitted(ends, draw)
    new = draw(2000, 1)
    shifted = ends(new - 0.5)
    assert np.abs(says(endings, new) - shifted).mean() > 0.02


@pytest.mark.parametrize(("name", "low", "high"), [("half space", 0.7, 1), ("box", 0.7, 1), ("ball", 0, 0.3),
                                                   ("hilly", 0, 0.3)])  # fmt: skip
def test_thresholds_are_believed_where_they_foretell_better_than_a_quadric(name, low, high):
    endings, _, _ = fitted(*CASES[name])
    assert low <= endings.rules_share <= high
    assert endings.by_rules_K.sum() == pytest.approx(MEMBERS * endings.rules_share, abs=0.51)


def test_the_rules_of_a_box_are_distances_from_the_origin():
    x = normal(600, 0)
    ended = box(x)
    rules = Rules.fit(x[~ended], x[ended], np.zeros(4))
    of_distance = rules.shares_EJ[:, 8:10].sum(axis=1)  # |x_0| and |x_1|
    assert of_distance.mean() > 0.9
    assert rules.explained_E.all()


def test_distances_are_from_the_origin_of_the_observation():
    origin = np.array([2.0, 0.0, 0.0, 0.0])
    x = normal(600, 0) + origin
    ended = np.abs(x[:, 0] - 2.0) > 1.5
    endings = Events.fit(x[~ended], x[ended], origin, MEMBERS)
    assert endings is not None
    held = np.isfinite(endings.thresholds_KJ).any(axis=0)
    assert held[8]
    assert held.sum() == 1


@pytest.mark.parametrize("farthest", [1.1, 1.5])
def test_a_side_that_was_never_left_ends_episodes_as_the_other_does_if_nothing_says_otherwise(farthest):
    """Events on the right alone, beyond 1.2; on the left the log went so far."""
    x = np.linspace(-farthest, 1.2, 300)[:, None] * np.array([1.0, 0.0])
    endings = Events.fit(x, np.array([[1.21, 0.0], [1.25, 0.0]]), np.zeros(2), MEMBERS)
    assert endings is not None
    found = says(endings, np.array([[-1.3, 0.0], [1.3, 0.0]]))[endings.by_rules_K]
    assert found[:, 1].min() == 1.0
    assert set(found[:, 0]) == {float(farthest < 1.2)}


def test_a_state_at_which_an_episode_goes_on_refutes_what_would_end_it():
    """Events from 2 on, and none up to 1: a state at 1.6 moves thresholds to 2, one at 2.5 ends them."""
    x = np.stack([np.linspace(-9.0, 1.0, 200), np.zeros(200)], axis=1)
    endings = Events.fit(x, np.array([[2.0, 0.0], [2.2, 0.0], [3.0, 0.0]] * 4), np.zeros(2), MEMBERS)
    assert endings is not None
    by_rules_K = endings.by_rules_K
    limits = endings.limits(np.tile(np.array([[0.5, 0.0], [1.6, 0.0], [2.5, 0.0]]), (MEMBERS, 1, 1)))
    placed_K, moved_K, refuted_K = limits.rules_KBC[by_rules_K, :, 0].T
    np.testing.assert_allclose(placed_K, [1.875, 1.625, 1.375])
    np.testing.assert_array_equal(moved_K, [1.875, 1.625, 2.0])
    assert np.isinf(refuted_K).all()
    for at, said in ((1.5, [0.0, 0.0, 0.0]), (1.9, [1.0, 1.0, 0.0]), (2.01, [1.0, 1.0, 0.0])):
        found = endings(np.tile(np.array([at, 0.0]), (MEMBERS, 3, 1)), limits)[by_rules_K]
        assert found[0].tolist() == said
        assert found[2].tolist() == [1.0, float(at > 2.0), 0.0]
    of_two = limits.of(np.array([[2, 0]] * MEMBERS))
    np.testing.assert_array_equal(of_two.rules_KBC, limits.rules_KBC[:, [2, 0]])
    np.testing.assert_array_equal(of_two.logistic_KB, limits.logistic_KB[:, [2, 0]])


def test_the_logistic_function_is_refuted_in_the_same_way():
    x = normal(600, 0)
    ended = np.square(x[:, 0]) + np.square(x[:, 1]) > 3.0
    endings = Events.fit(x[~ended], x[ended], np.zeros(4), MEMBERS)
    assert endings is not None
    assert not endings.by_rules_K.any()
    far = np.tile(np.array([[2.5, 2.5, 0.0, 0.0]]), (MEMBERS, 1, 1))
    assert (endings(far) == 1.0).all()
    assert (endings(far, endings.limits(np.zeros((MEMBERS, 1, 4)))) == 1.0).all()
    assert (endings(far, endings.limits(far)) == 0.0).all()


def test_members_hold_different_explanations_where_the_context_does_not_tell():
    x = normal(300, 0)
    x[:, 1] = x[:, 0]  # either of the two may be what ends an episode
    ended = x[:, 0] > 1.2
    endings = Events.fit(x[~ended], x[ended], np.zeros(4), MEMBERS)
    assert endings is not None
    apart = np.array([[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]])
    found = says(endings, apart)[endings.by_rules_K]
    assert found.max(axis=0).tolist() == [1.0, 1.0]
    assert found.min(axis=0).tolist() == [0.0, 0.0]


def test_members_hold_different_places_in_the_gap():
    x = np.zeros((200, 2))
    x[:, 0] = np.linspace(-1.0, 1.0, 200)
    ended = np.stack([np.linspace(2.0, 3.0, 12), np.zeros(12)], axis=1)
    endings = Events.fit(x, ended, np.full(2, -9.0), MEMBERS)
    assert endings is not None
    across = np.stack([np.linspace(1.0, 2.0, 101), np.zeros(101)], axis=1)
    thresholds = 1.0 + (says(endings, across) == 0).sum(axis=1) / 101
    np.testing.assert_allclose(np.sort(thresholds), [1.125, 1.375, 1.625, 1.875], atol=0.05)


@pytest.mark.parametrize("explained", [True, False])
def test_one_ending_is_enough(explained):
    x = normal(200, 0)
    ended = np.array([[6.0, 0.0, 0.0, 0.0]]) if explained else np.array([[0.6, 0.6, 0.6, 0.6]])
    endings = Events.fit(x, ended, np.zeros(4), MEMBERS)
    assert endings is not None
    assert endings.rules_share == float(explained)
    found = says(endings, np.concatenate([x, ended]))
    assert np.isfinite(found).all()
    if explained:
        assert found[:, :-1].max() == 0.0
        assert found[:, -1].min() == 1.0


def test_one_ending_leaves_the_members_several_explanations():
    x = normal(200, 0)
    endings = Events.fit(x, np.array([[6.0, 6.0, 0.0, 0.0]]), np.zeros(4), MEMBERS)
    assert endings is not None
    held = [tuple(np.flatnonzero(np.isfinite(row)) % 4) for row in endings.thresholds_KJ]
    assert set(held) == {(0,), (1,)}


def test_no_ending_and_nothing_but_endings_are_no_model():
    x = normal(50, 0)
    assert Events.fit(x, x[:0], np.zeros(4), MEMBERS) is None
    assert Events.fit(x[:0], x, np.zeros(4), MEMBERS) is None


@pytest.mark.parametrize("rows", [800, 2 * MOST_OTHERS])
def test_endings_by_chance_are_as_likely_as_they_were(rows):
    x = normal(rows, 0)
    ended = np.random.default_rng(1).random(rows) < 0.1
    endings = Events.fit(x[~ended], x[ended], np.zeros(4), MEMBERS)
    assert endings is not None
    assert endings.rules_share < 0.3
    assert says(endings, normal(500, 2)).mean() == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("ends", [half_space, ball])
def test_a_long_context_gives_no_false_alarm_on_what_it_saw_either(ends):
    x = normal(MOST_OTHERS + 2500, 0)
    ended = ends(x)
    endings = Events.fit(x[~ended], x[ended], np.zeros(4), MEMBERS)
    assert endings is not None
    assert says(endings, x[~ended]).max() == 0.0
