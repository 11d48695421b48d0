import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.prompt import Prompt
from icrl_gym.relevance import RELEVANCES, accumulate, lambda_return_errors, relevant_features


def walk(num_rows=200, seed=0, reward_scale=1.0, feature_scale=(1.0, 1.0)):
    """A slow coordinate that makes the reward, beside a fast one that says nothing."""
    rng = np.random.default_rng(seed)
    slow = np.cumsum(rng.normal(size=num_rows + 1)) / 10
    states = np.stack([slow, rng.normal(size=num_rows + 1)], axis=1) * feature_scale
    truncated = np.arange(num_rows) % 50 == 49
    rewards = reward_scale * slow[:-1]
    log = icrl.Trajectory(states[:-1], np.zeros(num_rows), rewards, states[1:], np.zeros(num_rows, bool), truncated)
    return Prompt.from_trajectory(log, 0.9)


@pytest.mark.parametrize("name", RELEVANCES)
def test_total_variance_stays(name):
    prompt = walk()
    features = relevant_features(prompt.source_features, prompt, name)
    assert features.var(axis=0).sum() == pytest.approx(prompt.source_features.var(axis=0).sum(), rel=1e-9)


@pytest.mark.parametrize("name", ["slow", "returns"])
def test_the_telling_coordinate_weighs_more(name):
    prompt = walk()
    weights_DD = RELEVANCES[name](prompt)
    assert weights_DD[0, 0] > 1.2 * weights_DD[1, 1]


@pytest.mark.parametrize("name", RELEVANCES)
def test_scales_of_rewards_and_features_do_not_matter(name):
    expected = RELEVANCES[name](walk())
    scaled = RELEVANCES[name](walk(reward_scale=1e3, feature_scale=(10.0, 0.1)))
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-9)


def test_whitening_goes_half_way():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(500, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    log = icrl.Trajectory(states[:-1], np.zeros(499), np.ones(499), states[1:], np.zeros(499), np.zeros(499))
    prompt = Prompt.from_trajectory(log, 0.9)
    before = np.linalg.cond(np.cov(prompt.source_features.T))
    after = np.linalg.cond(np.cov(relevant_features(prompt.source_features, prompt, "whitened").T))
    assert after == pytest.approx(np.sqrt(before), rel=0.1)


def test_accumulate_is_the_backward_recursion():
    rng = np.random.default_rng(1)
    errors, decay = rng.normal(size=37), rng.uniform(0, 1, size=37) * (rng.random(37) > 0.2)
    decay[-1] = 0.0
    expected = errors.copy()
    for k in range(35, -1, -1):
        expected[k] += decay[k] * expected[k + 1]
    np.testing.assert_allclose(accumulate(errors, decay), expected, rtol=1e-12)


def test_constant_rewards_of_an_endless_log_leave_no_error():
    log = walk()
    rewards = np.ones(len(log))
    assert np.abs(lambda_return_errors(Prompt(**{**vars(log), "rewards": rewards}), 0.9)).max() < 1e-12


def test_a_part_of_a_prompt_is_the_prompt_of_the_part():
    rng = np.random.default_rng(2)
    states = rng.normal(size=(31, 3))
    terminated, truncated = np.zeros(30, bool), np.zeros(30, bool)
    terminated[[4, 19]] = True
    truncated[11] = True
    log = icrl.Trajectory(states[:-1], np.zeros(30), rng.normal(size=30), states[1:], terminated, truncated)
    whole = Prompt.from_trajectory(log, 0.9)
    for start, stop in ((0, 15), (15, 30), (3, 12), (5, 20), (0, 30)):
        part = whole.part(start, stop)
        expected = Prompt.from_trajectory(log[start:stop], 0.9, whole.feature_map)
        for name in ("column_features", "rewards", "discounts", "trace_links"):
            np.testing.assert_array_equal(getattr(part, name), getattr(expected, name), err_msg=name)
        inside = part.discounts > 0
        np.testing.assert_array_equal(part.successors[inside], expected.successors[inside])
