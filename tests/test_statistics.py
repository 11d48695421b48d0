"""Intervals cover what they say, at the numbers of policies and contexts that the benchmark uses."""

import numpy as np
import pytest
from scipy import stats

from icrl_gym.scoring.statistics import (
    bootstrap_interval,
    geometric_mean,
    interquartile_mean,
    interval_over_groups,
    mean_interval,
    performance_profile,
    rank_correlation,
)

NUM_CONTEXTS = 5
NUM_SIMULATIONS = 1000  # a coverage of 95 % is measured to 0.7 %, so 92 to 97 % is three standard errors at least


def simulated_groups(rng, num_policies, noise):
    """Scores of policies with means of their own and noise levels that differ up to fourfold."""
    means = rng.normal(0.0, 1.0, num_policies)
    levels = rng.uniform(0.2, 0.8, num_policies)
    return [m + s * noise(rng) for m, s in zip(means, levels, strict=True)], means.mean()


def gaussian(rng):
    return rng.standard_normal(NUM_CONTEXTS)


def heavy_tailed(rng):
    return rng.standard_t(5, NUM_CONTEXTS)


def coverage(interval, draw):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(NUM_SIMULATIONS):
        groups, truth = draw(rng)
        found = interval(groups)
        hits += found.low <= truth <= found.high
    return hits / NUM_SIMULATIONS


@pytest.mark.parametrize("noise", [gaussian, heavy_tailed])
@pytest.mark.parametrize("num_policies", [1, 3, 45])
def test_the_interval_over_contexts_covers_the_mean_of_these_policies(num_policies, noise):
    found = coverage(mean_interval, lambda rng: simulated_groups(rng, num_policies, noise))
    assert 0.92 <= found <= 0.97


@pytest.mark.parametrize("num_policies", [1, 3])
def test_a_percentile_bootstrap_of_five_contexts_would_not(num_policies):
    def percentile(groups):
        rng = np.random.default_rng(0)
        picked = [group[rng.integers(len(group), size=(200, len(group)))].mean(axis=1) for group in groups]
        low, high = np.percentile(np.mean(picked, axis=0), [2.5, 97.5])
        return type("Interval", (), {"low": low, "high": high})

    assert coverage(percentile, lambda rng: simulated_groups(rng, num_policies, gaussian)) < 0.92


@pytest.mark.parametrize("num_environments", [3, 12])
def test_the_interval_over_environments_covers_the_mean_of_all_environments(num_environments):
    found = coverage(interval_over_groups, lambda rng: (simulated_groups(rng, num_environments, gaussian)[0], 0.0))
    assert 0.92 <= found <= 0.97


def test_the_interval_over_contexts_is_not_one_over_environments():
    found = coverage(mean_interval, lambda rng: (simulated_groups(rng, 12, gaussian)[0], 0.0))
    assert found < 0.8


def test_one_policy_has_students_interval_and_a_single_score_has_none():
    scores = np.array([0.1, 0.4, -0.2, 0.3, 0.0])
    found = mean_interval([scores])
    expected = stats.t.interval(0.95, 4, loc=scores.mean(), scale=stats.sem(scores))
    np.testing.assert_allclose((found.low, found.high), expected)
    assert not mean_interval([scores[:1]]).has_interval
    assert not interval_over_groups([scores]).has_interval


def test_policies_with_one_context_each_count_as_one_sample():
    found = mean_interval([np.array([0.1]), np.array([0.4]), np.array([-0.2])])
    np.testing.assert_allclose(
        (found.low, found.high), stats.t.interval(0.95, 2, loc=0.1, scale=stats.sem([0.1, 0.4, -0.2]))
    )


def test_policies_weigh_alike_whatever_their_number_of_contexts():
    found = mean_interval([np.array([1.0, 1.2]), np.array([3.0, 3.1, 2.9, 3.0])])
    assert found.value == pytest.approx(2.05)
    assert found.low < 2.05 < found.high


def test_scores_that_do_not_vary_have_an_interval_of_no_width():
    found = mean_interval([np.full(5, 0.3), np.full(5, 0.5)]).exponentiated()
    assert found.low == found.value == found.high == pytest.approx(np.exp(0.4))


def test_figures_by_hand():
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)
    assert interquartile_mean([0.0, 1.0, 2.0, 100.0, 3.0, 4.0, 5.0, -100.0]) == pytest.approx((1 + 2 + 3 + 4) / 4)
    groups = [np.array([0.2, 0.6]), np.array([1.5, 0.9])]
    np.testing.assert_allclose(performance_profile(groups, np.array([0.1, 0.5, 1.0])), [0.0, 0.25, 0.75])
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])) == pytest.approx(0.5)
    assert np.isnan(rank_correlation(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


def test_the_bootstrap_is_repeatable_covers_and_takes_constants():
    rng = np.random.default_rng(1)
    assert bootstrap_interval(rng.standard_normal(30)) == bootstrap_interval(
        np.random.default_rng(1).standard_normal(30)
    )
    # 200 data sets of 40: percentile intervals cover about 94 %; fewer than 175 has probability below 1e-4.
    hits = 0
    for _ in range(200):
        low, high = bootstrap_interval(rng.standard_normal(40), num_resamples=400)
        hits += low <= 0 <= high
    assert hits >= 175
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    low, high = bootstrap_interval(np.arange(9.0), np.median)
    assert low < 4.0 < high
