"""The pretrained mixture: what it is at initialisation, what holds for any weights, and its checkpoints."""

import hashlib
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
    new_networks,
    save_checkpoint,
    upgrade_checkpoint,
)
from icrl_gym.evaluator.gate import (
    CUT,
    LEAST_LEVEL,
    LEAST_SPREAD,
    UNTRUSTED_COLUMN,
    Gate,
    Gates,
    consensus,
    gated,
)
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import compile_prompt, with_free_level
from icrl_gym.evaluator.setting import THEOREM_1, Setting
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS, prompt_statistics, value_scale
from icrl_gym.pretraining.shards import as_tensors, solve_example
from icrl_gym.pretraining.training import with_errors

GAMMA = 0.95


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


def untrained(heads=HEADS, num_members=2):
    return Generalist(heads, *new_networks(len(heads), 8, num_members))


def statistics_of(prompt, first):
    return prompt_statistics(prompt, compile_prompt(prompt, first))


def with_random_weights(prompt, seed, heads=HEADS, size=0.7):
    """A mixture with random weights that trusts prompts like this one."""
    model = untrained(heads)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for network in (model.gate, model.spread):
            for parameter in network.parameters():
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
        known = torch.as_tensor(statistics_of(prompt, heads[0]))
        model.gate.standardisation.get_buffer("mean_S").copy_(known + 0.5)
    return model


def compiled(model, prompt):
    return model.compile(prompt, "cpu", torch.float64)


def output_bias(network):
    return network[-1].bias


def mixed_values(mixture, queries):
    return mixture.read(queries).by_layer_LQ[-1]


def shares_of(mixture):
    return [member.share for member in mixture.members]


def standard_errors(mixture, queries):
    return mixture.read(queries).stderr_Q


def values_of(prompt, setting, queries, **options):
    run = compile_prompt(prompt, setting, **options)
    return run.values(run.attend(queries))[-1].numpy()


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("ends", [True, False])
def test_untrained_it_is_the_constructed_evaluator(ends, noise):
    log = make_log(ends=ends, noise=noise)
    constructed = icrl.InContextEvaluator.from_pretrained("constructed").fit(log, GAMMA)
    states = log.next_observations[::9]
    expected = constructed.predict(states)
    prompt = Prompt.from_trajectory(log, GAMMA)
    mixture, queries = compiled(untrained(), prompt), prompt.queries(states)
    np.testing.assert_allclose(mixed_values(mixture, queries), expected.values, rtol=1e-12)
    np.testing.assert_allclose(mixture.attribution(queries), expected.attribution(), rtol=1e-9, atol=1e-12)


def test_theorem_1_is_one_of_its_settings():
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
    assert any(member.setting.free_level for member in mixture.members)
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


def test_whatever_the_weights_the_adaptation_is_bounded():
    generator = torch.Generator().manual_seed(0)
    gate = Gate(len(STATISTICS), 5, 16, num_members=2)
    seen = []
    for scale in (0.3, 3.0, 30.0):
        with torch.no_grad():
            for parameter in gate.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            inputs = torch.randn(200, len(STATISTICS), generator=generator)
            gates = gate(torch.cat([inputs, 4 * inputs]))
        torch.testing.assert_close(gates.shares_BH.sum(dim=1), torch.ones(400))
        assert gates.shares_BH.abs().sum(dim=1).max() <= 3.0 + 1e-5
        for tensor, low, high in (
            (gates.free_level_B, LEAST_LEVEL, 1.0),
            (gates.pseudo_terminations_B, 0.0, 1.0),
            (gates.trust_B, 0.0, 1.0),
        ):
            assert low - 1e-6 <= tensor.min()
            assert tensor.max() <= high
        seen.append(gates)
    assert min(gates.free_level_B.min() for gates in seen) < -0.2
    for name in ("free_level_B", "pseudo_terminations_B"):
        assert max(getattr(gates, name).max() for gates in seen) > 0.9


