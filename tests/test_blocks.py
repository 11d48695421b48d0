"""Attention computed in blocks, whenever it is read, against attention that is held."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from random_prompts import make_prompt

from icrl_gym.context.prompt import EndMixtures
from icrl_gym.evaluator import blocks
from icrl_gym.evaluator.compiled import Member
from icrl_gym.evaluator.network import compile_prompt
from icrl_gym.evaluator.recursion import Columns
from icrl_gym.evaluator.setting import FINITE_DEPTH, THEOREM_1

SETTINGS = {
    "finite": FINITE_DEPTH,
    "forgetting and a sink": replace(FINITE_DEPTH, forgetting=0.05, sink=5.0),
    "averaging": replace(FINITE_DEPTH, averaging=0.4, sink=3.0),
    "theorem 1": replace(THEOREM_1, num_layers=6),
}


@pytest.fixture
def small_memory(monkeypatch):
    """Nothing is held, and three rows of a context of 50 are computed at once."""
    monkeypatch.setattr(blocks, "LARGEST_STORED", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 3 * 50 * 8 + 5)


def with_mixtures(prompt):
    rng = np.random.default_rng(0)
    weights_ME = rng.dirichlet(np.ones(3), size=len(prompt.end_features)).T
    mixtures = EndMixtures(rng.normal(size=(*weights_ME.shape, 2)), weights_ME)
    return replace(prompt, end_mixtures=mixtures, end_features=mixtures.mean_ED)


@pytest.mark.parametrize("prompt_of", [lambda p: p, with_mixtures], ids=["states", "mixtures"])
@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_changes_but_what_is_held(name, prompt_of, request):
    prompt = prompt_of(make_prompt(1, 50, weighted=True))
    held = compile_prompt(prompt, SETTINGS[name])
    queries = np.random.default_rng(2).normal(size=(4, 2))
    attention_QN = held.attend(queries)
    expected = held.values(attention_QN), held.attribution(attention_QN), held.kernel.support(queries, attention_QN)
    request.getfixturevalue("small_memory")
    found = compile_prompt(prompt, SETTINGS[name])
    assert "columns_CK" not in vars(found.kernel)
    assert found.fell_back == held.fell_back
    again = found.values(attention_QN), found.attribution(attention_QN), found.kernel.support(queries, attention_QN)
    for one, other in zip(again, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found.readout.columns_LCR, held.readout.columns_LCR, rtol=1e-9, atol=1e-11)
    assert "columns_CK" not in vars(found.kernel)
    assert Member(1.0, found).certificates is None


def test_rows_and_their_transpose_are_those_of_the_matrix(small_memory):
    prompt = with_mixtures(make_prompt(3, 50))
    kernel = compile_prompt(prompt, FINITE_DEPTH).kernel
    computed, held = blocks.columns_of(kernel), Columns.of(kernel.columns_CK)
    x_NR = torch.randn(50, 3, dtype=torch.float64)
    np.testing.assert_allclose(computed @ x_NR, held @ x_NR, rtol=1e-12)
    for rows, expected in ((computed.sources, held.sources), (computed.ends, held.ends)):
        assert rows.shape == expected.shape
        assert rows.mT.shape == expected.mT.shape
        assert rows.mT.mT is rows
        g_BR = torch.randn(len(expected), 2, dtype=torch.float64)
        np.testing.assert_allclose(rows.mT @ g_BR, expected.mT @ g_BR, rtol=1e-10, atol=1e-14)


def test_a_context_without_ends_has_no_rows_of_ends(small_memory):
    prompt = make_prompt(3, 50)
    cut = replace(prompt, end_features=prompt.end_features[:0], successors=np.arange(50), discounts=np.zeros(50))
    compiled = compile_prompt(cut, FINITE_DEPTH)
    assert blocks.columns_of(compiled.kernel).ends.shape == (0, 50)
    assert bool(torch.isfinite(compiled.readout.columns_LCR).all())


def test_small_contexts_are_held():
    kernel = compile_prompt(make_prompt(3, 50), FINITE_DEPTH).kernel
    assert blocks.is_stored(kernel)
    assert isinstance(blocks.columns_of(kernel).sources, torch.Tensor)
