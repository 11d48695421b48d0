"""The recursion e_k = errors_k + decays_k e_{k+1}, against its own definition."""

import numpy as np
import pytest

from icrl_gym.context.returns import decayed_sums


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("columns", [(), (3,)])
def test_decayed_sums_solve_their_recursion(length, columns):
    rng = np.random.default_rng(length)
    errors, decays = rng.normal(size=(length, *columns)), rng.uniform(0.0, 1.5, size=length)
    decays[rng.random(length) < 0.2] = 0.0
    e = decayed_sums(errors, decays)
    np.testing.assert_allclose(e[-1], errors[-1])
    for k in range(length - 1):
        np.testing.assert_allclose(e[k], errors[k] + decays[k] * e[k + 1], rtol=1e-12, atol=1e-12)


def test_decayed_sums_of_three_errors_by_hand():
    np.testing.assert_allclose(decayed_sums(np.array([1, 2, 4]), np.array([0.5, 0.25, 9.0])), [2.5, 3.0, 4.0])


def test_a_decay_of_zero_stops_the_sum_and_the_arguments_are_left_alone():
    errors, decays = np.ones(4), np.array([1.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(decayed_sums(errors, decays), [2, 1, 2, 1])
    np.testing.assert_array_equal(errors, 1)
    np.testing.assert_array_equal(decays, [1, 0, 1, 1])