@pytest.mark.parametrize(("bias", "level", "pseudo"), [(50.0, 1.0, 1.0), (-50.0, LEAST_LEVEL, 0.0)])
def test_the_bounds_are_reached(bias, level, pseudo):
    gate = Gate(len(STATISTICS), 2, 8, num_members=3, constant_reward=0)
    with torch.no_grad():
        for member in gate.members:
            output_bias(member)[-2:] = bias
        gates = gate(torch.ones(1, len(STATISTICS)))
    assert (float(gates.free_level_B), float(gates.pseudo_terminations_B)) == pytest.approx((level, pseudo))


def test_only_heads_without_a_share_are_left_out():
    prompt, queries = make_prompt(), make_queries(make_prompt())
    model = untrained(num_members=1)
    model.gate.standardisation.get_buffer("scale_S").fill_(100.0)
    bias = output_bias(model.gate.members[0]).data
    small = len(HEADS) - 2
    bias[: len(HEADS)] = torch.tensor([0.0, 0.5, -5.0, *[-30.0] * (small - 1)])
    bias[-3] = 0.7
    mixing, exponents = np.tanh(0.7), np.array([0.0, 0.5, -5.0])
    softmax = np.exp(exponents) / (np.exp(exponents).sum() + (small - 1) * np.exp(-30.0))
    shares = np.array([1 - mixing, 0.0, 0.0]) + mixing * softmax
    assert shares[2] < 0.01  # a head that hardly counts is run: training has it in its medians
    mixture = compiled(model, prompt)
    np.testing.assert_allclose(shares_of(mixture), shares / shares.sum(), rtol=1e-5)
    by_head = torch.as_tensor(np.stack([values_of(prompt, head, queries) for head in HEADS[:3]]))[None]
    weights = consensus(by_head, torch.tensor([shares_of(mixture)]))
    np.testing.assert_allclose(mixed_values(mixture, queries), (weights * by_head).sum(dim=1)[0], rtol=1e-7)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_far_from_the_prior_it_is_exactly_the_first_head(noise):
    prompt = make_prompt(noise=noise)
    model = with_random_weights(prompt, seed=1)
    queries = make_queries(prompt)
    model.gate.standardisation.get_buffer("mean_S")[3] += 100.0
    mixture = compiled(model, prompt)
    assert (mixture.trust, shares_of(mixture)) == (0.0, [1.0])
    np.testing.assert_array_equal(mixed_values(mixture, queries), values_of(prompt, HEADS[0], queries))


@pytest.mark.parametrize("column", range(len(STATISTICS)))
def test_one_statistic_is_enough_to_withdraw_unless_it_is_the_length(column):
    prompt = make_prompt(noise=0.0)
    gate = with_random_weights(prompt, seed=1).gate
    statistics = gate.standardisation.get_buffer("mean_S")[None].clone()
    with torch.no_grad():
        inside = gate(statistics)
        statistics[0, column] += CUT + 20.0
        outside = gate(statistics)
    assert float(inside.trust_B) == 1.0
    assert float(inside.free_level_B.abs()) > 0.01
    if column == UNTRUSTED_COLUMN:
        assert float(outside.trust_B) == 1.0
    else:
        assert float(outside.trust_B) == float(outside.free_level_B) == float(outside.pseudo_terminations_B) == 0.0
        np.testing.assert_array_equal(outside.shares_BH[0], np.eye(len(HEADS))[0])


def test_pseudo_terminations_are_only_for_contexts_of_one_reward():
    column = STATISTICS.index("constant_reward")
    gate, _ = new_networks(2, 8)
    output_bias(gate.members[0]).data.fill_(0.5)
    statistics = torch.zeros(2, len(STATISTICS))
    statistics[1, column] = 1.0
    with torch.no_grad():
        pseudo = gate(statistics).pseudo_terminations_B
    np.testing.assert_allclose(pseudo, [0.0, np.tanh(0.5)], rtol=1e-6)


