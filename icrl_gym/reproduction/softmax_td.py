"""Weighted softmax TD over the states of finite processes, and the claim that the transformer computes it.

[XLCLCZ26] eqs 8-9. Shape legend: leading axes `...` (processes, trials), S states, n transitions, D features, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from icrl_gym.evaluator import paper
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement
from icrl_gym.reproduction.judgement import exactly
from icrl_gym.reproduction.mrps import MRPBatch, random_mrps
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, STYLES

MUTATIONS = ("no mask", "shift transposed", "gamma dropped", "old row shifted", "target row kept")
TOLERANCE = 1e-12  # relative to the largest value so far
VISIBLE = 1e-6  # what a control must exceed
GAMMA, NUM_STATES, NUM_FEATURES, ALPHA = 0.9, 8, 4, 1.0


def softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def weighted_td(
    kernel: np.ndarray, states: np.ndarray, rewards: np.ndarray, gamma: float, num_layers: int, alpha: float = 1.0
) -> np.ndarray:
    """Eqs 8-9 for any kernel, every state at once, from zero.

    Args:
        kernel: (..., S, n), K(k | s).
        states: (..., n + 1) ids.
        rewards: (..., n).
        gamma, num_layers, alpha: discount, L, step size.

    Returns:
        (..., L + 1, S) values before the first and after each layer.
    """
    value = np.zeros(kernel.shape[:-1])
    layers = [value]
    for _ in range(num_layers):
        delta = residuals(value, states, rewards, gamma)
        value = value + alpha * np.einsum("...sn,...n->...s", kernel, delta)
        layers.append(value)
    return np.stack(layers, axis=-2)


def residuals(value: np.ndarray, states: np.ndarray, rewards: np.ndarray, gamma: float) -> np.ndarray:
    """delta_k = R_k + gamma v(S_k) - v(S_{k-1}), (..., n), from values (..., S); see `weighted_td`."""
    visited = np.take_along_axis(value, states, axis=-1)
    return rewards + gamma * visited[..., 1:] - visited[..., :-1]


def state_kernel(features: np.ndarray, states: np.ndarray) -> np.ndarray:
    """K(k | s) = softmax_k <x(s), x(S_{k-1})>, (..., S, n), from features (..., S, D) and states (..., n + 1)."""
    scores = features @ np.swapaxes(features, -1, -2)
    sources = np.broadcast_to(states[..., None, :-1], (*scores.shape[:-1], states.shape[-1] - 1))
    return softmax(np.take_along_axis(scores, sources, axis=-1))


def softmax_td(mrps: MRPBatch, states: np.ndarray, gamma: float, num_layers: int, alpha: float = 1.0) -> np.ndarray:
    """Weighted softmax TD with the paper's kernel, (B, L + 1, S)."""
    return weighted_td(state_kernel(mrps.features, states), states, mrps.rewards_of(states), gamma, num_layers, alpha)


def mutated_forward(
    features: np.ndarray, rewards: np.ndarray, gamma: float, num_layers: int, mutation: str
) -> np.ndarray:
    """The printed TSM form with one fault, (..., L + 1, n + 1) current-memory rows; "none" has no fault.

    Args:
        features: (..., n + 1, D).
        rewards: (..., n).
        mutation: one of `MUTATIONS`, or "none".
    """
    reward = np.concatenate([rewards, np.zeros_like(rewards[..., :1])], axis=-1)
    scores = features @ np.swapaxes(features, -1, -2)  # destination, source
    if mutation != "no mask":
        scores[..., -1] = -np.inf
    kernel = softmax(scores)
    target, current = np.zeros_like(reward), np.zeros_like(reward)
    rows = [current]
    for _ in range(num_layers):
        new = current + np.einsum("...dk,...k->...d", kernel, reward + target - current)
        source = current if mutation == "old row shifted" else new
        shifted = np.zeros_like(source)
        if mutation == "shift transposed":
            shifted[..., 1:] = source[..., :-1]
        else:
            shifted[..., :-1] = source[..., 1:]
        kept = target if mutation == "target row kept" else 0.0
        target = kept + (1.0 if mutation == "gamma dropped" else gamma) * shifted
        current = new
        rows.append(current)
    return np.stack(rows, axis=-2)


