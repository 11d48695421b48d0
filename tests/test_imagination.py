"""Imagined returns: what the model of the closed loop predicts, where there is none, and what a walk earns."""

from dataclasses import replace

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.walks import (
    BANDWIDTH,
    FEWEST_ROWS,
    LINEAR_RIDGE,
    MARGIN,
    MOST_ROWS,
    MOST_STEPS,
    RIDGES,
    TransitionModel,
    imagination_steps,
)

GAMMA = 0.9
ROTATION = 0.95 * np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
QUADRATIC = np.array([[1.0, 0.3], [0.3, 2.0]])


def episodes(step, starts, length, reward, ends=lambda state: False):
    """Follow ``state -> next state`` from every start; a log of episodes that terminate, or are cut."""
    rows = []
    for state in starts:
        for t in range(length):
            following = step(state)
            rows.append((state, reward(state), following, ends(following), t == length - 1))
            if ends(following):
                break
            state = following
    states, rewards, following, terminated, truncated = map(np.array, zip(*rows, strict=True))
    return icrl.Trajectory(states, np.zeros(len(states)), rewards, following, terminated, truncated & ~terminated)


def squares(state):
    return state[:2] @ QUADRATIC @ state[:2]


def rotation_prompt(step=lambda state: state @ ROTATION, extra=None, num_starts=14):
    """A damped rotation from several starts, with a quadratic reward and perhaps further features of each start."""
    starts = np.random.default_rng(0).uniform(-1, 1, size=(num_starts, 2))
    if extra is not None:
        starts = np.concatenate([starts, extra(num_starts)], axis=1)
    log = episodes(step, starts, 12, squares)
    return Prompt.from_trajectory(log, GAMMA), log


def rotation_values(states):
    """sum_t gamma^t x_t^T P x_t along the damped rotation."""
    total, power, discount = np.zeros((2, 2)), np.eye(2), 1.0
    for _ in range(400):
        total += discount * power @ QUADRATIC @ power.T
        power, discount = power @ ROTATION, discount * GAMMA
    return np.einsum("qi,ij,qj->q", states[:, :2], total, states[:, :2])


def raw(features, log):
    """Features of a walk as states."""
    return features * log.observations.std(axis=0) + log.observations.mean(axis=0)


def fitted(prompt):
    model = TransitionModel.fit(prompt)
    assert model is not None
    return model


def random_prompt(seed=0, num_rows=80, walk=False, gamma=GAMMA, **fields):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(num_rows + 1, 2))
    if walk:
        states = states.cumsum(axis=0)
    flags = np.zeros(num_rows, bool)
    log = icrl.Trajectory(states[:-1], np.zeros(num_rows), states[:-1, 0], states[1:], flags, flags)
    return replace(Prompt.from_trajectory(log, gamma), **fields)


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_a_smooth_process_is_predicted_and_true_end_values_give_true_values(num_steps):
    prompt, log = rotation_prompt()
    model = fitted(prompt)
    assert model.predictability > 0.99
    states = np.random.default_rng(1).uniform(-0.7, 0.7, size=(20, 2))
    walks = model.walk(prompt.queries(states), num_steps)
    reached = states @ np.linalg.matrix_power(ROTATION, num_steps)
    np.testing.assert_allclose(raw(walks.ends_QD, log), reached, atol=0.01)
    np.testing.assert_allclose(walks.discounts_Q, GAMMA**num_steps, rtol=1e-12)
    truth = rotation_values(states)
    found = walks.returns(prompt.rewards, rotation_values(reached))
    np.testing.assert_allclose(found, truth, atol=0.02 * truth.std())
    np.testing.assert_allclose(
        walks.returns(prompt.rewards, np.zeros((3, 20))),
        np.broadcast_to(truth - GAMMA**num_steps * rotation_values(reached), (3, 20)),
        atol=0.02 * truth.std(),
    )


def test_steps_at_random_are_not_predicted():
    assert fitted(random_prompt(walk=True)).predictability < 0.1
    # Of independent states half of each step can be told: it leads back to the mean.
    assert 0.3 < fitted(random_prompt()).predictability < 0.6


def test_the_least_predictable_feature_counts_as_much_as_all_together():
    rng = np.random.default_rng(0)
    prompt, _ = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2] + rng.normal()),
        extra=lambda n: rng.normal(size=(n, 1)),
    )
    model = fitted(prompt)
    first, second, third = model.explained_D
    assert min(first, second) > 0.95
    assert third < 0.2
    assert model.predictability == pytest.approx((np.mean([first, second, third]) + third) / 2)


