"""`score`: figures by hand, by a second route, and the correction for the truth's own noise."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from icrl_gym.scoring.score import Score, score
from icrl_gym.values import Estimand, ValueEstimates

ESTIMAND = Estimand("Toy-v0", "random", 0.9)
Z = stats.norm.ppf(0.95)


def estimates(values, stderr=None, observations=None, estimand=ESTIMAND):
    values = np.asarray(values, dtype=np.float64)
    observations = np.arange(len(values)) if observations is None else observations
    stderr = None if stderr is None else np.asarray(stderr, dtype=np.float64)
    return ValueEstimates(values, observations, estimand, stderr=stderr)


def test_figures_by_hand_against_an_exact_truth():
    result = score(estimates([1.0, 4.0, 5.0, 10.0]), estimates([2.0, 4.0, 6.0, 8.0]))
    assert result.n == 4
    assert result.rmse == pytest.approx(math.sqrt((1 + 0 + 1 + 4) / 4))
    assert result.truth_std == pytest.approx(math.sqrt(5))
    assert result.truth_magnitude == 5.0
    assert result.rmse_over_std == pytest.approx(math.sqrt(1.5 / 5))
    assert result.rmse_over_magnitude == pytest.approx(math.sqrt(1.5) / 5)
    assert result.bias == 0.0
    assert result.explained_variance == pytest.approx(1 - 1.5 / 5)
    assert result.spearman == 1.0
    assert (result.noise_floor, result.bias_noise) == (0.0, 0.0)


def test_without_noise_the_corrected_figures_are_the_plain_ones():
    result = score(estimates([3.0, 1.0, 2.0, 9.0]), estimates([1.0, 2.0, 3.0, 4.0]))
    for name in ("rmse", "rmse_over_std", "rmse_over_magnitude", "explained_variance", "spearman", "truth_std"):
        assert getattr(result, f"{name}_corrected") == pytest.approx(getattr(result, name), rel=1e-12)


def test_corrections_by_hand():
    truth = estimates([0.0, 0.0, 6.0, 6.0], stderr=[1.0, 1.0, 1.0, 1.0])
    result = score(estimates([2.0, -2.0, 8.0, 4.0]), truth)
    assert result.noise_floor == 1.0
    assert result.bias_noise == 0.5
    assert result.rmse_corrected == pytest.approx(math.sqrt(4 - 1))
    assert result.truth_std_corrected == pytest.approx(math.sqrt(9 - 0.75))
    assert result.rmse_over_std_corrected == pytest.approx(math.sqrt(3 / 8.25))
    assert result.explained_variance_corrected == pytest.approx(1 - (4 - 0.75) / 8.25)
    assert result.rmse_over_magnitude_corrected == pytest.approx(math.sqrt(3) / 3)
    assert result.spearman_corrected == pytest.approx(result.spearman * 3 / math.sqrt(8.25))


def test_bias_is_estimate_minus_truth():
    assert score(estimates([5.0, 6.0]), estimates([1.0, 4.0])).bias == 3.0


@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_a_second_route(seed):
    rng = np.random.default_rng(seed)
    truth, guess = rng.normal(size=40).round(1), rng.normal(size=40).round(1)  # rounding makes ties
    result = score(estimates(guess), estimates(truth))
    assert result.spearman == pytest.approx(stats.spearmanr(guess, truth).statistic, rel=1e-12)
    assert result.rmse**2 == pytest.approx(result.bias**2 + np.var(guess - truth), rel=1e-12)
    assert 1 - result.explained_variance == pytest.approx((result.rmse**2 - result.bias**2) / np.var(truth), rel=1e-12)


def test_corrected_figures_recover_those_against_the_true_values():
    """20,000 queries, noise as large as half the spread: sampling error of each figure is below 0.01 (about 4 sd)."""
    rng = np.random.default_rng(0)
    values, stderr = rng.normal(3.0, 1.0, 20_000), np.full(20_000, 0.5)
    guess = values + rng.normal(0.1, 0.4, len(values))
    clean = score(estimates(guess), estimates(values))
    noisy = score(estimates(guess), estimates(values + rng.normal(0.0, stderr), stderr=stderr))
    for name in ("rmse", "rmse_over_std", "explained_variance", "truth_std"):
        assert getattr(noisy, f"{name}_corrected") == pytest.approx(getattr(clean, name), abs=0.012), name
        assert abs(getattr(noisy, name) - getattr(clean, name)) > 0.05, name  # uncorrected figures do not
    assert noisy.spearman_corrected == pytest.approx(clean.spearman, abs=0.02)
    assert noisy.spearman < clean.spearman - 0.05


def test_correction_never_goes_below_zero():
    result = score(estimates([1.0, 2.0, 3.0]), estimates([1.0, 2.0, 3.1], stderr=[2.0, 2.0, 2.0]))
    assert result.rmse_corrected == 0.0
    assert result.truth_std_corrected == 0.0
    assert math.isnan(result.rmse_over_std_corrected)
    assert any("no larger than its noise" in note for note in result.notes)


def test_coverage_adds_the_truths_noise_in_quadrature():
    estimate = estimates([0.0, 0.0, 0.0, 0.0], stderr=[3.0, 3.0, 3.0, 3.0])
    offsets = np.array([4.99, 5.01, -4.99, -5.01]) * Z  # the joint standard error is 5
    result = score(estimate, estimates(offsets, stderr=[4.0, 4.0, 4.0, 4.0]))
    assert result.coverage == 0.5
    assert result.width == pytest.approx(2 * Z * 3)
    assert score(estimate, estimates(offsets)).coverage == 0.0


def test_coverage_of_honest_intervals_is_the_level():
    """Binomial standard error .0021 at n = 20,000: a miss by .01 has a false-alarm rate below 1e-5."""
    rng = np.random.default_rng(1)
    values, own, noise = rng.normal(size=20_000), 0.3, 0.4
    truth = estimates(values + rng.normal(0, noise, 20_000), stderr=np.full(20_000, noise))
    honest = estimates(values + rng.normal(0, own, 20_000), stderr=np.full(20_000, own))
    assert score(honest, truth).coverage == pytest.approx(0.9, abs=0.01)
    overconfident = estimates(honest.values, stderr=np.full(20_000, own / 3))
    assert score(overconfident, truth).coverage < 0.85


def test_the_interval_score_of_the_best_constant_interval_is_one():
    truth = estimates(np.linspace(-1.0, 1.0, 201))
    half = np.quantile(truth.values, 0.95)
    ratios = {
        factor: score(estimates(np.zeros(201), np.full(201, factor * half / Z)), truth).interval_score_ratio
        for factor in (0.5, 1.0, 1.5)
    }
    assert ratios[1.0] == pytest.approx(1.0)
    assert min(ratios[0.5], ratios[1.5]) > 1.1
    assert score(estimates(truth.values, np.full(201, 0.01)), truth).interval_score_ratio < 0.05


def test_the_interval_score_counts_what_lies_outside_twenty_times():
    truth = estimates([0.0, 1.0])
    estimate = estimates([0.0, 0.0], np.full(2, 0.5 / Z))
    constant = 0.9 + 20 * 0.05  # the best constant interval, from .05 to .95
    assert score(estimate, truth).interval_score_ratio == pytest.approx((1.0 + 20 * 0.5 / 2) / constant)


def test_without_intervals_coverage_is_undefined_and_says_so():
    result = score(estimates([1.0, 2.0]), estimates([1.0, 3.0]))
    assert math.isnan(result.coverage)
    assert math.isnan(result.width)
    assert any("no standard error" in note for note in result.notes)


@pytest.mark.parametrize(
    ("truth", "reason"), [([0.1, 0.1, 0.1], "the truth is constant"), ([7.0], "there is one query")]
)
def test_no_spread_is_defined_without_warnings(truth, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = score(estimates(np.array(truth) + 1), estimates(truth))
    assert result.rmse == pytest.approx(1.0)
    assert result.bias == pytest.approx(1.0)
    assert result.truth_std == 0.0
    for name in ("rmse_over_std", "explained_variance", "spearman", "spearman_corrected"):
        assert math.isnan(getattr(result, name)), name
    assert any(reason in note for note in result.notes)


def test_a_constant_estimate_has_no_rank_correlation():
    result = score(estimates([2.0, 2.0]), estimates([1.0, 3.0]))
    assert math.isnan(result.spearman)
    assert result.explained_variance == 0.0
    assert any("estimate is constant" in note for note in result.notes)


def test_a_truth_of_zeros_has_no_relative_error():
    result = score(estimates([1.0, -1.0]), estimates([0.0, 0.0]))
    assert math.isnan(result.rmse_over_magnitude)
    assert any("zero everywhere" in note for note in result.notes)


@pytest.mark.parametrize(
    "other",
    [
        Estimand("Other-v0", "random", 0.9),
        Estimand("Toy-v0", "PPO", 0.9),
        Estimand("Toy-v0", "random", 0.99),
        Estimand("Toy-v0", "random", 0.9, reward_scale=2.0),
    ],
)
def test_different_estimands_raise(other):
    with pytest.raises(ValueError, match="estimands differ"):
        score(estimates([1.0, 2.0]), estimates([1.0, 2.0], estimand=other))


def test_an_unknown_environment_matches_with_a_warning():
    unknown = Estimand(None, "random", 0.9)
    with pytest.warns(UserWarning, match="env unknown on one side"):
        score(estimates([1.0, 2.0], estimand=unknown), estimates([1.0, 2.0]))


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (np.array([0, 1, 3]), np.array([0, 1, 2])),
        (np.zeros((3, 2)), np.ones((3, 2))),
        (np.zeros((3, 2)), np.zeros((3, 3))),
        ({"a": np.zeros(3)}, {"b": np.zeros(3)}),
        ({"a": np.zeros(3)}, np.zeros(3)),
        ((np.zeros(3), np.arange(3)), (np.zeros(3), np.arange(3)[::-1])),
    ],
)
def test_different_queries_raise(mine, theirs):
    with pytest.raises(ValueError, match="not about the same queries"):
        score(estimates([1, 2, 3], observations=mine), estimates([1, 2, 3], observations=theirs))


def test_the_first_different_query_is_named():
    mine, theirs = np.zeros((4, 2)), np.zeros((4, 2))
    theirs[2, 1] = 1e-9
    with pytest.raises(ValueError, match="at row 2"):
        score(estimates([1, 2, 3, 4], observations=mine), estimates([1, 2, 3, 4], observations=theirs))


def test_a_float32_copy_of_the_queries_is_the_same_queries():
    queries = np.random.default_rng(0).normal(size=(3, 2))
    copy = queries.astype(np.float32)
    assert score(estimates([1, 2, 3], observations=queries), estimates([1, 2, 3], observations=copy)).rmse == 0.0


@pytest.mark.parametrize(
    ("estimate", "truth", "message"),
    [
        (estimates([1.0, 2.0]), estimates([1.0, 2.0, 3.0]), r"one shape \(Q,\)"),
        (estimates([]), estimates([]), "no query"),
        (estimates([1.0, np.nan]), estimates([1.0, 2.0]), r"estimate\.values\[1\] is nan"),
        (estimates([1.0, 2.0]), estimates([np.inf, 2.0]), r"truth\.values\[0\] is inf"),
        (estimates([1.0, 2.0]), estimates([1.0, 2.0], stderr=[0.1, np.nan]), r"truth\.stderr\[1\] is nan"),
        (estimates([1.0, 2.0], stderr=[np.nan, 0.1]), estimates([1.0, 2.0]), r"estimate\.interval\[0\] is nan"),
        (estimates([1.0, 2.0]), estimates([1.0, 2.0], stderr=[0.1]), r"truth\.stderr must have shape"),
    ],
)
def test_bad_input_is_named_in_one_line(estimate, truth, message):
    with pytest.raises(ValueError, match=message) as caught:
        score(estimate, truth)
    assert "\n" not in str(caught.value)


class RecordingWriter:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, tag, scalar_value, global_step):
        self.scalars[tag, global_step] = scalar_value


def test_log_writes_every_defined_figure_as_a_scalar():
    writer, result = RecordingWriter(), score(estimates([1.0, 2.0]), estimates([1.0, 3.0]))
    result.log(writer, step=7, prefix="constructed")
    assert writer.scalars["constructed/rmse", 7] == result.rmse
    defined = {name for name, value in result.as_dict().items() if name != "notes" and math.isfinite(value)}
    assert {tag for tag, _ in writer.scalars} == {f"constructed/{name}" for name in defined}
    assert "coverage" not in defined


def test_as_dict_rebuilds_the_score():
    result = score(estimates([1.0, 2.0], stderr=[1.0, 1.0]), estimates([1.0, 3.0], stderr=[0.1, 0.1]))
    record = result.as_dict()
    assert Score(**{**record, "notes": tuple(record["notes"])}) == result
