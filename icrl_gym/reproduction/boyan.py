"""Claim 7: softmax TD, one-hot softmax TD and linear TD on ten-state Boyan chains, by depth and context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement, Table, table_of
from icrl_gym.reproduction.judgement import above, exactly, together
from icrl_gym.reproduction.mrps import MRPBatch, boyan_chains
from icrl_gym.reproduction.softmax_td import softmax_td, weighted_td
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, STYLES

GAMMA, LENGTHS, DEPTHS = 0.9, (30, 300), (1, 3, 10, 30)
METHODS = ("softmax TD", "one-hot softmax TD", "linear TD")
ZERO = "zero predictor"
# This project's own earlier measurement at n = 300, on other chains.
EARLIER = {
    "softmax TD": (4.14, 2.73, 0.69, 0.084),
    "one-hot softmax TD": (4.08, 2.64, 0.62, 0.042),
    "linear TD": (4.90, 4.66, 4.37, 4.19),
    ZERO: (5.15,) * 4,
}
AGREEMENT = 3.0  # standard errors of a difference between two samples of this size


def errors_by_depth(mrps: MRPBatch, states: np.ndarray, method: str, num_layers: int) -> np.ndarray:
    """Squared value error under the stationary distribution after 0..L layers, (B, L + 1)."""
    if method == "linear TD":
        sources = np.take_along_axis(mrps.features, states[:, :-1, None], axis=1)
        kernel = mrps.features @ np.swapaxes(sources, 1, 2) / sources.shape[1]
        values = weighted_td(kernel, states, mrps.rewards_of(states), GAMMA, num_layers)
    else:
        one_hot = np.broadcast_to(np.eye(mrps.reward.shape[1]), mrps.transition.shape)
        known = mrps if method == "softmax TD" else replace(mrps, features=one_hot)
        values = softmax_td(known, states, GAMMA, num_layers)
    error = (values - mrps.values(GAMMA)[:, None]) ** 2
    return np.einsum("bls,bs->bl", error, mrps.stationary())


def measure(seed: int, num_mrps: int) -> dict[str, np.ndarray]:
    """``errors`` (lengths, methods, B, L + 1); the same chains throughout, the short context starts the long one."""
    rng = np.random.default_rng([8, seed])
    mrps = boyan_chains(rng, num_mrps)
    states = mrps.walk(rng, max(LENGTHS))
    errors = [[errors_by_depth(mrps, states[:, : n + 1], name, max(DEPTHS)) for name in METHODS] for n in LENGTHS]
    return {"errors": np.array(errors)}


def depth_and_context(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 7."""
    num_mrps = 100 if quick else 500
    parts = [store.arrays(f"seed-{seed}", lambda seed=seed: measure(seed, num_mrps))["errors"] for seed in seeds]
    return _judge(np.concatenate(parts, axis=2))


def _judge(errors: np.ndarray) -> Outcome:
    softmax, one_hot, linear = errors[-1, :, :, DEPTHS].transpose(1, 0, 2)
    findings, ordered, one_hot_gains = [], [], []
    for depth, mine, theirs, best in zip(DEPTHS, softmax, linear, one_hot, strict=True):
        findings.append(Finding.mean(f"n = 300, L = {depth}: linear TD less softmax TD", theirs - mine))
        ordered.append(findings[-1])
        findings.append(Finding.mean(f"n = 300, L = {depth}: softmax TD less one-hot softmax TD", mine - best))
        one_hot_gains.append(findings[-1])
    for index, (shallow, deep) in enumerate(pairwise(DEPTHS)):
        findings.append(
            Finding.mean(f"n = 300, softmax TD: L = {shallow} less L = {deep}", softmax[index] - softmax[index + 1])
        )
        ordered.append(findings[-1])
    more = errors[0, 0, :, DEPTHS[-1]] - errors[1, 0, :, DEPTHS[-1]]
    findings.append(Finding.mean("softmax TD, L = 30: n = 30 less n = 300", more))
    ordered.append(findings[-1])
    distance = _distance_from_earlier(errors)
    findings.append(Finding("largest distance from our earlier digits, in standard errors", distance, errors.shape[2]))
    caption = (
        "Mean squared value error under the stationary distribution, by layer, with 95 % intervals over chains"
        " (shaded). The dotted line predicts zero everywhere."
    )
    statements = _statements(ordered, one_hot_gains, distance)
    return Outcome(statements, tuple(findings), figure=_figure(errors), caption=caption, tables=_tables(errors))


