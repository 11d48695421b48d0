"""Claim 2: weighted softmax TD contains tabular value iteration and linear TD, and nears a centred linear TD."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.evaluator import paper
from icrl_gym.reproduction import linear_attention
from icrl_gym.reproduction.claim import Claim, Finding, Judgement, Outcome, Statement
from icrl_gym.reproduction.empirical import EmpiricalModel
from icrl_gym.reproduction.judgement import exactly, together, within
from icrl_gym.reproduction.mrps import MRPBatch, random_mrps
from icrl_gym.reproduction.softmax_td import residuals, softmax, weighted_td
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, MARKERS

GAMMA, NUM_STATES, NUM_FEATURES, NUM_TRANSITIONS, NUM_LAYERS = 0.9, 8, 4, 40, 8
TEMPERATURES = np.array([1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0])
ASYMPTOTIC = TEMPERATURES >= 8.0
SCALES = 10.0 ** np.linspace(-2.0, 0.0, 9)  # of the features
SMALL = SCALES <= 10.0**-1.0
TOLERANCE, SLOPE_TOLERANCE = 1e-12, 0.1
EXPANSIONS = ("keys centred, query not", "nothing centred", "keys and query centred")


def special_cases(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 2."""
    num_mrps = 20 if quick else 100
    gaps, unvisited, linear, remainders = [], [], [], []
    for seed in seeds:
        rng = np.random.default_rng([2, seed])
        mrps = random_mrps(rng, num_mrps, NUM_STATES, NUM_FEATURES)
        states = mrps.walk(rng, NUM_TRANSITIONS)
        found = tabular_gaps(mrps, states)
        gaps.append(found[0])
        unvisited.append(found[1])
        linear.append(linear_gaps(mrps, states))
        remainders.append(expansion_remainders(mrps, states))
    return _judge(*(np.concatenate(parts) for parts in (gaps, unvisited, linear, remainders)))


