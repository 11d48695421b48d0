"""Every value estimator behind one protocol and one table from names to constructors, with defaults and tuning grids.

Other packages add theirs by an entry point in the group `icrl_gym.estimators`: the name is the entry point's, the
object a factory ``(**options) -> estimator``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import entry_points
from itertools import product
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable

from icrl_gym import rivals as classical
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.checkpoint import available_checkpoints, checkpoint_digest
from icrl_gym.evaluator.estimator import InContextEvaluator
from icrl_gym.observations import Observations
from icrl_gym.values import ValueEstimates

ENTRY_POINT_GROUP = "icrl_gym.estimators"


@runtime_checkable
class Estimator(Protocol):
    """A value estimator: one log in, values of any observations out."""

    def fit(self, trajectory: Trajectory, gamma: float, policy: Any = None) -> Self:
        """Learn from a log; gamma in [0, 1). Returns self.

        ``policy`` is the policy to be evaluated, anything `as_policy` takes; None: the one that acted, known by its
        actions. An estimator that cannot ask it refuses a log of another policy without importance ratios (ValueError).
        """
        ...

    def predict(self, observations: Observations) -> ValueEstimates:
        """Values of raw observations (Q,) + shape."""
        ...


@dataclass(frozen=True)
class Registration:
    """One estimator of the table.

    Attributes:
        factory: constructor; its own defaults are the documented default setting.
        grid: option -> values to try when tuned in hindsight; the grid is their product.
    """

    factory: Callable[..., Estimator]
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


_WIDTHS = (0.2, 0.4, 0.8, 1.6)
_STEPS = {"step_size": (0.03, 0.1, 0.3), "num_passes": (10, 50)}
_RIDGES = {"ridge": (1e-4, 1e-3, 1e-2), "width": (1.0, 2.0)}
_constructed = partial(InContextEvaluator.from_pretrained, "constructed")

_BUILT_IN: dict[str, Registration] = {
    "generalist": Registration(partial(InContextEvaluator.from_pretrained, "generalist")),
    "generalist_from_log": Registration(partial(InContextEvaluator.from_pretrained, "generalist", imagination="log")),
    "generalist_expected": Registration(
        partial(InContextEvaluator.from_pretrained, "generalist", imagination="expected")
    ),
    "generalist_at_rest": Registration(partial(InContextEvaluator.from_pretrained, "generalist", imagination=False)),
    "constructed": Registration(_constructed, {"bandwidth": (0.8, 1.6, 2.4), "forgetting": (1e-5, 1e-4, 1e-3)}),
    "softmax_td": Registration(
        partial(_constructed, num_layers=8), {"bandwidth": (0.4, 0.9, 1.6), "trace_decay": (0.9, 0.95, 0.98)}
    ),
    "theorem_1": Registration(partial(_constructed, plain=True), {"num_layers": (8, 24, 100)}),
    "td": Registration(classical.TDLambda, _STEPS),
    "td_lambda": Registration(
        partial(classical.TDLambda, trace_decay=0.9), {**_STEPS, "trace_decay": (0.5, 0.9, 0.98)}
    ),
    "true_online_td": Registration(
        partial(classical.TrueOnlineTDLambda, trace_decay=0.9), {**_STEPS, "trace_decay": (0.5, 0.9, 0.98)}
    ),
    "gtd2": Registration(classical.GTD2, _STEPS),
    "tdc": Registration(classical.TDC, _STEPS),
    "lstd": Registration(classical.LSTD, {**_RIDGES, "trace_decay": (0.0, 0.5, 0.9)}),
    "bellman_residual": Registration(classical.BellmanResidual, _RIDGES),
    "certainty_equivalence": Registration(classical.CertaintyEquivalence),
    "kbrl": Registration(classical.KernelBasedRL, {"width": _WIDTHS}),
    "nadaraya_watson": Registration(classical.NadarayaWatson, {"width": _WIDTHS}),
    "nearest_neighbours": Registration(classical.NearestNeighbours, {"num_neighbours": (4, 16, 64)}),
    "gptd": Registration(classical.GaussianProcessTD, {"width": (0.8, 1.6), "noise": (0.01, 0.1, 1.0)}),
    "fitted_value_network": Registration(
        classical.FittedValueNetwork, {"num_steps": (500, 2000), "learning_rate": (3e-4, 1e-3)}
    ),
    "fqe": Registration(classical.FittedQEvaluation, {"num_steps": (500, 2000), "learning_rate": (3e-4, 1e-3)}),
    "linear_in_context_td": Registration(classical.LinearInContextTD, {"num_layers": (10, 30, 100)}),
}


@cache
def _entries() -> Mapping[str, Registration]:
    others = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    taken = sorted(set(others) & set(_BUILT_IN))
    if taken:
        raise ValueError(f"entry points of group {ENTRY_POINT_GROUP} take names that are in use: {taken}")
    added = {name: Registration(_loading(point)) for name, point in others.items()}
    return MappingProxyType({**_BUILT_IN, **added})


def _loading(point: Any) -> Callable[..., Estimator]:
    return lambda **options: point.load()(**options)


def estimators() -> Mapping[str, Callable[..., Estimator]]:
    """All estimators by name, those of other packages included; each factory takes the estimator's own keywords."""
    return MappingProxyType({name: entry.factory for name, entry in _entries().items()})


def make_estimator(name: str, **options: Any) -> Estimator:
    """Construct an estimator by name.

    Raises:
        ValueError: no such name; the known ones are listed.
        TypeError: an option that this estimator does not have.
    """
    return _entry(name).factory(**options)


def tuning_grid(name: str) -> list[dict[str, Any]]:
    """The settings tried when an estimator is tuned in hindsight, each as keyword arguments; [{}] if it has none.

    Raises:
        ValueError: no such name.
    """
    grid = _entry(name).grid
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def weights_sha256(name: str) -> str | None:
    """The sha256 that the bundled checkpoint of this name states, None for an estimator without one."""
    return checkpoint_digest(name) if name in available_checkpoints() else None


def _entry(name: str) -> Registration:
    if name not in _entries():
        raise ValueError(f"estimator must be one of {sorted(_entries())}, got {name!r}")
    return _entries()[name]