def _statements(ordered: Sequence[Finding], one_hot_gains: Sequence[Finding], distance: float) -> tuple[Statement, ...]:
    """The one-hot features are judged depth by depth, since the gain is smallest at the first."""
    nearer, gains = ordered[: len(DEPTHS)], ordered[len(DEPTHS) :]
    return (
        Statement("Softmax TD is nearer than linear TD at every depth.", together(map(above, nearer))),
        Statement("Softmax TD gains with depth and with context.", together(map(above, gains))),
        *(
            Statement(f"At L = {depth} one-hot features are nearer still.", above(gain))
            for depth, gain in zip(DEPTHS, one_hot_gains, strict=True)
        ),
        Statement("The earlier digits are met again.", exactly(distance < AGREEMENT)),
    )


def _distance_from_earlier(errors: np.ndarray) -> float:
    worst = 0.0
    for method, digits in EARLIER.items():
        for depth, digit in zip(DEPTHS, digits, strict=True):
            sample = errors[-1, 0, :, 0] if method == ZERO else errors[-1, METHODS.index(method), :, depth]
            standard_error = sample.std(ddof=1) / np.sqrt(len(sample))
            worst = max(worst, abs(float(sample.mean()) - digit) / (np.sqrt(2.0) * standard_error))
    return float(worst)


def _tables(errors: np.ndarray) -> tuple[Table, ...]:
    columns = ("method", *(f"L = {depth}" for depth in DEPTHS))
    tables = []
    for index, length in enumerate(LENGTHS):
        rows = []
        for method in (*METHODS, ZERO):
            samples = [
                errors[index, 0, :, 0] if method == ZERO else errors[index, METHODS.index(method), :, depth]
                for depth in DEPTHS
            ]
            rows.append((method, *(Finding.mean("", sample).text(3) for sample in samples)))
        if length == LENGTHS[-1]:
            rows += [(f"{name}, our earlier run", *(f"{digit:g}" for digit in EARLIER[name])) for name in EARLIER]
        tables.append(table_of(columns, rows, f"Mean squared value error, n = {length}, {errors.shape[2]:,} chains."))
    return tuple(tables)


def _figure(errors: np.ndarray) -> Figure:
    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    layers = np.arange(errors.shape[3])
    for panel, length, of_length in zip(panels, LENGTHS, errors, strict=True):
        for index, (name, sample) in enumerate(zip(METHODS, of_length, strict=True)):
            mean = sample.mean(axis=0)
            half = 1.96 * sample.std(axis=0, ddof=1) / np.sqrt(len(sample))
            panel.semilogy(layers, mean, color=COLOURS[index], linestyle=STYLES[index], label=name)
            panel.fill_between(layers, mean - half, mean + half, color=COLOURS[index], alpha=0.25, linewidth=0)
        panel.axhline(of_length[0, :, 0].mean(), color="black", linestyle=":", linewidth=0.9, label=ZERO)
        panel.set(xlabel="layers", title=f"n = {length} transitions")
        panel.grid(alpha=0.25)
    panels[0].set_ylabel("mean squared value error")
    panels[0].legend(fontsize="small")
    return figure


CLAIM = Claim(
    number=7,
    id="boyan-chains",
    title="Depth and context on Boyan chains",
    statement=(
        "On ten-state Boyan chains softmax TD comes nearer to the true values than linear TD at every depth, gains"
        " with depth and with context, and with one-hot features is nearer still."
    ),
    source="ours; chains after [WBDZ24]",
    measured=(
        "Value error squared, weighted by the stationary distribution, mean over chains (features U(-1, 1)^4, gamma ="
        " .9, step size 1, linear TD with kernel <x, x'>/n), and the distance to an earlier measurement of this"
        " project on other chains."
    ),
    criterion=(
        "At n = 300: linear TD above softmax TD above one-hot softmax TD at L = 1, 3, 10 and 30, softmax TD falling"
        " from each of these depths to the next, and n = 300 better than n = 30 at L = 30, each with an interval"
        f" above zero, paired by chain; every earlier digit within {AGREEMENT:g} standard errors of a difference of"
        " two such samples."
    ),
    function=depth_and_context,
    num_seeds=4,
    quick_seeds=4,
    least_seeds=4,
)
