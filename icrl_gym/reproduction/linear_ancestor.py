"""Claim 11: the linear-attention ancestor computes four linear updates and learns one; the axis of a softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.reproduction import linear_attention, linear_training
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement
from icrl_gym.reproduction.judgement import above, exactly
from icrl_gym.reproduction.mrps import boyan_chains, random_mrps
from icrl_gym.reproduction.softmax_td import softmax, weighted_td
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, MARKERS, STYLES

GAMMA, TRACE, NUM_LAYERS, TOLERANCE = 0.9, 0.7, 8, 1e-11
UPDATES = ("TD(0)", "TD(lambda)", "residual gradient", "average reward")
SIMILAR, GROUP = 0.9, 5  # cosine similarity wanted; seeds trained side by side
CONTEXTS = (1, 3, 10, 30, 100)
STEP_SIZES = np.linspace(0.05, 3.0, 60)
AXES = ("softmax over sources", "softmax over destinations, 1/n", "softmax over destinations, no 1/n")
AXIS_LAYERS, AXIS_TRANSITIONS = 30, 300


def update_errors(seed: int, num_trials: int, num_transitions: int = 30) -> np.ndarray:
    """Four transformers against their updates at the query: relative error by layer, (updates, B, L + 1).

    Random walks and a random (4, 4) preconditioner per call; traces decay by gamma lambda.
    """
    rng = np.random.default_rng([11, seed])
    mrps = random_mrps(rng, num_trials, 8, 4)
    states = mrps.walk(rng, num_transitions)
    features, rewards = mrps.features_of(states), mrps.rewards_of(states)
    preconditioner = rng.standard_normal((4, 4)) / 2.0
    return np.stack([_update_error(name, features, rewards, preconditioner) for name in UPDATES])


def _update_error(name: str, features: np.ndarray, rewards: np.ndarray, preconditioner: np.ndarray) -> np.ndarray:
    n = rewards.shape[1]
    gamma = 1.0 if name == "average reward" else GAMMA
    decay = gamma * TRACE if name == "TD(lambda)" else 0.0
    sources, successors, query = features[:, :-1], gamma * features[:, 1:], features[:, -1]
    Z = linear_attention.prompt(sources, successors, rewards, query)
    if name == "residual gradient":
        heads, method = linear_attention.residual_gradient_heads(preconditioner, n), "residual_gradient"
    elif name == "average reward":
        heads, method = linear_attention.average_reward_heads(preconditioner, n), "average_reward"
        Z = linear_attention.with_memory_row(Z)
    else:
        heads, method = linear_attention.td_heads(preconditioner, n, decay), "td"
    found = -linear_attention.forward(Z, heads, NUM_LAYERS)[..., -1]
    weights = linear_attention.linear_updates(sources, successors, rewards, preconditioner, NUM_LAYERS, method, decay)
    expected = np.einsum("bld,bd->bl", weights, query)
    scale = np.maximum(np.maximum.accumulate(np.abs(weights).max(axis=-1), axis=1), 1.0)
    return np.abs(found - expected) / scale


def learn(seeds: Sequence[int], num_chains: int, every: int, num_mrps: int, device: str) -> dict[str, np.ndarray]:
    """Train, and compare with TD(0) of the best scalar step size on new chains at every record.

    Returns:
        ``chains`` (records,); ``similarity`` and ``difference`` (B, records): cosine of the implicit weights, and mean
        squared value difference over that of TD's own values; at the end ``step_size`` (B,), ``error`` (B, contexts)
        on the median chain, and the parameters ``value`` and ``score`` (B, R, R).
    """
    mrps, moments, _ = linear_training.validation(0, num_mrps, linear_training.NUM_TRANSITIONS)
    moment = torch.as_tensor(moments)
    candidates = _td_weights(moment)
    chains, similarity, difference = [], [], []
    value = score = chosen = None
    for seen, value, score in linear_training.train(seeds, num_chains, every, device):
        value, score = value.double().cpu(), score.double().cpu()
        weight = _implicit(moment, value, score)
        chosen = _closest(weight, candidates, mrps.features)
        comparison = candidates[chosen]
        cosine = (weight * comparison).sum(-1) / np.linalg.norm(weight, axis=-1) / np.linalg.norm(comparison, axis=-1)
        gap, own = (_mean_square(w, mrps.features) for w in (weight - comparison, comparison))
        chains.append(seen)
        similarity.append(cosine.mean(axis=1))
        difference.append(gap / own)
    assert value is not None and score is not None and chosen is not None  # noqa: PT018 - one iteration at least
    return {
        "chains": np.array(chains),
        "similarity": np.stack(similarity, axis=1),
        "difference": np.stack(difference, axis=1),
        "step_size": STEP_SIZES[chosen],
        "error": np.stack([_value_errors(n, num_mrps, value, score) for n in CONTEXTS], axis=1),
        "value": value.numpy(),
        "score": score.numpy(),
    }


def _td_weights(moment: torch.Tensor) -> np.ndarray:
    """TD(0) after all layers for every candidate step size, (steps, K, D)."""
    layers = linear_training.NUM_LAYERS
    return np.stack(
        [
            linear_training.implicit_weight(moment, *linear_training.construction(step), layers).numpy()
            for step in STEP_SIZES
        ]
    )


def _implicit(moment: torch.Tensor, value: torch.Tensor, score: torch.Tensor) -> np.ndarray:
    layers = linear_training.NUM_LAYERS
    return linear_training.implicit_weight(moment, value[:, None], score[:, None], layers).numpy()


def _closest(weight: np.ndarray, candidates: np.ndarray, features: np.ndarray) -> np.ndarray:
    """(B,) index of the step size whose TD values are nearest to the learned ones."""
    return np.stack([_mean_square(weight - one, features) for one in candidates]).argmin(axis=0)


def _mean_square(weight: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Mean over chains and states of <w, x(s)>^2, (B,), from (B, K, D) and (K, S, D)."""
    return np.mean(np.einsum("bkd,ksd->bks", weight, features) ** 2, axis=(1, 2))


