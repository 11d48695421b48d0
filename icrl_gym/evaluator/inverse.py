"""LU factors, and the diagonal of an inverse from them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import get_lapack_funcs
from torch import Tensor


def lu_factors(matrix_NN: Tensor) -> tuple[Tensor, Tensor]:
    """LU factors and pivots of (..., N, N) matrices, on the CPU one by one.

    With two threads the batched routine of torch 2.13.0's CPU build has pivots that are none, and a wrong answer or an
    error after it (seen for 8 matrices of 256 x 256; with one thread, or one matrix at a time, never).
    """
    if matrix_NN.ndim == 2 or matrix_NN.device.type != "cpu":
        return torch.linalg.lu_factor(matrix_NN)
    batch, n = matrix_NN.shape[:-2], matrix_NN.shape[-1]
    factors = [torch.linalg.lu_factor(one_NN) for one_NN in matrix_NN.reshape(-1, n, n)]
    lu_BNN, pivots_BN = (torch.stack(part) for part in zip(*factors, strict=True))
    return lu_BNN.reshape(*batch, n, n), pivots_BN.reshape(*batch, n)


def inverse_diagonal(lu_NN: Tensor, pivots_N: Tensor) -> Tensor:
    """Diagonal (..., N) of the inverse of a matrix, in a third of the work of solving for the identity.

    With P^T A = L U it is that of U^-1 L^-1 P^T, of which both triangles are inverted (LAPACK's trtri, on the CPU).

    Args:
        lu_NN, pivots_N: (..., N, N) and (..., N), as `torch.linalg.lu_factor` gives them.
    """
    n = lu_NN.shape[-1]
    matrices, exchanges = lu_NN.reshape(-1, n, n).cpu().numpy(), pivots_N.reshape(-1, n).cpu().numpy()
    below_NN = np.tri(n, k=-1, dtype=matrices.dtype).T.copy().T  # in the order of the factors
    found = [_diagonal(*factors, below_NN) for factors in zip(matrices, exchanges, strict=True)]
    return torch.as_tensor(np.array(found), device=lu_NN.device).reshape(pivots_N.shape)


def _diagonal(lu_NN: np.ndarray, pivots_N: np.ndarray, below_NN: np.ndarray) -> np.ndarray:
    (invert,) = get_lapack_funcs(("trtri",), (lu_NN,))
    left_NN, _ = invert(lu_NN, lower=True, unitdiag=True)
    right_NN, singular = invert(lu_NN, lower=False)
    if singular:
        return np.full_like(lu_NN[0], np.inf)
    left_NN *= below_NN  # the ones on the diagonal are left out
    right_NN *= 1.0 - below_NN
    rows_N = _rows(pivots_N)
    diagonal_N = np.empty_like(lu_NN[0])
    diagonal_N[rows_N] = right_NN[rows_N, np.arange(len(rows_N))] + (right_NN[rows_N].T * left_NN).sum(axis=0)
    return diagonal_N


def _rows(pivots_N: np.ndarray) -> np.ndarray:
    """Which row of the matrix each row of the factors is, from LAPACK's row exchanges."""
    rows = list(range(len(pivots_N)))
    for k, other in enumerate((pivots_N - 1).tolist()):
        rows[k], rows[other] = rows[other], rows[k]
    return np.array(rows)
