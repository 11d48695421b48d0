"""The figures of an evaluation, as matplotlib `Figure` objects that never touch pyplot.

Colours are Okabe and Ito's eight that colour-blind readers can tell apart; lines differ in style as well. Values are in
units of the environment's reward throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from icrl_gym.scoring.score import score
from icrl_gym.values import ValueEstimates

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")
GREY = "#777777"
FINEST_GRID = 600  # rows or columns of a map that are shown one by one; more columns are added up, more rows smoothed
GROUPS_OF_RETURNS = 12  # points of the returns over states
VALUE_LABEL = "value (units of reward)"


def estimates_against_truth(
    truth: ValueEstimates, estimates: Mapping[str, ValueEstimates], level: float = 0.9
) -> Figure:
    """One panel per estimator with common axes: a point per query, the diagonal, and intervals where there are any.

    Args:
        truth: values at Q queries; its intervals are the horizontal bars.
        estimates: name -> values at the same queries; their intervals are the vertical bars.
        level: probability that an interval holds the value, in (0, 1).

    Raises:
        ValueError: no estimates, or one that `score` refuses.
    """
    if not estimates:
        raise ValueError("estimates must name at least one set of values, got none")
    figure = Figure(figsize=(1.0 + 4.0 * len(estimates), 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(estimates), sharex=True, sharey=True, squeeze=False)[0]
    low, high = _padded(np.concatenate([_ends(one, level) for one in (truth, *estimates.values())]))
    for panel, (name, estimate), colour, marker in zip(panels, estimates.items(), cycle(COLOURS), cycle(MARKERS)):
        panel.plot([low, high], [low, high], color=GREY, linewidth=1, label="estimate = truth", zorder=1)
        across, along = _half_widths(truth, level), _half_widths(estimate, level)
        kind = "" if along is None else f", {level:.0%} interval"
        panel.errorbar(
            truth.values, estimate.values, yerr=along, xerr=across, fmt=marker, color=colour, ecolor=colour,
            markersize=4, markeredgewidth=0, alpha=0.75, elinewidth=0.8, label=f"{name}{kind}",
        )  # fmt: skip
        panel.set(xlim=(low, high), ylim=(low, high), xlabel=f"true {VALUE_LABEL}", aspect="equal")
        panel.set_title(f"{name}: RMSE {score(estimate, truth).rmse:.3g}")
        panel.legend(loc="upper left", fontsize="small")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel(f"estimated {VALUE_LABEL}")
    return figure


def error_by_layer(by_layer: Mapping[str, np.ndarray], truth: ValueEstimates, noise_floor: float = 0.0) -> Figure:
    """RMSE of the read-out after each layer of one network, against that of the best constant.

    Args:
        by_layer: name -> (L, Q) values after layers 1..L at the truth's Q queries.
        truth: values at the Q queries.
        noise_floor: RMSE that a perfect estimate is expected to show against this truth; drawn if it is not zero.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    looks = zip(cycle(COLOURS), cycle(STYLES))
    for (name, rows), (colour, style) in zip(by_layer.items(), looks, strict=False):
        errors = np.sqrt(np.mean((np.asarray(rows) - truth.values) ** 2, axis=1))
        label = f"{name}: {errors[-1]:.3g}"
        axes.plot(np.arange(1, len(errors) + 1), errors, style, color=colour, marker="o", markersize=3, label=label)
    constant = float(np.std(truth.values))
    if constant > 0:
        axes.axhline(constant, color=GREY, linestyle="--", linewidth=1.2, label=f"best constant: {constant:.3g}")
    top = max(float(np.max(line.get_ydata())) for line in axes.get_lines())
    if noise_floor > 0:
        axes.axhline(noise_floor, color=GREY, linewidth=0.9, label=f"noise floor of the truth: {noise_floor:.3g}")
    axes.set(xlabel="layer", ylabel="RMSE (units of reward)", ylim=(0, 1.08 * top if top > 0 else 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Error of the read-out after each layer")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.25)
    return figure


def attention_map(
    weights: np.ndarray, query_values: np.ndarray, source_values: np.ndarray, label: str = "attention weight"
) -> Figure:
    """Which transitions of the context each query looks at, both in the order of their estimated values.

    Args:
        weights: (Q, n); signed weights get a diverging colour map. In long contexts neighbours in the order of values
            share a column, which shows the sum of their weights.
        query_values: (Q,) estimated values, which order the rows.
        source_values: (n,) estimated values at the states that the transitions start in, which order the columns.
        label: name of a weight, with its unit.
    """
    figure = Figure(figsize=(8.2, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    ordered = weights[np.ix_(np.argsort(query_values, kind="stable"), np.argsort(source_values, kind="stable"))]
    together = math.ceil(ordered.shape[1] / FINEST_GRID)
    ordered = np.add.reduceat(ordered, np.arange(0, ordered.shape[1], together), axis=1)
    limit = float(np.quantile(np.abs(ordered), 0.995)) or float(np.abs(ordered).max()) or 1.0
    signed = bool((ordered < 0).any())
    norm = TwoSlopeNorm(0.0, -limit, limit) if signed else Normalize(0.0, limit)
    image = axes.imshow(
        ordered, aspect="auto", cmap="PuOr" if signed else "cividis", norm=norm,
        interpolation="nearest" if max(ordered.shape) <= FINEST_GRID else "auto",
    )  # fmt: skip
    figure.colorbar(image, ax=axes, label=label, extend="both" if signed else "max")
    each = "transition of the context" if together == 1 else f"{together} transitions of the context each"
    axes.set(xlabel=f"{each}, lowest value first", ylabel="query, lowest value first")
    axes.set_title("Which transitions each query looks at")
    return figure


def value_along_episode(
    estimates: Mapping[str, ValueEstimates],
    realised: np.ndarray | None = None,
    level: float = 0.9,
    ending: str | None = None,
) -> Figure:
    """Values at successive states of one episode, with intervals where there are any.

    Args:
        estimates: name -> values at the T states of the episode, in order of time.
        realised: (T,) the discounted return that this episode went on to collect from each state, or None.
        level: probability that an interval holds the value, in (0, 1).
        ending: the episode's ending in words, for the title.

    Raises:
        ValueError: no estimates.
    """
    if not estimates:
        raise ValueError("estimates must name at least one set of values, got none")
    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for (name, estimate), colour, style in zip(estimates.items(), cycle(COLOURS), cycle(STYLES)):
        _draw_band(axes, name, estimate, level, colour, style)
    if realised is not None:
        axes.plot(realised, color="black", linewidth=1, linestyle=":", label="return of this one episode")
    axes.set(xlabel="step of the episode", ylabel=VALUE_LABEL)
    axes.set_title("Value along one episode" + (f" ({ending})" if ending else ""))
    axes.margins(x=0.01)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.25)
    return figure


def values_over_states(
    in_context: ValueEstimates,
    critic: ValueEstimates,
    rows_P: np.ndarray,
    returns_P: np.ndarray,
    title: str,
    level: float = 0.9,
) -> Figure:
    """A critic against in-context values at states in the order of the latter, and the returns that came in from there.

    Args:
        in_context: values at Q states; their interval is shaded.
        critic: values at the same states.
        rows_P: which of the states have a return, in increasing order.
        returns_P: their discounted returns; drawn as means over states that are neighbours in the order.
        title: the verdict in words.
        level: probability that an interval holds the value, in (0, 1).
    """
    figure = Figure(figsize=(7.2, 4.4), dpi=80)
    axes = figure.subplots()
    figure.subplots_adjust(left=0.11, right=0.98, top=0.92, bottom=0.2)
    order = np.argsort(in_context.values, kind="stable")
    places = np.arange(len(order))
    if in_context.stderr is not None:
        low, high = in_context.interval(level)
        shade = {"color": COLOURS[0], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(places, low[order], high[order], label=f"{level:.0%} interval", **shade)
    axes.plot(places, in_context.values[order], color=COLOURS[0], linewidth=1.6, label="in context")
    axes.plot(places, critic.values[order], "o", color=COLOURS[1], markersize=2.5, label="critic")
    points = np.zeros((0, 2))
    if len(rows_P):
        place_P = np.argsort(order)[rows_P]
        groups = np.array_split(np.argsort(place_P), min(GROUPS_OF_RETURNS, len(rows_P)))
        points = np.array([(place_P[group].mean(), returns_P[group].mean()) for group in groups])
        axes.plot(*points.T, "s--", color="black", linewidth=1, markersize=3.5, label="returns, means of neighbours")
    low, high = _padded(np.concatenate([in_context.values, critic.values, points[:, 1]]), margin=0.4)
    axes.set(xlabel="state, lowest in-context value first", ylabel=VALUE_LABEL, ylim=(low, high))
    axes.set_title(title, fontsize="medium", y=1.0)  # where it would be put anyway, without measuring the ticks
    axes.locator_params(nbins=6)
    axes.margins(x=0.01)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, frameon=False)
    axes.grid(alpha=0.25)
    return figure


def _draw_band(axes: Axes, name: str, estimate: ValueEstimates, level: float, colour: str, style: Any) -> None:
    steps = np.arange(len(estimate))
    axes.plot(steps, estimate.values, color=colour, linestyle=style, label=name, marker="." if len(steps) < 2 else None)
    if estimate.stderr is not None:
        low, high = estimate.interval(level)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=f"{name}, {level:.0%} interval")


def _ends(estimate: ValueEstimates, level: float) -> np.ndarray:
    """All values, and the finite ends of their intervals where there are any."""
    if estimate.stderr is None:
        return estimate.values
    ends = np.concatenate([estimate.values, *estimate.interval(level)])
    return ends[np.isfinite(ends)]


def _half_widths(estimate: ValueEstimates, level: float) -> np.ndarray | None:
    """(2, Q) distances to the interval's ends, or None without intervals."""
    if estimate.stderr is None:
        return None
    low, high = estimate.interval(level)
    return np.stack([estimate.values - low, high - estimate.values])


def _padded(values: np.ndarray, margin: float = 0.06) -> tuple[float, float]:
    """Limits around all values with a margin, a share of their range, never empty."""
    low, high = float(values.min()), float(values.max())
    margin = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
