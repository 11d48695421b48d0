import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.certificates import spectral_radius
from icrl_gym.evaluator.network import compile_prompt
from icrl_gym.evaluator.setting import THEOREM_1, Setting
from icrl_gym.reproduction.reference import certainty_equivalence

NETWORKS = {
    "default": {},
    "finite": {"num_layers": 8},
    "finite with sink": {"num_layers": 8, "sink": 5.0, "forgetting": 0.01},
    "averager": {"num_layers": 20, "averaging": 1.0, "trace_decay": 0.0},
    "equilibrium with traces": {"trace_decay": 0.5},
    "theorem 1": {"plain": True},
}


def log(seed=0, n=80, dimension=3, terminate=0.05, truncate=0.03, scale=1.0):
    rng = np.random.default_rng(seed)
    states = 0.3 * rng.standard_normal((n + 1, dimension)).cumsum(axis=0)
    rewards = scale * (np.sin(states[:-1]).sum(axis=1) + 0.3 * rng.standard_normal(n))
    return icrl.Trajectory(
        states[:-1], np.zeros(n), rewards, states[1:], rng.random(n) < terminate, rng.random(n) < truncate
    )


def fitted(trajectory, gamma=0.95, **options):
    return icrl.InContextEvaluator.from_pretrained("constructed", **options).fit(trajectory, gamma)