def relative_error(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|found - expected| over the trial's largest |expected| so far (at least 1), (B, L + 1, columns)."""
    scale = np.maximum.accumulate(np.abs(expected).max(axis=-1), axis=-1)
    return np.abs(found - expected) / np.maximum(scale, 1.0)[..., None]


def forward_pass(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 1."""
    num_mrps, num_transitions, num_layers = (40, 20, 8) if quick else (200, 40, 20)
    errors: dict[str, list[np.ndarray]] = {name: [] for name in ("tsm", "dual_head", *MUTATIONS)}
    for seed in seeds:
        rng = np.random.default_rng([1, seed])
        mrps = random_mrps(rng, num_mrps, NUM_STATES, NUM_FEATURES)
        states = mrps.walk(rng, num_transitions)
        features, rewards = mrps.features_of(states), mrps.rewards_of(states)
        values = softmax_td(mrps, states, GAMMA, num_layers, ALPHA)
        expected = np.take_along_axis(values, states[:, None, :], axis=-1)
        for form in ("tsm", "dual_head"):
            rows = [
                paper.paper_forward(x, r, GAMMA, num_layers, form, ALPHA)
                for x, r in zip(features, rewards, strict=True)
            ]
            errors[form].append(relative_error(np.stack(rows), expected))
        for mutation in MUTATIONS:
            found = mutated_forward(features, rewards, GAMMA, num_layers, mutation)
            errors[mutation].append(relative_error(found, expected))
    return _judge_forward({name: np.concatenate(parts) for name, parts in errors.items()})


def _judge_forward(errors: dict[str, np.ndarray]) -> Outcome:
    findings = [
        Finding.largest(f"largest relative error over MRPs, layers and columns, {name}", errors[form].max(axis=(1, 2)))
        for form, name in (("tsm", "TSM form"), ("dual_head", "dual-head form"))
    ]
    smallest = {name: errors[name].max(axis=(1, 2)) for name in MUTATIONS}
    findings += [
        Finding(f"control, {name}: largest error on the MRP where it is smallest", float(worst.min()), len(worst))
        for name, worst in smallest.items()
    ]
    equal = max(finding.value for finding in findings[:2]) < TOLERANCE
    controls = all(worst.min() > VISIBLE for worst in smallest.values())
    remarks = "" if controls else "A control that must fail does not, so that equality says nothing."
    verdict = exactly(equal) if controls else "not enough evidence"
    statement = Statement(
        "Both forms equal the recursion at every layer and column; every planted fault shows.", verdict
    )
    caption = (
        "Left: all relative errors of both forms after the first layer (float64 has 16 digits). Right: the largest"
        " error over MRPs and columns by layer, for both forms and the controls; the line is the criterion."
    )
    return Outcome((statement,), tuple(findings), remarks=remarks, figure=_forward_figure(errors), caption=caption)


def _forward_figure(errors: dict[str, np.ndarray]) -> Figure:
    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = np.concatenate([[-18.5], np.arange(-17.75, -12.0, 0.25)])
    for name, colour in zip(("tsm", "dual_head"), COLOURS, strict=False):
        shown = errors[name][:, 1:].ravel()
        logs = np.log10(np.maximum(shown, 10.0**-18.2))
        left.hist(logs, bins=bins, histtype="step", color=colour, linewidth=1.6, label=f"{name}, n = {len(logs):,}")
    left.set(yscale="log", xlabel="log10 of the relative error (leftmost bar: exactly equal)", ylabel="count")
    left.set_title("Transformer against weighted softmax TD")
    left.legend(fontsize="small")
    for index, (name, error) in enumerate(errors.items()):
        by_layer = np.maximum(error.max(axis=(0, 2)), 1e-18)
        style = STYLES[index % len(STYLES)]
        right.semilogy(by_layer, linestyle=style, color=COLOURS[index % len(COLOURS)], label=name, marker=".")
    right.axhline(TOLERANCE, color="black", linewidth=0.7)
    right.set(xlabel="layer", ylabel="largest relative error")
    right.set_title("Both forms, and controls that must fail")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize="x-small", ncols=2)
    return figure


CLAIM = Claim(
    number=1,
    id="forward-pass",
    title="The forward pass is weighted softmax TD",
    statement=(
        "From zero memories the transformer with the printed parameters computes, layer by layer and column by column,"
        " v_{t+1}(s) = v_t(s) + alpha sum_k K(k|s) (R_k + gamma v_t(S_k) - v_t(S_{k-1})) with K a softmax over the"
        " source states; with one head and the temporal shift module, and with two heads."
    ),
    source="[XLCLCZ26] Theorem 1",
    measured=(
        "`paper_forward` in both forms against the recursion over states, float64, every layer and column of random"
        " MRPs (8 states, Dirichlet(1) rows, rewards and four features from U(-1, 1), gamma = .9). The controls are"
        " faults of our own choice, one each: no mask on the query, shift transposed, discount left out of the shift,"
        " the old row shifted, the target row not erased."
    ),
    criterion=(
        f"Largest error below {TOLERANCE:g} of the trial's largest value for both forms, and above {VISIBLE:g} for each"
        " control on every MRP."
    ),
    function=forward_pass,
)
