"""Which state an observation shows, where states recur: distinct observations as strings of bytes.

Shape legend: S states, B bytes, C observations, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from icrl_gym.observations import Observations, batch_size, named_leaves


@dataclass(frozen=True, eq=False)
class StateKeys:
    """Distinct observations as strings of bytes, in order.

    Attributes:
        keys_S: (S,) void, sorted.
        dtypes: those of the leaves that the keys were made of.
    """

    keys_S: np.ndarray
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, observations: Observations) -> tuple[StateKeys, np.ndarray, np.ndarray]:
        """Keys, the first row of each (S,), and the rows' states (C,)."""
        dtypes = tuple(leaf.dtype for leaf in _leaves(observations))
        bytes_C, _ = _bytes(observations, dtypes)
        keys_S, first_S, state_C = np.unique(bytes_C, return_index=True, return_inverse=True)
        return cls(keys_S, dtypes), first_S, state_C.reshape(-1)

    def find(self, observations: Observations) -> np.ndarray:
        """States (Q,) of observations, -1 for those that are none."""
        bytes_Q, fits_Q = _bytes(observations, self.dtypes)
        joined_C = np.concatenate([self.keys_S, bytes_Q])
        _, first_U, unique_C = np.unique(joined_C, return_index=True, return_inverse=True)
        state_Q = first_U[unique_C.reshape(-1)][len(self.keys_S) :]  # the first is a key's, if any
        return np.where(fits_Q & (state_Q < len(self.keys_S)), state_Q, -1)


def _leaves(observations: Observations) -> list[np.ndarray]:
    """Leaves in the order of their names, which is not always that of a dict."""
    return [leaf for _, leaf in sorted(named_leaves(observations, ""), key=lambda named: named[0])]


def _bytes(observations: Observations, dtypes: tuple[np.dtype, ...]) -> tuple[np.ndarray, np.ndarray]:
    """All leaves of each row as one void (B,), and whether they are numbers of these dtypes, (B,) bool.

    Real numbers are rounded to theirs; -0 is 0.
    """
    batch = batch_size(observations)
    fits, parts = np.ones(batch, dtype=bool), []
    for leaf, dtype in zip(_leaves(observations), dtypes, strict=True):
        flat = leaf.reshape(batch, int(np.prod(leaf.shape[1:])))
        with np.errstate(invalid="ignore", over="ignore"):
            cast = flat.astype(dtype)
        if dtype.kind == "f":
            cast = cast + dtype.type(0)
        else:
            fits &= (cast == flat).all(axis=1)
        parts.append(np.ascontiguousarray(cast).view(np.uint8))
    joined = np.ascontiguousarray(np.concatenate(parts, axis=1))
    return joined.view(np.dtype((np.void, joined.shape[1]))).reshape(batch), fits
