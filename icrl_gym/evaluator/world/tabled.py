"""`TabledValues`: a context's values by counts, where states recur, over a leaf.

Shape legend: L layers, S states of the table, Q queries, B observations, N transitions, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from icrl_gym.evaluator.compiled import Reading
from icrl_gym.evaluator.world.imagination import Leaf, OverLeaf
from icrl_gym.evaluator.world.tables import TableValues, TableWorld
from icrl_gym.observations import Observations, take

OfRewards = Callable[[np.ndarray, np.ndarray], np.ndarray]  # features (B, D), rewards (N, R) -> values (B, R)


@dataclass(frozen=True, eq=False)
class TabledValues(OverLeaf):
    """A compiled context with a table.

    Attributes:
        leaf: values without it.
        leaf_at: the leaf for these observations, where it needs to know more of them than their features.
        leaf_of_rewards: its values under other rewards, where it is to be blended with counts; None: it is not.
        table: the counts.
        observations: the queries, which a table finds by what they show; None before `at`.
    """

    leaf: Leaf
    leaf_at: Callable[[Observations], Leaf]
    leaf_of_rewards: OfRewards | None
    table: TableWorld
    observations: Observations | None = None

    def at(self, observations: Observations) -> TabledValues:
        """The same for queries that show this."""
        found = replace(self, observations=observations)
        found.__dict__["_solved"] = self._solved  # once per context
        return found

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of the queries given by `at`; the leaf's own at states that are not in
        the table.
        """
        direct, rows_Q = self._leaf.read(features_QD), self.table.keys.find(self._queries)
        by_layer_LQ = np.where(rows_Q >= 0, self._solved.by_layer_LS[:, rows_Q], direct.by_layer_LQ)
        stderr_Q = direct.stderr_Q
        if stderr_Q is not None and self._solved.stderr_S is not None:
            stderr_Q = np.where(rows_Q >= 0, self._solved.stderr_S[rows_Q], stderr_Q)
        return Reading(by_layer_LQ, stderr_Q, direct.support_Q)

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of the leaf at the queries, (Q, N)."""
        return self._leaf.attention(features_QD)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards."""
        rows_Q = self.table.keys.find(self._queries)
        found, elsewhere = np.flatnonzero(rows_Q >= 0), np.flatnonzero(rows_Q < 0)
        matrix_QN = np.zeros((len(rows_Q), len(self.prompt)))
        if len(found):
            states = self.table.states
            leaf_SN = self.leaf_at(states).attribution(self.prompt.queries(states))
            matrix_QN[found] = self.table.attribution(rows_Q[found], leaf_SN, self._solved.blend)
        if len(elsewhere):
            leaf = self.leaf_at(take(self._queries, elsewhere))
            matrix_QN[elsewhere] = leaf.attribution(features_QD[elsewhere])
        return matrix_QN

    @property
    def _queries(self) -> Observations:
        if self.observations is None:
            raise ValueError("observations are needed: a table finds states by what they show, not by their features")
        return self.observations

    @property
    def _leaf(self) -> Leaf:
        return self.leaf_at(self._queries)

    @cached_property
    def _solved(self) -> TableValues:
        features_SD = self.prompt.queries(self.table.states)
        of_rewards = None if self.leaf_of_rewards is None else partial(self.leaf_of_rewards, features_SD)
        found = self.leaf_at(self.table.states).read(features_SD)
        return self.table.solve(found.by_layer_LQ, found.stderr_Q, of_rewards)
