"""Many reward functions on one context, against a fit for each of them."""

from dataclasses import replace

import numpy as np
import pytest
from linear_system import linear_log
from random_prompts import make_log

import icrl_gym as icrl
from icrl_gym.evaluator.world.imagination import ImaginedValues

NUM_ROWS = 60
OPTIONS = {
    "default": {},
    "finite": {"num_layers": 8},
    "traces": {"trace_decay": 0.5},
    "averager": {"averaging": 1.0},
}


def queries(number, seed=1):
    return np.random.default_rng(seed).normal(size=(number, 2))


def reward_functions(number, num_rows=NUM_ROWS):
    return np.random.default_rng(7).normal(size=(num_rows, number)) * 10.0 ** np.arange(-2, number - 2)


@pytest.mark.parametrize(("num_queries", "num_functions"), [(3, 5), (9, 2), (4, 4), (0, 3), (5, 0)])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_column_is_a_fit_of_its_own(name, num_queries, num_functions):
    log, rewards, states = make_log(0, NUM_ROWS), reward_functions(num_functions), queries(num_queries)
    found = icrl.InContextEvaluator(**OPTIONS[name]).fit(log, 0.9).predict_rewards(rewards, states)
    assert found.values.shape == (num_queries, num_functions)
    assert len(found) == num_queries
    for index in range(num_functions if num_queries else 0):
        alone = icrl.InContextEvaluator(**OPTIONS[name]).fit(replace(log, rewards=rewards[:, index]), 0.9)
        expected = alone.predict(states).values
        np.testing.assert_allclose(found.values[:, index], expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("num_queries", [2, 11])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_mixture_keeps_its_weights(num_queries, weighted, monkeypatch):
    monkeypatch.setattr("icrl_gym.evaluator.compiled.QUERY_BLOCK", 4)
    log, states = make_log(3, NUM_ROWS, weighted=weighted), queries(num_queries)
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.9)
    estimates, others = evaluator.predict(states), reward_functions(4)
    found = evaluator.predict_rewards(np.column_stack([log.rewards, others]), states)
    np.testing.assert_allclose(found.values[:, 0], estimates.values, rtol=1e-8)
    expected = estimates.attribution() @ others
    np.testing.assert_allclose(found.values[:, 1:], expected, rtol=1e-7, atol=1e-7 * np.abs(expected).max())


def test_walks_keep_their_weights_too():
    log = linear_log(300)
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(log, 0.9)
    assert isinstance(evaluator.compiled_, ImaginedValues)
    estimates = evaluator.predict(log.observations[:3])
    rewards = np.column_stack([log.rewards, -2.0 * log.rewards, np.ones(len(log))])
    found = evaluator.predict_rewards(rewards, log.observations[:3]).values
    np.testing.assert_allclose(found[:, :2], np.outer(estimates.values, [1.0, -2.0]), rtol=1e-7)
    np.testing.assert_allclose(found[:, 2], estimates.attribution().sum(axis=1), rtol=1e-9)


def test_estimates_under_one_of_them_do_not_pass_for_the_environments_own():
    log = replace(make_log(0, NUM_ROWS), env_id="Some-v0")
    found = icrl.InContextEvaluator().fit(log, 0.9).predict_rewards(reward_functions(3), queries(4))
    one = found.under(1)
    assert one.estimand == found.estimand
    assert one.estimand.env is None
    np.testing.assert_array_equal(one.values, found.values[:, 1])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (np.zeros(NUM_ROWS), r"rewards must have shape \(60, R\), a column for each reward function, got \(60,\)"),
        (np.zeros((3, NUM_ROWS)), r"rewards must have shape \(60, R\).*got \(3, 60\)"),
        (np.where(np.arange(NUM_ROWS) == 4, np.nan, 0.0)[:, None], r"rewards must be finite, got nan at \(4, 0\)"),
        ("many", "rewards must be 60 rows of numbers"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(rewards, message):
    evaluator = icrl.InContextEvaluator().fit(make_log(0, NUM_ROWS), 0.9)
    with pytest.raises(ValueError, match=message):
        evaluator.predict_rewards(rewards, queries(2))


def test_a_context_comes_first():
    with pytest.raises(RuntimeError, match="call fit"):
        icrl.InContextEvaluator().predict_rewards(np.zeros((3, 1)), queries(2))
