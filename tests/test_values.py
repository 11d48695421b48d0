"""`Estimand` and `ValueEstimates`."""

import dataclasses
import warnings

import numpy as np
import pytest
from scipy import stats

from icrl_gym.values import Estimand, ValueEstimates

ESTIMAND = Estimand("Toy-v0", "random", 0.9)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_interval_is_the_central_normal_one(level):
    values, stderr = np.array([1.0, -2.0]), np.array([0.5, 0.0])
    low, high = ValueEstimates(values, np.arange(2), ESTIMAND, stderr=stderr).interval(level)
    expected_low, expected_high = stats.norm.interval(level, loc=values[0], scale=stderr[0])
    assert (low[0], high[0]) == (pytest.approx(expected_low, rel=1e-12), pytest.approx(expected_high, rel=1e-12))
    assert (low[1], high[1]) == (-2.0, -2.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90.0])
def test_an_interval_level_outside_0_1_is_refused(level):
    with pytest.raises(ValueError, match="level must be in"):
        ValueEstimates(np.zeros(1), np.zeros(1), ESTIMAND, stderr=np.ones(1)).interval(level)


def test_without_stderr_there_is_no_interval():
    with pytest.raises(ValueError, match="no standard error"):
        ValueEstimates(np.zeros(1), np.zeros(1), ESTIMAND).interval()


def test_attribution_is_the_sources_own_or_refused():
    matrix = np.array([[1.0, 0.5]])
    known = ValueEstimates(np.zeros(1), np.zeros(1), ESTIMAND, attribute=lambda: matrix)
    assert known.attribution() is matrix
    with pytest.raises(ValueError, match="not a known linear function"):
        ValueEstimates(np.zeros(1), np.zeros(1), ESTIMAND).attribution()


def test_estimates_are_frozen_and_have_a_length():
    estimates = ValueEstimates(np.zeros(3), np.zeros(3), ESTIMAND)
    assert len(estimates) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        estimates.values = np.ones(3)  # type: ignore[misc]


@pytest.mark.parametrize(("name", "other"), [("env", "B"), ("policy", "PPO"), ("gamma", 0.95), ("reward_scale", 2.0)])
def test_every_field_of_the_estimand_must_match(name, other):
    with pytest.raises(ValueError, match=f"estimands differ in {name}"):
        ESTIMAND.check_matches(dataclasses.replace(ESTIMAND, **{name: other}))


def test_equal_estimands_match_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ESTIMAND.check_matches(Estimand("Toy-v0", "random", 0.3 * 3))


@pytest.mark.parametrize("name", ["env", "policy"])
@pytest.mark.parametrize("swap", [False, True])
def test_unknown_matches_anything_with_a_warning(name, swap):
    pair = [ESTIMAND, dataclasses.replace(ESTIMAND, **{name: None})]
    first, second = reversed(pair) if swap else pair
    with pytest.warns(UserWarning, match=f"{name} unknown on one side"):
        first.check_matches(second)


def test_gamma_must_match_even_where_the_environment_is_unknown():
    with (
        pytest.warns(UserWarning, match="unknown"),
        pytest.raises(ValueError, match="differ in gamma"),
    ):
        ESTIMAND.check_matches(Estimand(None, "random", 0.99))
