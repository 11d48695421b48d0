import math

import numpy as np
import pytest

from icrl_gym.benchmark import Cell, Conditions, Record, Task, Variant
from icrl_gym.benchmark.policy_selection import policy_metrics, regret_at
from icrl_gym.scoring.statistics import rank_correlation


def record(policy, estimate, truth, estimator="lstd", seed=0, options=(), **task):
    cell = Cell(Task("CartPole-v1", policy, **task), Variant(estimator, options), 256, seed, Conditions(8, 2))
    return Record(cell, start_value=estimate, start_value_truth=truth)


def test_regret_by_hand():
    truths = np.array([0.0, 10.0, 6.0, 2.0])
    estimates = np.array([1.0, 2.0, 4.0, 3.0])  # ranked: 6, 2, 10, 0
    assert regret_at(1, estimates, truths) == pytest.approx((10 - 6) / 10)
    assert regret_at(2, estimates, truths) == pytest.approx((10 - 6) / 10)
    assert regret_at(3, estimates, truths) == 0.0
    assert regret_at(1, truths, truths) == 0.0
    assert regret_at(1, -truths, truths) == 1.0


def test_ties_are_not_won_by_luck():
    truths = np.array([5.0, 1.0, 3.0])
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        assert regret_at(1, np.zeros(3), truths[order]) == 1.0
        assert regret_at(2, np.zeros(3), truths[order]) == pytest.approx(0.5)


def test_equal_truths_have_no_regret_and_no_rank():
    assert math.isnan(regret_at(1, np.array([1.0, 2.0]), np.array([3.0, 3.0])))
    assert math.isnan(rank_correlation(np.array([1.0, 2.0]), np.array([3.0, 3.0])))
    assert math.isnan(rank_correlation(np.array([1.0, 1.0]), np.array([3.0, 4.0])))


def test_rank_correlation_by_hand():
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6.
    assert rank_correlation(np.array([1.0, 2.0, 30.0, 400.0]), np.array([2.0, 1.0, 9.0, 3.0])) == pytest.approx(0.6)


@pytest.mark.parametrize("k", [0, 4])
def test_k_outside_the_policies_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must be in 1\.\.3 .*got {k}"):
        regret_at(k, np.zeros(3), np.arange(3.0))


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(N,\), got \(2,\) and \(3,\)"):
        regret_at(1, np.zeros(2), np.zeros(3))


def test_metrics_by_hand():
    records = [record("a", 1.0, 0.0), record("b", 2.0, 10.0), record("c", 4.0, 6.0), record("d", 3.0, 2.0)]
    (found,) = policy_metrics(records, k=2)
    assert (found.env, found.estimator, found.context_length, found.seed) == ("CartPole-v1", "lstd", 256, 0)
    assert found.num_policies == 4
    assert found.absolute_error == pytest.approx((1 + 8 + 2 + 1) / 4)
    assert found.rank_correlation == pytest.approx(0.4)  # ranks 1 2 4 3 against 1 4 3 2: 1 - 6 * 6 / 60
    assert found.regret_at_1 == found.regret_at_k == pytest.approx(0.4)
    assert found.value_range == 10.0


def test_groups_are_kept_apart_and_tuned_failed_and_old_records_left_out():
    records = [
        record("a", 1.0, 0.0), record("b", 2.0, 10.0),
        record("a", 1.0, 0.0, seed=1),
        record("a", 3.0, 0.0, estimator="kbrl"), record("b", 2.0, 10.0, estimator="kbrl"),
        record("a", 9.0, 0.0, gamma=0.9),
        record("a", 9.0, 0.0, options=(("width", 1.0),)),
        Record(Cell(Task("CartPole-v1", "c"), Variant("lstd"), 256, 0, Conditions(8, 2)), error="ValueError: no"),
    ]  # fmt: skip
    found = policy_metrics(records, k=1)
    assert [(m.estimator, m.seed, m.num_policies) for m in found] == [
        ("kbrl", 0, 2), ("lstd", 0, 2), ("lstd", 0, 1), ("lstd", 1, 1),
    ]  # fmt: skip
    assert [m.regret_at_k for m in found[:2]] == [1.0, 0.0]
    assert math.isnan(found[3].rank_correlation)
    assert math.isnan(found[3].regret_at_1)


def test_regret_at_k_of_no_more_than_k_policies_says_nothing():
    (found,) = policy_metrics([record("a", 1.0, 0.0), record("b", 2.0, 10.0)], k=2)
    assert math.isnan(found.regret_at_k)
    assert found.regret_at_1 == 0.0
