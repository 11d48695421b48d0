"""The checkpoint in the wheel, as a user meets it."""

import re
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.configuration import DEFAULT_ESTIMATOR
from icrl_gym.evaluator.checkpoint import available_checkpoints, bundled_checkpoint, load_checkpoint
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.pretraining.prior import FAMILIES


@pytest.fixture(scope="module")
def log():
    return icrl.collect("CartPole-v1", "random", 300, seed=0)


@pytest.fixture(scope="module")
def fitted(log):
    return icrl.InContextEvaluator.from_pretrained().fit(log, gamma=0.99)


def test_it_is_the_default_everywhere():
    assert DEFAULT_ESTIMATOR == "generalist"
    assert available_checkpoints() == ["generalist"]
    default, named = icrl.InContextEvaluator.from_pretrained(), icrl.make_estimator("generalist")
    assert default.model is not None
    assert named.model.heads == default.model.heads == HEADS


def test_it_is_small_and_loads_at_once():
    path = bundled_checkpoint("generalist")
    assert path.stat().st_size + path.with_suffix(".json").stat().st_size < 5e6
    load_checkpoint(path)
    start = time.process_time()
    load_checkpoint(path)
    assert time.process_time() - start < 0.5


def test_its_card_says_where_it_comes_from():
    training = load_checkpoint(bundled_checkpoint("generalist"))[1].training
    assert set(training["families"]) == set(FAMILIES)
    assert training["tasks"] > 1000
    assert len(training["commit"]) == 40, "made from uncommitted code"
    assert 0 < training["validation"]["all"]["ratio"] < 1
    assert 0.85 <= training["validation"]["all"]["coverage"] <= 0.95
    assert training["known_limits"]
    log = (Path(__file__).parents[1] / "docs" / "log.md").read_text()
    looks = log[log.index("## Looks at environments outside the selection set") :]
    assert training["looks_outside_the_selection_set"] == len(re.findall(r"^\d+\. ", looks, re.M))


def test_values_are_attribution_times_rewards(log, fitted):
    estimates = fitted.predict(log.observations[:7])
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-9)
    np.testing.assert_array_equal(estimates.by_layer[-1], estimates.values)


def test_queries_are_independent_and_a_refit_changes_nothing(log, fitted):
    together = fitted.predict(log.observations[:6])
    for row in range(6):
        alone = fitted.predict(log.observations[row : row + 1])
        np.testing.assert_allclose(alone.values, together.values[row], rtol=1e-9)
        np.testing.assert_allclose(alone.stderr, together.stderr[row], rtol=1e-5)
    again = icrl.InContextEvaluator.from_pretrained().fit(log, gamma=0.99).predict(log.observations[:6])
    np.testing.assert_array_equal(again.values, together.values)


def test_update_equals_a_fit_on_everything(log, fitted):
    grown = icrl.InContextEvaluator.from_pretrained().fit(log[:200], gamma=0.99).update(log[200:], refit=True)
    expected = fitted.predict(log.observations[:5]).values
    np.testing.assert_allclose(grown.predict(log.observations[:5]).values, expected, rtol=1e-9)


def test_the_interval_grows_off_the_support_of_the_context(log, fitted):
    centre = log.observations.mean(axis=0)
    stretched = [centre + factor * (log.observations[::10] - centre) for factor in (1, 4)]
    near, far = (np.median(fitted.predict(x.astype(np.float32)).stderr) for x in stretched)
    assert far > 1.3 * near


def test_options_given_by_hand_hold_in_every_head(log):
    estimates = icrl.InContextEvaluator.from_pretrained(bandwidth=2.0).fit(log, 0.99).predict(log.observations[:3])
    assert {member.setting.bandwidth for member in estimates.diagnostics.members} == {2.0}
    layered = icrl.InContextEvaluator.from_pretrained(num_layers=5).fit(log, 0.99).predict(log.observations[:3])
    assert layered.by_layer.shape == (5, 3)
    with pytest.raises(ValueError, match="plain"):
        icrl.InContextEvaluator.from_pretrained(plain=True)


def test_action_values_come_from_the_same_mixture(log, fitted):
    estimates = fitted.predict_q(log.observations[:4], log.actions[:4])
    np.testing.assert_allclose(estimates.attribution() @ log.rewards, estimates.values, rtol=1e-9)
    assert len(estimates.diagnostics.members) > 1


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"constructed.*generalist.*got 'generalistic'"):
        icrl.InContextEvaluator.from_pretrained("generalistic")
    with pytest.raises(ValueError, match="cannot read the checkpoint"):
        icrl.InContextEvaluator.from_pretrained(tmp_path / "none.safetensors")


def test_more_than_64_numbers_are_projected_with_a_note():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(61, 80)).cumsum(axis=0)
    space = gymnasium.spaces.Box(-np.inf, np.inf, (80,), np.float64)
    flags = np.zeros(60, bool)
    logged = icrl.Trajectory(
        states[:-1], np.zeros(60), states[:-1, 0], states[1:], flags, flags, observation_space=space
    )
    warnings = icrl.InContextEvaluator.from_pretrained().fit(logged, 0.9).predict(states[:2]).diagnostics.warnings
    assert any("80 numbers" in warning and "64" in warning for warning in warnings)


def test_weighted_logs_are_evaluated(log):
    ratios = np.where(np.arange(len(log)) % 2 == 0, 1.5, 0.5)
    weighted = icrl.Trajectory(
        log.observations, log.actions, log.rewards, log.next_observations, log.terminated, log.truncated,
        observation_space=log.observation_space, importance_ratios=ratios,
    )  # fmt: skip
    estimates = icrl.InContextEvaluator.from_pretrained().fit(weighted, 0.99).predict(log.observations[:5])
    plain = icrl.InContextEvaluator.from_pretrained().fit(log, 0.99).predict(log.observations[:5])
    assert np.isfinite(estimates.values).all()
    assert np.abs(estimates.values - plain.values).max() > 1e-3
    traces = [member.setting.trace_decay for member in estimates.diagnostics.members]
    assert max(traces) == 0 < max(member.setting.trace_decay for member in plain.diagnostics.members)
    assert sum(member.share for member in estimates.diagnostics.members) == pytest.approx(1)
