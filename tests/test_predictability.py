"""Predictability of the next step: high for smooth processes, low for noise, 0 where it cannot be known."""

from dataclasses import replace

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.predictability import (
    BANDWIDTH,
    FEWEST_ROWS,
    LINEAR_RIDGE,
    MOST_ROWS,
    RIDGES,
    explained_variance,
    predictability,
)

GAMMA = 0.9
ROTATION = 0.95 * np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])


def rotation_prompt(step=lambda state: state @ ROTATION, extra=None, num_starts=14, length=12):
    """A damped rotation from several starts, perhaps with further features of each start."""
    starts = np.random.default_rng(0).uniform(-1, 1, size=(num_starts, 2))
    if extra is not None:
        starts = np.concatenate([starts, extra(num_starts)], axis=1)
    states, following = [], []
    for state in starts:
        for _ in range(length):
            states.append(state)
            state = step(state)
            following.append(state)
    truncated = np.arange(len(states)) % length == length - 1
    zeros = np.zeros(len(states))
    log = icrl.Trajectory(np.array(states), zeros, zeros, np.array(following), np.zeros(len(states), bool), truncated)
    return Prompt.from_trajectory(log, GAMMA)


def random_prompt(seed=0, num_rows=80, walk=False, gamma=GAMMA):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(num_rows + 1, 2))
    if walk:
        states = states.cumsum(axis=0)
    flags = np.zeros(num_rows, bool)
    log = icrl.Trajectory(states[:-1], np.zeros(num_rows), states[:-1, 0], states[1:], flags, flags)
    return Prompt.from_trajectory(log, gamma)


def wavy_prompt(num_rows=30):
    """A feature whose step is a wave and one whose step is noise; every row has an end of its own."""
    rng = np.random.default_rng(2)
    states = rng.uniform(-2, 2, size=(num_rows, 2))
    following = states + np.column_stack([np.sin(2 * states[:, 0]), rng.normal(size=num_rows)])
    flags = np.ones(num_rows, bool)
    log = icrl.Trajectory(states, np.zeros(num_rows), states[:, 0], following, ~flags, flags)
    return Prompt.from_trajectory(log, GAMMA)


def with_other_ends(prompt, rows):
    """The same with the ends of these rows moved."""
    ends = prompt.end_features.copy()
    ends[rows] += 3.0
    return replace(prompt, end_features=ends)


def test_a_smooth_process_is_predicted():
    assert 0.99 < predictability(rotation_prompt()) <= 1.0


def test_steps_at_random_are_not_predicted():
    assert predictability(random_prompt(walk=True)) < 0.1
    # Of independent states half of each step can be told: it leads back to the mean.
    assert 0.3 < predictability(random_prompt()) < 0.6


def test_the_least_predictable_feature_counts_as_much_as_all_together():
    rng = np.random.default_rng(0)
    prompt = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2] + rng.normal()),
        extra=lambda n: rng.normal(size=(n, 1)),
    )
    first, second, third = explained = explained_variance(prompt)
    assert min(first, second) > 0.95
    assert third < 0.2
    assert predictability(prompt) == pytest.approx((np.mean(explained) + third) / 2)


def test_nothing_is_known_where_states_recur():
    states = np.random.default_rng(0).integers(6, size=81)
    flags = np.zeros(80, bool)
    log = icrl.Trajectory(states[:-1], np.zeros(80), states[:-1] + 0.0, states[1:], flags, flags)
    table = Prompt.from_trajectory(log, GAMMA)
    assert explained_variance(table) is None
    assert predictability(table) == 0.0
    prompt = random_prompt()
    for distinct, expected in ((0.55, True), (0.45, False)):
        features = prompt.source_features.copy()
        features[round(distinct * len(prompt)) :] = features[0]
        assert (explained_variance(replace(prompt, source_features=features)) is not None) == expected


def test_nothing_is_known_of_what_somebody_else_did():
    prompt = random_prompt()
    assert explained_variance(replace(prompt, importance_ratios=np.ones(len(prompt)))) is None


