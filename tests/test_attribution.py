"""Attribution by the transposed recursion, against the read-out of N unit reward functions, each solved for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from random_prompts import make_prompt

from icrl_gym.context.prompt import EndMixtures
from icrl_gym.evaluator.mixture import Construction
from icrl_gym.evaluator.network import compile_prompt, with_free_level
from icrl_gym.evaluator.setting import FINITE_DEPTH, THEOREM_1, Setting

LANDMARKS = Setting(bandwidth=0.8, forgetting=1e-3, landmarks=9)
SETTINGS = {
    "default": Setting(),
    "traces": Setting(trace_decay=0.7, pseudo_terminations=1.5),
    "half a step": Setting(step_size=0.5, trace_decay=0.4, relevance="returns"),
    "free level": Setting(free_level=0.6, trace_decay=0.5),
    "free level of averaging": Setting(free_level=-0.4, averaging=0.3, forgetting=0.01),
    "averager": Setting().fallback(),
    "landmarks": LANDMARKS,
    "landmarks with traces": replace(LANDMARKS, trace_decay=0.9, step_size=0.5, sink=0.0),
    "landmarks at a free level": replace(LANDMARKS, free_level=0.8, trace_decay=0.6),
    "finite": FINITE_DEPTH,
    "finite with forgetting": replace(FINITE_DEPTH, forgetting=0.05, sink=5.0, step_size=0.7),
    "finite averaging": replace(FINITE_DEPTH, averaging=0.4, sink=3.0),
    "finite, no constant mode": replace(FINITE_DEPTH, constant_mode=False, start_at_constant=False),
    "finite, ends like others": replace(FINITE_DEPTH, average_ends=False, num_layers=3),
    "finite averager": replace(FINITE_DEPTH, num_layers=5).fallback(),
    "theorem 1": replace(THEOREM_1, num_layers=6),
}
LEAST_NORM = {
    "no forgetting": Setting(forgetting=0.0, bandwidth=0.3),
    "no forgetting, no sink": Setting(forgetting=0.0, sink=0.0, bandwidth=0.3, trace_decay=0.5, average_ends=False),
}


def queries(seed=5):
    return np.random.default_rng(seed).normal(size=(6, 2))


def solved_for_every_reward(prompt, compiled, states):
    """W by N unit reward functions, whether to fall back not decided again."""
    again = compile_prompt(prompt, compiled.setting, fall_back=False, rewards=np.eye(len(prompt)))
    return again.readout(again.attend(states))[-1].numpy()


def check(prompt, setting, tolerance=1e-9, fall_back=True):
    compiled = compile_prompt(prompt, setting, fall_back=fall_back)
    expected, attention_QK = solved_for_every_reward(prompt, compiled, queries()), compiled.attend(queries())
    size = np.abs(expected).max()
    for kept in (compiled, compiled.without_matrices()):
        found = kept.attribution(attention_QK).numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * size)
        values = compiled.values(attention_QK)[-1].numpy()
        np.testing.assert_allclose(
            found @ prompt.rewards, values, rtol=1e-7, atol=1e-7 * size * np.abs(prompt.rewards).max()
        )


@pytest.mark.parametrize("name", SETTINGS)
@examples(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    num_rows=st.sampled_from([1, 2, 13, 40]),
    num_states=st.sampled_from([None, 1, 4]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    weighted=st.booleans(),
)
def test_it_is_what_every_reward_alone_is_worth(name, seed, num_rows, num_states, scale, weighted):
    check(make_prompt(seed, num_rows, num_states, scale, weighted), SETTINGS[name])


@pytest.mark.parametrize("name", LEAST_NORM)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_that_of_the_least_norm_solution_too(name, seed):
    check(make_prompt(seed, 12), LEAST_NORM[name], tolerance=1e-6, fall_back=False)


@pytest.mark.parametrize("name", ["default", "landmarks"])
def test_a_level_that_was_freed_afterwards_counts(name):
    prompt = make_prompt(3, 40)
    solved = compile_prompt(prompt, SETTINGS[name])
    freed, attention_QK = with_free_level(solved, 0.7), solved.attend(queries())
    found = freed.without_matrices().attribution(attention_QK).numpy()
    np.testing.assert_allclose(found, solved_for_every_reward(prompt, freed, queries()), rtol=1e-9, atol=1e-9)
    assert np.abs(found - solved.attribution(attention_QK).numpy()).max() > 1e-4


@pytest.mark.parametrize(
    "setting",
    [
        replace(THEOREM_1, num_layers=200, bandwidth=0.4),
        replace(LANDMARKS, trace_decay=0.99, forgetting=1e-9, landmarks=20),
    ],
)
def test_a_prompt_that_falls_back_has_the_averagers(setting):
    prompts = [make_prompt(seed, 30, weighted=bool(setting.landmarks)) for seed in range(15)]
    fell = [prompt for prompt in prompts if compile_prompt(prompt, setting).fell_back]
    assert fell
    for prompt in fell[:3]:
        check(prompt, setting)


@pytest.mark.parametrize("name", ["default", "landmarks at a free level", "finite", "finite with forgetting"])
def test_ends_that_are_mixtures_count(name):
    prompt, rng = make_prompt(7, 30), np.random.default_rng(0)
    weights_ME = rng.dirichlet(np.ones(3), size=len(prompt.end_features)).T
    mixtures = EndMixtures(rng.normal(size=(*weights_ME.shape, 2)), weights_ME)
    check(replace(prompt, end_mixtures=mixtures, end_features=mixtures.mean_ED), SETTINGS[name])


@pytest.mark.parametrize("name", ["default", "free level", "landmarks at a free level", "finite with forgetting"])
def test_weighted_sums_of_values_have_the_sums_of_attributions(name):
    mixture = Construction(SETTINGS[name]).compile(make_prompt(2, 40), "cpu", torch.float64)
    rng = np.random.default_rng(1)
    points_QMD, weights_QM = rng.normal(size=(3, 5, 2)), rng.normal(size=(3, 5))
    every_QMN = mixture.attribution(points_QMD.reshape(15, 2)).reshape(3, 5, -1)
    expected = np.einsum("qm,qmn->qn", weights_QM, every_QMN)
    np.testing.assert_allclose(mixture.pooled_attribution(points_QMD, weights_QM), expected, rtol=1e-9, atol=1e-9)
