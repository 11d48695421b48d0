"""`TabledValues`: a context's values by counts, where states recur, over a leaf.

Shape legend: L layers, S states of the table, Q queries, B observations, N transitions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from icrl_gym.evaluator.compiled import Reading
from icrl_gym.evaluator.world.imagination import Leaf, OverLeaf
from icrl_gym.evaluator.world.tables import TableWorld
from icrl_gym.observations import Observations


@dataclass(frozen=True, eq=False)
class TabledValues(OverLeaf):
    """A compiled context with a table.

    Attributes:
        leaf: values without it.
        leaf_at: the leaf for these observations, where it needs to know more of them than their features.
        table: the counts.
        observations: the queries, which a table finds by what they show; None before `at`.
    """

    leaf: Leaf
    leaf_at: Callable[[Observations], Leaf]
    table: TableWorld
    observations: Observations | None = None

    def at(self, observations: Observations) -> TabledValues:
        """The same for queries that show this."""
        found = replace(self, observations=observations)
        found.__dict__["_states"] = self._states  # read once per context
        return found

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of the queries given by `at`."""
        direct, rows_Q = self._leaf.read(features_QD), self.table.keys.find(self._queries)
        counted_LS = [self.table.values(leaf_S) for leaf_S in self._states.by_layer_LQ]
        signal = self.table.signal(counted_LS[-1])
        by_layer_LS = [self.table.drawn_together(counted_S, signal) for counted_S in counted_LS]
        by_layer_LQ = [
            np.where(rows_Q >= 0, values_S[rows_Q], leaf_Q)
            for values_S, leaf_Q in zip(by_layer_LS, direct.by_layer_LQ, strict=True)
        ]
        _, stderr_Q = self.table.read(self._queries, self._read_leaf)
        return Reading(np.stack(by_layer_LQ), stderr_Q, direct.support_Q)

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of the leaf at the queries, (Q, N)."""
        return self._leaf.attention(features_QD)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards."""
        del features_QD
        return self.table.attribution(
            self._queries, lambda seen: self.leaf_at(seen).attribution(self.prompt.queries(seen))
        )

    @property
    def _queries(self) -> Observations:
        if self.observations is None:
            raise ValueError("observations are needed: a table finds states by what they show, not by their features")
        return self.observations

    @property
    def _leaf(self) -> Leaf:
        return self.leaf_at(self._queries)

    @cached_property
    def _states(self) -> Reading:
        return self.leaf_at(self.table.states).read(self.prompt.queries(self.table.states))

    def _read_leaf(self, seen: Observations) -> tuple[np.ndarray, np.ndarray | None]:
        found = self._states if seen is self.table.states else self.leaf_at(seen).read(self.prompt.queries(seen))
        return found.by_layer_LQ[-1], found.stderr_Q
