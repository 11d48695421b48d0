"""Contexts that go on: transitions are added to sums and taken out of them, as if all had been summed anew."""

from dataclasses import replace

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.evaluator import heads, landmarks, streaming
from icrl_gym.evaluator.landmarks import LandmarkSystem
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import Compiler
from icrl_gym.evaluator.spread_head import SpreadHead

GAMMA = 0.95


@pytest.fixture(autouse=True)
def short_contexts_have_landmarks(monkeypatch):
    monkeypatch.setattr(heads, "MOST_SOURCES", 100)
    monkeypatch.setattr(heads, "NUM_LANDMARKS", 30)
    monkeypatch.setattr(landmarks, "BLOCK", 128)


def make_log(num_rows, seed=0, constant_rewards=False):
    """A smooth walk in a plane that terminates now and then, or is cut; one walk for every seed, however long."""
    rng = np.random.default_rng(seed)
    draws = rng.random((4000, 5))
    state, rows = np.zeros(2), []
    for draw in draws[:num_rows]:
        following = 0.95 * state + 0.3 * (draw[:2] - 0.5)
        ended, cut = draw[2] < 0.02, draw[3] < 0.01
        rows.append((state, following, 1.0 if constant_rewards else state[0] + 0.1 * draw[4], ended, cut))
        state = np.zeros(2) if ended or cut else following
    states, following, rewards, ended, cut = (np.array(part) for part in zip(*rows, strict=True))
    return icrl.Trajectory(states, np.zeros(num_rows), rewards, following, ended, cut & ~ended)


def evaluator():
    """A mixture of three heads: with a statistic's head, with landmarks, and with a trace."""
    chosen = (heads.HEADS[0], replace(heads.HEADS[4], landmarks=60), replace(heads.HEADS[3], landmarks=60))
    return icrl.InContextEvaluator(model=Generalist(chosen, SpreadHead(4)), imagination=False)


def summed_anew(fitted):
    """The heads of a fitted evaluator from all transitions of its context, with the statistics that they have."""
    mixture = fitted.compiled_
    compiler = Compiler(mixture.prompt)
    again = []
    for member in mixture.members:
        head = member.head
        system = LandmarkSystem.of(compiler.with_probe(head.equations), head.kernel)
        again.append(replace(member, head=replace(head, system=system).solved_again()))
    return replace(mixture, members=tuple(again))


@pytest.mark.parametrize("constant_rewards", [False, True])
@pytest.mark.parametrize("options", [{}, {"window": 450}, {"decay": 0.7}, {"window": 420, "decay": 0.9}], ids=str)
def test_going_on_equals_summing_anew_with_the_same_statistics(options, constant_rewards):
    log = make_log(700, constant_rewards=constant_rewards)
    states = make_log(40, seed=1).observations
    fitted = evaluator().fit(log[:500], GAMMA)
    for start in (500, 517, 640):
        fitted.update(log[start : {500: 517, 517: 640, 640: 700}[start]], **options)
        assert fitted._stream.num_added == {500: 17, 517: 140, 640: 200}[start]
    values = fitted.predict(states).values
    anew = summed_anew(fitted).read(fitted.prompt_.queries(states)).by_layer_LQ[-1]
    np.testing.assert_allclose(values, anew, rtol=1e-6, atol=1e-6 * np.std(anew))
    assert len(fitted.trajectory_) == options.get("window", 700)
    np.testing.assert_allclose(fitted.trajectory_.rewards, log.rewards[-len(fitted.trajectory_) :])


def test_values_are_the_attribution_of_the_rewards_also_after_going_on():
    log = make_log(600)
    fitted = evaluator().fit(log[:500], GAMMA).update(log[500:], window=520, decay=0.8)
    estimates = fitted.predict(log.observations[:7])
    np.testing.assert_allclose(estimates.attribution() @ fitted.trajectory_.rewards, estimates.values, rtol=1e-6)
    assert fitted.attention(log.observations[:7]).shape == (7, 520)


def test_older_transitions_count_less_also_in_short_contexts():
    log = make_log(90)
    changed = replace(make_log(90, seed=3), rewards=make_log(90, seed=3).rewards + 5.0)
    plain = evaluator().fit(log, GAMMA).update(changed)
    faded = evaluator().fit(log, GAMMA).update(changed, decay=0.05)
    only = evaluator().fit(changed, GAMMA)
    states = changed.observations[:20]
    distances = [np.abs(one.predict(states).values - only.predict(states).values).mean() for one in (faded, plain)]
    assert distances[0] < 0.4 * distances[1]


def test_a_context_that_has_gone_far_on_is_compiled_anew():
    log = make_log(800)
    fitted = evaluator().fit(log[:400], GAMMA).update(log[400:500])
    assert fitted._stream.num_added == 100
    fitted.update(log[500:700])
    assert (fitted._stream.num_added, fitted._stream.num_compiled) == (0, 700)
    assert fitted.update(log[700:710], refit=True)._stream.num_added == 0


def test_cost_is_in_the_new_transitions(monkeypatch):
    """No attention of an old source is computed when transitions are added, or beyond what a trace reaches when some
    are dropped."""
    log = make_log(2000)
    fitted = evaluator().fit(log[:1500], GAMMA)
    asked = []
    attend = landmarks.Kernel.attend_columns
    monkeypatch.setattr(
        landmarks.Kernel, "attend_columns", lambda self, columns: asked.append(len(columns)) or attend(self, columns)
    )
    monkeypatch.setattr(streaming.CompiledPrompt, "exceeds", False)
    fitted.update(log[1500:1510])
    num_systems = len(fitted.compiled_.members)
    assert sum(asked) <= num_systems * 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be an int of at least 1 or None, got 0"),
        ({"window": 2.5}, "window must be an int of at least 1 or None, got 2.5"),
        ({"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
        ({"decay": 1.5}, r"decay must be in \(0, 1\], got 1.5"),
        ({"decay": float("nan")}, r"decay must be in \(0, 1\], got nan"),
    ],
    ids=str,
)
def test_windows_and_decays_out_of_range_are_refused(options, message):
    log = make_log(60)
    with pytest.raises(ValueError, match=message):
        evaluator().fit(log, GAMMA).update(log, **options)
