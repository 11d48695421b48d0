"""The world's regression: exact where a function is simple, honest about what it leaves out, linear in rewards."""

import math

import numpy as np
import pytest
import torch

from icrl_gym.evaluator.world.regression import (
    FUNCTION_RIDGES,
    FUNCTION_VARIANCES,
    SmoothRegression,
    _choose,
)

ROWS, INPUTS = 120, 3


def inputs(rows=ROWS, columns=INPUTS, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, columns))


def linear(x):
    return 0.5 + x @ np.arange(1.0, x.shape[-1] + 1)


def quadratic(x):
    return 1.0 - x[..., 0] * x[..., 1] + 2.0 * x[..., 1] ** 2 + x[..., 0]


def wave(x):
    return np.sin(2.5 * x[..., 0])


def noisy(x, seed=5):
    return linear(x) + wave(x) + np.random.default_rng(seed).normal(size=len(x))


def fitted(x_NX, outputs_NO, members=None, choosing=None):
    everything = np.arange(len(x_NX))
    members = [everything] if members is None else members
    choosing = everything if choosing is None else choosing
    return SmoothRegression.fit(x_NX, np.asarray(outputs_NO, dtype=float), choosing, members, "cpu")


def predicted(regression, x_BX):
    """Outputs (K, B, O)."""
    x_KBX = torch.as_tensor(x_BX).expand(len(regression.inputs_KMX), -1, -1)
    return regression.outputs(*regression.read(x_KBX)).numpy()


def columns(x, *functions):
    return np.stack([function(x) for function in functions], axis=1)


def settings(regression):
    return [(choice.quadratic, choice.ridge, choice.kernel) for choice in regression.choices]


def test_linear_and_quadratic_functions_are_found_exactly_and_without_a_kernel():
    x, new = inputs(), 2.0 * inputs(40, seed=1)
    regression = fitted(x, columns(x, linear, quadratic, linear))
    assert [choice.kernel for choice in regression.choices] == [False, False, False]
    assert regression.choices[1].quadratic
    assert not regression.kernel
    np.testing.assert_allclose(predicted(regression, new)[0], columns(new, linear, quadratic, linear), atol=1e-5)


def test_a_kernel_is_taken_where_no_simple_function_will_do():
    x, new = inputs(400, 2), 0.7 * inputs(60, 2, seed=1)
    regression = fitted(x, columns(x, wave, linear))
    assert [choice.kernel for choice in regression.choices] == [True, False]
    np.testing.assert_allclose(predicted(regression, new)[0, :, 0], wave(new), atol=0.05)
    np.testing.assert_allclose(predicted(regression, new)[0, :, 1], linear(new), atol=1e-5)


def test_noise_is_not_taken_for_a_function():
    x, noise = inputs(200), np.random.default_rng(3).normal(size=200)
    (choice,) = fitted(x, noise[:, None]).choices
    assert choice.error > 0.9


def terms_of(x, is_quadratic):
    parts = [np.ones((len(x), 1)), x]
    if is_quadratic:
        parts.append(np.stack([x[:, i] * x[:, j] for i in range(x.shape[1]) for j in range(i, x.shape[1])], axis=1))
    return np.concatenate(parts, axis=1)


def left_out(x, y, width, choice):
    """Errors of predicting each row from the others, one fit for each."""
    errors = []
    for row in range(len(x)):
        others = np.delete(np.arange(len(x)), row)
        terms, here = terms_of(x, choice.quadratic)[others], terms_of(x, choice.quadratic)[row]
        if choice.kernel:
            variance = FUNCTION_VARIANCES[choice.quadratic]

            def covariance(a, b, variance=variance):
                squares = np.square(a[:, None] - b[None]).sum(axis=-1)
                products = terms_of(a, choice.quadratic) @ terms_of(b, choice.quadratic).T
                return np.exp(-squares / (2 * width**2)) + variance * products

            gram = covariance(x[others], x[others]) + choice.ridge * np.eye(len(others))
            found = covariance(x[row : row + 1], x[others])[0] @ np.linalg.solve(gram, y[others])
        else:
            penalty = np.full(terms.shape[1], choice.ridge * len(x))
            penalty[0] *= 1e-6
            found = here @ np.linalg.solve(terms.T @ terms + np.diag(penalty + 1e-12), terms.T @ y[others])
        errors.append(y[row] - found)
    return np.array(errors)


