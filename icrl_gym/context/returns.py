"""Decayed sums along a log: returns, lambda-returns and eligibility traces read backwards."""

from __future__ import annotations

import numpy as np


def decayed_sums(errors_N: np.ndarray, decays_N: np.ndarray) -> np.ndarray:
    """The recursion e_k = errors_k + decays_k e_{k+1} along the first axis, by doubling.

    After step j every e_k covers 2^j terms and ``reach_k`` is the product of as many decays, so that two neighbouring
    spans join into one of twice the length.

    Args:
        errors_N: (N,) or (N, R).
        decays_N: (N,); a 0 ends the sum there, and the last one is never used.

    Returns:
        e in float64, of the shape of ``errors_N``.
    """
    e = np.array(errors_N, dtype=np.float64)
    reach = np.array(decays_N, dtype=np.float64).reshape(-1, *[1] * (e.ndim - 1))
    span = 1
    while span < len(e):
        e[:-span] += reach[:-span] * e[span:]
        reach[:-span] *= reach[span:]
        span *= 2
    return e