def test_states_that_recur_are_looked_up_instead():
    states = np.random.default_rng(0).integers(6, size=81)
    flags = np.zeros(80, bool)
    log = icrl.Trajectory(states[:-1], np.zeros(80), states[:-1] + 0.0, states[1:], flags, flags)
    assert TransitionModel.fit(Prompt.from_trajectory(log, GAMMA)) is None
    prompt = random_prompt()
    for distinct, expected in ((0.55, True), (0.45, False)):
        features = prompt.source_features.copy()
        features[round(distinct * len(prompt)) :] = features[0]
        assert (TransitionModel.fit(replace(prompt, source_features=features)) is not None) == expected


def test_there_is_no_model_of_what_somebody_else_did():
    prompt = random_prompt()
    assert TransitionModel.fit(replace(prompt, importance_ratios=np.ones(len(prompt)))) is None


def test_few_transitions_that_go_on_make_no_model():
    for num_rows, expected in ((FEWEST_ROWS, True), (FEWEST_ROWS - 1, False)):
        assert (TransitionModel.fit(random_prompt(num_rows=num_rows)) is not None) == expected
    prompt = random_prompt(num_rows=FEWEST_ROWS + 3)
    discounts = prompt.discounts.copy()
    discounts[[2, 5, 8]] = 0.0
    assert fitted(replace(prompt, discounts=discounts)).rows_M.tolist() == [
        row for row in range(len(prompt)) if row not in (2, 5, 8)
    ]
    discounts[11] = 0.0
    assert TransitionModel.fit(replace(prompt, discounts=discounts)) is None
    assert TransitionModel.fit(random_prompt(gamma=0.0)) is None


def test_long_contexts_are_thinned_out_evenly():
    rows = fitted(random_prompt(num_rows=MOST_ROWS + 100)).rows_M
    assert len(rows) == MOST_ROWS
    assert (rows[0], rows[-1]) == (0, MOST_ROWS + 99)
    assert set(np.diff(rows)) == {1, 2}


def test_a_feature_that_never_varies_changes_nothing():
    plain, _ = rotation_prompt()
    prompt, _ = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2]), extra=lambda n: np.full((n, 1), 7.0)
    )
    with_it, without = fitted(prompt), fitted(plain)
    assert with_it.predictability == pytest.approx(without.predictability, rel=1e-12)
    queries = np.random.default_rng(1).normal(size=(5, 2))
    one, other = with_it.walk(np.column_stack([queries, np.zeros(5)]), 8), without.walk(queries, 8)
    np.testing.assert_allclose(one.ends_QD[:, :2], other.ends_QD, atol=1e-9)
    np.testing.assert_array_equal(one.ends_QD[:, 2], 0.0)
    np.testing.assert_allclose(one.reward_weights_QN, other.reward_weights_QN, atol=1e-9)


def test_a_feature_that_never_moves_stays_put_and_does_not_disturb():
    """A goal, say, that differs between episodes."""
    prompt, log = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2]),
        extra=lambda n: np.random.default_rng(2).normal(size=(n, 1)),
        num_starts=30,
    )
    model = fitted(prompt)
    assert np.isnan(model.explained_D[2])
    assert model.predictability > 0.95
    states = np.random.default_rng(1).uniform(-0.6, 0.6, size=(10, 3))
    queries = prompt.queries(states)
    walks = model.walk(queries, 6)
    np.testing.assert_array_equal(walks.ends_QD[:, 2], queries[:, 2])
    reached = states[:, :2] @ np.linalg.matrix_power(ROTATION, 6)
    np.testing.assert_allclose(raw(walks.ends_QD, log)[:, :2], reached, atol=0.03)
    truth = rotation_values(states)
    found = walks.returns(prompt.rewards, rotation_values(reached))
    np.testing.assert_allclose(found, truth, atol=0.1 * truth.std())


def test_a_clock_goes_on_and_does_not_disturb():
    """A feature that always moves by the same: nothing of its steps varies that could be predicted."""
    prompt, log = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2] + 0.1), extra=lambda n: np.zeros((n, 1))
    )
    model = fitted(prompt)
    assert np.isnan(model.explained_D[2])
    assert model.predictability > 0.95
    states = np.column_stack([np.random.default_rng(1).uniform(-0.6, 0.6, size=(10, 2)), np.full(10, 0.3)])
    ends = raw(model.walk(prompt.queries(states), 5).ends_QD, log)
    np.testing.assert_allclose(ends[:, 2], 0.8, atol=0.01)
    np.testing.assert_allclose(ends[:, :2], states[:, :2] @ np.linalg.matrix_power(ROTATION, 5), atol=0.03)


