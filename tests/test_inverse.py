import numpy as np
import pytest
import torch

from icrl_gym.evaluator.inverse import inverse_diagonal


@pytest.mark.parametrize("shape", [(1,), (3,), (64,), (65,), (200,), (4, 130), (2, 3, 7)])
def test_it_is_the_diagonal_of_the_inverse(shape):
    n = shape[-1]
    matrix = torch.as_tensor(np.random.default_rng(n).normal(size=(*shape, n)))  # rows are exchanged
    expected = torch.linalg.inv(matrix).diagonal(dim1=-2, dim2=-1)
    factors, unharmed = torch.linalg.lu_factor(matrix), torch.linalg.lu_factor(matrix)
    found = inverse_diagonal(*factors)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    np.testing.assert_array_equal(factors[0], unharmed[0])
