"""Figures show the numbers that they were given, and say what they show."""

import io

import numpy as np
import pytest
from matplotlib.colors import TwoSlopeNorm

from icrl_gym.scoring.figures import (
    attention_map,
    error_by_layer,
    estimates_against_truth,
    value_along_episode,
    values_over_states,
)
from icrl_gym.values import Estimand, ValueEstimates

ESTIMAND = Estimand("Toy-v0", "random", 0.9)


def estimates(values, stderr=None):
    values = np.asarray(values, dtype=np.float64)
    stderr = None if stderr is None else np.full(len(values), stderr)
    return ValueEstimates(values, np.arange(len(values)), ESTIMAND, stderr=stderr)


def texts(axes):
    legend = axes.get_legend()
    return [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(t.get_text() for t in legend.get_texts())]


def draws(figure):
    figure.savefig(buffer := io.BytesIO(), format="png")
    return buffer.getvalue().startswith(b"\x89PNG")


def test_each_estimator_has_a_panel_with_common_limits_around_all_points():
    truth = estimates([1.0, 2.0, 3.0], stderr=0.1)
    figure = estimates_against_truth(truth, {"ours": estimates([1.5, 2.0, 9.0], 0.5), "critic": estimates([0.0, 2, 3])})
    left, right = figure.axes
    assert left.get_xlim() == left.get_ylim() == right.get_xlim() == right.get_ylim()
    low, high = left.get_xlim()
    assert low < 0.0
    assert high > 9.0
    assert "ours: RMSE 3.48" in texts(left)  # sqrt((.25 + 0 + 36) / 3)
    assert any("90% interval" in text for text in texts(left))
    assert not any("interval" in text for text in texts(right))
    assert all("units of reward" in text for text in (left.get_xlabel(), left.get_ylabel()))
    assert draws(figure)


def test_the_points_and_intervals_are_the_given_ones():
    figure = estimates_against_truth(estimates([1.0, 2.0]), {"ours": estimates([3.0, 5.0], 2.0)})
    container = figure.axes[0].containers[0]
    points, _, (bars,) = container.lines  # an exact truth has no horizontal bars
    np.testing.assert_array_equal(points.get_xydata(), [[1.0, 3.0], [2.0, 5.0]])
    low, high = estimates([3.0, 5.0], 2.0).interval(0.9)
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], np.stack([low, high], axis=1))


def test_intervals_lie_inside_the_frame():
    figure = estimates_against_truth(estimates([1.0, 2.0], 3.0), {"ours": estimates([3.0, 5.0], 20.0)})
    axes = figure.axes[0]
    ends = np.concatenate(estimates([3.0, 5.0], 20.0).interval(0.9))
    assert axes.get_ylim()[0] < ends.min()
    assert axes.get_ylim()[1] > ends.max()


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_single_query_is_drawn(value):
    figure = estimates_against_truth(estimates([value]), {"ours": estimates([value])})
    low, high = figure.axes[0].get_xlim()
    assert low < value < high
    assert draws(figure)


def test_error_by_layer_is_the_rmse_of_each_row():
    truth = estimates([1.0, 2.0])
    figure = error_by_layer({"network": np.array([[1.0, 5.0], [4.0, 6.0]])}, truth)
    axes = figure.axes[0]
    network, constant = axes.get_lines()
    np.testing.assert_array_equal(network.get_xdata(), [1, 2])
    np.testing.assert_allclose(network.get_ydata(), [np.sqrt(4.5), np.sqrt(12.5)])
    np.testing.assert_array_equal(constant.get_ydata(), [0.5, 0.5])
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylim()[1] > np.sqrt(12.5)
    assert "RMSE (units of reward)" in texts(axes)
    assert draws(figure)


def test_the_noise_floor_is_drawn_where_there_is_one():
    truth, rows = estimates([1.0, 2.0]), {"a": np.ones((3, 2))}
    (*_, floor) = error_by_layer(rows, truth, noise_floor=0.25).axes[0].get_lines()
    np.testing.assert_array_equal(floor.get_ydata(), [0.25, 0.25])
    assert len(error_by_layer(rows, truth).axes[0].get_lines()) == 2


def test_lines_differ_in_more_than_colour():
    lines = error_by_layer({"a": np.zeros((3, 2)), "b": np.ones((3, 2))}, estimates([1.0, 2.0])).axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 3