def tabular_gaps(mrps: MRPBatch, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The transformer with x(s) = sqrt(tau) e_s against value iteration on the empirical model.

    The last state of every walk is replaced by a new state, which thus is a query that was never visited.

    Returns:
        (B, temperatures) largest difference over layers and columns relative to the largest value, and (B,) the error
        of "the unvisited query receives the mean residual" at the lowest temperature, from the transformer's own rows.
    """
    new_state = mrps.reward.shape[1]
    states = np.concatenate([states[:, :-1], np.full((len(states), 1), new_state)], axis=1)
    rewards = np.take_along_axis(mrps.reward, states[:, :-1], axis=1)
    expected = tabular_limit(states, rewards, new_state + 1, GAMMA, NUM_LAYERS)
    scale = np.abs(expected).max(axis=(1, 2))
    gaps, unvisited = [], np.zeros(len(states))
    for tau in TEMPERATURES:
        table = np.sqrt(tau) * np.eye(new_state + 1)
        pairs = zip(table[states], rewards, strict=True)
        rows = np.stack([paper.paper_forward(x, r, GAMMA, NUM_LAYERS) for x, r in pairs])
        gaps.append(np.abs(rows - expected).max(axis=(1, 2)) / scale)
        if tau == TEMPERATURES[0]:
            residual = rewards[:, None] + GAMMA * rows[..., 1:] - rows[..., :-1]
            unvisited = np.abs(np.diff(rows[..., -1], axis=1) - residual.mean(axis=2)[:, :-1]).max(axis=1) / scale
    return np.stack(gaps, axis=1), unvisited


def tabular_limit(
    states: np.ndarray, rewards: np.ndarray, num_states: int, gamma: float, num_layers: int
) -> np.ndarray:
    """Value iteration on the empirical model at the columns of a walk, (B, L + 1, n + 1); unvisited states move by the
    mean residual."""
    model = EmpiricalModel.of(states, rewards, num_states)
    share = model.counts / model.counts.sum(axis=1, keepdims=True)
    value = np.zeros_like(model.reward)
    rows = [value]
    for _ in range(num_layers):
        backed_up = model.reward + gamma * np.einsum("bst,bt->bs", model.transition, value)
        mean_residual = (share * (backed_up - value)).sum(axis=1, keepdims=True)
        value = np.where(model.counts > 0, backed_up, value + mean_residual)
        rows.append(value)
    return np.take_along_axis(np.stack(rows, axis=1), states[:, None, :], axis=2)


def linear_gaps(mrps: MRPBatch, states: np.ndarray) -> np.ndarray:
    """The recursion with kernel <x, x'> / n against batch linear TD and against the linear transformer, (B, 2)."""
    rewards, features = mrps.rewards_of(states), mrps.features_of(states)
    sources, n = features[:, :-1], rewards.shape[1]
    kernel = mrps.features @ np.swapaxes(sources, 1, 2) / n
    recursion = weighted_td(kernel, states, rewards, GAMMA, NUM_LAYERS)
    identity = np.eye(NUM_FEATURES)
    weights = linear_attention.linear_updates(
        sources, GAMMA * features[:, 1:], rewards, identity, NUM_LAYERS, method="td"
    )
    Z = linear_attention.prompt(sources, GAMMA * features[:, 1:], rewards, features[:, -1])
    transformer = -linear_attention.forward(Z, linear_attention.td_heads(identity, n), NUM_LAYERS)[..., -1]
    at_query = np.take_along_axis(recursion, states[:, None, -1:], axis=2)[..., 0]
    against_td = np.abs(recursion - weights @ np.swapaxes(mrps.features, 1, 2)).max(axis=(1, 2))
    against_transformer = np.abs(at_query - transformer).max(axis=1)
    return np.stack([against_td, against_transformer], axis=1) / np.abs(recursion).max(axis=(1, 2))[:, None]


def expansion_remainders(mrps: MRPBatch, states: np.ndarray) -> np.ndarray:
    """One increment of softmax TD less its expansion at small features, largest over states, (B, scales, expansions).

    Values are those after three layers at scale 1, so that residuals are those of a recursion under way.
    """
    rewards, features = mrps.rewards_of(states), mrps.features_of(states)[:, :-1]
    scores = mrps.features @ np.swapaxes(features, 1, 2)
    value = weighted_td(softmax(scores), states, rewards, GAMMA, 3)[:, -1]
    delta = residuals(value, states, rewards, GAMMA)
    mean_delta, mean_key = delta.mean(axis=1, keepdims=True), features.mean(axis=1, keepdims=True)
    centred = np.einsum("bnd,bn->bd", features - mean_key, delta) / delta.shape[1]
    plain = np.einsum("bnd,bn->bd", features, delta) / delta.shape[1]
    found = []
    for scale in SCALES:
        exact = np.einsum("bsn,bn->bs", softmax(scale**2 * scores), delta)
        moved = [
            np.einsum("bsd,bd->bs", query, direction)
            for query, direction in (
                (mrps.features, centred),
                (mrps.features, plain),
                (mrps.features - mean_key, centred),
            )
        ]
        found.append([np.abs(exact - mean_delta - scale**2 * move).max(axis=1) for move in moved])
    return np.moveaxis(np.array(found), 2, 0)


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row of y (B, points) against x (points,), (B,)."""
    centred = x - x.mean()
    return (y - y.mean(axis=1, keepdims=True)) @ centred / (centred @ centred)


def _judge(gaps: np.ndarray, unvisited: np.ndarray, linear: np.ndarray, remainders: np.ndarray) -> Outcome:
    decay = Finding.mean(
        "tabular limit: slope of log gap against temperature",
        slopes(TEMPERATURES[ASYMPTOTIC], np.log(gaps[:, ASYMPTOTIC])),
    )
    orders = [
        Finding.mean(
            f"order of the remainder in the feature scale, {name}",
            slopes(np.log(SCALES[SMALL]), np.log(remainders[:, SMALL, i])),
        )
        for i, name in enumerate(EXPANSIONS)
    ]
    exact = [
        Finding.largest("unvisited query: largest relative error of the mean residual", unvisited),
        Finding.largest("linear kernel: largest relative difference from batch linear TD", linear[:, 0]),
        Finding.largest("linear kernel: largest relative difference from the linear transformer", linear[:, 1]),
    ]
    mean_residual, *equal = exact
    controls: list[Judgement] = [
        within(order, 2.0 - 2 * SLOPE_TOLERANCE, 2.0 + 2 * SLOPE_TOLERANCE) for order in orders[1:]
    ]
    statements = (
        Statement(
            "(a) The gap to value iteration is of order exp(-tau).",
            within(decay, -1.0 - SLOPE_TOLERANCE, -1.0 + SLOPE_TOLERANCE),
        ),
        Statement("(a) A query never visited receives the mean residual.", exactly(mean_residual.value < TOLERANCE)),
        Statement(
            "(b) The unnormalised kernel gives batch linear TD and the linear transformer.",
            exactly(max(one.value for one in equal) < TOLERANCE),
        ),
        Statement(
            "(c) The remainder of the expansion is of fourth order, wrongly centred ones are of second order.",
            together([within(orders[0], 4.0 - SLOPE_TOLERANCE, 4.0 + SLOPE_TOLERANCE), *controls]),
        ),
    )
    caption = (
        "Left: gap between the transformer with one-hot features of norm sqrt(tau) and value iteration on the empirical"
        " model, every MRP a line, against exp(-tau). Middle: the recursion with the unnormalised kernel against batch"
        " linear TD and against the linear transformer. Right: what the small-score expansion leaves over; wrongly"
        " centred expansions are of second order."
    )
    last = Finding.largest(f"tabular limit: largest relative gap at temperature {TEMPERATURES[-1]:g}", gaps[:, -1])
    figure = _figure(gaps, linear, remainders)
    return Outcome(statements, (decay, last, *exact, *orders), figure=figure, caption=caption)


def _figure(gaps: np.ndarray, linear: np.ndarray, remainders: np.ndarray) -> Figure:
    figure = Figure(figsize=(14, 4.2), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.semilogy(TEMPERATURES, gaps.T, color=COLOURS[0], alpha=0.15, linewidth=0.7)
    left.semilogy(TEMPERATURES, np.exp(-TEMPERATURES), "k--", label="exp(-tau)")
    left.semilogy(TEMPERATURES, np.median(gaps, axis=0), color=COLOURS[0], marker="o", label="median MRP")
    left.set(xlabel="temperature tau = |x(s)|^2", ylabel="largest relative gap", title="Tabular limit")
    left.legend(fontsize="small")
    _draw_linear(middle, linear)
    for index, name in enumerate(EXPANSIONS):
        middle_line = np.median(remainders[..., index], axis=0)
        right.loglog(SCALES, middle_line, color=COLOURS[index], marker=MARKERS[index], label=name)
    for order, style in ((4, "--"), (2, ":")):
        right.loglog(SCALES, 0.3 * SCALES**order, color="black", linestyle=style, linewidth=0.8, label=f"order {order}")
    right.set(xlabel="scale of the features", ylabel="remainder, median MRP", title="Small-score expansion")
    right.legend(fontsize="x-small")
    return figure


def _draw_linear(axes: Axes, linear: np.ndarray) -> None:
    for index, name in enumerate(("batch linear TD", "linear transformer")):
        ordered = np.sort(np.maximum(linear[:, index], 1e-17))
        axes.semilogy(ordered, color=COLOURS[index], marker=MARKERS[index], markersize=3, linewidth=0, label=name)
    axes.axhline(TOLERANCE, color="black", linewidth=0.7)
    axes.set(xlabel="MRP, sorted", ylabel="largest relative difference", title="Unnormalised kernel <x, x'>/n against")
    axes.legend(fontsize="small")


CLAIM = Claim(
    number=2,
    id="special-cases",
    title="Tabular value iteration and linear TD are special cases",
    statement=(
        "(a) With x(s) = sqrt(tau) e_s and step size 1, softmax TD tends to value iteration on the empirical model as"
        " tau grows, with a gap of order exp(-tau); a query never visited receives the mean residual. (b) With the"
        " unnormalised kernel <x, x'>/n the recursion is batch linear TD, and what a linear transformer computes."
        " (c) For small scores the increment is E[delta] + <x(query), Cov(x, delta)>, the keys centred and the query"
        " not, with a remainder of fourth order in the size of the features."
    ),
    source="ours; the linear transformer of (b) is [WBDZ24] Theorem 1",
    measured=(
        "(a) `paper_forward` against value iteration, all layers and columns, on walks that end in a new state."
        " (b) Three implementations of one update. (c) One increment in the middle of a recursion, exact against"
        " expanded, at nine feature scales; two wrongly centred expansions are the controls. Random MRPs of 8 states."
    ),
    criterion=(
        f"(a) slope of log gap against tau within {SLOPE_TOLERANCE} of -1; (a, b) equalities to {TOLERANCE:g};"
        f" (c) order within {SLOPE_TOLERANCE} of 4, and both controls near order 2."
    ),
    function=special_cases,
)
