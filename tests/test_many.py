"""Many contexts in batches, against fits one by one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from random_prompts import make_log

import icrl_gym as icrl
from icrl_gym.evaluator import many

OPTIONS = {
    "default": {},
    "traces": {"trace_decay": 0.7, "sink": 0.0},
    "averaging": {"averaging": 0.5, "step_size": 0.5},
    "finite": {"num_layers": 8},
    "finite with forgetting": {"num_layers": 5, "forgetting": 0.05, "sink": 3.0},
    "theorem 1": {"plain": True, "num_layers": 6},
    "one by one": {"forgetting": 0.0, "bandwidth": 0.3},
}


def logs():
    """Of three lengths, one a single transition; with repeated states, weights, large rewards and no ends at all."""
    found = [make_log(seed, 40, weighted=seed % 3 == 0) for seed in range(6)]
    found += [make_log(seed, 25, num_states=4, scale=1e5) for seed in range(3)] + [make_log(9, 1)]
    flags = np.zeros(40, dtype=bool)
    endless = found[1]
    states = np.random.default_rng(1).normal(size=(41, 2))
    return [*found, icrl.Trajectory(states[:-1], np.zeros(40), endless.rewards, states[1:], flags, flags)]


def alone(log, observations, options):
    return icrl.InContextEvaluator.from_pretrained("constructed", **options).fit(log, 0.9).predict(observations)


TWO_THREADS = """
import numpy as np, torch
import icrl_gym as icrl
from random_prompts import make_log
torch.set_num_threads(2)
logs = [make_log(seed, 256) for seed in range(10)]
found = icrl.evaluate_many(logs, 0.9)
for log, estimates in zip(logs, found, strict=True):
    evaluator = icrl.InContextEvaluator.from_pretrained("constructed").fit(log, 0.9)
    np.testing.assert_allclose(estimates.values, evaluator.predict(log.observations[:1]).values, rtol=1e-6)