def _value_errors(num_transitions: int, num_mrps: int, value: torch.Tensor, score: torch.Tensor) -> np.ndarray:
    """Squared value error of the median chain with another context length, (B,); always the same chains.

    With very few transitions some contexts send the learned layers far off, so the mean says nothing.
    """
    mrps, moments, _ = linear_training.validation(1, num_mrps, num_transitions)
    weight = _implicit(torch.as_tensor(moments), value, score)
    error = np.einsum("bkd,ksd->bks", weight, mrps.features) - mrps.values(GAMMA)
    return np.median((error**2 * mrps.stationary()).sum(axis=2), axis=1)


def axis_errors(seed: int, num_mrps: int) -> np.ndarray:
    """Squared value error by layer when the softmax runs along another axis, (axes, B, L + 1), Boyan chains."""
    rng = np.random.default_rng([12, seed])
    mrps = boyan_chains(rng, num_mrps)
    states = mrps.walk(rng, AXIS_TRANSITIONS)
    features = mrps.features_of(states)
    scores = mrps.features @ np.swapaxes(features[:, :-1], 1, 2)
    total = np.exp(features @ np.swapaxes(features[:, :-1], 1, 2)).sum(axis=1, keepdims=True)
    destinations = np.exp(scores) / total
    kernels = (softmax(scores), destinations / AXIS_TRANSITIONS, destinations)
    truth, weight, rewards = mrps.values(GAMMA), mrps.stationary(), mrps.rewards_of(states)
    values = [weighted_td(kernel, states, rewards, GAMMA, AXIS_LAYERS) for kernel in kernels]
    return np.stack([np.einsum("bls,bs->bl", (value - truth[:, None]) ** 2, weight) for value in values])


@dataclass(frozen=True, eq=False)
class Learned:
    """`learn` for all seeds; arrays as there."""

    chains: np.ndarray
    similarity: np.ndarray
    difference: np.ndarray
    step_size: np.ndarray
    error: np.ndarray
    value: np.ndarray
    score: np.ndarray