def test_a_perfect_estimate_has_visible_limits():
    figure = error_by_layer({"a": np.array([[1.0, 2.0]])}, estimates([1.0, 2.0]))
    assert figure.axes[0].get_ylim()[1] > 0
    assert draws(figure)


def test_the_attention_map_is_ordered_by_value():
    weights = np.arange(6.0).reshape(2, 3)
    figure = attention_map(weights, query_values=np.array([5.0, 1.0]), source_values=np.array([2.0, 3.0, 1.0]))
    (image,) = figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), [[5.0, 3.0, 4.0], [2.0, 0.0, 1.0]])
    assert draws(figure)


def test_in_long_contexts_neighbours_share_a_column_and_no_weight_is_lost():
    weights = np.random.default_rng(0).dirichlet(np.ones(1501), size=4)
    figure = attention_map(weights, np.arange(4.0), np.random.default_rng(1).permutation(1501).astype(float))
    (image,) = figure.axes[0].get_images()
    assert image.get_array().shape == (4, 501)
    np.testing.assert_allclose(image.get_array().sum(axis=1), 1.0)
    assert "3 transitions of the context each" in figure.axes[0].get_xlabel()


def test_signed_weights_get_a_diverging_map_centred_on_zero():
    order = np.arange(2.0)
    signed = attention_map(np.array([[1.0, -3.0], [0.0, 2.0]]), order, order).axes[0].get_images()[0]
    assert isinstance(signed.norm, TwoSlopeNorm)
    assert signed.norm.vmin == -signed.norm.vmax
    plain = attention_map(np.array([[1.0, 3.0], [0.0, 2.0]]), order, order).axes[0].get_images()[0]
    assert plain.norm.vmin == 0
    assert draws(attention_map(np.zeros((2, 2)), order, order))


def test_values_along_an_episode_are_drawn_in_order_of_time():
    ours, critic = estimates([3.0, 2.0, 1.0], 0.5), estimates([1.0, 1.0, 1.0])
    figure = value_along_episode({"ours": ours, "critic": critic}, np.array([2.7, 1.9, 1.0]), ending="terminated")
    axes = figure.axes[0]
    np.testing.assert_array_equal(
        [line.get_ydata() for line in axes.get_lines()], [[3, 2, 1], [1, 1, 1], [2.7, 1.9, 1]]
    )
    assert len(axes.collections) == 1  # one band, for the one with a standard error
    assert "Value along one episode (terminated)" in texts(axes)
    assert "return of this one episode" in texts(axes)
    assert draws(figure)


def test_a_critic_is_drawn_over_states_in_the_order_of_their_in_context_values():
    ours, critic = estimates([3.0, 1.0, 2.0], 0.5), estimates([30.0, 10.0, 20.0])
    figure = values_over_states(ours, critic, np.array([0, 2]), np.array([2.5, 1.5]), "biased by +18")
    axes = figure.axes[0]
    line, dots, returns = (one.get_ydata() for one in axes.get_lines())
    np.testing.assert_array_equal(line, [1, 2, 3])
    np.testing.assert_array_equal(dots, [10, 20, 30])
    np.testing.assert_array_equal(returns, [1.5, 2.5])
    np.testing.assert_array_equal(axes.get_lines()[2].get_xdata(), [1, 2])
    assert axes.get_ylim()[0] < 1.0
    assert axes.get_ylim()[1] > 30.0
    assert {"biased by +18", "critic", "90% interval"} <= set(texts(axes))
    assert draws(figure)


def test_a_critic_is_drawn_without_returns_and_without_an_interval_where_there_are_none():
    nothing = np.zeros(0, dtype=int)
    assert draws(values_over_states(estimates([1.0]), estimates([2.0]), nothing, nothing, "cannot tell"))


@pytest.mark.parametrize(
    "draw", [lambda: estimates_against_truth(estimates([1.0]), {}), lambda: value_along_episode({})]
)
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(ValueError, match="estimates must name at least one"):
        draw()


def test_figures_stay_out_of_pyplot():
    import matplotlib.pyplot as plt

    attention_map(np.ones((1, 1)), np.ones(1), np.ones(1))
    value_along_episode({"a": estimates([1.0])})
    assert plt.get_fignums() == []
