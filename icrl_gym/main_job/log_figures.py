"""The figures of a log's evaluation, as matplotlib `Figure` objects. Values are in units of the log's rewards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.main_job.log_result import EpisodeValues, LogEvaluation
from icrl_gym.scoring.figures import COLOURS, GREY, VALUE_LABEL
from icrl_gym.scoring.score import INTERVAL_LEVEL


def values_along_episodes(episodes: Sequence[EpisodeValues]) -> Figure:
    """One panel per episode on common values: the estimate with its interval, and the episode's own return if known."""
    figure = Figure(figsize=(1.2 + 3.6 * len(episodes), 4.0), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(episodes), sharey=True, squeeze=False)[0]
    for panel, shown in zip(panels, episodes, strict=True):
        marker = "." if len(shown.steps) < 2 else None
        panel.plot(shown.steps, shown.estimates.values, color=COLOURS[0], marker=marker, label="in context")
        if shown.estimates.stderr is not None:
            low, high = shown.estimates.interval(INTERVAL_LEVEL)
            label = f"{INTERVAL_LEVEL:.0%} interval"
            panel.fill_between(shown.steps, low, high, color=COLOURS[0], alpha=0.2, linewidth=0, label=label)
        if shown.returns is not None:
            label = "return of this one episode"
            panel.plot(shown.steps, shown.returns, color="black", linewidth=1, linestyle=":", label=label)
        panel.set(xlabel="step of the episode")
        panel.set_title(f"Episode {shown.episode} ({shown.ending})", fontsize="medium")
        panel.margins(x=0.02)
        panel.grid(alpha=0.25)
    panels[0].set_ylabel(VALUE_LABEL)
    labelled = max(panels, key=lambda panel: len(panel.get_legend_handles_labels()[0]))
    figure.legend(*labelled.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def values_at_starts(evaluation: LogEvaluation) -> Figure:
    """The value at each start, lowest first, with its interval; the mean over starts as a band across."""
    figure = Figure(figsize=(6.6, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    starts, whole = evaluation.starts, evaluation.start_value
    order = np.argsort(starts.values, kind="stable")
    places, spread = np.arange(len(order)), None
    if starts.stderr is not None:
        low, high = starts.interval(INTERVAL_LEVEL)
        spread = np.stack([starts.values - low, high - starts.values])[:, order]
    axes.errorbar(
        places, starts.values[order], yerr=spread, fmt="o", color=COLOURS[0], markersize=4, markeredgewidth=0,
        elinewidth=0.8, label="a start" + ("" if spread is None else f", {INTERVAL_LEVEL:.0%} interval"),
    )  # fmt: skip
    axes.axhline(whole.mean, color=COLOURS[1], label=f"mean over starts: {whole.mean:.3g}")
    if whole.low is not None and whole.high is not None:
        axes.axhspan(whole.low, whole.high, color=COLOURS[1], alpha=0.15, linewidth=0)
    own = evaluation.mean_return
    if own is not None:
        axes.axhline(own.mean, color=GREY, linestyle="--", label=f"mean return of the log's episodes: {own.mean:.3g}")
    axes.set(xlabel="start of an episode, lowest value first", ylabel=VALUE_LABEL)
    axes.set_title("Value at the starts of episodes")
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    axes.grid(alpha=0.25)
    return figure