def linear_ancestor(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 11."""
    num_trials, num_chains, every, num_mrps = (30, 250, 50, 100) if quick else (200, 4000, 200, 400)
    errors = update_errors(0, num_trials)
    groups = [seeds[i : i + GROUP] for i in range(0, len(seeds), GROUP)]
    pieces = [
        store.arrays(
            f"learned-{num_chains}-seeds-{group[0]}-{group[-1]}",
            lambda group=group: learn(group, num_chains, every, num_mrps, device),
        )
        for group in groups
    ]
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in list(pieces[0])[1:]}
    return _judge(errors, Learned(pieces[0]["chains"], **joined), axis_errors(0, num_trials), quick)


def _judge(errors: np.ndarray, learned: Learned, axes: np.ndarray, quick: bool) -> Outcome:
    equal = [
        Finding.largest(f"{name}: largest relative difference from its transformer", error.max(axis=1))
        for name, error in zip(UPDATES, errors, strict=True)
    ]
    chains = int(learned.chains[-1])
    similarity = Finding.mean(f"implicit-weight similarity after {chains:,} chains", learned.similarity[:, -1])
    trained = [
        similarity,
        Finding.mean("the same before training", learned.similarity[:, 0]),
        Finding.mean("value difference / mean square of TD's values", learned.difference[:, -1]),
        Finding.mean("step size of the nearest TD", learned.step_size),
    ]
    sweep = Finding.mean(
        f"learned, median chain: log error with n = {CONTEXTS[0]} less with n = {CONTEXTS[-1]}",
        np.log(learned.error[:, 0] / learned.error[:, -1]),
    )
    by_axis = [
        Finding.mean(f"value error at L = 30: {name}", error[:, -1]) for name, error in zip(AXES, axes, strict=True)
    ]
    worse = Finding.mean("... over destinations, 1/n, less over sources", axes[1, :, -1] - axes[0, :, -1])
    plain = Finding.mean("... over destinations, no 1/n, less over sources", axes[2, :, -1] - axes[0, :, -1])
    learns = above(similarity, SIMILAR)
    statements = (
        Statement(
            "Linear attention computes the four updates.", exactly(all(finding.value < TOLERANCE for finding in equal))
        ),
        Statement("Trained, it comes to compute TD(0).", "not enough evidence" if quick else learns),
        Statement("Its error falls with the context (median chain).", above(sweep)),
        Statement("A softmax over destinations with 1/n is farther from the values.", above(worse)),
    )
    caption = (
        "From left to right: largest relative difference between transformer and update by layer; similarity of the"
        " learned transformer's implicit weight to that of TD(0), every seed a line; the learned transformer's value"
        " error by context length, median chain, mean and 95 % interval over seeds; value error of softmax TD by"
        " layer when the softmax runs over sources, and over destinations."
    )
    findings = (*equal, *trained, sweep, *by_axis, worse, plain)
    remarks, figure = _remarks(learned, plain, quick), _figure(errors, learned, axes)
    return Outcome(statements, findings, remarks=remarks, figure=figure, caption=caption)


def _remarks(learned: Learned, plain: Finding, quick: bool) -> str:
    remarks = [
        "Read-outs of linear attention are linear in the query, so implicit-weight and sensitivity similarity are one"
        " number. Columns, masks and the average-reward form were derived again, with traces that decay by gamma"
        " lambda."
    ]
    below = int((learned.similarity[:, -1] < SIMILAR).sum())
    if below:
        remarks.append(f"{below} of {len(learned.similarity)} seeds ended below {SIMILAR}.")
    remarks.append(
        "The context sweep is judged on the median chain since a first run: with one transition a few contexts send the"
        " learned layers so far off that the mean says nothing."
    )
    if (plain.low or 0.0) <= 0.0:
        remarks.append("What costs accuracy over destinations is the factor 1/n: without it, no worse is seen.")
    if quick:
        remarks.append("The quick run trains on too few chains.")
    return " ".join(remarks)


def _figure(errors: np.ndarray, learned: Learned, axes: np.ndarray) -> Figure:
    figure = Figure(figsize=(16, 4.0), dpi=110, layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4)
    for index, (name, error) in enumerate(zip(UPDATES, errors, strict=True)):
        worst = np.maximum(error.max(axis=0), 1e-18)
        first.semilogy(worst, color=COLOURS[index], marker=MARKERS[index], label=name)
    first.axhline(TOLERANCE, color="black", linewidth=0.7)
    first.set(xlabel="layer", ylabel="largest relative difference", title="Four constructions")
    first.legend(fontsize="small")
    second.plot(learned.chains, learned.similarity.T, color=COLOURS[0], alpha=0.5, linewidth=0.9)
    second.axhline(SIMILAR, color="black", linewidth=0.7, linestyle="--")
    second.set(xlabel="chains seen", ylabel="cosine similarity to TD(0)", title="The learned linear transformer")
    _draw_sweep(third, learned.error)
    for index, (name, error) in enumerate(zip(AXES, axes, strict=True)):
        fourth.semilogy(error.mean(axis=0), color=COLOURS[index], linestyle=STYLES[index], label=name)
    fourth.set(xlabel="layer", ylabel="mean squared value error", title="The axis of the softmax")
    fourth.legend(fontsize="small")
    return figure


def _draw_sweep(axes: Axes, error: np.ndarray) -> None:
    findings = [Finding.mean("", column) for column in error.T]
    means = np.array([finding.value for finding in findings])
    low = np.array([finding.low if finding.low is not None else finding.value for finding in findings])
    high = np.array([finding.high if finding.high is not None else finding.value for finding in findings])
    axes.errorbar(CONTEXTS, means, yerr=[means - low, high - means], color=COLOURS[0], marker="o", capsize=3)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="transitions in the context",
        ylabel="value error, median chain",
        title="Context sweep",
    )


CLAIM = Claim(
    number=11,
    id="linear-ancestor",
    title="The linear ancestor computes, and learns, linear TD",
    statement=(
        "Linear attention with the constructed matrices computes batch TD(0), TD(lambda), residual-gradient and"
        " average-reward TD. Trained by multi-task TD from random initialisation on Boyan chains, it comes to compute"
        " TD(0); its error falls with the context. A softmax over destinations with 1/n does not give softmax TD."
    ),
    source="[WBDZ24]; the axis of the softmax is ours",
    measured=(
        "Each transformer against its update rule on random MRPs, a random preconditioner, n = 30, eight layers."
        " Learning: d = 4, ten states, n = 30, three shared layers, gamma = .9, Xavier gain .1, Adam 1e-3, weight"
        " decay 1e-6, five batches of 64 windows per chain; similarity of implicit weights to TD(0) with the best"
        " scalar step size, on 400 new chains. The axis: n = 300, 30 layers, on Boyan chains."
    ),
    criterion=(
        f"Differences below {TOLERANCE:g}; the interval of the similarity after 4,000 chains above {SIMILAR}; error of"
        " the median chain at n = 100 below that at n = 1, and over sources below that over destinations with 1/n,"
        " each with an interval above zero."
    ),
    function=linear_ancestor,
    num_seeds=10,
    quick_seeds=2,
    least_seeds=10,
)
