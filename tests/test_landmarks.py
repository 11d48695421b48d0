"""Landmarks: the equilibrium with a few states as the only keys, against NumPy written from its equation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator import landmarks
from icrl_gym.evaluator.certificates import certificates
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.keys import keys
from icrl_gym.evaluator.landmarks import LandmarkSystem
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import compile_prompt
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead

GAMMA = 0.9
PLAIN = Setting(bandwidth=0.8, forgetting=1e-3, landmarks=9)
SETTINGS = {
    "lambda 0": PLAIN,
    "lambda 0.9": replace(PLAIN, trace_decay=0.9),
    "no sink": replace(PLAIN, trace_decay=0.5, sink=0.0),
    "half a step": replace(PLAIN, trace_decay=0.9, step_size=0.5),
    "shorter discounts": replace(PLAIN, trace_decay=0.9, pseudo_terminations=2.0),
}


def make_log(seed=0, num_rows=60, num_states=None):
    """Random states in a plane, or some of a few; episodes terminate, or are cut."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(num_states or num_rows + 1, 2))
    visited = rng.integers(num_states, size=num_rows + 1) if num_states else np.arange(num_rows + 1)
    states = table[visited]
    terminated, truncated = rng.random(num_rows) < 0.1, rng.random(num_rows) < 0.05
    following = np.where(truncated[:, None], states[1:] + 0.5, states[1:])
    rewards = states[:-1, 0] + rng.normal(size=num_rows)
    return icrl.Trajectory(states[:-1], np.zeros(num_rows), rewards, following, terminated, truncated)


def make_prompt(**options):
    return Prompt.from_trajectory(make_log(**options), GAMMA)


def some_ratios(prompt, seed=3):
    rng = np.random.default_rng(seed)
    return rng.exponential(size=len(prompt)) * (rng.random(len(prompt)) > 0.2)


def make_queries(seed=5):
    return np.random.default_rng(seed).normal(size=(7, 2))


def expected_keys(prompt, num_landmarks, kept=None):
    """Rows of the keys among first visits of distinct states: half evenly spaced, then always the farthest one."""
    seen, distinct = set(), []
    for row, state in enumerate(map(tuple, prompt.source_features)):
        if (kept is None or kept[row]) and state not in seen:
            seen.add(state)
            distinct.append(row)
    if len(distinct) <= num_landmarks:
        return np.array(distinct)
    even = max(1, round(num_landmarks / 2))
    rows = [distinct[round(i * (len(distinct) - 1) / max(even - 1, 1))] for i in range(even)]
    states = prompt.source_features
    while len(rows) < num_landmarks:
        distance = [min(np.square(states[row] - states[other]).sum() for other in rows) for row in distinct]
        rows.append(distinct[int(np.argmax(distance))])
    return np.sort(rows)


def attention(states, prompt, setting, keys):
    width = setting.bandwidth * np.sqrt(2 / 4)
    square = np.square(states[:, None] - prompt.source_features[keys]).sum(axis=-1)
    weights = len(prompt) / len(keys) * np.exp(-square / (2 * width**2))
    return weights / (setting.sink + weights.sum(axis=1, keepdims=True))


class Equation:
    """[alpha S^T W E (S - diag(discount) S') + eta |S|^2 I] a = alpha S^T W E (R - (1 - discount) c), in NumPy."""

    def __init__(self, prompt, setting, weights=None, ratios=None):
        n = len(prompt)
        ratios = np.ones(n) if ratios is None else ratios
        weights = (np.ones(n) if weights is None else weights) * ratios
        keys = expected_keys(prompt, setting.landmarks, weights > 0)
        columns = np.concatenate([prompt.source_features, prompt.end_features])
        self.at_sources = attention(prompt.source_features, prompt, setting, keys)
        self.at_following = attention(columns[prompt.successors], prompt, setting, keys)
        self.at_queries = attention(make_queries(), prompt, setting, keys)
        self.discounts = prompt.discounts * n / (n + setting.pseudo_terminations)
        trace = np.eye(n)
        for k in range(n - 2, -1, -1):
            if prompt.trace_links[k]:
                trace[k] += self.discounts[k] * setting.trace_decay * ratios[k + 1] * trace[k + 1]
        self.weighted_trace = weights[:, None] * trace
        self.td = self.at_sources - self.discounts[:, None] * self.at_following
        size = (weights * np.square(self.at_sources).sum(axis=1)).sum()
        self.projection = setting.step_size * self.at_sources.T @ self.weighted_trace
        self.matrix = self.projection @ self.td + setting.forgetting * size * np.eye(len(keys))
        self.rewards, self.loss = prompt.rewards, 1.0 - self.discounts
        self.constant = (weights * prompt.rewards).sum() / (weights * self.loss).sum()

    def memories(self, constant):
        return np.linalg.solve(self.matrix, self.projection @ (self.rewards - self.loss * constant))

    def unmet(self, constant, memories):
        """What the N equations leave unmet, (N,)."""
        return self.weighted_trace @ (self.rewards - self.loss * constant - self.td @ memories)

    def free_constant(self):
        """The constant for which it sums to zero, by solving for it and the memories together."""
        bordered = np.block([
            [self.matrix, (self.projection @ self.loss)[:, None]],
            [(self.weighted_trace @ self.td).sum(axis=0), (self.weighted_trace @ self.loss).sum()],
        ])  # fmt: skip
        right = np.append(self.projection @ self.rewards, (self.weighted_trace @ self.rewards).sum())
        return np.linalg.solve(bordered, right)[-1]

    def values(self, free_level=0.0):
        constant = self.constant + (free_level * (self.free_constant() - self.constant) if free_level else 0.0)
        return constant + self.at_queries @ self.memories(constant)


