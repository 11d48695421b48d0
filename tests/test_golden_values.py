"""The evaluators still say of ten contexts what the golden file holds."""

import numpy as np
import pytest
from golden_contexts import CONTEXTS, EVALUATORS, GOLDEN, golden_values

TOLERANCE = 1e-10  # of the spread and the level of the context's values


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_values_are_those_of_the_golden_file(evaluator, context):
    found = golden_values(evaluator, context)
    with np.load(GOLDEN, allow_pickle=False) as stored:
        for name, array in found.items():
            expected = stored[f"{evaluator}/{context}/{name}"]
            np.testing.assert_allclose(array, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max())