def test_the_error_of_leaving_rows_out_is_that_of_fitting_without_them():
    x = inputs(80, 2)
    outputs = np.stack([noisy(x), wave(x), quadratic(x) + 0.1 * noisy(x, seed=6)], axis=1)
    scaled = (outputs - outputs.mean(axis=0)) / outputs.std(axis=0)
    width, choices = _choose(torch.as_tensor(x), torch.as_tensor(scaled))
    assert {choice.kernel for choice in choices} == {True, False}
    for column, choice in enumerate(choices):
        expected = np.square(left_out(x, scaled[:, column], width, choice)).mean()
        assert choice.error == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reward", [1.0, -100.0, 0.0, 1.0 / 3.0])
def test_a_constant_reward_is_read_as_its_mean(reward):
    x = inputs()
    regression = fitted(x, np.stack([wave(x), np.full(ROWS, reward)], axis=1))
    np.testing.assert_allclose(predicted(regression, 50.0 * inputs(9, seed=1))[0, :, 1], reward, rtol=1e-12)
    assert math.isinf(regression.choices[-1].ridge)
    terms, kernel = regression.read(torch.as_tensor(inputs(4, seed=2))[None])
    weights = regression.reward_attribution(terms, kernel, torch.full((1, 4, 1), 2.0, dtype=torch.float64))
    np.testing.assert_allclose(weights.numpy(), 2.0 / ROWS)


@pytest.mark.parametrize("reward", [linear, quadratic, wave, noisy])
def test_sums_of_rewards_are_their_attribution_times_the_rewards(reward):
    x, new = inputs(), inputs(7, seed=1)
    outputs = np.stack([wave(x), reward(x)], axis=1)
    members = [np.arange(0, 90), np.arange(30, 120)]
    regression = fitted(x, outputs, members)
    terms, kernel = regression.read(torch.as_tensor(new).expand(2, -1, -1))
    weights = torch.as_tensor(np.random.default_rng(2).random((2, 3, 7)))  # three sums over the seven states
    attribution = regression.reward_attribution(
        weights @ terms, None if kernel is None else weights @ kernel, weights.sum(dim=-1, keepdim=True)
    )
    expected = np.einsum("kqb,kb->kq", weights.numpy(), predicted(regression, new)[..., -1])
    rewards = np.stack([outputs[rows, -1] for rows in members])
    np.testing.assert_allclose(np.einsum("kqm,km->kq", attribution.numpy(), rewards), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("factor", [1e-3, 0.37, 1e4])
@pytest.mark.parametrize("reward", [wave, noisy])
def test_the_scale_of_rewards_does_not_matter(reward, factor):
    x, new = inputs(), inputs(7, seed=1)
    one = fitted(x, np.stack([wave(x), reward(x)], axis=1))
    scaled = fitted(x, np.stack([wave(x), factor * reward(x)], axis=1))
    assert settings(one) == settings(scaled)
    first, second = predicted(one, new)[0], predicted(scaled, new)[0]
    np.testing.assert_allclose(factor * first[:, 1], second[:, 1], rtol=1e-8, atol=1e-10 * factor)
    np.testing.assert_array_equal(first[:, 0], second[:, 0])


def test_a_member_knows_nothing_of_the_rows_that_it_does_not_hold():
    x, new = inputs(), inputs(7, seed=1)
    outputs = noisy(x)[:, None]
    changed = outputs.copy()
    changed[100:] += 1e3
    members, choosing = [np.arange(80), np.arange(40, 120)], np.arange(80)
    first, second = (predicted(fitted(x, y, members, choosing), new) for y in (outputs, changed))
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(first[1] - second[1]).max() > 1.0


def test_few_rows_have_no_squares_and_products():
    x = inputs(64, 20)
    assert not fitted(x, noisy(x)[:, None]).quadratic


def test_every_ridge_can_be_told_from_its_neighbours():
    """A function with little noise wants less ridge than one with much."""
    x = inputs(300, 2)
    noise = np.random.default_rng(1).normal(size=len(x))
    ridges = [fitted(x, (wave(x) + size * noise)[:, None]).choices[0].ridge for size in (1e-4, 0.1, 0.5)]
    assert ridges == sorted(ridges)
    assert ridges[0] < ridges[-1]
    assert min(FUNCTION_RIDGES) < 1e-6