def with_rewards(trajectory, rewards):
    t = trajectory
    return icrl.Trajectory(
        t.observations, t.actions, rewards, t.next_observations, t.terminated, t.truncated, t.episode_ends
    )


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_values_are_attribution_times_rewards(options):
    trajectory = log()
    estimate = fitted(trajectory, **options).predict(trajectory.observations[:9])
    assert estimate.attribution().shape == (9, 80)
    np.testing.assert_allclose(estimate.attribution() @ trajectory.rewards, estimate.values, atol=1e-9)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_values_are_additive_in_rewards_when_the_setting_is_given(options):
    trajectory, rng = log(), np.random.default_rng(1)
    first, second = rng.standard_normal((2, 80))
    queries = trajectory.observations[:9]
    parts = [fitted(with_rewards(trajectory, r), **options).predict(queries).values for r in (first, second)]
    total = fitted(with_rewards(trajectory, first + second), **options).predict(queries).values
    np.testing.assert_allclose(parts[0] + parts[1], total, atol=1e-9)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_scaling_rewards_scales_values_and_errors(scale, seed):
    trajectory = log(seed)
    scaled = with_rewards(trajectory, scale * trajectory.rewards)
    one = fitted(trajectory).predict(trajectory.observations[:5])
    other = fitted(scaled).predict(trajectory.observations[:5])
    np.testing.assert_allclose(other.values, scale * one.values, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(other.stderr, scale * one.stderr, rtol=1e-9)


def test_zero_rewards_have_zero_values():
    trajectory = with_rewards(log(), np.zeros(80))
    estimate = fitted(trajectory).predict(trajectory.observations)
    assert np.all(estimate.values == 0)
    assert np.all(estimate.stderr == 0)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_by_layer_ends_in_the_values_and_an_equilibrium_has_one_row(options):
    trajectory = log()
    evaluator = fitted(trajectory, **options)
    estimate = evaluator.predict(trajectory.observations[:4])
    depth = evaluator.model.heads[0].num_layers
    assert estimate.by_layer.shape == (1 if depth == "equilibrium" else depth, 4)
    np.testing.assert_array_equal(estimate.by_layer[-1], estimate.values)


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_a_batch_of_queries_equals_one_by_one(options):
    trajectory = log()
    evaluator = fitted(trajectory, **options)
    batch = evaluator.predict(trajectory.observations[:6]).values
    single = [evaluator.predict(trajectory.observations[i : i + 1]).values[0] for i in range(6)]
    np.testing.assert_allclose(batch, single, rtol=1e-10, atol=1e-12)


def test_order_of_episodes_changes_nothing():
    trajectory = log(terminate=0.1)
    ends = np.flatnonzero(trajectory.episode_ends) + 1
    pieces = np.split(np.arange(80), ends[:-1])
    order = np.concatenate(pieces[::-1])
    t = trajectory
    arrays = (t.observations, t.actions, t.rewards, t.next_observations, t.terminated, t.truncated, t.episode_ends)
    shuffled = icrl.Trajectory(*(array[order] for array in arrays))
    queries = trajectory.observations[:7]
    for options in NETWORKS.values():
        expected = fitted(trajectory, **options).predict(queries).values
        np.testing.assert_allclose(fitted(shuffled, **options).predict(queries).values, expected, atol=1e-9)


def test_update_equals_a_fit_on_everything_once_statistics_are_refitted():
    trajectory, queries = log(), log().observations[:5]
    whole = fitted(trajectory).predict(queries).values
    pieces = fitted(trajectory[:50]).update(trajectory[50:], refit=True).predict(queries).values
    np.testing.assert_allclose(pieces, whole, atol=1e-10)


def test_update_keeps_feature_statistics_frozen():
    trajectory = log()
    evaluator = fitted(trajectory[:50])
    before = evaluator.prompt_.queries(trajectory.observations)
    evaluator.update(trajectory[50:])
    np.testing.assert_array_equal(evaluator.prompt_.queries(trajectory.observations), before)
    assert len(evaluator.prompt_) == 80


def test_update_does_not_link_across_a_gap():
    trajectory = log(terminate=0, truncate=0)
    joined = fitted(trajectory[:50]).update(trajectory[60:]).prompt_
    assert not joined.trace_links[49]
    assert joined.successors[49] == len(joined)


def test_enough_data_of_a_tabular_system_gives_certainty_equivalence():
    rng = np.random.default_rng(0)
    transition = rng.dirichlet(np.ones(6), size=6)
    states = [0]
    for _ in range(3000):
        states.append(int(rng.choice(6, p=transition[states[-1]])))
    states = np.array(states)
    terminated = np.zeros(3000, dtype=bool)
    terminated[49::50] = True
    rewards = rng.standard_normal(6)[states[:-1]]
    trajectory = icrl.Trajectory(
        states[:-1], np.zeros(3000), rewards, states[1:], terminated, np.zeros(3000, dtype=bool)
    )
    expected = certainty_equivalence(states[:-1], states[1:], rewards, 0.9 * ~terminated)
    estimate = fitted(trajectory, gamma=0.9, forgetting=1e-6).predict(np.arange(6))
    np.testing.assert_allclose(estimate.values, expected, atol=0.02 * np.ptp(expected))


def test_the_averager_takes_over_where_the_recursion_grows_and_says_so():
    rng = np.random.default_rng(0)
    grew = 0
    for _ in range(20):
        states, n = rng.standard_normal((31, 2)), 30
        terminated, truncated = rng.random(n) < 0.1, np.zeros(n, dtype=bool)
        trajectory = icrl.Trajectory(
            states[:-1], np.zeros(n), rng.standard_normal(n), states[1:], terminated, truncated
        )
        evaluator = fitted(trajectory, gamma=0.99, plain=True, num_layers=400, bandwidth=0.5)
        estimate = evaluator.predict(states)
        if estimate.diagnostics.fell_back:
            grew += 1
            assert np.abs(estimate.values).max() <= np.abs(trajectory.rewards).max() / 0.01
            assert any("averager took over" in warning for warning in estimate.diagnostics.warnings)
            raw = compile_prompt(evaluator.prompt_, evaluator.model.heads[0], fall_back=False)
            assert (
                raw.values(raw.attend(evaluator.prompt_.source_features)).abs().max()
                > 10 * np.abs(estimate.values).max()
            )
    assert grew > 5


@pytest.mark.parametrize(("bandwidth", "grows"), [(1.0, False), (0.4, True)])
def test_the_fallback_is_decided_by_the_context_not_by_the_rewards(bandwidth, grows):
    rng = np.random.default_rng(0)
    states, terminated = rng.standard_normal((31, 2)), rng.random(30) < 0.1
    zeros = np.zeros(30, dtype=bool)
    trajectory = icrl.Trajectory(states[:-1], zeros, zeros, states[1:], terminated, zeros)
    prompt = Prompt.from_trajectory(trajectory, 0.99)
    setting = Setting(**{**vars(THEOREM_1), "num_layers": 200, "bandwidth": bandwidth})
    decisions = {compile_prompt(prompt, setting, rewards=rng.standard_normal((30, 1))).fell_back for _ in range(8)}
    assert decisions == {grows}


def test_queries_off_the_support_return_to_the_constant_with_a_warning():
    trajectory = log()
    evaluator = fitted(trajectory)
    estimate = evaluator.predict(np.full((2, 3), 1e3))
    constant = float(evaluator.compiled_.members[0].head.readout.constants_LR[-1, 0])
    np.testing.assert_allclose(estimate.values, constant, atol=1e-6)
    assert any("off the context's support" in warning for warning in estimate.diagnostics.warnings)
    assert np.all(estimate.diagnostics.support < 1e-3)


def test_an_id_never_visited_warns():
    trajectory = icrl.Trajectory([0, 1, 0, 1], np.zeros(4), np.ones(4), [1, 0, 1, 0], np.zeros(4), np.zeros(4))
    estimate = fitted(trajectory).predict(np.array([0, 5]))
    assert any("1 of 2 queries hold an id" in warning for warning in estimate.diagnostics.warnings)


def test_support_counts_sources_at_distance_zero():
    states = np.repeat(np.array([[0.0], [1000.0]]), [6, 2], axis=0)
    flags = np.zeros(8, dtype=bool)
    trajectory = icrl.Trajectory(states, np.zeros(8), np.ones(8), states, ~flags, flags)
    for options in ({}, {"sink": 0.0, "num_layers": 3}):
        support = fitted(trajectory, bandwidth=0.1, **options).predict(states[[0, 7]]).diagnostics.support
        np.testing.assert_allclose(support, [6, 2], rtol=1e-6)


def test_certificates_of_a_one_hot_context_by_hand():
    # One-hot with far apart states: M is the identity, P the empirical transition, so the bound is gamma.
    states = np.array([0, 1, 2, 0, 1, 2, 0])
    flags = np.zeros(6, dtype=bool)
    flags[-1] = True
    trajectory = icrl.Trajectory(states[:-1], np.zeros(6), np.ones(6), states[1:], flags, np.zeros(6, dtype=bool))
    options = {"num_layers": 4, "bandwidth": 0.1, "trace_decay": 0.0}
    (member,) = fitted(trajectory, gamma=0.8, **options).predict(np.arange(3)).diagnostics.members
    np.testing.assert_allclose(member.certificates.margin, 1 - (1 + 0.8) / 2, atol=1e-9)
    np.testing.assert_allclose(member.certificates.inf_norm_bound, 0.8, atol=1e-9)
    # Eigenvalues of 0.8 P with the constant mode solved: below the bound.
    assert member.certificates.spectral_radius < 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"constant_mode": False},
        {"constant_mode": False, "trace_decay": 0.8},
        {"constant_mode": False, "trace_decay": 0.3, "averaging": 1.0},
        {"trace_decay": 0.3, "averaging": 1.0},
        {"trace_decay": 0.8, "sink": 0.3},
        {"trace_decay": 0.8, "sink": 0.3, "average_ends": False},
        {"trace_decay": 0.8, "sink": 0.3, "forgetting": 0.02},
    ],
    ids=str,
)
def test_spectral_radius_is_the_measured_growth_of_deep_recursions(options):
    setting = Setting(num_layers=400, bandwidth=0.6, **{"sink": 0.0, "forgetting": 0.0, **options})
    compiled = compile_prompt(Prompt.from_trajectory(log(n=40), 0.95), setting, fall_back=False)
    columns = compiled.readout.columns_LCR[..., 0].numpy()
    steps = np.linalg.norm(np.diff(columns, axis=0), axis=1)
    last = min(380, int(np.argmax(steps < 1e-9 * steps[0])) or 380)  # before rounding is all that moves
    measured = (steps[last] / steps[3 * last // 4]) ** (1 / (last - 3 * last // 4))
    assert spectral_radius(compiled) == pytest.approx(measured, abs=0.02)


def test_sampling_error_matches_the_spread_over_independent_contexts():
    # 150 contexts of a noisy two-state chain: the reported error against the observed one; false alarm below 1e-6.
    rng = np.random.default_rng(0)
    values, errors = [], []
    for _ in range(150):
        n = 400
        states = rng.integers(2, size=n + 1)
        rewards = states[:-1] + rng.standard_normal(n)
        flags = np.zeros(n, dtype=bool)
        trajectory = icrl.Trajectory(states[:-1], np.zeros(n), rewards, states[1:], flags, flags)
        estimate = fitted(trajectory, gamma=0.9, sink=1.0).predict(np.arange(2))
        values.append(estimate.values)
        errors.append(estimate.stderr)
    ratio = np.mean(errors, axis=0) / np.std(values, axis=0)
    assert np.all((ratio > 0.7) & (ratio < 1.4))


def test_intervals_stay_within_what_rewards_can_add_up_to():
    trajectory = with_rewards(log(n=60, terminate=0.02), np.ones(60))
    estimate = fitted(trajectory, gamma=0.9).predict(10 * trajectory.observations)
    low, high = estimate.interval(0.99)
    assert estimate.bounds == pytest.approx((0.0, 10.0))
    assert np.all((low <= estimate.values) & (estimate.values <= high))
    inside = (estimate.values > 0) & (estimate.values < 10)
    assert np.all(low[inside] >= estimate.bounds[0])
    assert np.all(high[inside] <= estimate.bounds[1])
    assert np.any(estimate.values + 2.57 * estimate.stderr > 10)  # the bound is what keeps it there


def test_predict_before_fit_and_bad_arguments_are_refused():
    with pytest.raises(RuntimeError, match="call fit"):
        icrl.InContextEvaluator().predict(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="name must be one of"):
        icrl.InContextEvaluator.from_pretrained("nobody")
    with pytest.raises(TypeError, match="trajectory must be a Trajectory, got list"):
        icrl.InContextEvaluator().fit([], 0.9)
    for name, value in [
        ("bandwidth", 0.0), ("bandwidth", -1), ("trace_decay", 1.5), ("sink", -1), ("sink", np.inf),
        ("forgetting", 2.0), ("num_layers", 0), ("num_layers", 2.5), ("num_layers", "deep"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            icrl.InContextEvaluator(**{name: value})


def test_float32_agrees_with_float64():
    import torch

    trajectory = log(n=200)
    queries = trajectory.observations[:20]
    for options in ({}, {"num_layers": 24}):
        double = fitted(trajectory, **options).predict(queries).values
        single = fitted(trajectory, dtype=torch.float32, **options).predict(queries).values
        np.testing.assert_allclose(single, double, atol=2e-3 * np.ptp(double))
