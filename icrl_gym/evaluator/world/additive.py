"""Values of the states of a table that are a sum over the components of an observation.

    v(s) = w_0 + sum_j w_j(what component j shows in s)                                                             (1)

A dealt card counts the same beside every hand, and every hand that shows it tells its worth. The w solve LSTD's
equations (Bradtke & Barto 1996) on the table's own process, whose states count as often as the log left them, with a
ridge on all but w_0. Values are linear in the rewards and in the leaf.

Shape legend: S states, F functions, X any number of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl_gym.observations import Observations, batch_size, named_leaves

RIDGE = 1e-3  # per transition


@dataclass(frozen=True, eq=False)
class AdditiveValues:
    """The functions of (1), and LSTD on them.

    Attributes:
        functions_SF: 1, and indicators of what components show.
        projection_FS: w = projection @ one-step values, those of (the states') rewards and of the leaf.
    """

    functions_SF: np.ndarray
    projection_FS: np.ndarray

    @classmethod
    def of(cls, states: Observations, visits_S: np.ndarray, equations_SS: np.ndarray) -> AdditiveValues | None:
        """Additive values of a table.

        Args:
            states: observations (S, ...) of the states.
            visits_S: shares of the log that left each state.
            equations_SS: the matrix of the table's equations, equations @ values = one-step values.

        Returns:
            None where (1) is not simpler than a number for every state.
        """
        functions_SF = indicators(states, len(visits_S) - 1)
        if functions_SF is None:
            return None
        weighed_FS = functions_SF.T * visits_S
        ridge_F = np.full(len(weighed_FS), RIDGE)
        ridge_F[0] = 0.0
        matrix_FF = weighed_FS @ equations_SS @ functions_SF + np.diag(ridge_F)
        return cls(functions_SF, np.linalg.solve(matrix_FF, weighed_FS))

    def __call__(self, one_step_SX: np.ndarray) -> np.ndarray:
        """Values (S, X) from one-step values (S, X)."""
        return self.functions_SF @ (self.projection_FS @ one_step_SX)

    def reach(self, weights_XS: np.ndarray) -> np.ndarray:
        """Weights (X, S) of the one-step values in weighted sums (X,) of the values."""
        return (weights_XS @ self.functions_SF) @ self.projection_FS


def indicators(states: Observations, most: int) -> np.ndarray | None:
    """A column (S,) of ones, and one for every value that a number of the observation has beyond its first.

    Columns that say the same are one column. None where there are more than ``most`` of them.
    """
    num_states = batch_size(states)
    columns = {np.ones(num_states, dtype=bool).tobytes(): None}  # a set in order
    for _, leaf in named_leaves(states, ""):
        for shown_S in leaf.reshape(num_states, -1).T:
            values, which_S = np.unique(shown_S, return_inverse=True)
            for value in range(1, len(values)):
                columns[(which_S.reshape(-1) == value).tobytes()] = None
                if len(columns) > most:
                    return None
    return np.stack([np.frombuffer(column, dtype=bool) for column in columns], axis=1).astype(np.float64)
