import numpy as np
import pytest

from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory


def trajectory(terminated, truncated, num=5):
    states = np.arange(num + 1, dtype=float)[:, None]
    following = states[1:].copy()
    terminated, truncated = np.array(terminated, dtype=bool), np.array(truncated, dtype=bool)
    flags = terminated | truncated
    following[flags] += 100.0  # final observations differ from the next row
    return Trajectory(states[:-1], np.zeros(num), np.ones(num), following, terminated, truncated)


def test_discounts_links_and_columns_of_a_log_with_every_kind_of_end():
    prompt = Prompt.from_trajectory(trajectory([0, 1, 0, 0, 0], [0, 0, 0, 1, 0]), gamma=0.9)
    np.testing.assert_allclose(prompt.discounts, [0.9, 0.0, 0.9, 0.9, 0.9])
    np.testing.assert_array_equal(prompt.trace_links, [True, False, True, False, False])
    # Sources are columns 0-4; the truncated row's true successor is column 5, the log's own end column 6.
    np.testing.assert_array_equal(prompt.successors, [1, 1, 3, 5, 6])
    assert len(prompt.end_features) == 2


def test_end_columns_hold_the_true_final_observation():
    log = trajectory([0, 0, 0, 0, 0], [0, 0, 1, 0, 0])
    prompt = Prompt.from_trajectory(log, gamma=0.9)
    np.testing.assert_array_equal(prompt.end_features, prompt.queries(log.next_observations[[2, 4]]))


def test_both_flags_set_means_terminated():
    prompt = Prompt.from_trajectory(trajectory([0, 0, 0, 0, 1], [0, 0, 0, 0, 1]), gamma=0.9)
    assert prompt.discounts[-1] == 0.0
    assert len(prompt.end_features) == 0


@pytest.mark.parametrize("gamma", [1.0, -0.1, np.nan, "0.9", None, 1.5])
def test_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\), got"):
        Prompt.from_trajectory(trajectory([0] * 5, [0] * 5), gamma)


def test_the_constant_makes_the_bellman_errors_sum_to_zero():
    log = trajectory([0, 1, 0, 0, 0], [0, 0, 0, 1, 0])
    prompt = Prompt.from_trajectory(log, gamma=0.9)
    assert prompt.constant == pytest.approx(5 / 1.4)  # five rewards of 1, discounts .9 but for one 0
    weighted = Prompt.from_trajectory(log.with_importance_ratios([2, 0, 1, 1, 1], "target"), gamma=0.9)
    assert weighted.constant == pytest.approx(5 / 0.5)  # the row that terminated no longer counts


def test_the_kernel_width_is_the_bandwidth_in_four_dimensions():
    states = np.random.default_rng(0).normal(size=(6, 4))
    log = Trajectory(states[:-1], np.zeros(5), np.ones(5), states[1:], [False] * 5, [False] * 5)
    assert Prompt.from_trajectory(log, gamma=0.9).kernel_width(0.3) == pytest.approx(0.3)
    assert Prompt.from_trajectory(trajectory([0] * 5, [0] * 5), gamma=0.9).kernel_width(0.3) == pytest.approx(0.15)
