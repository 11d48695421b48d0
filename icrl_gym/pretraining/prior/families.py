"""The table of families: which synthetic processes there are, how often, and how large.

| family | what it is |
|---|---|
| vector_field | smooth random vector fields: fixed points and limit cycles |
| switching | regions with a linear system each |
| oscillator | coupled damped springs, (position, velocity) pairs |
| stabilised | unstable directions under a bounded, imperfect controller |
| contact | bodies between walls: bounces, kicks, stops, dry friction |
| gait | joints on a rhythm, with a speed and a lean |
| rotor | one driven angle, seen as cosine and sine |
| coupled_rotors | several angles that pull at each other |
| seeker | a point that heads for a target drawn at every reset |
| grid | walls, pits and a goal on integer coordinates; exact |
| dirichlet | unstructured random tables; exact |
| chain | states in a row, mostly forward; exact |
| loop | states in a circle; exact |
| queue | a count that hovers around a level; exact |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from icrl_gym.pretraining.prior.continuous import ContinuousProcess
from icrl_gym.pretraining.prior.draws import Draws
from icrl_gym.pretraining.prior.dynamics import Dynamics, Seeker, Switching, VectorField
from icrl_gym.pretraining.prior.grids import grid
from icrl_gym.pretraining.prior.mechanics import Contact, Gait, Oscillator, Rotor, Stabilised
from icrl_gym.pretraining.prior.processes import Process
from icrl_gym.pretraining.prior.tabular import Skeleton, TabularProcess, chain, draw_table, loop, queue, unstructured

Code = Literal["natural", "one_hot", "random"]

MAX_COLUMNS = 64
LONE_CATEGORY_SCALE = 4.0  # as features.py scales the one-hot code of a lone Discrete space
EXTRA_SHARE, BIN_SHARE, CROWD_SHARE = 0.5, 0.15, 0.08


@dataclass(frozen=True)
class Layout:
    """Choices that all tasks of a batch share, so that their tensors have one shape.

    Attributes:
        size: state variables, pairs, angles, joints, states or cells per side, as the family counts.
        second_size: cells of the other side of a grid.
        num_extra: observed columns beyond the natural ones, ``num_bins`` included.
        num_bins: columns of a one-hot code of one discretised feature.
        code: name of the way in which states of a table are shown.
    """

    size: int
    second_size: int
    num_extra: int
    num_bins: int
    code: Code

    @property
    def standardise(self) -> bool:
        return self.code != "one_hot"


class Family(Protocol):
    """One entry of the table."""

    @property
    def weight(self) -> float: ...

    @property
    def exact(self) -> bool: ...

    @property
    def description(self) -> str: ...

    def draw_layout(self, rng: np.random.Generator) -> Layout:
        """Sizes of one batch."""
        ...

    def draw_process(self, draws: Draws, layout: Layout, gamma: Tensor) -> Process:
        """One process per task."""
        ...


@dataclass(frozen=True)
class ContinuousFamily:
    """Dynamics by simulation; ``end_weights`` are those of no termination, box, goal and hazard."""

    description: str
    weight: float
    dynamics: type[Dynamics]
    sizes: Sequence[int]
    num_features: Callable[[int], int]
    end_weights: Sequence[float] = (0.22, 0.38, 0.24, 0.16)
    exact: bool = False

    def draw_layout(self, rng: np.random.Generator) -> Layout:
        size = int(rng.choice(self.sizes))
        extra, bins = _draw_extra(rng, self.num_features(size))
        return Layout(size, 0, extra, bins, "natural")

    def draw_process(self, draws: Draws, layout: Layout, gamma: Tensor) -> Process:
        return ContinuousProcess.draw(draws, self.dynamics.draw(draws, layout.size), gamma, self.end_weights)


@dataclass(frozen=True)
class TabularFamily:
    """Tables of states; ``natural`` says whether their coordinates can be observed."""

    description: str
    weight: float
    skeleton: Callable[[Draws, int], Skeleton]
    sizes: tuple[int, int]
    natural: bool = True
    exact: bool = True

    def draw_layout(self, rng: np.random.Generator) -> Layout:
        low, high = self.sizes
        size = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
        return _tabular_layout(rng, size, 0, self.natural)

    def draw_process(self, draws: Draws, layout: Layout, gamma: Tensor) -> Process:
        return _table(draws, self.skeleton(draws, layout.size), layout, gamma)


@dataclass(frozen=True)
class GridFamily:
    """Grids of up to 12 x 12 cells."""

    description: str
    weight: float
    sides: tuple[int, int] = (4, 12)
    exact: bool = True

    def draw_layout(self, rng: np.random.Generator) -> Layout:
        width, height = (int(side) for side in rng.integers(self.sides[0], self.sides[1] + 1, size=2))
        return _tabular_layout(rng, width, height, natural=True)

    def draw_process(self, draws: Draws, layout: Layout, gamma: Tensor) -> Process:
        return _table(draws, grid(draws, layout.size, layout.second_size), layout, gamma)


def _draw_extra(rng: np.random.Generator, num_natural: int) -> tuple[int, int]:
    """Extra columns and how many of them are bins."""
    room = MAX_COLUMNS - num_natural
    if rng.random() >= EXTRA_SHARE:
        return 0, 0
    bins = int(rng.integers(3, 13)) if rng.random() < BIN_SHARE / EXTRA_SHARE else 0
    most = room if rng.random() < CROWD_SHARE / EXTRA_SHARE else 8
    extra = round(float(np.exp(rng.uniform(0.0, np.log(most + 1))))) - 1
    return min(room, extra + max(bins, int(not extra))), min(room, bins)


def _tabular_layout(rng: np.random.Generator, width: int, height: int, natural: bool) -> Layout:
    num_states = width * max(1, height)
    weights = {"one_hot": 0.4 * (num_states <= MAX_COLUMNS), "random": 0.2, "natural": 0.4 * natural}
    code = str(rng.choice(list(weights), p=np.array(list(weights.values())) / sum(weights.values())))
    if code == "one_hot":
        return Layout(width, height, 0, 0, "one_hot")
    extra, bins = _draw_extra(rng, 16)
    return Layout(width, height, extra, bins, "random" if code == "random" else "natural")


def _table(draws: Draws, skeleton: Skeleton, layout: Layout, gamma: Tensor) -> TabularProcess:
    num_states = skeleton.start_Bn.shape[1]
    if layout.code == "one_hot":
        one_hot_nn = LONE_CATEGORY_SCALE * torch.eye(num_states, device=draws.generator.device)
        features_BnF = one_hot_nn.expand(draws.num_tasks, -1, -1)
    elif layout.code == "random":
        features_BnF = draws.normal(num_states, max(2, min(16, num_states // 2)))
    else:
        features_BnF = skeleton.coordinates_BnC
    return draw_table(draws, skeleton, features_BnF, gamma)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "vector_field": ContinuousFamily(
            "smooth random vector fields", 1.5, VectorField, (1, 2, 2, 3, 4, 5, 6, 8, 12), lambda size: size
        ),
        "switching": ContinuousFamily(
            "regions with a linear system each", 1.0, Switching, (1, 2, 3, 4, 6), lambda size: size
        ),
        "oscillator": ContinuousFamily(
            "coupled damped springs", 1.2, Oscillator, (1, 1, 2, 3, 4, 6, 8), lambda size: 2 * size
        ),
        "stabilised": ContinuousFamily(
            "unstable directions under a bounded controller",
            1.5,
            Stabilised,
            (1, 1, 2, 2, 3, 4),
            lambda size: 2 * size,
            end_weights=(0.1, 0.65, 0.1, 0.15),
        ),
        "contact": ContinuousFamily("bodies between walls", 1.0, Contact, (1, 1, 2, 3, 4), lambda size: 2 * size),
        "gait": ContinuousFamily(
            "joints on a rhythm, with a speed and a lean",
            1.0,
            Gait,
            (1, 2, 3, 4, 6, 8),
            lambda size: 2 * size + 3,
            end_weights=(0.35, 0.45, 0.05, 0.15),
        ),
        "rotor": ContinuousFamily("one driven angle", 1.0, Rotor, (1,), lambda size: 3 * size),
        "coupled_rotors": ContinuousFamily("several coupled angles", 1.0, Rotor, (2, 2, 3, 4), lambda size: 3 * size),
        "seeker": ContinuousFamily(
            "a point that heads for a target drawn at every reset",
            1.0,
            Seeker,
            (1, 2, 2, 3, 4),
            lambda size: 3 * size,
            end_weights=(0.4, 0.15, 0.35, 0.1),
        ),
        "grid": GridFamily("walls, pits and a goal on integer coordinates", 1.2),
        "dirichlet": TabularFamily("unstructured random tables", 0.5, unstructured, (5, 64), natural=False),
        "chain": TabularFamily("states in a row, mostly forward", 0.6, chain, (12, 96)),
        "loop": TabularFamily("states in a circle", 0.4, loop, (4, 64)),
        "queue": TabularFamily("a count that hovers around a level", 0.4, queue, (6, 64)),
    }
)