BORDER = 1.0


def to_the_border(state):
    return 1.05 * state + 0.12


def border_prompt():
    """Every step earns 1 until the border is crossed, where 6 is earned."""
    starts = np.random.default_rng(0).uniform(-1, 0.9, size=(30, 1))

    def reward(state):
        return 6.0 if beyond(to_the_border(state)) else 1.0

    return Prompt.from_trajectory(episodes(to_the_border, starts, 40, reward, beyond), GAMMA)


def beyond(state):
    return bool(state[0] > BORDER)


def border_values(states, num_steps=200):
    """Returns of the first steps, and whether the process then still goes on."""
    values, going_on = [], []
    for state in states:
        value, discount = 0.0, 1.0
        for _ in range(num_steps):
            following = to_the_border(state)
            value += discount * (6.0 if beyond(following) else 1.0)
            discount *= GAMMA * (not beyond(following))
            if not discount:
                break
            state = following
        values.append(value)
        going_on.append(discount > 0)
    return np.array(values), np.array(going_on)


def test_walks_end_where_the_process_does():
    prompt = border_prompt()
    model = fitted(prompt)
    assert model.predictability > 0.95
    states = np.linspace(-1, 0.9, 60)[:, None]
    queries = prompt.queries(states)
    truth, _ = border_values(states)
    found = model.walk(queries, 40)
    values = found.returns(prompt.rewards, np.zeros(60))
    assert values.mean() == pytest.approx(truth.mean(), rel=0.03)
    assert np.abs(values - truth).mean() < 0.1 * np.abs(truth).mean()
    assert np.corrcoef(values, truth)[0, 1] > 0.95
    assert found.discounts_Q.max() < 1e-3 * GAMMA**10
    for num_steps in (2, 5):
        _, going_on = border_values(states, num_steps)
        survived = model.walk(queries, num_steps).discounts_Q / GAMMA**num_steps
        assert 0.1 < going_on.mean() < 0.95
        assert survived.mean() == pytest.approx(going_on.mean(), abs=0.05)
        assert survived.min() >= 0.0


def test_nothing_ends_far_from_the_context():
    prompt = border_prompt()
    walks = fitted(prompt).walk(prompt.queries(np.array([[-30.0]])), 3)
    np.testing.assert_allclose(walks.discounts_Q, GAMMA**3, rtol=1e-6)


def test_walks_stay_near_the_contexts_range():
    starts = np.random.default_rng(0).uniform(-1, 1, size=(20, 2))
    log = episodes(lambda state: 1.2 * state, starts, 5, squares)
    prompt = Prompt.from_trajectory(log, GAMMA)
    low, high = prompt.source_features.min(axis=0) - MARGIN, prompt.source_features.max(axis=0) + MARGIN
    queries = np.concatenate([prompt.source_features, [[5.0, 0.0], [0.0, -6.0]]])
    ends = fitted(prompt).walk(queries, 30).ends_QD
    assert (ends >= np.minimum(low, queries)).all()
    assert (ends <= np.maximum(high, queries)).all()
    assert (ends[-2, 0], ends[-1, 1]) == (5.0, -6.0)  # from outside no farther out, nor drawn in
    assert (ends[:-2].max(axis=0) == high).all()
    assert (ends[:-2].min(axis=0) == low).all()


def test_no_step_is_no_imagination():
    prompt, _ = rotation_prompt()
    queries = np.random.default_rng(1).normal(size=(5, 2))
    walks = fitted(prompt).walk(queries, 0)
    np.testing.assert_array_equal(walks.ends_QD, queries)
    np.testing.assert_array_equal(walks.discounts_Q, 1.0)
    np.testing.assert_array_equal(walks.reward_weights_QN, np.zeros((5, len(prompt))))
    end_values = np.arange(5.0)
    np.testing.assert_array_equal(walks.returns(prompt.rewards, end_values), end_values)