def test_the_gate_is_the_mean_of_its_members():
    gate = with_random_weights(make_prompt(), seed=2).gate
    statistics = gate.standardisation.get_buffer("mean_S") + torch.linspace(-0.5, 0.5, 6)[:, None]
    with torch.no_grad():
        mean, members = gate(statistics), gate.by_member(statistics)
    assert len(members) == 2
    for name, expected in vars(mean).items():
        torch.testing.assert_close(sum(getattr(member, name) for member in members) / 2, expected)
    assert (members[0].shares_BH != members[1].shares_BH).all()


def gates_of(shares, level, pseudo):
    dials = (torch.tensor([dial]) for dial in (level, pseudo, 1.0))
    return Gates(torch.tensor(np.array([shares])), *dials)


def agreed(by_head_HQ, shares_H):
    """Heads mixed by their shares, less where one stands apart from the others."""
    distance_HQ = np.abs(by_head_HQ - np.median(by_head_HQ, axis=0))
    spread_Q = np.median(distance_HQ, axis=0) + LEAST_SPREAD * distance_HQ.mean(axis=0)
    weights_HQ = np.maximum(shares_H, 0)[:, None] / (1 + (distance_HQ / np.maximum(spread_Q, 1e-300)) ** 2)
    return (weights_HQ * by_head_HQ).sum(axis=0) / weights_HQ.sum(axis=0)


