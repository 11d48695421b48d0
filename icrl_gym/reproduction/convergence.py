"""Claim 3: the error of softmax TD decays geometrically with depth, to a floor that falls with the context's length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Statement, Table, table_of
from icrl_gym.reproduction.empirical import EmpiricalModel, inf_norm, spectral_radius
from icrl_gym.reproduction.judgement import exactly, within
from icrl_gym.reproduction.mrps import boyan_chains, random_mrps
from icrl_gym.reproduction.store import Store
from icrl_gym.scoring.figures import COLOURS, MARKERS
from icrl_gym.scoring.statistics import bootstrap_interval

GAMMA, NUM_TRANSITIONS, NUM_LAYERS = 0.9, 1000, 200
LENGTHS = (300, 1000, 3000, 10000, 30000)
FLOOR_TEMPERATURE, FLOOR_LAYERS = 10.0, 400
RATE_FROM = 100  # the rate is read off layers from here on
ROUNDING = 1e-9  # relative
READABLE = 1e-12  # relative errors above this still show their rate
SLOPE_TOLERANCE = 0.1
CAPTION = (
    "Left: distance to the fixed point by layer, one context per regime, with the bound (1 - C)^L where it exists."
    " Middle: error against the true values at great depth, against the context's length, mean and middle 80 % of"
    " MRPs. Right: spectral radius against the smallest share of attention that a state gives its own visits;"
    " Assumption 5.1 holds right of the dashed line, the recursion converges below the solid one."
)

ONE_HOT = {f"one-hot, tau = {tau:g}": np.sqrt(tau) * np.eye(10) for tau in (4.0, 8.0, 10.0)}
GENERIC = {"U(-1, 1)^4": ("uniform", 4, 1.0), "2 N(0, I_2)": ("normal", 2, 2.0), "2 N(0, I_4)": ("normal", 4, 2.0)}
FAMILIES = (*ONE_HOT, *GENERIC)
REGIMES = ("satisfied", "violated, convergent", "violated, divergent")


def scores_of(family: str, rng: np.random.Generator, num_mrps: int) -> np.ndarray:
    """g(s, s') of a family of features, (B, 10, 10)."""
    if family in ONE_HOT:
        table = np.broadcast_to(ONE_HOT[family], (num_mrps, 10, 10))
    else:
        kind, dimension, scale = GENERIC[family]
        draw = rng.uniform(-1, 1, (num_mrps, 10, dimension)) if kind == "uniform" else None
        table = scale * (rng.standard_normal((num_mrps, 10, dimension)) if draw is None else draw)
    return table @ np.swapaxes(table, 1, 2)


@dataclass(frozen=True, eq=False)
class Decay:
    """The effect of depth on B contexts of one family of features.

    Attributes:
        smallest_mass: (B,) min_s M^(s, s).
        radius, norm: (B,) of I - M^ + gamma P^.
        errors: (B, L + 1) largest distance to the fixed point over states.
        rate: (B,) measured factor per layer at great depth, NaN where the recursion grows.
    """

    smallest_mass: np.ndarray
    radius: np.ndarray
    norm: np.ndarray
    errors: np.ndarray
    rate: np.ndarray

    @property
    def certificate(self) -> np.ndarray:
        """2 (1 - min_s M^(s, s)) + gamma, (B,)."""
        return 2.0 * (1.0 - self.smallest_mass) + GAMMA

    @property
    def margin(self) -> np.ndarray:
        """C of Assumption 5.1 on the context itself, (B,); negative where it is violated."""
        return self.smallest_mass - (1.0 + GAMMA) / 2.0

    @property
    def regime(self) -> np.ndarray:
        """(B,) index into `REGIMES`."""
        return np.where(self.margin > 0, 0, np.where(self.radius < 1.0, 1, 2))

    @property
    def above_bound(self) -> np.ndarray:
        """(B,) largest excess of the error over (1 - C)^L times the first error, relative to the first error."""
        layers = np.arange(self.errors.shape[1])
        bound = (1.0 - self.margin[:, None]) ** layers * self.errors[:, :1]
        return ((self.errors - bound) / self.errors[:, :1]).max(axis=1)


def decay_of(model: EmpiricalModel, scores: np.ndarray, gamma: float, num_layers: int) -> Decay:
    """Run the layers from zero and compare with the fixed point; every state must be a source."""
    mass = model.source_mass(scores)
    iteration = model.iteration(mass, gamma)
    limit = model.certainty_equivalence(gamma)
    with np.errstate(over="ignore", invalid="ignore"):
        errors = np.abs(model.layers(mass, gamma, num_layers) - limit[:, None]).max(axis=2)
        rate = (errors[:, -1] / errors[:, RATE_FROM]) ** (1.0 / (num_layers - RATE_FROM))
    radius = spectral_radius(iteration)
    smallest = np.diagonal(mass, axis1=1, axis2=2).min(axis=1)
    return Decay(smallest, radius, inf_norm(iteration), errors, np.where(radius < 1.0, rate, np.nan))


def floors(seed: int, num_mrps: int, lengths: Sequence[int]) -> np.ndarray:
    """Largest error over states at great depth for contexts of each length, (B, lengths).

    Contexts that miss a state are left out.
    """
    rng = np.random.default_rng([3, seed])
    mrps = random_mrps(rng, num_mrps, 8, 1)
    truth = mrps.values(GAMMA)
    states = mrps.walk(rng, max(lengths))
    rewards = mrps.rewards_of(states)
    scores = np.broadcast_to(FLOOR_TEMPERATURE * np.eye(8), mrps.transition.shape)
    errors, complete = [], np.ones(num_mrps, dtype=bool)
    for n in lengths:
        model = EmpiricalModel.of(states[:, : n + 1], rewards[:, :n], 8)
        deep = model.layers(model.source_mass(scores), GAMMA, FLOOR_LAYERS)[:, -1]
        errors.append(np.abs(deep - truth).max(axis=1))
        complete &= model.complete
    return np.stack(errors, axis=1)[complete]


def error_decay(quick: bool, seeds: Sequence[int], device: str, store: Store) -> Outcome:
    """Claim 3."""
    num_mrps, lengths = (60, LENGTHS[:3]) if quick else (300, LENGTHS)
    parts: dict[str, list[Decay]] = {family: [] for family in FAMILIES}
    floor = np.concatenate([floors(seed, num_mrps, lengths) for seed in seeds])
    for seed in seeds:
        rng = np.random.default_rng([4, seed])
        mrps = boyan_chains(rng, num_mrps)
        states = mrps.walk(rng, NUM_TRANSITIONS)
        model = EmpiricalModel.of(states, mrps.rewards_of(states), 10)
        kept = model.complete
        model = EmpiricalModel(model.counts[kept], model.transition[kept], model.reward[kept])
        for family in FAMILIES:
            scores = scores_of(family, rng, int(kept.sum()))
            parts[family].append(decay_of(model, scores, GAMMA, NUM_LAYERS))
    return _judge({family: _joined(decays) for family, decays in parts.items()}, floor, lengths)


def _joined(decays: Sequence[Decay]) -> Decay:
    return Decay(*(np.concatenate([getattr(decay, name) for decay in decays]) for name in Decay.__annotations__))


def slope_with_interval(lengths: Sequence[int], errors: np.ndarray) -> Finding:
    """Slope of log mean error against log n, with a percentile bootstrap over the rows of ``errors`` (B, lengths)."""
    x = np.log(lengths) - np.log(lengths).mean()

    def slope(rows: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.log(np.take(errors, rows, axis=0).mean(axis=axis % rows.ndim)) @ x / (x @ x)

    rows = np.arange(len(errors))
    return Finding(
        "floor: slope of log error against log n", float(slope(rows)), len(errors), *bootstrap_interval(rows, slope)
    )


def _judge(decays: dict[str, Decay], floor: np.ndarray, lengths: Sequence[int]) -> Outcome:
    whole = _joined(list(decays.values()))
    slope = slope_with_interval(lengths, floor)
    findings = _findings(whole, slope, decays["U(-1, 1)^4"])
    counts = np.bincount(whole.regime, minlength=3)
    statements = (
        Statement(
            "Where the assumption is satisfied the error stays below (1 - C)^L and the recursion converges.",
            exactly(findings[0].value < ROUNDING and findings[1].value == 1.0),
        ),
        Statement("radius <= norm <= certificate on every context.", exactly(findings[2].value < ROUNDING)),
        Statement("The floor falls as n^-1/2.", within(slope, -0.5 - SLOPE_TOLERANCE, -0.5 + SLOPE_TOLERANCE)),
        Statement("The constants c and c' of the theorem.", "not tested"),
        Statement(
            "The assumption is not necessary: contexts that violate it converge, others diverge (ours).",
            exactly(bool(counts.all())),
            decides=False,
        ),
    )
    remarks = (
        f"Assumption 5.1 is sufficient and far from necessary: {counts[1]:,} contexts violate it and converge,"
        f" {counts[2]:,} violate it and diverge. No context with generic features satisfies it"
        if not any((decays[name].regime == 0).any() for name in GENERIC)
        else f"Contexts by regime: {dict(zip(REGIMES, counts.tolist(), strict=True))}"
    )
    remarks += "; without terminations no kernel contracts faster than gamma."
    figure = _figure(decays, whole, floor, lengths)
    return Outcome(statements, findings, remarks=remarks, figure=figure, caption=CAPTION, tables=(_regimes(decays),))


def _findings(whole: Decay, slope: Finding, generic: Decay) -> tuple[Finding, ...]:
    satisfied, convergent = whole.regime == 0, whole.radius < 1.0
    readable = convergent & (whole.errors[:, -1] > READABLE * whole.errors[:, 0])
    gap = np.abs(whole.rate - whole.radius)[readable]
    order = np.maximum(whole.radius - whole.norm, whole.norm - whole.certificate)
    return (
        Finding.largest("assumption satisfied: excess over (1 - C)^L, relative", whole.above_bound[satisfied]),
        Finding.share("assumption satisfied: share convergent", int(convergent[satisfied].sum()), int(satisfied.sum())),
        Finding.largest("radius <= sup-norm <= certificate: largest excess", order),
        Finding.largest("gamma less the spectral radius: largest", GAMMA - whole.radius),
        Finding("|measured rate - spectral radius|: median", float(np.median(gap)), len(gap)),
        Finding("|measured rate - spectral radius|: 95th percentile", float(np.percentile(gap, 95)), len(gap)),
        slope,
        Finding.share(
            "features U(-1, 1)^4, assumption always violated: share convergent",
            int((generic.regime == 1).sum()),
            len(generic.regime),
        ),
    )


def _regimes(decays: dict[str, Decay]) -> Table:
    rows = []
    for family, decay in decays.items():
        counts = np.bincount(decay.regime, minlength=3)
        median = f"{np.median(decay.smallest_mass):.3f}"
        rows.append((family, *(f"{count}" for count in counts), median, f"{np.median(decay.radius):.3f}"))
    columns = ("features", *REGIMES, "median min M(s, s)", "median radius")
    return table_of(columns, rows, f"Contexts by regime (Boyan-10 chains, n = {NUM_TRANSITIONS:,}).")


def _figure(decays: dict[str, Decay], whole: Decay, floor: np.ndarray, lengths: Sequence[int]) -> Figure:
    figure = Figure(figsize=(14, 4.4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw_decay(left, whole)
    middle.loglog(lengths, floor.mean(axis=0), color=COLOURS[0], marker="o", label=f"mean of {len(floor)} MRPs")
    middle.fill_between(lengths, *np.percentile(floor, [10, 90], axis=0), color=COLOURS[0], alpha=0.2, linewidth=0)
    reference = floor.mean(axis=0)[0] * np.sqrt(lengths[0] / np.array(lengths))
    middle.loglog(lengths, reference, "k--", linewidth=0.8, label="slope -1/2")
    middle.set(xlabel="transitions in the context, n", ylabel="largest error over states", title="The floor")
    middle.legend(fontsize="small")
    for index, (family, decay) in enumerate(decays.items()):
        right.scatter(
            decay.smallest_mass, decay.radius, s=7, alpha=0.5, color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)], label=family, linewidths=0,
        )  # fmt: skip
    right.axvline((1 + GAMMA) / 2, color="black", linestyle="--", linewidth=0.8)
    right.axhline(1.0, color="black", linewidth=0.8)
    right.set(xlabel="min_s M(s, s)", ylabel="spectral radius of I - M + gamma P", title="Three regimes")
    right.legend(fontsize="x-small", markerscale=2)
    return figure


def _draw_decay(axes: Axes, whole: Decay) -> None:
    layers = np.arange(whole.errors.shape[1])
    for regime, name in enumerate(REGIMES):
        members = np.flatnonzero(whole.regime == regime)
        if not len(members):
            continue
        chosen = members[np.argsort(whole.radius[members])[len(members) // 2]]
        relative = np.minimum(whole.errors[chosen] / whole.errors[chosen, 0], 1e6)
        axes.semilogy(layers, relative, color=COLOURS[regime], label=f"{name}, radius {whole.radius[chosen]:.2f}")
        if regime == 0:
            label = f"(1 - C)^L, C = {whole.margin[chosen]:.3f}"
            bound = (1.0 - whole.margin[chosen]) ** layers
            axes.semilogy(layers, bound, color=COLOURS[0], linestyle="--", label=label)
    axes.set(xlabel="layer", ylabel="distance to the fixed point / first", title="Decay with depth", ylim=(1e-11, 1e7))
    axes.legend(fontsize="x-small")


CLAIM = Claim(
    number=3,
    id="convergence",
    title="The error decays with depth to a floor of order n^-1/2",
    statement=(
        "If min_s M(s, s) >= (1 + gamma)/2 + C with 0 < C < (1 - gamma)/2 (Assumption 5.1), then for large n the"
        " largest error over states is at most (1 - C)^L times the first one plus a constant times"
        " sqrt(log(1/delta)/n). The matrix of a layer obeys ||I - M + gamma P||_inf <= 2 (1 - min_s M(s, s)) + gamma."
    ),
    source="[XLCLCZ26] Theorem 2 and eqs 20-23; the regimes are ours",
    measured=(
        "Boyan-10 chains with six kinds of features, gamma = .9, n = 1,000: distance to the fixed point in each of 200"
        " layers, spectral radius, norm, certificate, and C, all on the context itself. The floor: 8-state random"
        " MRPs, one-hot features with tau = 10, 400 layers, against exact values. Contexts that miss a state are left"
        " out."
    ),
    criterion=(
        "Wherever the context satisfies the assumption, the error stays below (1 - C)^L at every layer and the"
        " recursion converges; radius <= norm <= certificate everywhere; the interval of the floor's slope lies within"
        " -0.5 +- 0.1."
    ),
    function=error_decay,
)