@pytest.mark.parametrize("make", [lambda: rotation_prompt()[0], border_prompt], ids=["goes on", "ends"])
def test_rewards_enter_linearly(make):
    prompt = make()
    queries = prompt.source_features[::9] + 0.1
    model = fitted(prompt)
    walks = model.walk(queries, 6)
    discounts = np.sum([model.walk(queries, t).discounts_Q for t in range(6)], axis=0)
    np.testing.assert_allclose(walks.reward_weights_QN.sum(axis=1), discounts, rtol=1e-8)  # of rewards that are all 1
    for rewards in (3.5 * prompt.rewards, prompt.rewards - 2.0):
        again = fitted(replace(prompt, rewards=rewards)).walk(queries, 6)
        np.testing.assert_allclose(again.reward_weights_QN, walks.reward_weights_QN, atol=1e-9)
    ones = fitted(replace(prompt, rewards=np.ones(len(prompt)))).walk(queries, 6)
    np.testing.assert_allclose(ones.returns(np.ones(len(prompt)), np.zeros(len(queries))), discounts, rtol=1e-8)


def wavy_prompt(num_rows=30):
    """A feature whose step is a wave, one whose step is noise; the reward is a wave as well."""
    rng = np.random.default_rng(2)
    states = rng.uniform(-2, 2, size=(num_rows, 2))
    following = states + np.column_stack([np.sin(2 * states[:, 0]), rng.normal(size=num_rows)])
    rewards = np.cos(2 * states[:, 0]) + 4.0
    flags = np.ones(num_rows, bool)
    return Prompt.from_trajectory(icrl.Trajectory(states, np.zeros(num_rows), rewards, following, ~flags, flags), GAMMA)


def gaussian(a, b, width):
    return np.exp(-np.square(a[:, None] - b[None]).sum(axis=-1) / (2 * width**2))


def left_out_square(kernel, outputs, ridge):
    """Sum of squared errors of kernel ridge regression, fitted again without each row in turn."""
    total = 0.0
    for row in range(len(outputs)):
        others = np.arange(len(outputs)) != row
        weights = np.linalg.solve(kernel[np.ix_(others, others)] + ridge * np.eye(others.sum()), outputs[others])
        total += (outputs[row] - kernel[row, others] @ weights) ** 2
    return total


def test_every_output_takes_what_predicts_rows_that_are_left_out():
    prompt = wavy_prompt()
    model, n = fitted(prompt), len(prompt)
    x, width = prompt.source_features, BANDWIDTH * np.sqrt(2 / 4)
    moved = prompt.end_features - x
    with_one = np.column_stack([np.ones(n), x])
    linear = np.linalg.solve(with_one.T @ with_one + LINEAR_RIDGE * np.eye(3), with_one.T @ moved)
    np.testing.assert_allclose(model.linear_ED, linear, rtol=1e-9)
    left = np.column_stack([moved - with_one @ linear, prompt.rewards - prompt.rewards.mean()])
    kernel = gaussian(x, x, width)
    queries = np.random.default_rng(1).normal(size=(6, 2))
    at_queries = gaussian(queries, x, width)
    walks = model.walk(queries, 1)
    by_linear = np.column_stack([np.ones(6), queries]) @ linear
    chosen = []
    for output in range(3):
        squares_by_ridge = [left_out_square(kernel, left[:, output], ridge) for ridge in RIDGES]
        plain = np.square(left[:, output]).sum() * (1 if output == 2 else 1 + 2 * 3 / n)
        best = int(np.argmin(squares_by_ridge))
        kept = squares_by_ridge[best] < plain
        chosen.append(kept)
        weights = np.linalg.solve(kernel + RIDGES[best] * np.eye(n), left[:, output]) if kept else np.zeros(n)
        predicted = at_queries @ weights
        if output == 2:
            np.testing.assert_allclose(
                walks.reward_weights_QN @ prompt.rewards, prompt.rewards.mean() + predicted, rtol=1e-7
            )
            continue
        least = min(squares_by_ridge[best], plain)
        explained = 1 - least / np.square(moved[:, output] - moved[:, output].mean()).sum()
        assert model.explained_D[output] == pytest.approx(explained, rel=1e-8)
        ends = queries[:, output] + by_linear[:, output] + predicted
        low, high = x[:, output].min() - MARGIN, x[:, output].max() + MARGIN
        np.testing.assert_allclose(
            walks.ends_QD[:, output],
            ends.clip(np.minimum(low, queries[:, output]), np.maximum(high, queries[:, output])),
            rtol=1e-7,
        )
    assert chosen == [True, False, True]


@pytest.mark.parametrize(("gamma", "steps"), [(0.0, 1), (0.8, 3), (0.95, 10), (0.99, 50), (0.999, MOST_STEPS)])
def test_walks_are_half_a_horizon_long(gamma, steps):
    assert imagination_steps(gamma) == steps
