"""The mixture of heads with fixed dials, its pretrained error bars, what holds for any weights, and its checkpoints."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.checkpoint import (
    CheckpointError,
    digest_of,
    load_checkpoint,
    save_checkpoint,
)
from icrl_gym.evaluator.error_bars import SamplingCovariance, SamplingError
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.kernel import Rows
from icrl_gym.evaluator.mixing import FREE_LEVEL, LEAST_SPREAD, PSEUDO_TERMINATIONS, agreed, consensus
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import compile_prompt, with_free_level
from icrl_gym.evaluator.setting import THEOREM_1, Setting
from icrl_gym.evaluator.spread_head import TRUSTED, SpreadHead
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS, prompt_statistics, value_scale
from icrl_gym.pretraining.shards import solve_example

GAMMA = 0.95

LENGTH = STATISTICS.index("log_transitions")


def make_log(seed=0, num_rows=80, dimension=3, ends=True, reward_scale=1.0, order=None, noise=0.3):
    """A linear process around 0; with ends it terminates far out and is cut now and then.

    Without noise the next step is known for certain.
    """
    rng = np.random.default_rng(seed)
    step = 0.9 * np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    states, following = np.zeros((num_rows, dimension)), np.zeros((num_rows, dimension))
    terminated, truncated = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
    now = rng.normal(size=dimension)
    for k in range(num_rows):
        states[k], following[k] = now, now @ step + noise * rng.normal(size=dimension)
        terminated[k] = ends and np.abs(following[k]).max() > 1.6
        truncated[k] = ends and not terminated[k] and k % 17 == 16
        now = rng.normal(size=dimension) if terminated[k] or truncated[k] else following[k]
    rewards = reward_scale * (states[:, 0] ** 2 + states[:, -1])
    order = np.arange(dimension) if order is None else order
    return icrl.Trajectory(states[:, order], np.zeros(num_rows), rewards, following[:, order], terminated, truncated)


def make_prompt(**options):
    return Prompt.from_trajectory(make_log(**options), GAMMA)


def make_queries(prompt, num_queries=7, seed=5):
    return np.random.default_rng(seed).normal(size=(num_queries, prompt.source_features.shape[1]))


def untrained(heads=HEADS):
    return Generalist(heads, SpreadHead(8))


def statistics_of(prompt, first):
    return prompt_statistics(prompt, compile_prompt(prompt, first))


def with_random_weights(prompt, seed, heads=HEADS, size=0.7):
    """A mixture with error bars of random weights that trust prompts like this one."""
    model = untrained(heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.spread.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        known = torch.as_tensor(statistics_of(prompt, heads[0]))
        means_of(model.spread)[: len(STATISTICS)] = known + 0.5
    return model


def means_of(spread):
    return spread.standardisation.get_buffer("mean_Z")


def compiled(model, prompt):
    return model.compile(prompt, "cpu", torch.float64)


def mixed_values(mixture, queries):
    return mixture.read(queries).by_layer_LQ[-1]


def shares_of(mixture):
    return [member.share for member in mixture.members]


def standard_errors(mixture, queries):
    return mixture.read(queries).stderr_Q


def values_of(prompt, setting, queries, **options):
    run = compile_prompt(prompt, setting, **options)
    return run.values(run.attend(queries))[-1].numpy()


def at_the_dials(prompt, heads, queries, pseudo=0.0):
    """Values of every head, solved from scratch at the free level and the pseudo-terminations, (H, Q)."""
    solved = []
    for head in heads:
        setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
        if compile_prompt(prompt, setting).fell_back:  # which is decided at level 0
            setting = setting.fallback()
        solved.append(values_of(prompt, replace(setting, free_level=0.9), queries, fall_back=False))
    return np.stack(solved)


def robust_mean(by_head_HQ, shares_H):
    """Heads mixed by their shares, less where one stands apart from the others."""
    distance_HQ = np.abs(by_head_HQ - np.median(by_head_HQ, axis=0))
    spread_Q = np.median(distance_HQ, axis=0) + LEAST_SPREAD * distance_HQ.mean(axis=0)
    weights_HQ = shares_H[:, None] / (1 + (distance_HQ / np.maximum(spread_Q, 1e-300)) ** 2)
    return (weights_HQ * by_head_HQ).sum(axis=0) / weights_HQ.sum(axis=0)


def of_one_reward(prompt, reward=1.0):
    return replace(prompt, rewards=np.full(len(prompt), reward))


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("equal", [True, False])
def test_values_are_the_robust_mean_of_heads_with_equal_shares_at_the_dials(equal, ends):
    assert (FREE_LEVEL, PSEUDO_TERMINATIONS) == (0.9, 0.7)
    prompt = make_prompt(ends=ends, num_rows=60)
    prompt = of_one_reward(prompt, 1 / 3) if equal else prompt
    assert prompt.num_terminations == (prompt.discounts == 0).sum()
    queries, pseudo = make_queries(prompt), 0.7 / (1 + prompt.num_terminations) if equal else 0.0
    mixture = compiled(untrained(), prompt)
    assert shares_of(mixture) == [0.1] * len(HEADS)
    assert {m.setting.free_level for m in mixture.members if not m.fell_back} == {0.9}
    assert {m.setting.pseudo_terminations for m in mixture.members if not m.fell_back} == {pseudo}
    expected = robust_mean(at_the_dials(prompt, HEADS, queries, pseudo), np.full(len(HEADS), 0.1))
    np.testing.assert_allclose(mixed_values(mixture, queries), expected, rtol=1e-7)
    if equal:  # both dials are felt
        without = robust_mean(at_the_dials(prompt, HEADS, queries), np.full(len(HEADS), 0.1))
        assert np.abs(without - expected).max() > 1e-3 * np.abs(expected).max()


def test_one_reward_that_differs_leaves_pseudo_terminations_out():
    prompt = of_one_reward(make_prompt())
    other = replace(prompt, rewards=prompt.rewards + 0.01 * (np.arange(len(prompt)) == 5))
    used = [
        {member.setting.pseudo_terminations for member in compiled(untrained(), p).members} for p in (prompt, other)
    ]
    assert used == [{PSEUDO_TERMINATIONS / (1 + prompt.num_terminations)}, {0.0}]


def test_a_weighted_log_is_read_by_the_heads_without_traces_if_any():
    prompt = make_prompt()
    weighted = replace(prompt, importance_ratios=np.random.default_rng(0).exponential(size=len(prompt)))
    queries, without = make_queries(prompt), tuple(head for head in HEADS if not head.trace_decay)
    mixture = compiled(untrained(), weighted)
    assert len(mixture.members) == len(without) < len(HEADS)
    np.testing.assert_allclose(shares_of(mixture), 1 / len(without))
    expected = robust_mean(at_the_dials(weighted, without, queries), np.ones(len(without)))
    np.testing.assert_allclose(mixed_values(mixture, queries), expected, rtol=1e-7)
    with_traces = tuple(replace(head, trace_decay=0.5) for head in HEADS[:2])
    assert len(compiled(untrained(with_traces), weighted).members) == 2


def test_a_mixture_of_theorem_1_alone_is_theorem_1():
    log = make_log()
    expected = icrl.InContextEvaluator(plain=True).fit(log, GAMMA).predict(log.next_observations[::9])
    prompt = Prompt.from_trajectory(log, GAMMA)
    mixture = compiled(untrained((THEOREM_1,)), prompt)
    queries = prompt.queries(log.next_observations[::9])
    assert mixture.members[0].setting == THEOREM_1
    np.testing.assert_allclose(mixed_values(mixture, queries), expected.values, rtol=1e-12)
    np.testing.assert_allclose(mixture.attribution(queries), expected.attribution(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ends", [True, False])
def test_values_are_the_attribution_of_the_rewards_whatever_the_weights(seed, ends):
    prompt = make_prompt(seed=seed, ends=ends)
    mixture, queries = compiled(with_random_weights(prompt, seed), prompt), make_queries(prompt)
    assert len(mixture.members) > 1
    values = mixed_values(mixture, queries)
    assert np.abs(values - values_of(prompt, HEADS[0], queries)).max() > 1e-3
    np.testing.assert_allclose(mixture.attribution(queries) @ prompt.rewards, values, rtol=1e-8)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_a_query_does_not_see_the_others(seed, noise):
    prompt = make_prompt(seed=seed, noise=noise)
    mixture = compiled(with_random_weights(prompt, seed), prompt)
    queries = 3 * make_queries(prompt)  # some far outside
    values, errors = mixed_values(mixture, queries), standard_errors(mixture, queries)
    attribution = mixture.attribution(queries)
    for i in range(len(queries)):
        np.testing.assert_allclose(mixed_values(mixture, queries[i : i + 1]), values[i], rtol=1e-9)
        np.testing.assert_allclose(standard_errors(mixture, queries[i : i + 1]), errors[i], rtol=1e-4)
        np.testing.assert_allclose(mixture.attribution(queries[i : i + 1])[0], attribution[i], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", [1e-3, 1.0 / 3.0, 250.0])
def test_scaled_rewards_scale_values_and_errors_whatever_the_weights(scale, seed, noise):
    prompt, scaled = (make_prompt(seed=seed, noise=noise, reward_scale=by) for by in (1.0, scale))
    model, queries = with_random_weights(prompt, seed), make_queries(prompt)
    one, other = compiled(model, prompt), compiled(model, scaled)
    np.testing.assert_allclose(other.error_bars.statistics_S, one.error_bars.statistics_S, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed_values(other, queries), scale * mixed_values(one, queries), rtol=1e-5)
    np.testing.assert_allclose(standard_errors(other, queries), scale * standard_errors(one, queries), rtol=1e-4)


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_observed_dimensions_does_not_matter(seed, noise):
    order = np.array([2, 0, 1])
    prompt, permuted = (make_prompt(seed=seed, noise=noise, order=by) for by in (None, order))
    model, queries = with_random_weights(prompt, seed), make_queries(prompt)
    one, other = compiled(model, prompt), compiled(model, permuted)
    np.testing.assert_allclose(other.error_bars.statistics_S, one.error_bars.statistics_S, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed_values(other, queries[:, order]), mixed_values(one, queries), rtol=1e-5)
    np.testing.assert_allclose(standard_errors(other, queries[:, order]), standard_errors(one, queries), rtol=1e-4)


@pytest.mark.parametrize("column", range(len(STATISTICS)))
def test_one_statistic_is_enough_to_doubt_the_error_bars_unless_it_is_the_length(column):
    spread = with_random_weights(make_prompt(), seed=1).spread
    statistics = means_of(spread)[: len(STATISTICS)].repeat(2, 1)
    statistics[1, column] += TRUSTED + 20.0
    inside, outside = spread.trust_in(statistics).tolist()
    assert inside == 1.0
    assert outside == (1.0 if column == LENGTH else 0.0)


@pytest.mark.parametrize("column", [None, STATISTICS.index("log_stretches"), LENGTH])
def test_far_from_the_prior_the_same_values_come_with_a_warning(column):
    prompt = make_prompt()
    near, far = (with_random_weights(prompt, seed=1) for _ in range(2))
    if column is not None:
        means_of(far.spread)[column] += 100.0
    one, other = compiled(near, prompt), compiled(far, prompt)
    doubted = column not in (None, LENGTH)
    assert (one.trust, one.warnings) == (1.0, ())
    assert other.trust == (0.0 if doubted else 1.0)
    assert any("error bars were trained on (trust 0.00)" in warning for warning in other.warnings) == doubted
    queries = make_queries(prompt)
    np.testing.assert_array_equal(mixed_values(other, queries), mixed_values(one, queries))


def test_the_construction_has_no_training_to_be_unlike_of():
    mixture = icrl.InContextEvaluator().fit(make_log(), GAMMA).compiled_
    assert (mixture.trust, mixture.warnings) == (1.0, ())


@pytest.mark.parametrize("num_heads", range(1, 7))
def test_heads_are_weighed_by_their_shares_and_by_whether_they_agree(num_heads):
    rng = np.random.default_rng(num_heads)
    values_HQ, shares_H = rng.standard_cauchy(size=(num_heads, 9)), rng.dirichlet(np.ones(num_heads))

    def weights_of(values_HQ, shares_H=shares_H):
        return consensus(torch.as_tensor(values_HQ)[None], torch.as_tensor(shares_H)[None])[0].numpy()

    weights_HQ = weights_of(values_HQ)
    np.testing.assert_allclose(weights_HQ.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose((weights_HQ * values_HQ).sum(axis=0), robust_mean(values_HQ, shares_H), rtol=1e-9)
    np.testing.assert_allclose(weights_of(-3e-4 * values_HQ + 5.0), weights_HQ, rtol=1e-6)
    np.testing.assert_allclose(weights_of(np.full((num_heads, 2), 3.0)), np.stack([shares_H] * 2, axis=1), rtol=1e-12)
    equal = robust_mean(values_HQ, np.ones(num_heads))
    np.testing.assert_allclose(agreed(torch.as_tensor(values_HQ)[None])[0], equal, rtol=1e-9)
    if num_heads < 3:
        np.testing.assert_allclose(weights_HQ, np.repeat(shares_H[:, None], 9, axis=1), rtol=1e-9)
    else:
        values_HQ[1] = 1e9
        assert weights_of(values_HQ)[1].max() < 1e-3


class Watched(SpreadHead):
    """A spread head that keeps what it was shown."""

    def forward(self, statistics, query_statistics):
        self.shown = statistics.clone(), query_statistics.clone()
        return torch.zeros(query_statistics.shape[:2])


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("ends", [True, False])
def test_an_example_holds_what_a_mixture_says_and_what_its_error_bars_are_shown(ends, equal):
    log = make_log(noise=0.0, ends=ends, num_rows=60)
    log = replace_rewards(log, np.ones(len(log))) if equal else log
    prompt = Prompt.from_trajectory(log, GAMMA)
    queries, model = make_queries(prompt), Generalist(HEADS, Watched())
    expected = mixed_values(compiled(model, prompt), queries)
    truth, noise = np.arange(7.0), np.full(7, 0.5)
    example = solve_example(prompt, queries, truth, noise, HEADS)
    scale = float(example.scale[0])
    assert scale == value_scale(compile_prompt(prompt, HEADS[0]))
    np.testing.assert_allclose(example.constant + scale * example.mixed[0], expected, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(example.constant + scale * example.truth[0], truth, atol=1e-5 * scale)
    np.testing.assert_allclose(scale * example.truth_stderr[0], noise, rtol=1e-6)
    statistics, of_queries = model.spread.shown
    np.testing.assert_allclose(example.statistics, statistics, rtol=1e-6)
    np.testing.assert_allclose(example.query_statistics, of_queries, atol=1e-5)


def test_an_example_holds_the_first_head_as_it_stands_and_its_sampling_error():
    prompt = make_prompt()
    queries = make_queries(prompt)
    example = solve_example(prompt, queries, np.zeros(7), np.zeros(7), HEADS)
    alone = icrl.InContextEvaluator().fit(make_log(), GAMMA).compiled_.read(queries)
    scale = float(example.scale[0])
    np.testing.assert_allclose(example.constant + scale * example.constructed[0], alone.by_layer_LQ[-1], rtol=1e-5)
    np.testing.assert_allclose(scale * example.sampling_error[0], alone.stderr_Q, rtol=1e-5)


SOLVED = [Setting(), Setting(trace_decay=0.9, forgetting=1e-2), Setting(bandwidth=0.4, averaging=1.0, sink=0.0)]


LANDMARKS = [
    Setting(bandwidth=0.8, forgetting=1e-3, landmarks=9, **others)
    for others in ({}, {"trace_decay": 0.9}, {"trace_decay": 0.5, "sink": 0.0}, {"pseudo_terminations": 2.0})
]


@pytest.mark.parametrize("setting", SOLVED + LANDMARKS)
@pytest.mark.parametrize("level", [-1.0, 0.3, 1.0])
def test_moving_the_level_is_solving_at_it(setting, level):
    prompt = make_prompt()
    queries = make_queries(prompt)
    solved = compile_prompt(prompt, replace(setting, free_level=level))
    moved = with_free_level(compile_prompt(prompt, setting), level)
    assert moved.setting == solved.setting
    np.testing.assert_allclose(moved.at_columns[0], solved.at_columns[0], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        moved.values(moved.attend(queries))[-1], values_of(prompt, solved.setting, queries), rtol=1e-9
    )


def plain_attention(to, sources, sink):
    weights = np.exp(-0.5 * np.square(to[:, None] - sources[None]).sum(axis=-1))
    return weights / (sink + weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("setting", SOLVED)
def test_the_free_level_is_the_unpenalised_intercept(setting):
    """One bordered system for memories and level together, built in NumPy from the prompt."""
    prompt = make_prompt()
    queries, n = make_queries(prompt), len(prompt)
    width = setting.bandwidth * np.sqrt(prompt.effective_dimension / 4)
    sources = prompt.source_features / width
    following = np.concatenate([prompt.source_features, prompt.end_features])[prompt.successors] / width
    trace = np.eye(n)
    for k in range(n - 2, -1, -1):
        if prompt.trace_links[k]:
            trace[k] += prompt.discounts[k] * setting.trace_decay * trace[k + 1]
    at_sources = plain_attention(sources, sources, setting.sink)
    keep = (1 - setting.averaging) * (1 - setting.forgetting)
    td = at_sources - prompt.discounts[:, None] * plain_attention(following, sources, setting.sink)
    matrix = (1 - keep) * np.eye(n) - setting.averaging * at_sources + trace @ td
    bordered = np.block([[matrix, trace @ (1 - prompt.discounts)[:, None]], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(bordered, np.append(trace @ prompt.rewards, 0.0))
    expected = solution[-1] + plain_attention(queries / width, sources, setting.sink) @ solution[:-1]
    actual = values_of(prompt, replace(setting, free_level=1.0), queries)
    np.testing.assert_allclose(actual, expected, rtol=1e-7, atol=1e-8)
    if setting.sink:  # without one, rows of attention sum to 1 and averaging hands the level on by itself
        assert np.abs(actual - values_of(prompt, setting, queries)).max() > 1e-4


def test_a_level_that_is_right_stays():
    log = make_log(ends=False)
    log = icrl.Trajectory(
        log.observations, log.actions, np.full(len(log), 2.0), log.next_observations, log.terminated, log.truncated
    )
    prompt = Prompt.from_trajectory(log, GAMMA)
    for level in (0.0, 1.0):
        values = values_of(prompt, Setting(free_level=level), make_queries(prompt))
        np.testing.assert_allclose(values, 2.0 / (1 - GAMMA), rtol=1e-9)


def test_the_level_needs_an_equilibrium_with_a_ridge():
    with pytest.raises(ValueError, match="free_level needs"):
        Setting(num_layers=3, free_level=0.5)
    with pytest.raises(ValueError, match="free_level needs"):
        Setting(forgetting=0.0, free_level=0.5)


@pytest.mark.parametrize("setting", SOLVED)
def test_pseudo_terminations_are_shorter_discounts(setting):
    prompt = make_prompt()
    queries, n, pseudo = make_queries(prompt), len(prompt), 0.7
    shorter = replace(prompt, discounts=prompt.discounts * n / (n + pseudo))
    actual = values_of(prompt, replace(setting, pseudo_terminations=pseudo), queries)
    np.testing.assert_allclose(actual, values_of(shorter, setting, queries), rtol=1e-10)
    assert np.abs(actual - values_of(prompt, setting, queries)).max() > 1e-3


def trained_errors(mixture, queries):
    """Standard errors without the sampling error of the first head."""
    bars = replace(mixture.error_bars, sampled=False)
    return standard_errors(replace(mixture, error_bars=bars), queries)


def test_what_is_stated_lies_half_way_between_trained_and_sampling_error():
    prompt = make_prompt()
    mixture, queries = compiled(untrained(), prompt), make_queries(prompt)
    trained, bars = trained_errors(mixture, queries), mixture.error_bars
    sampling = bars.sampling(bars.first.attend(queries))
    ratio = standard_errors(mixture, queries) / trained
    np.testing.assert_allclose(ratio, np.sqrt(np.clip(sampling / trained, 0.25, 4.0)), rtol=1e-9)
    assert ratio.min() >= 0.5
    assert ratio.std() > 0


@pytest.mark.parametrize("setting", [HEADS[0], Setting(landmarks=30)], ids=["all sources", "landmarks"])
def test_the_sampling_covariance_is_that_of_rewards_with_noise(setting):
    """Innovations of a perfect fit but for reward noise: the noise, which moves values as the covariance says."""
    prompt, generator = make_prompt(num_rows=200), np.random.default_rng(0)
    queries, moved, stated = make_queries(prompt), [], []
    for _ in range(60):
        noisy = replace(prompt, rewards=0.3 * generator.normal(size=len(prompt)))
        head = compile_prompt(noisy, setting)
        rows = head.attend(queries)
        moved.append(head.values(rows)[-1].numpy())
        covariance = SamplingCovariance.of(head)
        stated.append(np.square(covariance(rows)) - covariance.unseen**2)
    ratio = np.sqrt(np.mean(stated, axis=0) / np.square(moved).mean(axis=0))
    assert 0.7 < np.median(ratio) < 1.5


@pytest.mark.parametrize("forgetting", [1e-4, 1e-6])
def test_the_sampling_covariance_is_the_sampling_error_of_a_head_without_landmarks(forgetting):
    """Two ways to the same: one solve for every query, and a matrix for all; innovations in two closed forms."""
    prompt = make_prompt(num_rows=200)
    head, queries = compile_prompt(prompt, Setting(forgetting=forgetting)), make_queries(prompt)
    one_by_one = SamplingError.of(head)(Rows(queries), np.zeros((1, 7)), np.zeros(7))
    np.testing.assert_allclose(SamplingCovariance.of(head)(head.attend(queries)), one_by_one, rtol=0.01)


@pytest.mark.parametrize("trusted", [True, False])
def test_untrained_error_bars_are_one_value_scale_and_twice_that_far_out(trusted):
    prompt = make_prompt()
    model = untrained()
    mixture = compiled(model, prompt)
    means_of(model.spread)[: len(STATISTICS)] = mixture.error_bars.statistics_S + (0.0 if trusted else 50.0)
    model.spread.standardisation.get_buffer("scale_Z")[len(STATISTICS) :] = 100.0
    expected = value_scale(compile_prompt(prompt, HEADS[0])) * (1.0 if trusted else 2.0)
    np.testing.assert_allclose(trained_errors(mixture, make_queries(prompt)), expected, rtol=1e-6)


def test_error_bars_of_a_weighted_log_are_those_of_its_effective_size():
    prompt = make_prompt()
    ratios = np.random.default_rng(0).exponential(size=len(prompt))
    size = ratios.sum() ** 2 / np.square(ratios).sum()
    for given, expected in ((None, 1.0), (np.full(len(prompt), 3.0), 1.0), (ratios, np.sqrt(len(prompt) / size))):
        mixture = compiled(Generalist(HEADS, Watched()), replace(prompt, importance_ratios=given))
        errors = trained_errors(mixture, make_queries(prompt))
        np.testing.assert_allclose(errors, expected * mixture.error_bars.facts.scale, rtol=1e-9)


def degenerate_logs():
    one = np.array([[1.0, 2.0]])
    flag = np.zeros(1, bool)
    many = make_log()
    still = np.zeros_like(many.observations)
    nothing = np.zeros(len(many))
    yield "one transition", icrl.Trajectory(one, [0.0], [1.0], one + 1, flag, flag), GAMMA
    yield "one terminated transition", icrl.Trajectory(one, [0.0], [1.0], one + 1, ~flag, flag), GAMMA
    yield "no reward", replace_rewards(many, nothing), GAMMA
    yield "one reward for all", replace_rewards(many, nothing - 1), GAMMA
    yield "one state", icrl.Trajectory(still, nothing, many.rewards, still, many.terminated, many.truncated), GAMMA
    yield "no future", many, 0.0


def replace_rewards(log, rewards):
    return icrl.Trajectory(log.observations, log.actions, rewards, log.next_observations, log.terminated, log.truncated)


@pytest.mark.parametrize(("log", "gamma"), [pytest.param(*rest, id=name) for name, *rest in degenerate_logs()])
def test_poor_prompts_have_finite_statistics_values_and_errors(log, gamma):
    prompt = Prompt.from_trajectory(log, gamma)
    statistics = statistics_of(prompt, HEADS[0])
    assert statistics.shape == (len(STATISTICS),)
    assert np.isfinite(statistics).all()
    mixture, queries = compiled(with_random_weights(prompt, 0), prompt), make_queries(prompt)
    assert np.isfinite(mixed_values(mixture, queries)).all()
    assert (standard_errors(mixture, queries) >= 0).all()


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    prompt = make_prompt()
    model, queries = with_random_weights(prompt, seed=3), make_queries(prompt)
    card = save_checkpoint(tmp_path / "new" / "a.safetensors", model, {"seed": 3})
    loaded, again = load_checkpoint(tmp_path / "new" / "a.safetensors")
    assert (again, loaded.heads) == (card, HEADS)
    assert (card.training, card.statistics, card.query_statistics) == ({"seed": 3}, [*STATISTICS], [*QUERY_STATISTICS])
    written, read = model.spread.state_dict(), loaded.spread.state_dict()
    assert list(written) == list(read)
    assert all(torch.equal(written[key], read[key]) for key in written)
    one, other = compiled(model, prompt), compiled(loaded, prompt)
    np.testing.assert_array_equal(mixed_values(other, queries), mixed_values(one, queries))
    np.testing.assert_array_equal(standard_errors(other, queries), standard_errors(one, queries))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.json", "a.safetensors"]


def edit_card(path, **changes):
    """A changed card whose hash fits it, as whoever wants to deceive would write it."""
    card = json.loads(path.with_suffix(".json").read_text()) | changes
    if "sha256" not in changes:
        card["sha256"] = digest_of(path.read_bytes(), SimpleNamespace(**card))
    path.with_suffix(".json").write_text(json.dumps(card))


def edit_weights(path, change):
    """Other weights under a card that fits their hash."""
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save(tensors))
    edit_card(path)


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def not_safetensors(path):
    path.write_bytes(b"no weights")
    edit_card(path)


def change_a_digit(path):
    """One number among the settings of the card's heads, and nothing else."""
    text = path.with_suffix(".json").read_text()
    assert text.count('"bandwidth": 1.2') == 1
    path.with_suffix(".json").write_text(text.replace('"bandwidth": 1.2', '"bandwidth": 1.3'))


