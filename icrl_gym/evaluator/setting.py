"""`Setting`: which network runs on a prompt, and `Options`, what a user sets of it by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from icrl_gym.evaluator.recursion import LayerParameters

Relevance = Literal["uniform", "returns"]
EQUILIBRIUM: Literal["equilibrium"] = "equilibrium"


@dataclass(frozen=True)
class Setting:
    """One parameter setting of the network (theory section 7). Defaults: the constructed evaluator at equilibrium.

    Attributes:
        kernel: "gaussian" (key biases turn the inner product into a Gaussian) or "inner_product" (the paper's).
        num_layers: depth, or "equilibrium" for the limit of infinitely many tied layers.
        bandwidth: Gaussian width in standard deviations of the context, times sqrt(effective dimension / 4).
        sink: weight of the sink, in units of one source at distance zero; 0 for none.
        forgetting: eta >= 0, a ridge towards the prompt's constant; with landmarks in units of the attention's squares.
        trace_decay: lambda in [0, 1].
        step_size: alpha > 0.
        averaging: beta in [0, 1].
        constant_mode: solve the constant in every layer (finite depth only; an equilibrium is relative to the
            constant).
        average_ends: true successors of unterminated ends are averagers.
        start_at_constant: start all columns at the prompt's constant instead of zero.
        pseudo_terminations: p >= 0, Laplace's rule on the hazard: every discount is multiplied by N / (N + p), as if p
            more terminations had been seen, spread evenly over the context.
        relevance: weight of each feature in a Gaussian kernel (kernel.py).
        free_level: share of the unpenalised intercept in an equilibrium's constant, in [-1, 1]; 0 is the prompt's own.
        landmarks: at most this many distinct states that cover the context (keys.py) are the keys of an equilibrium
            (landmarks.py), each with the weight of N / K sources; 0: every source is a key.

    Raises:
        ValueError: an attribute is out of its range, or two do not go together.
    """

    kernel: Literal["gaussian", "inner_product"] = "gaussian"
    num_layers: int | Literal["equilibrium"] = EQUILIBRIUM
    bandwidth: float = 1.6
    sink: float = 300.0
    forgetting: float = 1e-4
    trace_decay: float = 0.0
    step_size: float = 1.0
    averaging: float = 0.0
    constant_mode: bool = True
    average_ends: bool = True
    start_at_constant: bool = True
    pseudo_terminations: float = 0.0
    relevance: Relevance = "uniform"
    free_level: float = 0.0
    landmarks: int = 0

    def __post_init__(self) -> None:
        """Check every attribute, then those that have to go together."""
        for name, (accepts, expected) in RANGES.items():
            value = getattr(self, name)
            if not accepts(value):
                raise ValueError(f"{name} must be {expected}, got {value!r}")
        for together, message in COMBINATIONS:
            if not together(self):
                raise ValueError(message)

    @property
    def at_equilibrium(self) -> bool:
        return self.num_layers == EQUILIBRIUM

    @property
    def allows_landmarks(self) -> bool:
        """Whether the other attributes go together with landmarks."""
        return self.kernel == "gaussian" and self.at_equilibrium and self.forgetting > 0 and not self.averaging

    @property
    def averages_landmarks(self) -> bool:
        """Whether the setting is the averager that takes over from landmarks."""
        return self.kernel == "gaussian" and self.at_equilibrium and self.averaging == 1

    @property
    def parameters(self) -> LayerParameters:
        """The numbers of a single layer."""
        return LayerParameters(
            self.step_size, self.averaging, self.forgetting, self.constant_mode, self.average_ends, self.free_level
        )

    def fallback(self) -> Setting:
        """The averager that is certain to contract: beta = alpha = 1, no constant mode (theory section 7)."""
        return replace(
            self,
            averaging=1.0,
            step_size=1.0,
            forgetting=0.0,
            constant_mode=False,
            average_ends=True,
            start_at_constant=True,
            free_level=0.0,
        )


Range = tuple[Callable[[Any], bool], str]  # whether a value is accepted, and what is expected in words


def _one_of(*names: str) -> Range:
    return (lambda value: isinstance(value, str) and value in names), f"one of {names}"


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def _number(low: float, high: float) -> Range:
    def accepts(value: Any) -> bool:
        return isinstance(value, (int, float, np.number)) and bool(low <= value <= high and value != math.inf)

    return accepts, f"a finite number in [{low:g}, {high:g}]"


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(0.0 < value < math.inf)


RANGES: dict[str, Range] = {
    "kernel": _one_of("gaussian", "inner_product"),
    "num_layers": (lambda value: value == EQUILIBRIUM or _whole(value, 1), "an int >= 1 or 'equilibrium'"),
    "bandwidth": (_positive, "a positive finite number"),
    "sink": _number(0.0, math.inf),
    "forgetting": _number(0.0, 1.0),
    "trace_decay": _number(0.0, 1.0),
    "step_size": (_positive, "a positive finite number"),
    "averaging": _number(0.0, 1.0),
    "pseudo_terminations": _number(0.0, math.inf),
    "relevance": _one_of("uniform", "returns"),
    "free_level": _number(-1.0, 1.0),
    "landmarks": (lambda value: _whole(value, 0), "an int >= 0"),
}
# Whether a setting's attributes go together, and what they need where they do not.
COMBINATIONS: tuple[tuple[Callable[[Setting], bool], str], ...] = (
    (
        lambda setting: not setting.landmarks or setting.allows_landmarks or setting.averages_landmarks,
        "landmarks need kernel='gaussian', num_layers='equilibrium' and a positive forgetting without averaging, "
        "or averaging=1",
    ),
    (
        lambda setting: (
            not setting.free_level or (setting.at_equilibrium and bool(setting.forgetting or setting.averaging))
        ),
        "free_level needs num_layers='equilibrium' and a positive forgetting or averaging",
    ),
    (
        lambda setting: setting.kernel == "gaussian" or not setting.sink,
        "sink needs kernel='gaussian': it must be 0 with kernel='inner_product'",
    ),
)

THEOREM_1 = Setting(
    kernel="inner_product",
    num_layers=24,
    bandwidth=1.0,
    sink=0.0,
    forgetting=0.0,
    constant_mode=False,
    average_ends=False,
    start_at_constant=False,
)
# Defaults when a depth is given by hand: softmax TD(.95) wants a narrower kernel, and no ridge.
FINITE_DEPTH = Setting(num_layers=8, bandwidth=0.9, sink=0.0, forgetting=0.0, trace_decay=0.95)


@dataclass(frozen=True)
class Options:
    """Keywords of `InContextEvaluator`; None takes the default of the network that the other keywords select."""

    num_layers: int | Literal["equilibrium"] | None = None
    bandwidth: float | None = None
    trace_decay: float | None = None
    sink: float | None = None
    forgetting: float | None = None
    step_size: float | None = None
    averaging: float | None = None

    def setting(self, plain: bool) -> Setting:
        """The network that these options select: Theorem 1's if plain, else by depth."""
        if plain:
            return replace(THEOREM_1, **self._chosen)
        return replace(FINITE_DEPTH if self._finite else Setting(), **self._chosen)

    def on(self, head: Setting) -> Setting:
        """These options in place of a head's own; at finite depth a head keeps its relevance and its share of width."""
        if self._finite:
            width = FINITE_DEPTH.bandwidth * head.bandwidth / Setting().bandwidth
            head = replace(FINITE_DEPTH, bandwidth=width, relevance=head.relevance, averaging=head.averaging)
        if not replace(head, landmarks=0, **self._chosen).allows_landmarks:
            head = replace(head, landmarks=0)
        return replace(head, **self._chosen)

    @property
    def _chosen(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def _finite(self) -> bool:
        return self.num_layers not in (None, EQUILIBRIUM)
