"""Logs in parts: the values of all transitions, from sums over parts that are read one at a time."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_gym as icrl
from icrl_gym.evaluator import heads, landmarks, parts
from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.error_bars import PretrainedError
from icrl_gym.evaluator.held import LogInParts, here
from icrl_gym.evaluator.mixing import FREE_LEVEL
from icrl_gym.evaluator.mixture import Construction, Generalist
from icrl_gym.evaluator.network import Compiler
from icrl_gym.evaluator.parts import PartsSum
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import value_scale
from icrl_gym.evaluator.world.tabled import TabledValues

GAMMA = 0.95
HELD = 480
TOLERANCE = 1e-6


@pytest.fixture(autouse=True, scope="module")
def short_contexts_have_landmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "MOST_SOURCES", 100)
        patch.setattr(heads, "NUM_LANDMARKS", 30)
        patch.setattr(landmarks, "BLOCK", 128)
        yield


def make_log(num_rows, seed=0, constant_rewards=False, weighted=False, terminating=0.02, cut=0.01):
    """A smooth walk in a plane that terminates now and then, or is cut."""
    rng = np.random.default_rng(seed)
    state, rows = np.zeros(2), []
    for draw in rng.random((num_rows, 5)):
        following = 0.95 * state + 0.3 * (draw[:2] - 0.5)
        ended, stopped = draw[2] < terminating, draw[3] < cut
        rows.append((state, following, 1.0 if constant_rewards else state[0] + 0.1 * draw[4], ended, stopped))
        state = rng.normal(size=2) / 10 if ended or stopped else following
    states, following, rewards, ended, stopped = (np.array(part) for part in zip(*rows, strict=True))
    ratios = rng.exponential(size=num_rows) * (rng.random(num_rows) < 0.9) if weighted else None
    return icrl.Trajectory(
        states, rng.normal(size=num_rows), rewards, following, ended, stopped & ~ended, importance_ratios=ratios
    )


def cut_at_ends(log, num_parts):
    """About so many parts, none of which a stretch reaches out of."""
    ends = np.flatnonzero(log.episode_ends) + 1
    chosen = np.unique(np.linspace(0, len(ends) - 1, num_parts + 1).round().astype(int)[1:-1])
    borders = [0, *(int(end) for end in ends[chosen] if end < len(log)), len(log)]
    return [log[start:stop] for start, stop in pairwise(borders)]


def evaluator(imagination=False):
    """A mixture of four heads: two of one kernel, of which one has a trace, and two of others."""
    chosen = (heads.HEADS[0], *(replace(heads.HEADS[number], landmarks=60) for number in (2, 3, 4)))
    return icrl.InContextEvaluator(model=Generalist(chosen, SpreadHead(4)), imagination=imagination)


def states_of(seed=1):
    return make_log(40, seed=seed).observations


def summed(fitted, log, pieces):
    """The fitted context as the held one of a log in such parts."""
    total = PartsSum.of(fitted.compiled_, LogInParts(tuple(pieces), len(log), (0.0, 0.0), log), None, lambda *_: None)
    return total.mixture


def reading(mixture, fitted):
    return mixture.read(fitted.prompt_.queries(states_of()))


def assert_same(one, other):
    spread = max(np.std(other.by_layer_LQ[-1]), 1e-9 * np.abs(other.by_layer_LQ[-1]).max())
    np.testing.assert_allclose(one.by_layer_LQ, other.by_layer_LQ, rtol=TOLERANCE, atol=TOLERANCE * spread)
    np.testing.assert_allclose(one.support_Q, other.support_Q, rtol=TOLERANCE)
    if other.stderr_Q is not None:
        np.testing.assert_allclose(one.stderr_Q, other.stderr_Q, rtol=1e-4)  # its network is in single precision


LOGS = st.builds(
    make_log,
    num_rows=st.integers(140, 420),
    seed=st.integers(0, 10_000),
    constant_rewards=st.booleans(),
    weighted=st.booleans(),
    terminating=st.sampled_from([0.0, 0.02, 0.2]),
    cut=st.sampled_from([0.0, 0.01, 0.1]),
)


@settings(max_examples=15, deadline=None)
@given(LOGS, st.integers(1, 12), st.randoms(use_true_random=False))
def test_any_parts_in_any_order_have_the_values_of_a_plain_fit_with_the_same_statistics(log, num_parts, random):
    fitted = evaluator().fit(log, GAMMA)
    pieces = cut_at_ends(log, num_parts)
    random.shuffle(pieces)
    bars = fitted.compiled_.error_bars
    if isinstance(bars, PretrainedError):  # parts do not know the sampling error
        bars = replace(bars, sampled=False)
    plain = replace(fitted.compiled_, error_bars=bars)
    assert_same(reading(summed(fitted, log, pieces), fitted), reading(plain, fitted))


@pytest.mark.parametrize("constant_rewards", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_log_cut_anywhere_at_its_ends_has_the_same_held_context_and_values(weighted, constant_rewards):
    log = make_log(1500, seed=2, weighted=weighted, constant_rewards=constant_rewards)
    whole = evaluator().fit_parts([log], GAMMA, held=HELD)
    assert len(whole.trajectory_) == HELD
    for num_parts in (3, 10):
        pieces = cut_at_ends(log, num_parts)
        assert len(pieces) == num_parts
        cut = evaluator().fit_parts(pieces, GAMMA, held=HELD)
        np.testing.assert_array_equal(cut.trajectory_.observations, whole.trajectory_.observations)
        assert_same(reading(cut.compiled_, cut), reading(whole.compiled_, whole))
    held_alone = evaluator().fit(whole.trajectory_, GAMMA)
    values = whole.predict(states_of()).values
    assert np.abs(values - held_alone.predict(states_of()).values).max() > 1e-3 * np.abs(values).max()


def solved_anew(fitted, log):
    """The fitted heads from all transitions of the log, of which no part was taken."""
    prompt = icrl.Prompt.from_trajectory(log, GAMMA, fitted.prompt_.feature_map)
    compiler, members = Compiler(prompt), []
    for member in fitted.compiled_.members:
        head = member.head
        np.testing.assert_allclose(head.kernel.log_weights_K.numpy(), np.log(len(log) / len(head.kernel.rows_K)))
        equations = compiler.equations(head.setting, log.rewards[:, None], torch.float64)
        kernel = replace(head.kernel, prompt=prompt)
        system = landmarks.LandmarkSystem.of(compiler.with_probe(equations), kernel)
        members.append(replace(member, head=replace(head, system=system).solved_again()))
    return CompiledMixture(fitted.prompt_, tuple(members))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_whole_log_is_solved_for_under_the_held_contexts_kernels(weighted):
    log = make_log(1500, seed=3, weighted=weighted)
    fitted = evaluator().fit_parts(cut_at_ends(log, 5), GAMMA, held=HELD)
    anew = reading(solved_anew(fitted, log), fitted)
    np.testing.assert_allclose(reading(fitted.compiled_, fitted).by_layer_LQ, anew.by_layer_LQ, rtol=TOLERANCE)
    bars = fitted.compiled_.error_bars
    assert bars.facts.scale == pytest.approx(value_scale(bars.first))
    assert bars.first.kernel is fitted.compiled_.members[0].head.kernel


def test_a_head_that_fell_back_on_the_held_context_alone_answers_from_all_transitions_where_it_can():
    log = make_log(1500, seed=2, weighted=True)
    fitted = evaluator().fit_parts(cut_at_ends(log, 5), GAMMA, held=HELD)
    assert evaluator().fit(fitted.trajectory_, GAMMA).compiled_.fell_back
    assert not fitted.compiled_.fell_back
    for member in fitted.compiled_.members:
        assert member.setting.free_level == FREE_LEVEL
        assert not member.setting.averaging
    anew = reading(solved_anew(fitted, log), fitted)
    np.testing.assert_allclose(reading(fitted.compiled_, fitted).by_layer_LQ, anew.by_layer_LQ, rtol=TOLERANCE)


def test_a_part_that_is_cut_within_a_stretch_ends_like_a_log_that_stops():
    log = make_log(900, seed=4, terminating=0.0, cut=0.0)
    fitted = evaluator().fit(log, GAMMA)
    pieces = [log[start : start + 300] for start in (0, 300, 600)]
    stopped = replace(log, episode_ends=np.arange(len(log)) % 300 == 299)
    whole, expected, cut = (reading(summed(fitted, log, given), fitted) for given in ([log], [stopped], pieces))
    assert_same(cut, expected)
    assert np.abs(cut.by_layer_LQ - whole.by_layer_LQ).max() > 1e-4


def test_a_log_within_the_budget_is_fitted_whole():
    log = make_log(400, seed=5)
    fitted = evaluator().fit_parts(cut_at_ends(log, 4), GAMMA, held=400)
    plain = evaluator().fit(log, GAMMA).predict(states_of())
    np.testing.assert_array_equal(fitted.predict(states_of()).values, plain.values)
    assert fitted.predict(states_of()).attribution().shape == (40, 400)


def test_parts_are_read_from_files_and_functions_one_at_a_time(tmp_path):
    pieces = cut_at_ends(make_log(1500, seed=6), 4)
    paths = [piece.save(tmp_path / f"{number}.npz") for number, piece in enumerate(pieces)]
    expected = evaluator().fit_parts(pieces, GAMMA, held=HELD).predict(states_of()).values
    given_parts = [str(paths[0]), paths[1], lambda: pieces[2], pieces[3]]
    found = evaluator().fit_parts(given_parts, GAMMA, held=HELD).predict(states_of()).values
    np.testing.assert_array_equal(found, expected)


def test_walks_are_those_of_the_held_context_and_end_in_values_of_all_transitions():
    log = make_log(1500, seed=7)
    fitted = evaluator(imagination=True).fit_parts(cut_at_ends(log, 4), GAMMA, held=HELD)
    assert isinstance(fitted.compiled_.leaf, parts.SummedMixture)
    estimates = fitted.predict(states_of())
    assert np.isfinite(estimates.values).all()
    assert (estimates.stderr > 0).all()
    attention = fitted.attention(states_of())
    assert attention.shape == (40, HELD)
    assert ((attention.sum(axis=1) > 0) & (attention.sum(axis=1) <= 1)).all()
    with pytest.raises(RuntimeError, match="a log in parts keeps no transitions"):
        estimates.attribution()
    with pytest.raises(RuntimeError, match="a log in parts keeps no transitions"):
        fitted.predict_rewards(np.ones((HELD, 50)), states_of()[:3])


def test_action_values_are_those_of_the_held_context():
    log = make_log(1500, seed=7)
    fitted = evaluator().fit_parts(cut_at_ends(log, 4), GAMMA, held=HELD)
    alone = evaluator().fit(fitted.trajectory_, GAMMA)
    actions = np.zeros(40)
    found, expected = (one.predict_q(states_of(), actions).values for one in (fitted, alone))
    np.testing.assert_allclose(found, expected)


def test_more_transitions_are_one_more_part():
    log, more = make_log(1500, seed=8), make_log(400, seed=9)
    fitted = evaluator().fit_parts(cut_at_ends(log, 4), GAMMA, held=HELD)
    frozen = fitted._stream.reader
    fitted.update(more)
    expected = parts.added(frozen.summed(log), frozen.summed(more))
    for found, anew in zip(fitted._stream.systems, expected, strict=True):
        np.testing.assert_allclose(found.matrix_KK, anew.matrix_KK, rtol=1e-9, atol=1e-9)
    assert fitted.predict(states_of()).diagnostics.warnings == ()
    assert len(fitted.trajectory_) == HELD
    fitted.update(more, decay=0.5)
    halved = parts.added(tuple(system.scaled(0.5) for system in expected), frozen.summed(more))
    np.testing.assert_allclose(fitted._stream.systems[0].rewards_KR, halved[0].rewards_KR, rtol=1e-9, atol=1e-9)
    assert "has grown by 53%" in fitted.predict(states_of()).diagnostics.warnings[0]


@pytest.mark.parametrize("options", [{"refit": True}, {"window": 100}, {"policy": "random"}], ids=str)
def test_what_needs_the_transitions_is_refused_when_a_log_in_parts_goes_on(options):
    fitted = evaluator().fit_parts([make_log(700, seed=1)], GAMMA, held=HELD)
    with pytest.raises(ValueError, match="a log in parts keeps no transitions"):
        fitted.update(make_log(50), **options)
    with pytest.raises(ValueError, match="importance ratios must be as in the parts before"):
        fitted.update(make_log(50, weighted=True))


def test_possible_values_are_those_of_all_rewards():
    log = make_log(1500, seed=10)
    rewards = np.zeros(len(log))
    rewards[60] = 5.0  # between the blocks that are held
    fitted = evaluator().fit_parts([replace(log, rewards=rewards)], GAMMA, held=HELD)
    assert fitted.trajectory_.rewards.max() == 0
    assert fitted.predict(states_of()).bounds == (0.0, pytest.approx(100.0))
    fitted.update(replace(make_log(50), rewards=np.full(50, -1.0)))
    assert fitted.predict(states_of()).bounds == (pytest.approx(-20.0), pytest.approx(100.0))


def test_a_head_whose_recursion_grows_on_the_whole_log_becomes_the_averager_of_the_held_context(monkeypatch):
    log = make_log(1500, seed=11)
    monkeypatch.setattr(parts.CompiledPrompt, "exceeds", property(lambda head: head.kernel.log_weights_K[0] > 3.0))
    fitted = evaluator().fit_parts([log], GAMMA, held=HELD)
    fallen = [member for member in fitted.compiled_.members if member.fell_back]
    assert fallen
    assert all(member.setting.averaging == 1 for member in fallen)
    assert "the safe averager took over" in fitted.predict(states_of()).diagnostics.warnings[0]


def test_a_part_whose_transitions_all_have_ratio_zero_adds_nothing():
    log = make_log(1500, seed=12, weighted=True)
    nothing = make_log(60, seed=13).with_importance_ratios(np.zeros(60), None)
    fitted = evaluator().fit_parts([log], GAMMA, held=HELD)
    systems = fitted._stream.systems
    fitted.update(nothing)
    for found, before in zip(fitted._stream.systems, systems, strict=True):
        assert torch.equal(found.matrix_KK, before.matrix_KK)


@pytest.mark.parametrize(
    ("given_parts", "error", "message"),
    [
        ([], ValueError, "parts must hold at least one part, got none"),
        ("log.npz", TypeError, "parts must be a sequence of trajectories, paths or functions, got str"),
        ([3], TypeError, r"parts\[0\] must be a Trajectory, the path of one, or a function that returns one, got int"),
        ([lambda: 3], TypeError, r"parts\[0\] must return a Trajectory, got int"),
        (["nowhere.npz"], FileNotFoundError, "there is no trajectory file nowhere.npz"),
        ([make_log(20), make_log(20, weighted=True)], ValueError, r"parts\[1\]: importance ratios must be as"),
        ([make_log(20), replace(make_log(20), actions=None)], ValueError, r"parts\[1\]: actions must be as"),
        (
            [replace(make_log(20), policy="a"), replace(make_log(20), policy="b")],
            ValueError,
            r"parts\[1\]: policy must be as in the parts before, got 'b' against 'a'",
        ),
    ],
)
def test_parts_of_another_kind_are_refused(given_parts, error, message):
    with pytest.raises(error, match=message):
        evaluator().fit_parts(given_parts, GAMMA)


@pytest.mark.parametrize("held", [0, 2.5, True, None])
def test_a_budget_that_is_no_number_of_transitions_is_refused(held):
    with pytest.raises(ValueError, match=f"held must be an int of at least 1, got {held!r}"):
        evaluator().fit_parts([make_log(20)], GAMMA, held=held)


def test_a_policy_that_did_not_act_and_heads_without_landmarks_are_refused():
    log = make_log(700, seed=1)
    other = lambda observations: np.zeros(len(observations))  # noqa: E731
    with pytest.raises(ValueError, match="is not known to have acted in this log"):
        evaluator().fit_parts([log], GAMMA, other, held=HELD)
    alone = icrl.InContextEvaluator()
    assert alone.model == Construction(Setting())
    with pytest.raises(ValueError, match="values of a log in parts need landmarks, and this head has none"):
        alone.fit_parts([log], GAMMA, held=HELD)


def test_progress_is_told_of_every_part():
    told = []
    evaluator().fit_parts(cut_at_ends(make_log(900), 3), GAMMA, held=HELD, progress=lambda *step: told.append(step))
    for name in ("reading the parts", "taking the held context", "summing the parts"):
        steps = [(done, total) for part, done, total in told if part == name]
        assert steps[0][0] == 0
        assert steps[-1] == (3, 3)


def test_workers_that_lose_calls_are_an_error():
    pieces = cut_at_ends(make_log(900), 3)
    with pytest.raises(ChildProcessError, match="workers: 1 of 3 calls lost their workers for good"):
        evaluator().fit_parts(pieces, GAMMA, held=HELD, workers=lambda function, calls: here(function, calls[1:]))


def test_torch_distributed_without_a_group_is_an_error():
    with pytest.raises(RuntimeError, match="needs a process group: call"):
        evaluator().fit_parts([make_log(900)], GAMMA, held=HELD, workers="torch.distributed")


def test_states_that_recur_are_not_counted_in_the_held_sample_of_a_longer_log():
    logs = [icrl.collect("FrozenLake-v1", "random", num_transitions=400, seed=seed) for seed in (0, 1, 2)]
    fit_parts = icrl.InContextEvaluator.from_pretrained("generalist").fit_parts
    for held, counted in ((300, False), (1200, True)):  # the second is all of it
        for policy in (None, "random"):
            assert isinstance(fit_parts(logs, GAMMA, policy, held=held).compiled_, TabledValues) is counted