def to_last_schema(path):
    """As the last version wrote it: with a network that weighed the heads, and what it was in the card."""
    tensors = {f"spread.{name}": tensor for name, tensor in load(path.read_bytes()).items()}
    path.write_bytes(save({**tensors, "gate.members.0.4.bias": torch.zeros(13)}))
    edit_card(path, schema_version=4, num_members=4)


REFUSALS = {
    "missing weights": (lambda path: path.unlink(), "cannot read the checkpoint"),
    "missing card": (lambda path: path.with_suffix(".json").unlink(), "cannot read the checkpoint or its card"),
    "card that is no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "or its card"),
    "card that is no text": (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\x00"), "or its card"),
    "card that is a list": (lambda path: path.with_suffix(".json").write_text("[]"), "schema_version must be 5"),
    "another schema": (lambda path: edit_card(path, schema_version=1), "schema_version must be 5, got 1; pretrain it"),
    "the last schema": (to_last_schema, "schema_version must be 5, got 4; pretrain it again with `icrl-gym pretrain`"),
    "a digit of a head": (change_a_digit, "sha256 of weights and settings must be"),
    "unknown entry": (lambda path: edit_card(path, colour="red"), "does not describe this model.*colour"),
    "unknown head": (lambda path: edit_card(path, heads=[{"bandwith": 1.0}]), "does not describe this model.*bandwith"),
    "head out of range": (lambda path: edit_card(path, heads=[{"bandwidth": -1.0}]), "bandwidth"),
    "another hash": (lambda path: edit_card(path, sha256="0" * 64), "sha256 .* must be 0{64} by its card"),
    "one bit": (damage, "sha256 of weights"),
    "shorter": (lambda path: path.write_bytes(path.read_bytes()[:-8]), "sha256 of weights"),
    "not safetensors": (not_safetensors, "weights do not fit the card"),
    "other statistics": (lambda path: edit_card(path, statistics=["mood"]), "other statistics"),
    "other query statistics": (lambda path: edit_card(path, query_statistics=["mood"]), "other statistics"),
    "another width": (lambda path: edit_card(path, width=9), "weights do not fit the card"),
    "a width that is no number": (lambda path: edit_card(path, width="wide"), "does not describe this model"),
    "no heads": (lambda path: edit_card(path, heads=[]), "does not describe this model: heads: the first one"),
    "landmarks first": (lambda path: edit_card(path, heads=[{"landmarks": 9}]), "does not describe this model: heads"),
    "another shape": (
        lambda path: edit_weights(path, lambda t: t.update({"network.4.bias": torch.zeros(3)})),
        "weights do not fit the card",
    ),
    "a missing tensor": (
        lambda path: edit_weights(path, lambda t: t.pop("network.4.bias")),
        "weights do not fit",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_reason(name, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, untrained(), {})
    load_checkpoint(path)
    spoil, reason = REFUSALS[name]
    spoil(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_failed_write_leaves_nothing_half_written(suffix, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, untrained(), {})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    really_replace = os.replace

    def replace_unless(source, target):
        if str(target).endswith(suffix):
            raise OSError("disk full")
        really_replace(source, target)

    monkeypatch.setattr(os, "replace", replace_unless)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, with_random_weights(make_prompt(), seed=0), {})
    after = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert after[f"a{suffix}"] == before[f"a{suffix}"]
    if suffix == ".json":  # new weights beside the old card
        with pytest.raises(CheckpointError, match="sha256"):
            load_checkpoint(path)
    else:
        assert after == before


def test_heads_that_fell_back_are_counted():
    prompt = make_prompt()
    mixture = compiled(with_random_weights(prompt, 0), prompt)
    assert not mixture.fell_back
    first, *others = mixture.members
    fallen = replace(mixture, members=(replace(first, head=replace(first.head, fell_back=True)), *others))
    assert fallen.fell_back
    assert any(f"1 of {1 + len(others)} heads" in warning for warning in fallen.warnings)