def test_nothing_is_known_from_few_transitions_that_go_on():
    for num_rows, expected in ((FEWEST_ROWS, True), (FEWEST_ROWS - 1, False)):
        assert (explained_variance(random_prompt(num_rows=num_rows)) is not None) == expected
    prompt = random_prompt(num_rows=FEWEST_ROWS + 3)
    discounts = prompt.discounts.copy()
    discounts[[2, 5, 8]] = 0.0
    assert explained_variance(replace(prompt, discounts=discounts)) is not None
    discounts[11] = 0.0
    assert explained_variance(replace(prompt, discounts=discounts)) is None
    assert explained_variance(random_prompt(gamma=0.0)) is None


def test_terminations_are_not_predicted():
    prompt, rows = wavy_prompt(60), [2, 5, 8]
    discounts = prompt.discounts.copy()
    discounts[rows] = 0.0
    ended = replace(prompt, discounts=discounts)
    np.testing.assert_array_equal(explained_variance(with_other_ends(ended, rows)), explained_variance(ended))
    assert np.abs(explained_variance(with_other_ends(prompt, rows)) - explained_variance(prompt)).max() > 0.01


def test_long_contexts_are_thinned_out_evenly():
    prompt = wavy_prompt(MOST_ROWS + 100)
    used = np.linspace(0, MOST_ROWS + 99, MOST_ROWS).round().astype(int)
    unused = np.setdiff1d(np.arange(len(prompt)), used)
    assert len(unused) == 100
    expected = explained_variance(prompt)
    np.testing.assert_array_equal(explained_variance(with_other_ends(prompt, unused)), expected)
    for row in (used[0], used[-1]):
        assert np.abs(explained_variance(with_other_ends(prompt, [row])) - expected).max() > 1e-3


def test_a_feature_that_never_varies_changes_nothing():
    prompt = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2]), extra=lambda n: np.full((n, 1), 7.0)
    )
    assert predictability(prompt) == pytest.approx(predictability(rotation_prompt()), rel=1e-12)


def test_a_feature_that_never_moves_is_not_counted():
    """A goal, say, that differs between episodes."""
    prompt = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2]),
        extra=lambda n: np.random.default_rng(2).normal(size=(n, 1)),
        num_starts=30,
    )
    assert np.isnan(explained_variance(prompt)).tolist() == [False, False, True]
    assert predictability(prompt) > 0.95


def test_a_clock_is_not_counted():
    """A feature that always moves by the same: nothing of its steps varies that could be predicted."""
    prompt = rotation_prompt(
        step=lambda state: np.append(state[:2] @ ROTATION, state[2] + 0.1), extra=lambda n: np.zeros((n, 1))
    )
    assert np.isnan(explained_variance(prompt)).tolist() == [False, False, True]
    assert predictability(prompt) > 0.95


def left_out_square(kernel, outputs, ridge):
    """Sum of squared errors of kernel ridge regression, fitted again without each row in turn."""
    total = 0.0
    for row in range(len(outputs)):
        others = np.arange(len(outputs)) != row
        weights = np.linalg.solve(kernel[np.ix_(others, others)] + ridge * np.eye(others.sum()), outputs[others])
        total += (outputs[row] - kernel[row, others] @ weights) ** 2
    return total


def test_every_feature_takes_what_predicts_rows_that_are_left_out():
    prompt = wavy_prompt()
    explained_D, n = explained_variance(prompt), len(prompt)
    x, width = prompt.source_features, BANDWIDTH * np.sqrt(2 / 4)
    moved = prompt.end_features - x
    with_one = np.column_stack([np.ones(n), x])
    left = moved - with_one @ np.linalg.solve(with_one.T @ with_one + LINEAR_RIDGE * np.eye(3), with_one.T @ moved)
    kernel = np.exp(-np.square(x[:, None] - x[None]).sum(axis=-1) / (2 * width**2))
    chosen = []
    for feature in range(2):
        by_kernel = min(left_out_square(kernel, left[:, feature], ridge) for ridge in RIDGES)
        by_line = np.square(left[:, feature]).sum() * (1 + 2 * 3 / n)
        chosen.append(by_kernel < by_line)
        explained = 1 - min(by_kernel, by_line) / np.square(moved[:, feature] - moved[:, feature].mean()).sum()
        assert explained_D[feature] == pytest.approx(explained, rel=1e-8)
    assert chosen == [True, False]