"""


def test_two_threads_of_torch_say_the_same():
    """In a process of its own: the other tests have one thread."""
    here = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, *sys.path])}
    done = subprocess.run([sys.executable, "-c", TWO_THREADS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def check(found, expected):
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-8, atol=1e-8 * np.abs(expected.values).max())
    np.testing.assert_allclose(found.by_layer, expected.by_layer, rtol=1e-8, atol=1e-8 * np.abs(expected.values).max())
    assert (found.stderr is None) == (expected.stderr is None)
    if expected.stderr is not None:
        np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-7)
    assert (found.estimand, found.bounds) == (expected.estimand, expected.bounds)
    assert found.diagnostics.warnings == expected.diagnostics.warnings
    np.testing.assert_allclose(found.diagnostics.support, expected.diagnostics.support, rtol=1e-8)
    assert found.diagnostics.members[0].setting == expected.diagnostics.members[0].setting


@pytest.mark.parametrize("name", OPTIONS)
def test_they_are_fits_one_by_one(name, monkeypatch):
    monkeypatch.setattr(many, "BATCH_BYTES", 3 * 40 * 40 * 8)
    states = np.random.default_rng(0).normal(size=(5, 2))
    found = icrl.evaluate_many(logs(), 0.9, states, **OPTIONS[name])
    assert len(found) == len(logs())
    for estimates, log in zip(found, logs(), strict=True):
        check(estimates, alone(log, states, OPTIONS[name]))


@pytest.mark.parametrize("name", ["default", "finite"])
def test_each_is_the_attribution_of_its_rewards(name):
    for estimates, log in zip(icrl.evaluate_many(logs(), 0.9, **OPTIONS[name]), logs(), strict=True):
        np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-8)


def test_queries_are_the_first_states_or_a_batch_for_each():
    for estimates, log in zip(icrl.evaluate_many(logs(), 0.9), logs(), strict=True):
        check(estimates, alone(log, log.observations[:1], {}))
    batches = [log.next_observations[: 1 + index % 2] for index, log in enumerate(logs())]
    for estimates, log, batch in zip(icrl.evaluate_many(logs(), 0.9, batches), logs(), batches, strict=True):
        check(estimates, alone(log, batch, {}))


def test_where_the_recursion_grows_the_averager_takes_over_in_that_context_alone():
    options = {"plain": True, "num_layers": 200, "bandwidth": 0.4}
    some = [make_log(seed, 30) for seed in range(8)]
    found = icrl.evaluate_many(some, 0.9, **options)
    assert 0 < sum(estimates.diagnostics.fell_back for estimates in found) < len(some)
    for estimates, log in zip(found, some, strict=True):
        expected = alone(log, log.observations[:1], options)
        assert estimates.diagnostics.fell_back == expected.diagnostics.fell_back
        check(estimates, expected)


def test_standard_errors_can_be_left_out():
    for standard, without in zip(
        icrl.evaluate_many(logs(), 0.9), icrl.evaluate_many(logs(), 0.9, standard_errors=False), strict=True
    ):
        assert without.stderr is None
        np.testing.assert_array_equal(without.values, standard.values)


def test_a_pretrained_mixture_runs_one_by_one():
    some = logs()[:2]
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist")
    by_name = icrl.evaluate_many(some, 0.9, evaluator="generalist")
    for estimates, named, log in zip(icrl.evaluate_many(some, 0.9, evaluator=evaluator), by_name, some, strict=True):
        expected = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.9).predict(log.observations[:1])
        np.testing.assert_array_equal(estimates.values, expected.values)
        np.testing.assert_array_equal(named.stderr, expected.stderr)
    assert not hasattr(evaluator, "compiled_")


def test_spaces_may_be_discrete():
    log = icrl.Trajectory(
        np.array([0, 1, 0, 2]), np.zeros(4), np.ones(4), np.array([1, 0, 2, 0]), np.zeros(4), np.zeros(4)
    )
    found = icrl.evaluate_many([log, replace(log, rewards=np.arange(4.0))], 0.9, np.array([0, 1]))
    check(found[1], alone(replace(log, rewards=np.arange(4.0)), np.array([0, 1]), {}))


def test_what_answered_holds_no_matrix():
    for estimates in icrl.evaluate_many(logs(), 0.9):
        head = estimates.diagnostics.members[0].head
        assert head.readout.factors is None
        assert "columns_CK" not in vars(head.kernel)


def test_none_are_none():
    assert icrl.evaluate_many([], 0.9) == []


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([1],), {}, TypeError, "trajectories must hold Trajectory only, got int at 0"),
        ((logs(), 0.9, [np.zeros((1, 2))]), {}, ValueError, "observations must be a list with one batch for each of"),
        ((logs(),), {"evaluator": icrl.InContextEvaluator(), "sink": 1.0}, TypeError, "options go with the name"),
        ((logs(), 1.5), {}, ValueError, "gamma must be in"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, error, message):
    trajectories, *others = arguments
    with pytest.raises(error, match=message):
        icrl.evaluate_many(trajectories, *(others or [0.9]), **options)


@pytest.mark.parametrize(("options", "tolerance"), [({}, 1e-2), ({"num_layers": 8}, 1e-4), ({"plain": True}, 1e-4)])
def test_single_precision_is_near_double_precision(options, tolerance):
    """Systems are ill-conditioned, products are not; in standard deviations of the values."""
    states = np.random.default_rng(0).normal(size=(20, 2))
    for log in [
        make_log(0, 200),
        make_log(1, 200, num_states=4),
        make_log(2, 200, weighted=True),
        make_log(3, 40, scale=1e6),
    ]:
        double, single = (
            icrl.InContextEvaluator(dtype=dtype, **options).fit(log, 0.99).predict(states)
            for dtype in (torch.float64, torch.float32)
        )
        difference = np.abs(single.values - double.values).max() / double.values.std()
        assert 0.0 < difference < tolerance
        weights = double.attribution()
        assert np.abs(single.attribution() - weights).max() < tolerance * np.abs(weights).max()
