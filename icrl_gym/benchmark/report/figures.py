"""The figures of a benchmark: error against steps and context, performance profiles, coverage, cost against accuracy.

In all of them the subject is a thick dark blue line with discs, the critic black and dashed; rivals take the other
colours of Okabe and Ito's palette, each with its own marker, and are drawn over the thick line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.benchmark.cells import CRITIC
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import errors as res
from icrl_gym.benchmark.report.tables import WANTED_COVERAGE
from icrl_gym.scoring.figures import GREY
from icrl_gym.scoring.statistics import Aggregate, geometric_mean, performance_profile
from icrl_gym.scoring.verdict import by_group

SUBJECT_COLOUR, REFERENCE_COLOUR, CRITIC_COLOUR = "#0072B2", "#56B4E9", "#000000"
RIVAL_COLOURS = ("#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8A6D00", "#7A7A7A")
RIVAL_MARKERS = ("s", "^", "D", "v", "P", "X")
LENGTH_COLOURS = ("#A6C8E0", "#4292C6", "#08519C", "#041F45")  # the longer, the darker
LENGTH_MARKERS = ("o", "s", "^", "D")
ERROR_LABEL = "RMSE / std of the truth (1: best constant)"
NUM_COLUMNS = 4
LEGEND_ENTRY, LEGEND_ROW = 1.35, 0.22  # inches: width of an entry of a legend, height of a further row
LOW_FIGURE = 4.4  # inches

Look = dict[str, Any]
Curves = Mapping[str, Mapping[str, Mapping[int, float]]]  # environment -> estimator -> context length -> error


class NothingToDraw(ValueError):
    """These records hold nothing that the figure shows."""


def looks(names: Sequence[str], subject: str) -> dict[str, Look]:
    """Line and marker of each estimator; the same names always get the same."""
    found: dict[str, Look] = {}
    rivals = zip(cycle(RIVAL_COLOURS), cycle(RIVAL_MARKERS))
    for name in sorted(names, key=lambda name: (name != subject, name != res.REFERENCE, name != CRITIC, name)):
        if name == CRITIC:
            found[name] = {"color": CRITIC_COLOUR, "linestyle": "--", "marker": "*", "linewidth": 1.4, "zorder": 4}
        elif name == subject:
            found[name] = {"color": SUBJECT_COLOUR, "marker": "o", "linewidth": 3.0, "markersize": 6.5, "zorder": 2}
        elif name == res.REFERENCE:
            found[name] = {"color": REFERENCE_COLOUR, "marker": "h", "linewidth": 1.6, "markersize": 5, "zorder": 3}
        else:
            colour, marker = next(rivals)
            found[name] = {"color": colour, "marker": marker, "linewidth": 1.2, "markersize": 4, "zorder": 3}
    return found


def context_curves(records: Sequence[Record], shown: Sequence[str]) -> Curves:
    """Geometric-mean errors under default settings, per environment, estimator and context length."""
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for env, mine in res.by_environment(res.usable(records)).items():
        for name in (*shown, CRITIC):
            by_length = {
                length: geometric_mean(list(errors.values()))
                for length in res.lengths_of(mine)
                if (errors := res.figures(res.at_length(mine, length), name))
            }
            if by_length:
                curves.setdefault(env, {})[name] = by_length
    return curves


def error_by_context(curves: Curves, subject: str) -> Figure:
    """Error against context length, one panel per environment with common axes; the critic, which does not see the
    context, as a horizontal line.

    Raises:
        NothingToDraw: no curve.
    """
    if not curves:
        raise NothingToDraw("no usable record of the shown estimators")
    columns = min(NUM_COLUMNS, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 1.0 + 2.3 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    look = looks(sorted({name for by_name in curves.values() for name in by_name}), subject)
    lengths = sorted({n for by_name in curves.values() for curve in by_name.values() for n in curve})
    for panel, (env, by_name) in zip(panels, curves.items(), strict=False):
        for name in look:
            if name == CRITIC and name in by_name:
                level = float(np.mean(list(by_name[name].values())))
                style = {key: value for key, value in look[name].items() if key != "marker"}
                panel.axhline(level, label=f"SB3 {CRITIC}", **style)
            elif name in by_name:
                points = np.array(list(by_name[name].items()))
                panel.plot(points[:, 0], points[:, 1], label=name, **look[name])
        panel.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_title(env, fontsize="medium")
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.25)
    _error_ticks(panels[0], [e for by_name in curves.values() for c in by_name.values() for e in c.values()])
    _length_ticks(list(panels[: len(curves)]), lengths)
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(curves) - columns) : len(curves)]:  # the lowest of each column
        panel.tick_params(labelbottom=True)
    _common_legend(figure, list(panels))
    figure.supxlabel("transitions in the context", fontsize="medium")
    figure.supylabel(_error_label(figure), fontsize="medium")
    return figure


def error_by_steps(records: Sequence[Record], environments: Sequence[str], subject: str) -> Figure:
    """Error against the environment steps that were seen: the subject's contexts, and its critic as a point.

    Args:
        records: records of one or more suites.
        environments: one panel each, by label; those without records of the subject are left out.
        subject: the estimator in question.

    Raises:
        NothingToDraw: none of the environments has any.
    """
    parts = {env: part for env, part in res.by_environment(res.usable(records)).items() if env in environments}
    parts = {env: parts[env] for env in environments if env in parts and res.figures(parts[env], subject)}
    if not parts:
        raise NothingToDraw(f"no usable record of {subject} in {list(environments)}")
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    figure = Figure(figsize=(0.8 + 2.9 * columns, 1.0 + 2.3 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    look, drawn = looks([subject, CRITIC], subject), []
    for panel, (env, part) in zip(panels, parts.items(), strict=False):
        for name in (subject, CRITIC):
            points = _points_by_steps(part, name)
            drawn += [error for _, value in points for error in (value.value, value.low, value.high)]
            across, errors = [steps for steps, _ in points], [value.value for _, value in points]
            spread = [[v.value - v.low for _, v in points], [v.high - v.value for _, v in points]]
            style = {**look[name], "linestyle": "none" if name == CRITIC else "-"}
            label = f"SB3 {CRITIC}, after its training" if name == CRITIC else f"{name}, from one context"
            panel.errorbar(across, errors, yerr=spread, elinewidth=1.0, capsize=3, label=label, **style)
        panel.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_title(env, fontsize="medium")
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.25)
    _error_ticks(panels[0], [error for error in drawn if math.isfinite(error)])
    for panel in panels[len(parts) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(parts) - columns) : len(parts)]:
        panel.tick_params(labelbottom=True)
    _common_legend(figure, list(panels))
    figure.supxlabel("environment steps seen", fontsize="medium")
    figure.supylabel(_error_label(figure), fontsize="medium")
    return figure


def _points_by_steps(part: Sequence[Record], name: str) -> list[tuple[float, Aggregate]]:
    """(steps, error) of an estimator: one point per context length; of the critic one in all, at its median steps."""
    mine = [r for r in part if r.cell.variant.estimator == name and r.cell.variant.is_default]
    groups = [mine] if name == CRITIC else [res.at_length(mine, length) for length in res.lengths_of(mine)]
    found = []
    for group in filter(None, groups):
        longest = res.at_length(group, res.lengths_of(group)[-1])
        steps = [steps for record in group if (steps := res.environment_steps(record)) is not None]
        error = res.geometric(res.figures(longest, name))
        if steps and error is not None:
            found.append((float(np.median(steps)), error))
    return found


def performance_profiles(records: Sequence[Record], shown: Sequence[str], subject: str) -> Figure:
    """Share of cells with an error of at most so much, one panel per context length.

    Only cells that all drawn estimators have; the critic's where it has any.

    Raises:
        NothingToDraw: no cell that all have.
    """
    by_length = {length: _shared_errors(res.at_length(records, length), shown) for length in res.main_lengths(records)}
    by_length = {length: errors for length, errors in by_length.items() if errors}
    if not by_length:
        raise NothingToDraw(f"no usable cell that all of {list(shown)} have")
    columns = min(NUM_COLUMNS, len(by_length))
    rows = -(-len(by_length) // columns)
    figure = Figure(figsize=(0.8 + 3.6 * columns, 1.0 + 3.2 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    look = looks(sorted({name for errors in by_length.values() for name in errors}), subject)
    thresholds = np.geomspace(0.1, 4.0, 120)
    for panel, (length, errors) in zip(panels, by_length.items(), strict=False):
        for name in (name for name in look if name in errors):
            style = {key: value for key, value in look[name].items() if not key.startswith("marker")}
            share = performance_profile(by_group(errors[name]), thresholds)
            panel.plot(thresholds, share, label=f"SB3 {CRITIC}" if name == CRITIC else name, **style)
        panel.axvline(1.0, color=GREY, linewidth=0.8, linestyle=":")
        panel.set_title(f"{length:,} transitions, {len(next(iter(errors.values())))} cells", fontsize="medium")
        panel.set(xscale="log", ylim=(0, 1), xlim=(thresholds[0], thresholds[-1]))
        panel.grid(alpha=0.25)
    for panel in panels[: len(by_length)]:
        panel.tick_params(labelbottom=True)
        panel.minorticks_off()
        panel.set_xticks([0.1, 0.2, 0.5, 1, 2, 4], ["0.1", "0.2", "0.5", "1", "2", "4"])
    for panel in panels[len(by_length) :]:
        panel.set_axis_off()
    _common_legend(figure, list(panels))
    figure.supxlabel(f"{ERROR_LABEL}, threshold", fontsize="medium")
    figure.supylabel("share of cells at or below it", fontsize="medium")
    return figure


def _shared_errors(records: Sequence[Record], shown: Sequence[str]) -> dict[str, res.Figures]:
    """Errors of the shown estimators and the critic on the cells that all have; {} if there is none."""
    part = res.usable(records)
    errors = {name: found for name in (*shown, CRITIC) if (found := res.figures(part, name))}
    if not errors:
        return {}
    kept = dict(zip(errors, res.shared(*errors.values()), strict=True))
    return kept if all(kept.values()) else {}


def coverage_by_environment(records: Sequence[Record], subject: str, most: int = 3) -> Figure:
    """Coverage of the 90 % intervals per environment and context length, with the wanted band.

    Args:
        records: records of one or more suites.
        subject: drawn first if it gives intervals.
        most: estimators to draw at most.

    Raises:
        NothingToDraw: no estimator gives intervals.
    """
    good = [record for record in records if record.error is None]
    with_intervals = [name for name in res.names_of(good) if res.figures(good, name, "coverage")]
    names = sorted(with_intervals, key=lambda name: (name != subject, name != res.REFERENCE, name))[:most]
    if not names:
        raise NothingToDraw("no estimator of these records gives intervals")
    environments = res.by_environment(good)
    lengths = res.main_lengths(good, len(LENGTH_COLOURS))
    figure = Figure(figsize=(2.4 + 3.4 * len(names), 1.5 + 0.36 * len(environments)), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        panel.axvspan(*WANTED_COVERAGE, color="#009E73", alpha=0.18, linewidth=0, label="wanted")
        panel.axvline(0.9, color="#009E73", linewidth=0.9)
        for i, (length, colour, marker) in enumerate(zip(lengths, LENGTH_COLOURS, LENGTH_MARKERS, strict=False)):
            lift = (i - (len(lengths) - 1) / 2) * 0.6 / len(lengths)
            points = [
                (float(np.mean(list(found.values()))), row + lift)
                for row, part in enumerate(environments.values())
                if (found := res.figures(res.at_length(part, length), name, "coverage"))
            ]
            across, up = zip(*points, strict=True) if points else ((), ())
            label = f"{length:,} transitions"
            panel.scatter(across, up, color=colour, marker=marker, s=26, label=label, zorder=3, linewidths=0)
        panel.set(xlim=(-0.03, 1.03), xlabel="share of states inside the 90 % interval")
        panel.set_title(name, fontsize="medium")
        panel.grid(alpha=0.25, axis="x")
        for row in range(len(environments)):
            panel.axhspan(row - 0.5, row + 0.5, color=GREY, alpha=0.08 * (row % 2), linewidth=0, zorder=0)
    panels[0].set_yticks(range(len(environments)), list(environments))
    panels[0].set_ylim(len(environments) - 0.5, -0.5)
    _common_legend(figure, list(panels))
    return figure


def cost_against_accuracy(records: Sequence[Record], subject: str) -> Figure:
    """Seconds of fit and predict against error at the longest context, on the cells that all estimators drawn have.

    Raises:
        NothingToDraw: no usable record.
    """
    good = res.usable(records)
    if not good:
        raise NothingToDraw("no usable record")
    figure = Figure(figsize=(8.2, 5.0), dpi=110, layout="constrained")
    _draw_seconds(figure.subplots(), good, subject)
    return figure


def _draw_seconds(axes: Axes, good: Sequence[Record], subject: str) -> None:
    part = res.at_length(good, res.main_lengths(good)[-1])
    names = res.complete(part)
    errors = dict(zip(names, res.shared(*(res.figures(part, name) for name in names)), strict=True))
    look, points = looks(names, subject), {}
    for name in (name for name in names if errors[name]):
        figure = res.geometric(errors[name])
        assert figure is not None
        mine = [r for r in part if r.cell.variant.estimator == name and r.cell.variant.is_default]
        seconds = float(np.median([r.seconds_fit + r.seconds_predict for r in mine]))
        points[name] = (max(seconds, 1e-6), figure.value)
        bars = [[figure.value - figure.low], [figure.high - figure.value]] if figure.has_interval else None
        style = {key: value for key, value in look[name].items() if key in ("color", "marker", "markersize", "zorder")}
        axes.errorbar(*points[name], yerr=bars, elinewidth=0.9, linestyle="none", **style)
    axes.set(xscale="log", yscale="log", xlabel="fit and predict, seconds (median)", ylabel=ERROR_LABEL)
    _error_ticks(axes, [error for _, error in points.values()])
    num_cells = len(next(iter(errors.values()), {}))
    axes.set_title(f"{part[0].cell.context_length:,} transitions, {num_cells} cells", fontsize="medium")
    axes.grid(alpha=0.25)
    _label_at_side(axes, points, subject)


def _label_at_side(axes: Axes, points: Mapping[str, tuple[float, float]], subject: str) -> None:
    """Names in a column to the right, in the order of the errors, each joined to its point by a thin line."""
    low, high = np.log(axes.get_ylim())
    heights = {name: (math.log(y) - low) / (high - low) for name, (_, y) in points.items()}
    order = sorted(points, key=lambda name: heights[name])
    gap = min(0.055, 1.0 / max(len(order), 1))
    places: list[float] = []
    for name in order:
        places.append(max(heights[name], places[-1] + gap if places else -math.inf))
    overshoot = max(0.0, (places[-1] if places else 0.0) - 1.0)
    for i in reversed(range(len(places))):  # push down what stands above the top
        places[i] = min(places[i], 1.0 - gap * (len(places) - 1 - i)) if overshoot else places[i]
    for name, place in zip(order, places, strict=True):
        axes.annotate(
            name, xy=points[name], xytext=(1.03, place), textcoords="axes fraction", fontsize="small", va="center",
            weight="bold" if name == subject else "normal", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 4},
        )  # fmt: skip


def _error_ticks(axes: Axes, errors: Sequence[float]) -> None:
    """Round numbers on a logarithmic axis, with room for these errors; finer where little is shown."""
    axes.set_yscale("log")
    axes.minorticks_off()
    if errors:
        axes.set_ylim(max(min(errors) / 1.25, 0.01), min(max(errors) * 1.25, 100))
    low, high = axes.get_ylim()
    steps = (1, 2, 5) if high > 6 * low else (1, 1.5, 2, 3, 4, 5, 6, 8)
    ticks = [step * 10**power for power in range(-4, 4) for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _length_ticks(panels: Sequence[Axes], lengths: Sequence[int], most: int = 5) -> None:
    step = -(-len(lengths) // most)
    named = lengths[::-1][::step][::-1]
    for panel in panels:
        panel.minorticks_off()
        panel.set_xticks(named, [f"{n:,}" for n in named])


def _common_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    drawn: dict[str, Any] = {}
    for panel in panels:
        handles, names = panel.get_legend_handles_labels()
        drawn |= dict(zip(names, handles, strict=True))
    columns = max(1, min(7, len(drawn), int(figure.get_figwidth() / LEGEND_ENTRY)))
    further_rows = -(-len(drawn) // columns) - 1 if drawn else 0
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * further_rows)
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=columns, fontsize="small")


def _error_label(figure: Figure) -> str:
    """The label of the errors' axis, on two lines where the figure is too low for one."""
    return ERROR_LABEL.replace(" (", "\n(") if figure.get_figheight() < LOW_FIGURE else ERROR_LABEL
