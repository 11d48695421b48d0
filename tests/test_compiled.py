"""What is reported of an evaluation is what answered: members, support, attention, certificates."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator import kernel as kernel_module
from icrl_gym.evaluator.certificates import certificates
from icrl_gym.evaluator.error_bars import SamplingError
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.keys import keys
from icrl_gym.evaluator.mixing import consensus
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import compile_prompt
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead

GAMMA = 0.9
TWO = (Setting(), Setting(bandwidth=0.8, sink=50.0, forgetting=1e-3, landmarks=7))
DISTINCT_KERNELS = {(head.bandwidth, head.sink, head.relevance, head.landmarks) for head in HEADS}


@dataclass(frozen=True, eq=False)
class Weighed(Generalist):
    """A mixture whose heads have shares of their own."""

    shares: tuple[float, ...] = ()

    def compile(self, prompt, device, dtype):
        mixture = super().compile(prompt, device, dtype)
        members = zip(mixture.members, self.shares, strict=True)
        return replace(mixture, members=tuple(replace(member, share=share) for member, share in members))


def make_log(num_rows=60, seed=0):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(num_rows + 1, 2))
    terminated, truncated = rng.random(num_rows) < 0.1, rng.random(num_rows) < 0.05
    rewards = states[:-1, 0] + rng.normal(size=num_rows)
    return icrl.Trajectory(states[:-1], np.zeros(num_rows), rewards, states[1:], terminated, truncated)


def fitted(heads=HEADS, shares=None, log=None):
    spread = SpreadHead(4)
    model = Generalist(heads, spread) if shares is None else Weighed(heads, spread, tuple(shares))
    return icrl.InContextEvaluator(model=model).fit(log or make_log(), GAMMA)


def weights_of(states, prompt, setting, rows):
    """Kernel weights w_k exp(-distance^2 / 2) of the keys, (Q, K), in NumPy; uniform relevance."""
    width = setting.bandwidth * np.sqrt(prompt.effective_dimension / 4)
    square = np.square(states[:, None] - prompt.source_features[rows]).sum(axis=-1)
    return len(prompt) / len(rows) * np.exp(-square / (2 * width**2))


def test_values_are_those_of_the_members_that_are_reported():
    evaluator = fitted(shares=np.random.default_rng(0).dirichlet(np.ones(len(HEADS))))
    log = evaluator.trajectory_
    estimate = evaluator.predict(log.next_observations[:9])
    members, queries = estimate.diagnostics.members, evaluator.prompt_.queries(log.next_observations[:9])
    assert len(members) == len(HEADS)
    again = [compile_prompt(evaluator.prompt_, member.setting, fall_back=False) for member in members]
    values = torch.stack([head.values(head.attend(queries))[-1] for head in again])[None]
    shares = torch.tensor([[member.share for member in members]], dtype=torch.float64)
    expected = (consensus(values, shares) * values).sum(dim=1)[0]
    np.testing.assert_allclose(estimate.values, expected, rtol=1e-9)
    assert np.abs(estimate.values - values[0, 0].numpy()).max() > 1e-3  # not those of the first head


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.3, 0.7), (0.9, 0.1)])
def test_support_and_attention_are_the_share_weighted_ones_of_the_members(shares):
    evaluator = fitted(TWO, shares)
    prompt, states = evaluator.prompt_, evaluator.trajectory_.next_observations[:5]
    queries, n = prompt.queries(states), len(evaluator.prompt_)
    support, attention = np.zeros(5), np.zeros((5, n))
    for setting, share in zip(TWO, shares, strict=True):
        rows, _ = keys(prompt, setting.landmarks, np.zeros(n))
        weights = weights_of(queries, prompt, setting, rows)
        support += share * weights.sum(axis=1)
        attention[:, rows] += share * weights / (setting.sink + weights.sum(axis=1, keepdims=True))
    estimate = evaluator.predict(states)
    np.testing.assert_allclose(estimate.diagnostics.support, support, rtol=1e-8)
    np.testing.assert_allclose(evaluator.attention(states), attention, atol=1e-12)
    assert [member.share for member in estimate.diagnostics.members] == list(shares)


def test_the_construction_is_a_mixture_of_one():
    log = make_log()
    evaluator = icrl.InContextEvaluator().fit(log, GAMMA)
    estimate = evaluator.predict(log.observations[:5])
    (member,) = estimate.diagnostics.members
    assert (member.share, member.setting, member.fell_back) == (1.0, Setting(), False)
    mass = weights_of(evaluator.prompt_.queries(log.observations[:5]), evaluator.prompt_, Setting(), np.arange(60))
    np.testing.assert_allclose(
        evaluator.attention(log.observations[:5]), mass / (300.0 + mass.sum(axis=1, keepdims=True)), atol=1e-12
    )


def test_certificates_are_told_of_every_member_and_landmarks_have_none():
    evaluator = fitted((*TWO, Setting(bandwidth=0.7, trace_decay=0.5)))
    first, landmarks, third = evaluator.predict(np.zeros((1, 2))).diagnostics.members
    assert landmarks.certificates is None
    for member in (first, third):
        assert member.certificates == certificates(compile_prompt(evaluator.prompt_, member.setting, fall_back=False))
    assert first.certificates != third.certificates


ONE_KERNEL = (Setting(), Setting(forgetting=1e-2), Setting(trace_decay=0.5))
EACH_ITS_OWN = tuple(
    replace(Setting(), **{name: value})
    for name, value in {"bandwidth": 2.0, "sink": 9.0, "relevance": "returns", "landmarks": 5, "step_size": 1.0}.items()
)


@pytest.mark.parametrize("heads", [HEADS, TWO, ONE_KERNEL, EACH_ITS_OWN])
def test_heads_that_attend_alike_are_attended_to_once(monkeypatch, heads):
    sizes = []
    attend = kernel_module.gaussian_attention

    def counted(destinations, *others):
        sizes.append(len(destinations))
        return attend(destinations, *others)

    monkeypatch.setattr(kernel_module, "gaussian_attention", counted)
    evaluator = fitted(heads)
    assert not evaluator.compiled_.fell_back
    columns = len(evaluator.prompt_) + len(evaluator.prompt_.end_features)
    kernels = {(head.bandwidth, head.sink, head.relevance, head.landmarks) for head in heads}
    assert [size for size in sizes if size] == [columns] * len(kernels)
    sizes.clear()
    evaluator.predict(np.zeros((5, 2)))
    assert sizes == [5] * len(kernels)
    assert len(DISTINCT_KERNELS) == 6


@pytest.mark.parametrize("landmarks", [0, 7])
@pytest.mark.parametrize("relevance", ["uniform", "returns"])
def test_support_is_the_same_with_a_sink_and_without(landmarks, relevance):
    """With a sink it is read off the attention, without one it is counted from distances; sources are weighted."""
    log, rng = make_log(), np.random.default_rng(1)
    prompt = replace(Prompt.from_trajectory(log, GAMMA), importance_ratios=rng.exponential(size=len(log)))
    queries = prompt.queries(log.next_observations[:5])
    found = []
    for sink in (0.0, 20.0):
        kernel = compile_prompt(prompt, Setting(sink=sink, landmarks=landmarks, relevance=relevance)).kernel
        found.append(kernel.support(queries, kernel.attend(queries)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_what_answered_keeps_no_matrix_of_the_context():
    evaluator = fitted()
    for member in evaluator.predict(np.zeros((1, 2))).diagnostics.members:
        assert member.head.readout.columns_LCR is None
        assert "columns_CK" not in vars(member.head.kernel)


def test_queries_in_blocks_are_the_same_queries(monkeypatch):
    evaluator = fitted()
    states = evaluator.trajectory_.next_observations[:11]
    whole = evaluator.predict(states)
    monkeypatch.setattr("icrl_gym.evaluator.compiled.QUERY_BLOCK", 4)
    parts = evaluator.predict(states)
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-10)
    np.testing.assert_allclose(parts.stderr, whole.stderr, rtol=1e-5)
    np.testing.assert_allclose(parts.diagnostics.support, whole.diagnostics.support, rtol=1e-10)


def test_a_log_without_terminations_has_the_error_of_one_more_that_was_not_seen():
    """Rewards of 1 leave no innovation; one termination among n + 1 transitions would move the constant 10."""
    log, n = make_log(), 60
    endless = icrl.Trajectory(
        log.observations, log.actions, np.ones(n), log.next_observations, np.zeros(n), np.zeros(n)
    )
    estimate = icrl.InContextEvaluator().fit(endless, GAMMA).predict(log.observations[:4])
    np.testing.assert_allclose(estimate.values, 10.0, rtol=1e-9)
    with_one_more = n / (n * (1 - GAMMA) + GAMMA)  # sum R / sum (1 - discount), a last discount of gamma taken away
    np.testing.assert_allclose(estimate.stderr, 10.0 - with_one_more, rtol=1e-6)
    ended = replace(Prompt.from_trajectory(endless, GAMMA), discounts=GAMMA * (np.arange(n) > 0))
    assert ended.constant == pytest.approx(with_one_more, rel=1e-9)
    one_seen = compile_prompt(ended, Setting())
    assert SamplingError.of(one_seen).unseen == 0.0
