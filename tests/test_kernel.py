import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.kernel import RELEVANCES, lambda_return_errors


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
    features = prompt.source_features * RELEVANCES[name](prompt)
    assert features.var(axis=0).sum() == pytest.approx(prompt.source_features.var(axis=0).sum(), rel=1e-9)


def test_the_telling_coordinate_weighs_more():
    slow, fast = RELEVANCES["returns"](walk())
    assert slow > 1.2 * fast


@pytest.mark.parametrize("name", RELEVANCES)
def test_scales_of_rewards_and_features_do_not_matter(name):
    expected = RELEVANCES[name](walk())
    scaled = RELEVANCES[name](walk(reward_scale=1e3, feature_scale=(10.0, 0.1)))
    np.testing.assert_allclose(scaled, expected, rtol=1e-6, atol=1e-9)


def test_constant_rewards_of_an_endless_log_leave_no_error():
    log = walk()
    rewards = np.ones(len(log))
    assert np.abs(lambda_return_errors(Prompt(**{**vars(log), "rewards": rewards}), 0.9)).max() < 1e-12
