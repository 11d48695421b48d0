"""`Bounds`: numbers that a simulator cuts off, such as a position at a wall or a velocity at its largest.

A number that several transitions bring to the very same extreme is cut off there: among real numbers that does not
happen by chance. What such transitions show is not the function that holds elsewhere, so the world's regression leaves
them out; and where it leads beyond a bound, the number stays there, and others take the value that all such transitions
gave them (a velocity that is 0 after a wall).

Shape legend: N transitions, D features, K members, B states of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FEWEST_ARRIVALS = 2  # transitions that come to the extreme from elsewhere
MOST_TOUCHING = 0.1  # of all transitions, at all bounds: of a world that is cut off everywhere too little is left
ABRUPT = 0.3  # of a feature's usual step, root mean square, that arrivals must have: what turns round slows down before
LEAST_DISTINCT = 0.5  # of a feature's values: others are no real numbers


@dataclass(frozen=True, eq=False)
class Bound:
    """One feature's least or largest value.

    Attributes:
        feature: which.
        sign: 1 where it is the largest, -1 where it is the least.
        value: of the feature there.
        also: other features that take one value there, and the values.
    """

    feature: int
    sign: int
    value: float
    also: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Bounds:
    """All bounds of a context.

    Attributes:
        bounds: each one.
        touched_N: transitions that came to one.
    """

    bounds: tuple[Bound, ...]
    touched_N: np.ndarray

    @classmethod
    def of(cls, states_ND: np.ndarray, successors_ND: np.ndarray, live_N: np.ndarray) -> Bounds:
        """Bounds of the features, as transitions that went on show them."""
        found, touched_N = [], np.zeros(len(states_ND), bool)
        if not live_N.any():
            return cls((), touched_N)
        for feature in range(states_ND.shape[1]):
            if len(np.unique(successors_ND[live_N, feature])) < LEAST_DISTINCT * live_N.sum():
                continue
            steps_N = np.abs(successors_ND[:, feature] - states_ND[:, feature])
            usual = float(np.sqrt(np.square(steps_N[live_N]).mean()))
            for sign in (-1, 1):
                value = sign * float((sign * successors_ND[live_N, feature]).max())
                at_N = live_N & (successors_ND[:, feature] == value)
                arrivals_N = at_N & (states_ND[:, feature] != value)
                if arrivals_N.sum() < FEWEST_ARRIVALS or steps_N[arrivals_N].mean() < ABRUPT * usual:
                    continue
                there_D = successors_ND[arrivals_N][0]
                one_D = (successors_ND[at_N] == there_D).all(axis=0)
                came_D = (states_ND[arrivals_N] != there_D).sum(axis=0) >= FEWEST_ARRIVALS
                also = tuple((int(k), float(there_D[k])) for k in np.flatnonzero(one_D & came_D) if k != feature)
                found.append(Bound(feature, sign, value, also))
                touched_N |= at_N
        if touched_N.sum() > MOST_TOUCHING * live_N.sum():
            return cls((), np.zeros_like(touched_N))
        return cls(tuple(found), touched_N)

    def held(self, next_KBD: Tensor) -> Tensor:
        """Successors that do not go beyond a bound."""
        for bound in self.bounds:
            beyond_KB = bound.sign * (next_KBD[..., bound.feature] - bound.value) >= 0.0
            for feature, value in ((bound.feature, bound.value), *bound.also):
                next_KBD[..., feature] = torch.where(beyond_KB, value, next_KBD[..., feature])
        return next_KBD
