"""Claim 4: what infinitely many layers compute, and why finite depth is a regulariser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_gym.reproduction.bias_variance import TRACES, WIDTHS, ErrorMap, figure_of, measure
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement, Table, table_of
from icrl_gym.reproduction.empirical import EmpiricalModel, spectral_radius
from icrl_gym.reproduction.judgement import above, exactly, together
from icrl_gym.reproduction.mrps import random_mrps
from icrl_gym.reproduction.store import Store

GAMMA, NUM_STATES, NUM_TRANSITIONS = 0.9, 8, 200
DOUBLINGS = 26  # 2^26 layers
CONVERGENT = 1.0 - 1e-5  # spectral radius below which 2^26 layers are the limit
TOLERANCE = 1e-6  # relative; the systems are ill-conditioned where kernels are wide
KERNELS = ("one-hot, tau = 6", "inner product, N(0, I_4)", "Gaussian", "Laplace", "asymmetric, 4 I + N(0, 1)")


def kernel_scores(rng: np.random.Generator, num_mrps: int, num_states: int) -> dict[str, np.ndarray]:
    """g(s, s') of five kernels, each (B, S, S); the last is not even symmetric."""
    x = rng.standard_normal((num_mrps, num_states, 4))
    distance = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
    noise = rng.standard_normal((num_mrps, num_states, num_states))
    tables = (
        6.0 * np.eye(num_states) + 0.0 * noise,
        x @ np.swapaxes(x, 1, 2),
        -(distance**2) / 2,
        -distance,
        4.0 * np.eye(num_states) + noise,
    )
    return dict(zip(KERNELS, tables, strict=True))


def deep_limit(model: EmpiricalModel, mass: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Values (B, S) after 2^26 layers from zero, by squaring the affine map, and (B,) whether that is the limit."""
    power, drift = model.iteration(mass, gamma), (mass @ model.reward[..., None])[..., 0]
    settled = _settled(model, mass, gamma)
    power = np.where(settled[:, None, None], power, 0.0)
    for _ in range(DOUBLINGS):
        drift = drift + (power @ drift[..., None])[..., 0]
        power = power @ power
    return drift, settled


def _settled(model: EmpiricalModel, mass: np.ndarray, gamma: float) -> np.ndarray:
    """Convergence from zero is decided on the sources: a state that is no source follows them."""
    source = model.counts > 0
    follow = np.where(source[:, :, None], 0.0, mass) @ _pseudo_inverse_on_sources(mass, source)
    fold = np.eye(mass.shape[-1]) * source[:, :, None] + follow
    reduced = np.eye(mass.shape[-1]) * source[:, :, None] - mass * source[:, :, None] @ (
        np.eye(mass.shape[-1]) - gamma * model.transition @ fold
    )
    return spectral_radius(reduced) < CONVERGENT


def _pseudo_inverse_on_sources(mass: np.ndarray, source: np.ndarray) -> np.ndarray:
    """K_S^-1 in place, zero rows and columns for what is no source."""
    inside = mass * source[:, :, None] + np.eye(mass.shape[-1]) * ~source[:, :, None]
    return np.linalg.inv(inside) * source[:, :, None] * source[:, None, :]


def interpolated_limit(model: EmpiricalModel, mass: np.ndarray, gamma: float) -> np.ndarray:
    """(I - gamma (P_SS + P_SB J))^-1 r with J = K_B K_S^-1 on the sources, and J of it elsewhere, (B, S)."""
    source = model.counts > 0
    interpolant = mass @ _pseudo_inverse_on_sources(mass, source)
    identity = np.eye(mass.shape[-1])
    at_sources = np.linalg.solve(identity - gamma * model.transition @ interpolant, model.reward[..., None])
    return (interpolant @ at_sources)[..., 0]


def same_limit(seed: int, num_mrps: int, open_end: bool) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Deep limits under five kernels on the same contexts.

    Args:
        open_end: replace the last state of every walk by a new one, which is never a source.

    Returns:
        per kernel (B, 3): relative distance to certainty equivalence over sources, to the interpolated limit over all
        states, and layers to 1 %, all NaN where the recursion does not converge; and (B,) the largest distance between
        two kernels' limits over the sources.
    """
    rng = np.random.default_rng([6, seed, int(open_end)])
    mrps = random_mrps(rng, num_mrps, NUM_STATES, 1)
    states = mrps.walk(rng, NUM_TRANSITIONS)
    rewards = mrps.rewards_of(states)
    size = NUM_STATES + int(open_end)
    if open_end:
        states[:, -1] = NUM_STATES
    model = EmpiricalModel.of(states, rewards, size)
    keep = np.all(model.counts[:, :NUM_STATES] > 0, axis=1)
    model = EmpiricalModel(model.counts[keep], model.transition[keep], model.reward[keep])
    expected = model.certainty_equivalence(GAMMA)
    scale = np.abs(expected).max(axis=1)
    distances, limits = {}, []
    for name, scores in kernel_scores(rng, len(expected), size).items():
        mass = model.source_mass(scores)
        limit, settled = deep_limit(model, mass, GAMMA)
        formula = interpolated_limit(model, mass, GAMMA)
        layers = np.log(0.01) / np.log(np.minimum(spectral_radius(model.iteration(mass, GAMMA)), CONVERGENT))
        found = np.stack(
            [
                np.abs(limit - expected)[:, :NUM_STATES].max(axis=1) / scale,
                np.abs(limit - formula).max(axis=1) / scale,
                layers,
            ],
            axis=1,
        )
        distances[name] = np.where(settled[:, None], found, np.nan)
        limits.append(np.where(settled[:, None], limit[:, :NUM_STATES], np.nan))
    spread = np.nanmax(limits, axis=0) - np.nanmin(limits, axis=0)
    return distances, spread.max(axis=1) / scale


def distinct_states(seed: int, num_contexts: int, num_transitions: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Contexts of distinct states N(0, I_2), a sixth of the transitions terminating, the last one always.

    Returns:
        (B,) relative distance between the Gaussian kernel's limit (width .5) and the return that each state was
        followed by, NaN where there is no limit; and (B, 2) whether the recursion diverges, Gaussian and inner product,
        both of width .5.
    """
    rng = np.random.default_rng([7, seed])
    x = rng.standard_normal((num_contexts, num_transitions, 2)) / 0.5
    going_on = rng.random((num_contexts, num_transitions)) > 1 / 6
    going_on[:, -1] = False
    reward = rng.standard_normal((num_contexts, num_transitions))
    transition = going_on[..., None] * np.eye(num_transitions, k=1)
    model = EmpiricalModel(np.ones_like(reward), transition, reward)
    returns = np.zeros_like(reward)
    for k in reversed(range(num_transitions)):
        later = returns[:, k + 1] if k + 1 < num_transitions else 0.0
        returns[:, k] = reward[:, k] + GAMMA * going_on[:, k] * later
    gaussian = -(np.linalg.norm(x[:, :, None] - x[:, None], axis=-1) ** 2) / 2
    limit, settled = deep_limit(model, model.source_mass(gaussian), GAMMA)
    distance = np.abs(limit - returns).max(axis=1) / np.abs(returns).max(axis=1)
    radii = [
        spectral_radius(model.iteration(model.source_mass(scores), GAMMA))
        for scores in (gaussian, x @ np.swapaxes(x, 1, 2))
    ]
    return np.where(settled, distance, np.nan), np.stack(radii, axis=1) > 1.0 + 1e-9


def infinite_depth(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 4."""
    num_mrps, num_trials, num_layers = (40, 4, 64) if quick else (200, 16, 128)
    closed = [same_limit(seed, num_mrps, open_end=False) for seed in seeds]
    opened = [same_limit(seed, num_mrps, open_end=True) for seed in seeds]
    returns = [distinct_states(seed, num_mrps) for seed in seeds]
    pieces = [
        store.arrays(f"map-seed-{seed}", lambda seed=seed: measure(seed, num_trials, num_layers)) for seed in seeds
    ]
    found = ErrorMap.of(pieces)
    findings, statements = _limit_findings(closed, opened, returns)
    more, trades = _map_findings(found)
    remarks = (
        "The map is of one process and one context length. Which kernels converge is another matter: in a first run a"
        " kernel of independent N(0, 1) scores, in place of the asymmetric one here, converged on none of 160 contexts,"
        " and inner products of width 1 diverged on none of 160 contexts of distinct states."
    )
    if _best_by_trace(found).argmin() == 0:
        remarks += " There no trace improves on lambda = 0 at its best depth; traces only need fewer layers."
    caption = (
        "Three maps of the error of softmax TD(lambda) on a process on the line, over depth and kernel width, from"
        f" contexts of 200 distinct states ({found.squared.shape[2]} of them): a dot marks the best point of each map,"
        " the star the best of all. Right: bias and standard deviation along the depth at the star's width; the bias"
        " is shown less its own sampling noise, so zero means that it cannot be told from that."
    )
    tables = (_kernel_table(closed, opened), _trace_table(found))
    return Outcome(
        (*statements, trades),
        (*findings, *more),
        remarks=remarks,
        figure=figure_of(found),
        caption=caption,
        tables=tables,
    )


def _joined(parts: Sequence[tuple[dict[str, np.ndarray], np.ndarray]], kernel: str) -> np.ndarray:
    return np.concatenate([distances[kernel] for distances, _ in parts])


def _limit_findings(closed, opened, returns) -> tuple[list[Finding], tuple[Statement, ...]]:
    every_closed = np.concatenate([_joined(closed, kernel) for kernel in KERNELS])
    every_open = np.concatenate([_joined(opened, kernel) for kernel in KERNELS])
    here, there = ~np.isnan(every_closed[:, 0]), ~np.isnan(every_open[:, 0])
    spread = np.concatenate([part[1] for part in opened])
    distance = np.concatenate([part[0] for part in returns])
    diverges = np.concatenate([part[1] for part in returns])
    findings = [
        Finding.largest("every successor a source: largest distance to certainty equivalence", every_closed[here, 0]),
        Finding.largest("open end: largest distance to the interpolated formula", every_open[there, 1]),
        Finding("open end: median distance between kernels' limits", float(np.median(spread)), len(spread)),
        Finding.largest(
            "distinct states: largest distance to the single trajectory's returns", distance[~np.isnan(distance)]
        ),
        Finding.share(
            "distinct states, inner product of width .5: share divergent", int(diverges[:, 1].sum()), len(diverges)
        ),
        Finding.share(
            "distinct states, Gaussian kernel of width .5: share divergent", int(diverges[:, 0].sum()), len(diverges)
        ),
    ]
    closed_limit, open_limit, apart, single = findings[:4]
    return findings, (
        Statement(
            "With every successor a source the limit is certainty equivalence for every kernel.",
            exactly(closed_limit.value < TOLERANCE),
        ),
        Statement(
            "With an open end it is the interpolated formula, another one for each kernel.",
            exactly(open_limit.value < TOLERANCE and apart.value > 1e-2),
        ),
        Statement("With distinct states it is the single trajectory's return.", exactly(single.value < TOLERANCE)),
    )


def _map_findings(found: ErrorMap) -> tuple[list[Finding], Statement]:
    """Choose the best point on one half of the trials, measure on the other."""
    num_trials, num_layers = found.squared.shape[2:]
    half = num_trials // 2
    width, trace, layer = found.best(slice(half))
    squared = found.squared[:, :, half:]
    best = squared[width, trace, :, layer]
    deepest, narrow = squared[width, trace, :, -1], squared[0, trace, :, layer]
    shallow, wide = squared[width, trace, :, 0], squared[-1, trace, :, layer]
    findings = [
        Finding(f"best point: layers (of {num_layers})", layer + 1, half),
        Finding("best point: width / standard deviation", WIDTHS[width], half),
        Finding("best point: lambda", TRACES[trace], half),
        Finding.mean("best point: mean squared error, other half of the trials", best),
        Finding.mean("... less than with one layer by", shallow - best),
        Finding.mean(f"... less than with {num_layers} layers by", deepest - best),
        Finding.mean("... less than with the narrowest kernel by", narrow - best),
        Finding.mean("... less than with the widest kernel by", wide - best),
    ]
    bias, spread = found.bias[width, trace], found.spread[width, trace]
    ways = bias[0] > bias[layer] > bias[-1] and spread[0] < spread[layer] < spread[-1]
    verdict = together([exactly(bool(ways)), *map(above, findings[4:])])
    return findings, Statement("Depth and width trade bias for variance, and the best point lies inside.", verdict)


def _best_by_trace(found: ErrorMap) -> np.ndarray:
    return found.rmse.min(axis=(0, 2))


def _kernel_table(closed, opened) -> Table:
    rows = []
    for kernel in KERNELS:
        here, there = _joined(closed, kernel), _joined(opened, kernel)
        settled = ~np.isnan(here[:, 0])
        rows.append(
            (
                kernel,
                f"{settled.sum()} of {len(here)}",
                f"{np.nanmax(here[:, 0]):.1e}" if settled.any() else "-",
                f"{np.nanmedian(here[:, 2]):,.0f}" if settled.any() else "-",
                f"{np.nanmedian(there[:, 0]):.2g}" if (~np.isnan(there[:, 0])).any() else "-",
            )
        )
    columns = (
        "kernel", "convergent", "largest distance to certainty equivalence", "median layers to 1 %",
        "open end: median distance to certainty equivalence",
    )  # fmt: skip
    return table_of(columns, rows, "Five kernels on the same contexts (8-state random MRPs, n = 200).")


def _trace_table(found: ErrorMap) -> Table:
    rows = []
    for index, trace in enumerate(TRACES):
        width, layer = np.unravel_index(int(found.rmse[:, index].argmin()), found.rmse[:, index].shape)
        rows.append((f"{trace:g}", f"{WIDTHS[width]:g}", f"{layer + 1}", f"{found.rmse[width, index, layer]:.3f}"))
    return table_of(("lambda", "best width", "best depth", "RMSE there"), rows, "The best point for every trace.")


CLAIM = Claim(
    number=4,
    id="infinite-depth",
    title="Infinite depth is certainty equivalence, so finite depth regularises",
    statement=(
        "If states have distinct features and every successor is itself a source, infinitely many layers, wherever"
        " they converge, give the certainty-equivalence value (I - gamma P_emp)^-1 r_emp for any kernel; the kernel"
        " sets the speed alone. With a successor that is never a source the limit depends on the kernel, through K_B"
        " K_S^-1. Where all states are distinct the limit is the single trajectory's return; there depth, kernel width"
        " and trace length trade bias for variance, and the best point lies inside."
    ),
    source="ours",
    measured=(
        "2^26 layers (by squaring the affine map) under five kernels, one of them with independent random scores, on"
        " walks of random MRPs, closed and with an open end; contexts of distinct states against their returns; and a"
        " map of bias and variance on S' = .9 S + .5 xi with reward cos(2 S), gamma = .95, n = 200, whose values are"
        " known exactly."
    ),
    criterion=(
        f"Equalities to {TOLERANCE:g} wherever the recursion converges; with an open end the kernels' limits differ by"
        " more than 1 % in the median. In the map, from the first to the best to the last layer bias falls and"
        " variance grows, and the best point, chosen on half of the trials, beats on the other half the first and the"
        " last layer, the narrowest and the widest kernel, each with an interval above zero."
    ),
    function=infinite_depth,
    num_seeds=4,
    quick_seeds=4,
    least_seeds=4,
)