@pytest.mark.parametrize("num_heads", range(1, 7))
def test_heads_are_weighed_by_their_shares_and_by_whether_they_agree(num_heads):
    rng = np.random.default_rng(num_heads)
    values_HQ, shares_H = rng.standard_cauchy(size=(num_heads, 9)), rng.dirichlet(np.ones(num_heads))

    def weights_of(values_HQ, shares_H=shares_H):
        return consensus(torch.as_tensor(values_HQ)[None], torch.as_tensor(shares_H)[None])[0].numpy()

    weights_HQ = weights_of(values_HQ)
    np.testing.assert_allclose(weights_HQ.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_allclose((weights_HQ * values_HQ).sum(axis=0), agreed(values_HQ, shares_H), rtol=1e-9)
    np.testing.assert_allclose(weights_of(-3e-4 * values_HQ + 5.0), weights_HQ, rtol=1e-6)
    np.testing.assert_allclose(weights_of(np.full((num_heads, 2), 3.0)), np.stack([shares_H] * 2, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(weights_of(values_HQ, np.eye(num_heads)[0]), np.eye(num_heads)[:, :1] + np.zeros(9))
    if num_heads < 3:
        np.testing.assert_allclose(weights_HQ, np.repeat(shares_H[:, None], 9, axis=1), rtol=1e-9)
    else:
        values_HQ[1] = 1e9
        assert weights_of(values_HQ)[1].max() < 1e-3


def some_shares():
    """None so small that a head is left out."""
    return 0.5 * np.random.default_rng(0).dirichlet(np.ones(len(HEADS))) + 0.5 / len(HEADS)


def solved_example(prompt, queries):
    example = solve_example(prompt, queries, np.zeros(len(queries)), np.zeros(len(queries)), HEADS)
    assert example is not None
    return example


def of_one_reward(prompt, reward=1.0):
    return replace(prompt, rewards=np.full(len(prompt), reward))


@pytest.mark.parametrize("pseudo", [0.0, 1.0])
@pytest.mark.parametrize("level", [0.0, 1.0, 0.4, -0.2])
def test_mixing_the_corners_is_solving_at_the_gates(pseudo, level):
    prompt = make_prompt(num_rows=60)
    if pseudo:
        prompt = of_one_reward(prompt)
    queries = make_queries(prompt)
    example = solved_example(prompt, queries)
    shares = some_shares()
    mixed = gated(torch.as_tensor(example.values), gates_of(shares, level, pseudo))[0].numpy()
    solved = []
    for head in HEADS:
        setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
        if compile_prompt(prompt, setting).fell_back:  # which is decided at level 0
            setting = setting.fallback()
        solved.append(values_of(prompt, replace(setting, free_level=level), queries, fall_back=False))
    expected = agreed(np.stack(solved), shares)
    np.testing.assert_allclose(example.constant + example.scale * mixed, expected, rtol=1e-4, atol=1e-4)


def test_corners_of_pseudo_terminations_are_solved_only_where_all_rewards_are_equal():
    prompt = make_prompt(num_rows=60)
    different, equal = (solved_example(one, make_queries(prompt)) for one in (prompt, of_one_reward(prompt)))
    np.testing.assert_array_equal(different.values[:, :, 0], different.values[:, :, 1])
    assert (np.abs(equal.values[:, :, 0] - equal.values[:, :, 1]).max(axis=(0, 2, 3)) > 1e-3).all()


def test_between_the_corners_pseudo_terminations_are_interpolated():
    values = torch.arange(8.0).reshape(1, 2, 2, 2, 1)
    mixed = gated(values, gates_of([0.25, 0.75], 0.5, 0.1))  # two heads keep their shares
    by_head = [start + 0.9 * 0.5 + 0.1 * 2.5 for start in (0.0, 4.0)]
    assert float(mixed) == pytest.approx(0.25 * by_head[0] + 0.75 * by_head[1])


class Decided(torch.nn.Module):
    """A gate that decides the same for every prompt."""

    def __init__(self, gates):
        super().__init__()
        self.gates = gates

    def forward(self, statistics):
        return self.gates


class Watched(torch.nn.Module):
    """A spread head that keeps what it was shown."""

    def forward(self, statistics, query_statistics):
        self.shown = query_statistics.clone()
        return torch.zeros(query_statistics.shape[:2])


@pytest.mark.parametrize(("level", "pseudo"), [(0.0, 0.0), (0.7, 0.0), (-0.2, 1.0)])
@pytest.mark.parametrize("ends", [True, False])
def test_an_example_holds_what_a_mixture_says_and_what_its_spread_is_shown(ends, level, pseudo):
    prompt = make_prompt(noise=0.0, ends=ends, num_rows=60)
    if pseudo:
        prompt = of_one_reward(prompt)
    queries, gates = make_queries(prompt), gates_of(some_shares(), level, pseudo)
    model = Generalist(HEADS, Decided(gates), Watched())
    expected = mixed_values(compiled(model, prompt), queries)
    example = solved_example(prompt, queries)
    batch = with_errors(as_tensors(example), model.gate)
    actual = example.constant + example.scale * (batch["error"] + batch["truth"])[0].numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * float(example.scale[0]))
    np.testing.assert_allclose(batch["query_statistics"], model.spread.shown, atol=0.02)


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
    np.testing.assert_allclose(moved.readout.columns_LCR, solved.readout.columns_LCR[..., :1], rtol=1e-10, atol=1e-10)
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


@pytest.mark.parametrize("trusted", [True, False])
def test_untrained_error_bars_are_one_value_scale_and_twice_that_far_out(trusted):
    prompt = make_prompt()
    model = untrained()
    mixture = compiled(model, prompt)
    means = model.spread.standardisation.get_buffer("mean_S")
    means[: len(STATISTICS)] = mixture.error_bars.statistics_S + (0.0 if trusted else 50.0)
    model.spread.standardisation.get_buffer("scale_S")[len(STATISTICS) :] = 100.0
    expected = value_scale(compile_prompt(prompt, HEADS[0])) * (1.0 if trusted else 2.0)
    np.testing.assert_allclose(standard_errors(mixture, make_queries(prompt)), expected, rtol=1e-6)


def test_error_bars_of_a_weighted_log_are_those_of_its_effective_size():
    prompt = make_prompt()
    ratios = np.random.default_rng(0).exponential(size=len(prompt))
    size = ratios.sum() ** 2 / np.square(ratios).sum()
    for given, expected in ((None, 1.0), (np.full(len(prompt), 3.0), 1.0), (ratios, np.sqrt(len(prompt) / size))):
        model = Generalist(HEADS, Decided(gates_of(some_shares(), 0.3, 0.0)), Watched())
        mixture = compiled(model, replace(prompt, importance_ratios=given))
        errors = standard_errors(mixture, make_queries(prompt))
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
    for name in ("gate", "spread"):
        written, read = getattr(model, name).state_dict(), getattr(loaded, name).state_dict()
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


REFUSALS = {
    "missing weights": (lambda path: path.unlink(), "cannot read the checkpoint"),
    "missing card": (lambda path: path.with_suffix(".json").unlink(), "cannot read the checkpoint or its card"),
    "card that is no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "or its card"),
    "card that is no text": (lambda path: path.with_suffix(".json").write_bytes(b"\xff\xfe\x00"), "or its card"),
    "card that is a list": (lambda path: path.with_suffix(".json").write_text("[]"), "schema_version must be 4"),
    "another schema": (lambda path: edit_card(path, schema_version=1), "schema_version must be 4, got 1; pretrain it"),
    "the last schema": (lambda path: edit_card(path, schema_version=3), "must be 4, got 3.*upgrade it with scripts/"),
    "the one before": (lambda path: edit_card(path, schema_version=2), "must be 4, got 2.*upgrade it with scripts/"),
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
    "a width that is no number": (lambda path: edit_card(path, width="wide"), "weights do not fit the card"),
    "more members": (lambda path: edit_card(path, num_members=3), "weights do not fit the card"),
    "fewer heads": (lambda path: edit_card(path, heads=[{}]), "weights do not fit the card"),
    "no heads": (lambda path: edit_card(path, heads=[]), "weights do not fit the card"),
    "another shape": (
        lambda path: edit_weights(path, lambda t: t.update({"gate.members.0.4.bias": torch.zeros(3)})),
        "weights do not fit the card",
    ),
    "a missing tensor": (
        lambda path: edit_weights(path, lambda t: t.pop("spread.network.4.bias")),
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


def to_older_schema(path, version):
    """As an older version wrote it: with a dial more in the gate; up to schema 2 the hash was that of the weights."""
    tensors = load(path.read_bytes())
    for name, tensor in tensors.items():
        if ".4." in name and name.startswith("gate"):
            tensors[name] = torch.cat([tensor, torch.full_like(tensor[:1], 0.5)])
    path.write_bytes(save(tensors))
    edit_card(path, schema_version=version, query_statistics=[*QUERY_STATISTICS[:-1], "imagination"])
    if version == 2:
        edit_card(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("version", [2, 3])
def test_a_checkpoint_of_an_older_schema_is_upgraded_and_what_it_says_stays(version, tmp_path):
    path, prompt = tmp_path / "a.safetensors", make_prompt()
    model, queries = with_random_weights(prompt, seed=3), make_queries(prompt)
    save_checkpoint(path, model, {"seed": 3, "commit": "of the writing"})
    with pytest.raises(CheckpointError, match=r"must be one of \(2, 3\) to be upgraded, got 4"):
        upgrade_checkpoint(path, {})
    content = path.read_bytes()
    to_older_schema(path, version)
    card = upgrade_checkpoint(path, {"commit": "of the training"})
    assert path.read_bytes() == content
    loaded, again = load_checkpoint(path)
    assert again == card
    (removed,) = card.training["removed"]
    assert removed.startswith("The gate's share of returns imagined")
    assert {**card.training, "removed": None} == {"seed": 3, "commit": "of the training", "removed": None}
    one, other = compiled(model, prompt), compiled(loaded, prompt)
    np.testing.assert_array_equal(mixed_values(other, queries), mixed_values(one, queries))
    np.testing.assert_array_equal(standard_errors(other, queries), standard_errors(one, queries))


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_checkpoint_is_not_upgraded(version, tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, untrained(), {})
    to_older_schema(path, version)
    damage(path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(CheckpointError, match="the weights are not those of the card"):
        upgrade_checkpoint(path, {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_other_query_statistics_are_not_upgraded(tmp_path):
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, untrained(), {})
    to_older_schema(path, 3)
    edit_card(path, query_statistics=["mood"])
    with pytest.raises(CheckpointError, match=r"its last query statistic must be 'imagination'.*mood"):
        upgrade_checkpoint(path, {})


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