def values_of(compiled):
    return compiled.values(compiled.attend(make_queries()))[-1].numpy()


@pytest.mark.parametrize("level", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_values_solve_the_equation(name, weighted, level):
    prompt, setting = make_prompt(), SETTINGS[name]
    ratios = some_ratios(prompt) if weighted else None
    compiled = compile_prompt(prompt, replace(setting, free_level=level), importance_ratios=ratios, fall_back=False)
    expected = Equation(prompt, setting, ratios=ratios)
    np.testing.assert_allclose(values_of(compiled), expected.values(level), rtol=1e-8, atol=1e-9)
    every_source = compile_prompt(
        prompt, replace(setting, free_level=level, landmarks=0), importance_ratios=ratios, fall_back=False
    )
    assert np.abs(values_of(compiled) - values_of(every_source)).max() > 1e-2


@pytest.mark.parametrize("name", SETTINGS)
def test_the_prompts_own_ratios_count_as_those_given(name):
    prompt = make_prompt()
    ratios = some_ratios(prompt)
    compiled = compile_prompt(replace(prompt, importance_ratios=ratios), SETTINGS[name], fall_back=False)
    np.testing.assert_allclose(values_of(compiled), Equation(prompt, SETTINGS[name], ratios=ratios).values(), rtol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_at_the_free_level_what_the_equations_leave_unmet_sums_to_zero(name, weighted):
    prompt, setting = make_prompt(seed=1), SETTINGS[name]
    ratios = some_ratios(prompt) if weighted else None
    equation = Equation(prompt, setting, ratios=ratios)
    sums = []
    for level in (0.0, 1.0):
        compiled = compile_prompt(prompt, replace(setting, free_level=level), importance_ratios=ratios, fall_back=False)
        constant, memories = float(compiled.readout.constants_LR[-1, 0]), compiled.readout.memories_LNR[-1, :, 0]
        unmet = equation.unmet(constant, memories.numpy())
        sums.append(abs(unmet.sum()) / np.abs(unmet).sum())
    assert sums[0] > 1e-5
    assert sums[1] < 1e-10


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("level", [0.0, 0.6])
def test_values_are_the_attribution_of_the_rewards(name, level):
    prompt = make_prompt()
    compiled = compile_prompt(prompt, replace(SETTINGS[name], free_level=level))
    attribution = compiled.attribution(compiled.attend(make_queries())).numpy()
    assert attribution.shape == (7, len(prompt))
    np.testing.assert_allclose(attribution @ prompt.rewards, values_of(compiled), rtol=1e-9)
    others = np.random.default_rng(0).normal(size=len(prompt))
    again = compile_prompt(replace(prompt, rewards=others), compiled.setting)
    np.testing.assert_allclose(attribution @ others, values_of(again), rtol=1e-8, atol=1e-10)


def test_single_precision_is_not_enough_and_is_not_used():
    prompt, setting = make_prompt(), replace(PLAIN, forgetting=1e-7, landmarks=40)
    one, other = (compile_prompt(prompt, setting, dtype=dtype) for dtype in (torch.float32, torch.float64))
    np.testing.assert_array_equal(values_of(one), values_of(other))


def rows_of_keys(compiled):
    """Which sources are keys, read off the attention: at distance zero a key weighs N / K against the sink's weight."""
    n = len(compiled.prompt)
    attention_NK = compiled.attention_CK[:n].numpy()
    raw_NK = attention_NK / (1.0 - attention_NK.sum(axis=1, keepdims=True)) * compiled.setting.sink
    at_NK = np.isclose(raw_NK, n / attention_NK.shape[1], rtol=1e-9)
    return [np.flatnonzero(column) for column in at_NK.T]


def test_half_of_the_keys_lie_evenly_and_the_others_where_none_is_near():
    prompt = make_prompt()
    rows, _ = keys(prompt, PLAIN.landmarks, np.zeros(len(prompt)))
    np.testing.assert_array_equal(rows, expected_keys(prompt, PLAIN.landmarks))
    assert len(rows) == PLAIN.landmarks
    evenly_spaced = np.linspace(0, len(prompt) - 1, PLAIN.landmarks).round().astype(int)

    def farthest(keys_K):
        """Distance of the source that is farthest from every key."""
        x_ND = prompt.source_features
        return np.linalg.norm(x_ND[:, None] - x_ND[keys_K], axis=-1).min(axis=1).max()

    assert farthest(rows) < farthest(evenly_spaced)


@pytest.mark.parametrize("num_landmarks", [1, 4, 9, 10, 400])
def test_keys_are_distinct_states_and_all_of_them_where_there_are_few(num_landmarks):
    prompt = make_prompt(num_states=10)
    compiled = compile_prompt(prompt, replace(PLAIN, landmarks=num_landmarks), fall_back=False)
    rows = rows_of_keys(compiled)
    assert len(rows) == min(num_landmarks, 10)
    states = [tuple(prompt.source_features[of_key[0]]) for of_key in rows]
    assert len(set(states)) == len(states)
    expected = expected_keys(prompt, num_landmarks)
    assert [of_key[0] for of_key in rows] == [
        np.flatnonzero((prompt.source_features == prompt.source_features[row]).all(axis=1))[0] for row in expected
    ]
    np.testing.assert_allclose(values_of(compiled), Equation(prompt, compiled.setting).values(), rtol=1e-8, atol=1e-9)


def test_dropped_sources_are_no_keys_and_have_no_weight():
    prompt = make_prompt(num_states=10)
    rare = (prompt.source_features == prompt.source_features[0]).all(axis=1)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=len(prompt))
    weights[rare] = 0.0
    weights[np.flatnonzero(~rare)[0]] = 0.0  # of a state that is visited again
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    for num_landmarks in (5, 400):
        setting = replace(PLAIN, landmarks=num_landmarks, trace_decay=0.9)
        compiled = compile_prompt(prompt, setting, log_weights=log_weights, fall_back=False)
        rows = np.concatenate(rows_of_keys(compiled))
        assert not rare[rows].any()
        assert compiled.attention_CK.shape[1] == min(num_landmarks, 9)
        expected = Equation(prompt, setting, weights).values()
        np.testing.assert_allclose(values_of(compiled), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_and_chunks_do_not_change_the_sums(name, monkeypatch):
    prompt, setting = make_prompt(seed=4, num_rows=150), SETTINGS[name]
    ratios = some_ratios(prompt)
    whole = compile_prompt(prompt, setting, importance_ratios=ratios).system
    for block, chunk in ((7, 3), (50, 64), (149, 1)):
        monkeypatch.setattr(landmarks, "BLOCK", block)
        monkeypatch.setattr(landmarks, "CHUNK", chunk)
        parts = compile_prompt(prompt, setting, importance_ratios=ratios).system
        for one, other in zip(vars(parts).values(), vars(whole).values(), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("first", [1, 60, 149])
def test_transitions_can_be_added_to_the_sums(first):
    compiled = compile_prompt(make_prompt(seed=4, num_rows=150), SETTINGS["shorter discounts"])
    equations, kernel = compiled.equations, compiled.kernel
    before = replace(equations, weights_N1=equations.weights_N1[:first])
    empty = LandmarkSystem.empty(len(kernel.rows_K), 1, "cpu")
    added = empty.extended(before, kernel, 0).extended(equations, kernel, first)
    for one, other in zip(vars(added).values(), vars(LandmarkSystem.of(equations, kernel)).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


def test_sums_of_logs_that_no_trace_connects_add_up():
    compiled = compile_prompt(make_prompt(seed=4, num_rows=150), SETTINGS["lambda 0.9"])
    equations, kernel = compiled.equations, compiled.kernel
    cut = int(np.flatnonzero(~kernel.prompt.trace_links)[3]) + 1
    empty = LandmarkSystem.empty(len(kernel.rows_K), 1, "cpu")
    before = empty.extended(replace(equations, weights_N1=equations.weights_N1[:cut]), kernel, 0)
    added = before.plus(empty.extended(equations, kernel, cut))
    for one, other in zip(vars(added).values(), vars(LandmarkSystem.of(equations, kernel)).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("number", [-1, 2.5, 3.0, True, "many", None])
def test_landmarks_that_are_no_number_of_keys_are_refused(number):
    with pytest.raises(ValueError, match=f"landmarks must be an int >= 0, got {number!r}"):
        Setting(landmarks=number)


@pytest.mark.parametrize(
    "others",
    [{"kernel": "inner_product", "sink": 0.0}, {"num_layers": 8}, {"forgetting": 0.0}, {"averaging": 0.5}],
)
def test_landmarks_are_refused_beside_settings_that_do_not_go_with_them(others):
    with pytest.raises(ValueError, match="landmarks need kernel='gaussian', num_layers='equilibrium'"):
        Setting(landmarks=5, **others)
    assert not Setting(**others).allows_landmarks
    assert Setting(landmarks=np.int64(5)).allows_landmarks


def test_where_the_equilibrium_grows_the_averager_over_the_landmarks_takes_over():
    prompt = make_prompt(seed=0)
    rng = np.random.default_rng(1)
    ratios = rng.exponential(size=len(prompt)) * rng.choice([0, 1, 4], size=len(prompt))
    setting = replace(PLAIN, trace_decay=0.9, forgetting=1e-6, landmarks=20, free_level=1.0)
    assert not compile_prompt(prompt, setting).fell_back
    grown = [
        compiled
        for seed in range(30)
        if (
            compiled := compile_prompt(
                prompt, setting, importance_ratios=np.random.default_rng(seed).permutation(ratios)
            )
        ).fell_back
    ]
    assert grown
    compiled = grown[0]
    assert compiled.setting == setting.fallback()
    weights, setting = compiled.equations.weights_N1[:, 0].numpy(), compiled.setting
    keys_K = expected_keys(prompt, setting.landmarks, weights > 0)
    columns = np.concatenate([prompt.source_features, prompt.end_features])
    attention_CK = attention(columns, prompt, setting, keys_K)
    to_KN = attention_CK[: len(prompt)].T * weights
    to_KN = to_KN / to_KN.sum(axis=1, keepdims=True)
    constant = (weights * prompt.rewards).sum() / (weights * (1 - prompt.discounts)).sum()
    going_KK = to_KN @ (prompt.discounts[:, None] * attention_CK[prompt.successors])
    earned_K = to_KN @ (prompt.rewards - (1 - prompt.discounts) * constant)
    memory_K = np.linalg.solve(np.eye(len(keys_K)) - going_KK, earned_K)
    expected = constant + attention(make_queries(), prompt, setting, keys_K) @ memory_K
    np.testing.assert_allclose(values_of(compiled), expected, rtol=1e-9)
    values = values_of(compiled)
    assert np.abs(values).max() <= np.abs(prompt.rewards).max() / (1 - GAMMA)
    np.testing.assert_allclose(
        compiled.attribution(compiled.attend(make_queries())).numpy() @ prompt.rewards, values, rtol=1e-9
    )


def mixture_of_landmarks():
    assert any(head.landmarks for head in HEADS)
    return Generalist(HEADS, SpreadHead(8))


@pytest.mark.parametrize(
    "options", [{"averaging": 1.0}, {"averaging": 0.2}, {"num_layers": 8}, {"forgetting": 0.0}], ids=str
)
def test_options_that_do_not_go_with_landmarks_make_every_source_a_key(options):
    evaluator = icrl.InContextEvaluator(model=mixture_of_landmarks(), **options)
    assert not any(head.landmarks for head in evaluator.model.heads)
    for head in evaluator.model.heads:
        assert all(getattr(head, name) == value for name, value in options.items())
    log = make_log()
    estimates = evaluator.fit(log, GAMMA).predict(log.observations[:5])
    assert len(evaluator.compiled_.members) == len(HEADS)
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"bandwidth": 0.7}, {"trace_decay": 0.5, "step_size": 0.9}], ids=str)
def test_options_that_go_with_landmarks_keep_them(options):
    evaluator = icrl.InContextEvaluator(model=mixture_of_landmarks(), **options)
    assert [head.landmarks for head in evaluator.model.heads] == [head.landmarks for head in HEADS]
    log = make_log(num_rows=40)
    assert np.isfinite(evaluator.fit(log, GAMMA).predict(log.observations[:5]).values).all()


def test_a_mixture_reads_its_statistics_from_a_head_with_every_source_as_a_key():
    with pytest.raises(ValueError, match="heads: the first one must have every source as a key"):
        Generalist((PLAIN,), SpreadHead(4))


def test_certificates_need_every_source_as_a_key():
    with pytest.raises(ValueError, match="compiled: certificates are of settings without landmarks"):
        certificates(compile_prompt(make_prompt(), PLAIN))
