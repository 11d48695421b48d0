"""Bias and variance by depth, kernel width and trace where all states are distinct: a process on the line.

S' = .9 S + .5 xi, xi ~ N(0, 1), reward cos(2 S) on leaving S, gamma = .95; the true values are a series.

Shape legend: T trials, W widths, M traces (lambda), L layers, Q query states, n transitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from icrl_gym.evaluator.kernel import gaussian_attention
from icrl_gym.evaluator.recursion import Columns, Equations, LayerParameters, Trace, run_layers
from icrl_gym.scoring.figures import COLOURS, STYLES

GAMMA, PERSISTENCE, NOISE, FREQUENCY = 0.95, 0.9, 0.5, 2.0
SPREAD = NOISE / math.sqrt(1.0 - PERSISTENCE**2)  # stationary standard deviation
WIDTHS = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.6)  # in units of SPREAD
TRACES = (0.0, 0.5, 0.8, 0.95, 1.0)
NUM_TRANSITIONS, NUM_QUERIES = 200, 41


def true_values(state: np.ndarray, num_terms: int = 800) -> np.ndarray:
    """sum_t gamma^t E cos(2 S_t), with S_t normal around .9^t s."""
    shrink = PERSISTENCE ** np.arange(num_terms)
    variance = SPREAD**2 * (1.0 - shrink**2)
    weight = GAMMA ** np.arange(num_terms) * np.exp(-(FREQUENCY**2) * variance / 2.0)
    return np.cos(FREQUENCY * np.multiply.outer(state, shrink)) @ weight


def queries() -> tuple[np.ndarray, np.ndarray]:
    """States (Q,) within two standard deviations, and their stationary weights (Q,), which sum to 1."""
    state = np.linspace(-2.0, 2.0, NUM_QUERIES) * SPREAD
    weight = np.exp(-(state**2) / (2.0 * SPREAD**2))
    return state, weight / weight.sum()


def walks(rng: np.random.Generator, num_trials: int, num_transitions: int) -> np.ndarray:
    """States (T, n + 1), stationary from the start."""
    states = np.empty((num_trials, num_transitions + 1))
    states[:, 0] = SPREAD * rng.standard_normal(num_trials)
    for t in range(num_transitions):
        states[:, t + 1] = PERSISTENCE * states[:, t] + NOISE * rng.standard_normal(num_trials)
    return states


def read_outs(states: np.ndarray, width: float, trace: float, num_layers: int) -> np.ndarray:
    """Softmax TD(lambda) with a Gaussian kernel from zero, read at the queries, (T, L, Q). The log's end, which is no
    source, is an averager."""
    num_trials, n = len(states), states.shape[1] - 1
    column = torch.as_tensor(states / (width * SPREAD)).unsqueeze(-1)
    query = torch.as_tensor(queries()[0] / (width * SPREAD)).unsqueeze(-1).expand(num_trials, -1, -1)
    no_bias, no_sink = torch.zeros(num_trials, n, dtype=torch.float64), torch.tensor(-math.inf, dtype=torch.float64)
    discount = torch.full((num_trials, n), GAMMA, dtype=torch.float64)
    decay = trace * discount
    decay[:, -1] = 0.0
    equations = Equations(
        rewards_NR=torch.as_tensor(np.cos(FREQUENCY * states[:, :-1])).unsqueeze(-1),
        discounts_N1=discount.unsqueeze(-1),
        successors_N=torch.arange(1, n + 1).expand(num_trials, n),
        weights_N1=torch.ones(num_trials, n, 1, dtype=torch.float64),
        trace=Trace.of(decay),
    )
    attention = gaussian_attention(column, column[:, :-1], no_bias, no_sink)
    readout = run_layers(
        equations, Columns.of(attention), LayerParameters(constant_mode=False), num_layers, start_at_constant=False
    )
    return readout(gaussian_attention(query, column[:, :-1], no_bias, no_sink))[..., 0].numpy()


def measure(seed: int, num_trials: int, num_layers: int) -> dict[str, np.ndarray]:
    """Per trial the squared error (W, M, T, L); over trials the mean read-out less the truth (W, M, L, Q)."""
    states = walks(np.random.default_rng([5, seed]), num_trials, NUM_TRANSITIONS)
    state, weight = queries()
    truth = true_values(state)
    squared, mean = [], []
    for width in WIDTHS:
        for trace in TRACES:
            error = read_outs(states, width, trace, num_layers) - truth
            squared.append(error**2 @ weight)
            mean.append(error.mean(axis=0))
    shape = (len(WIDTHS), len(TRACES))
    return {
        "squared": np.array(squared).reshape(*shape, num_trials, num_layers),
        "mean": np.array(mean).reshape(*shape, num_layers, -1),
    }


@dataclass(frozen=True, eq=False)
class ErrorMap:
    """Errors of every depth, width and trace, over T trials.

    Attributes:
        squared: (W, M, T, L) squared error of each trial, weighted over queries.
        bias: (W, M, L) root of the weighted squared mean error; its own sampling noise, variance / T, taken off.
        spread: (W, M, L) root of the variance between trials.
    """

    squared: np.ndarray
    bias: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, pieces: Sequence[dict[str, np.ndarray]]) -> ErrorMap:
        """The map joined from the pieces of `measure`, one per seed, equally many trials each."""
        squared = np.concatenate([piece["squared"] for piece in pieces], axis=2)
        weight, num_trials = queries()[1], squared.shape[2]
        shift = np.mean([piece["mean"] for piece in pieces], axis=0) ** 2 @ weight
        variance = (squared.mean(axis=2) - shift) * num_trials / (num_trials - 1)
        bias = np.sqrt(np.maximum(shift - variance / num_trials, 0.0))
        return cls(squared, bias, np.sqrt(np.maximum(variance, 0.0)))

    @property
    def rmse(self) -> np.ndarray:
        """(W, M, L)."""
        return np.sqrt(self.squared.mean(axis=2))

    def best(self, trials: slice = slice(None)) -> tuple[int, int, int]:
        """Index of width, trace and layer (0-based) with the smallest error on these trials."""
        error = self.squared[:, :, trials].mean(axis=2)
        width, trace, layer = np.unravel_index(int(error.argmin()), error.shape)
        return int(width), int(trace), int(layer)


def figure_of(found: ErrorMap) -> Figure:
    """Maps of error over depth and width for three traces, and bias against spread along the depth."""
    figure = Figure(figsize=(15, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots(1, 4)
    num_layers = found.rmse.shape[2]
    layers = np.arange(1, num_layers + 1)
    low, high = found.rmse.min(), min(found.rmse.max(), 2.0 * true_values(queries()[0]).std())
    width, trace, layer = found.best()
    image = None
    for panel, index in zip(axes, (0, 1, 3), strict=False):
        image = panel.pcolormesh(layers, WIDTHS, found.rmse[:, index], cmap="cividis_r", vmin=low, vmax=high)
        best_width, best_layer = np.unravel_index(int(found.rmse[:, index].argmin()), found.rmse[:, index].shape)
        panel.plot(best_layer + 1, WIDTHS[best_width], "o", color="white", markeredgecolor="black", label="best here")
        if index == trace:
            panel.plot(layer + 1, WIDTHS[width], "*", color="red", markersize=14, label="best of all")
        panel.set(xscale="log", yscale="log", xlabel="layers", title=f"RMSE, lambda = {TRACES[index]:g}")
        panel.legend(fontsize="x-small", loc="upper right")
    axes[0].set_ylabel("kernel width / standard deviation of the states")
    if image is not None:
        figure.colorbar(image, ax=axes[:3].tolist(), label="RMSE (units of reward)", extend="max")
    for colour, other in zip(COLOURS, (0, 1, 3), strict=False):
        axes[3].semilogx(
            layers,
            found.bias[width, other],
            color=colour,
            linestyle=STYLES[0],
            label=f"bias, lambda = {TRACES[other]:g}",
        )
        axes[3].semilogx(
            layers, found.spread[width, other], color=colour, linestyle=STYLES[1], label="standard deviation"
        )
    axes[3].set(xlabel="layers", ylabel="units of reward", title=f"Width {WIDTHS[width]:g}: bias and spread")
    axes[3].set_ylim(0.0, 1.7 * max(found.spread[width, i].max() for i in (0, 1, 3)))
    axes[3].legend(fontsize="x-small", ncols=2, loc="upper center")
    return figure
