"""Every value estimator behind one protocol and one table from names to constructors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable

from icrl_gym.evaluator import InContextEvaluator
from icrl_gym.observations import Observations
from icrl_gym.trajectory import Trajectory
from icrl_gym.values import ValueEstimates


@runtime_checkable
class Estimator(Protocol):
    """A value estimator: one log in, values of any observations out."""

    def fit(self, trajectory: Trajectory, gamma: float) -> Self:
        """Learn from a log; gamma in [0, 1). Returns self."""
        ...

    def predict(self, observations: Observations) -> ValueEstimates:
        """Values of raw observations (Q,) + shape."""
        ...


_FACTORIES: dict[str, Callable[..., Estimator]] = {
    "constructed": partial(InContextEvaluator.from_pretrained, "constructed"),
    "theorem_1": partial(InContextEvaluator.from_pretrained, "constructed", plain=True),
}


def estimators() -> Mapping[str, Callable[..., Estimator]]:
    """All estimators by name; each factory takes the estimator's own keywords."""
    return MappingProxyType(_FACTORIES)


def make_estimator(name: str, **options: Any) -> Estimator:
    """Construct an estimator by name.

    Raises:
        ValueError: no such name; the known ones are listed.
    """
    if name not in _FACTORIES:
        raise ValueError(f"estimator must be one of {sorted(_FACTORIES)}, got {name!r}")
    return _FACTORIES[name](**options)
