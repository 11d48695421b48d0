"""Each classical method against the value that its theory says, on tabular systems with full data."""

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym import rivals as classical
from icrl_gym.registry import tuning_grid

GAMMA = 0.9


def full_tabular_log(num_states=6, copies=30, seed=0):
    """Every state many times, with exactly the model's own frequencies: the empirical model is the true model."""
    rng = np.random.default_rng(seed)
    successors = [rng.choice(num_states, size=3, replace=False) for _ in range(num_states)]
    rewards = rng.standard_normal(num_states)
    rows = [(s, t) for _ in range(copies) for s in range(num_states) for t in successors[s]]
    states, following = np.array(rows).T
    terminal = rng.integers(num_states)
    terminated = states == terminal
    n = len(states)
    transition = np.zeros((num_states, num_states))
    for s in range(num_states):
        transition[s, successors[s]] = 0.0 if s == terminal else 1 / 3
    exact = np.linalg.solve(np.eye(num_states) - GAMMA * transition, rewards)
    ends = np.ones(n, dtype=bool)
    trajectory = icrl.Trajectory(
        states, np.zeros(n), rewards[states], following, terminated, np.zeros(n, dtype=bool), ends
    )
    return trajectory, exact


def linked_log(seed=0, n=4000, num_states=5):
    """One long chain with terminations, for methods that follow episodes."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(num_states), size=num_states)
    stop = rng.uniform(0.05, 0.3, num_states)
    rewards = rng.standard_normal(num_states)
    states, following, terminated = [], [], []
    state = 0
    for _ in range(n):
        end = rng.random() < stop[state]
        successor = int(rng.choice(num_states, p=transition[state]))
        states.append(state)
        following.append(successor)
        terminated.append(end)
        state = int(rng.integers(num_states)) if end else successor
    states = np.array(states)
    trajectory = icrl.Trajectory(
        states, np.zeros(n), rewards[states], np.array(following), np.array(terminated), np.zeros(n, dtype=bool)
    )
    exact = np.linalg.solve(np.eye(num_states) - GAMMA * (1 - stop)[:, None] * transition, rewards)
    return trajectory, exact


def values(estimator, trajectory, num_states):
    return estimator.fit(trajectory, GAMMA).predict(np.arange(num_states)).values


@pytest.mark.parametrize(
    ("estimator", "tolerance"),
    [
        (classical.CertaintyEquivalence(), 1e-10),
        (classical.LSTD(ridge=1e-9), 1e-5),
        (classical.KernelBasedRL(width=0.2), 1e-8),
        (classical.TDLambda(step_size=1.0, num_passes=400), 2e-2),
        (classical.LinearInContextTD(num_layers=3000, step_size=1.0), 1e-3),
        (classical.FittedValueNetwork(num_steps=4000), 5e-2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_methods_for_the_bellman_equation_reach_its_solution_given_the_true_model(estimator, tolerance):
    trajectory, exact = full_tabular_log()
    np.testing.assert_allclose(values(estimator, trajectory, 6), exact, atol=tolerance * np.ptp(exact))


@pytest.mark.parametrize("method", [classical.GTD2, classical.TDC])
def test_gradient_methods_go_to_the_same_solution_more_slowly(method):
    trajectory, exact = full_tabular_log(copies=1)
    few, many = (values(method(step_size=1.0, num_passes=passes), trajectory, 6) - exact for passes in (3, 3000))
    assert np.abs(many).max() < 0.03 * np.ptp(exact)
    assert np.abs(few).max() > 0.4 * np.ptp(exact)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("constructed", {"sink": 0.0, "forgetting": 0.0, "bandwidth": 0.2}, 1e-6),
        ("softmax_td", {"num_layers": 300, "bandwidth": 0.2, "trace_decay": 0.0}, 1e-2),
        ("theorem_1", {"num_layers": 300}, 1e-6),
    ],
)
def test_the_networks_reach_the_bellman_equations_solution_when_states_do_not_mix(name, options, tolerance):
    trajectory, exact = full_tabular_log()
    found = values(icrl.make_estimator(name, **options), trajectory, 6)
    np.testing.assert_allclose(found, exact, atol=tolerance * np.ptp(exact))


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("td_lambda", {"step_size": 0.3, "num_passes": 3000}, 0.02),
        ("true_online_td", {"step_size": 0.3, "num_passes": 3000}, 0.02),
        ("constructed", {"sink": 0.0, "forgetting": 0.0, "bandwidth": 0.2}, 1e-6),
        ("softmax_td", {"num_layers": 300, "bandwidth": 0.2}, 0.03),  # the log's open end is an averager
    ],
)
def test_methods_with_traces_share_one_fixed_point(name, options, tolerance):
    trajectory, exact = linked_log(n=40)
    trace_decay = 0.9
    expected = values(classical.LSTD(ridge=1e-9, trace_decay=trace_decay), trajectory, 5)
    found = values(icrl.make_estimator(name, trace_decay=trace_decay, **options), trajectory, 5)
    np.testing.assert_allclose(found, expected, atol=tolerance * np.ptp(exact))
    without_traces = values(classical.LSTD(ridge=1e-9), trajectory, 5)
    assert np.abs(without_traces - expected).max() > 0.15 * np.ptp(exact)


def test_as_many_neighbours_as_a_state_has_visits_are_its_visits():
    trajectory, _ = full_tabular_log(copies=10)
    found = values(classical.NearestNeighbours(num_neighbours=30), trajectory, 6)
    regressed = values(classical.NadarayaWatson(width=0.1), trajectory, 6)
    np.testing.assert_allclose(found, regressed, atol=1e-9)
    assert np.ptp(found) > 1.0


def test_the_bellman_residual_solution_is_biased_by_noise_exactly_as_its_normal_equations_say():
    trajectory, exact = full_tabular_log()
    states, following = trajectory.observations, trajectory.next_observations
    eye = np.eye(6)
    difference = eye[states] - GAMMA * (1 - trajectory.terminated)[:, None] * eye[following]
    expected = np.linalg.lstsq(difference, trajectory.rewards, rcond=None)[0]
    found = values(classical.BellmanResidual(ridge=1e-10), trajectory, 6)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # Gaussian-process TD with white noise takes the very same successor twice, and has the same limit.
    gaussian = values(classical.GaussianProcessTD(width=0.2, noise=1e-6), trajectory, 6)
    np.testing.assert_allclose(gaussian, expected, atol=1e-3)
    assert np.abs(expected - exact).max() > 0.1


def test_gaussian_process_td_with_the_noise_of_returns_is_monte_carlo():
    trajectory, _ = linked_log(n=600)
    found = values(classical.GaussianProcessTD(width=0.2, noise=1e-3, trace_decay=1.0), trajectory, 5)
    np.testing.assert_allclose(found, values(classical.NadarayaWatson(width=0.2), trajectory, 5), atol=0.05)


@pytest.mark.parametrize("name", ["nadaraya_watson", "nearest_neighbours"])
def test_regression_on_returns_is_every_visit_monte_carlo_when_states_do_not_mix(name):
    trajectory, _ = linked_log()
    n = len(trajectory)
    returns = np.zeros(n)
    constant = trajectory.rewards.sum() / (1 - GAMMA * ~trajectory.terminated).sum()
    following = constant
    for k in reversed(range(n)):
        following = trajectory.rewards[k] + GAMMA * (0.0 if trajectory.terminated[k] else following)
        returns[k] = following
    if name == "nadaraya_watson":
        expected = [returns[trajectory.observations == s].mean() for s in range(5)]
        found = values(classical.NadarayaWatson(width=0.2), trajectory, 5)
    else:  # more neighbours than any state has visits: the overall mean
        expected = np.full(5, returns.mean())
        found = values(classical.NearestNeighbours(num_neighbours=n), trajectory, 5)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_traces_move_lstd_from_certainty_equivalence_to_monte_carlo():
    trajectory, exact = linked_log()
    zero = values(classical.LSTD(ridge=1e-9), trajectory, 5)
    one = values(classical.LSTD(ridge=1e-9, trace_decay=1.0), trajectory, 5)
    np.testing.assert_allclose(zero, values(classical.CertaintyEquivalence(), trajectory, 5), atol=1e-4)
    np.testing.assert_allclose(one, values(classical.NadarayaWatson(width=0.2), trajectory, 5), atol=1e-2)
    assert np.abs(zero - exact).max() < np.abs(one - exact).max() + 0.3


def test_true_online_td_equals_td_without_traces_and_is_its_own_forward_view_with_them():
    trajectory, _ = linked_log(n=300)
    plain = values(classical.TDLambda(step_size=0.3, num_passes=3), trajectory, 5)
    online = values(classical.TrueOnlineTDLambda(step_size=0.3, num_passes=3), trajectory, 5)
    np.testing.assert_allclose(online, plain, atol=1e-12)
    # One episode, one pass: the online forward view of van Seijen et al. (2016), computed from its definition.
    states, rewards, lam, num = np.array([0, 1, 2, 1]), np.array([1.0, -2.0, 0.5, 3.0]), 0.7, 4
    terminated = np.array([False, False, False, True])
    episode = icrl.Trajectory(states, np.zeros(4), rewards, np.array([1, 2, 1, 0]), terminated, np.zeros(4, dtype=bool))
    estimator = classical.TrueOnlineTDLambda(0.5, 1, lam, basis="linear", relative=False).fit(episode, GAMMA)
    phi = np.concatenate([estimator.prompt_.source_features, np.ones((4, 1))], axis=1)
    step = 0.5 / np.square(phi).sum(1).mean()
    weights_at = [np.zeros(phi.shape[1])]  # w_t, at the horizon t
    for horizon in range(1, num + 1):
        w = np.zeros(phi.shape[1])
        for k in range(horizon):
            target = 0.0
            for m in range(k + 1, horizon + 1):  # m-step returns bootstrapped by w_{m-1}
                value = 0.0 if m == num else weights_at[m - 1] @ phi[m]
                g = sum(GAMMA ** (j - k) * rewards[j] for j in range(k, m)) + GAMMA ** (m - k) * value
                target += g * (lam ** (m - k - 1) * (1 - lam) if m < horizon else lam ** (horizon - k - 1))
            w = w + step * (target - w @ phi[k]) * phi[k]
        weights_at.append(w)
    np.testing.assert_allclose(estimator.weights_, weights_at[-1], atol=1e-12)


def test_linear_in_context_td_is_batch_td_on_the_features():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((40, 3)).cumsum(axis=0)
    flags = np.zeros(39, dtype=bool)
    trajectory = icrl.Trajectory(states[:-1], np.zeros(39), rng.standard_normal(39), states[1:], flags, flags)
    estimator = classical.LinearInContextTD(num_layers=2, relative=False).fit(trajectory, GAMMA)
    phi = np.c_[estimator.prompt_.queries(states), np.ones(40)]
    step, w = 1 / np.square(phi[:-1]).sum(1).mean(), np.zeros(4)
    for _ in range(2):
        w = w + step * np.mean((trajectory.rewards + GAMMA * phi[1:] @ w - phi[:-1] @ w)[:, None] * phi[:-1], axis=0)
    np.testing.assert_allclose(estimator.predict(states[:5]).values, phi[:5] @ w)


def test_gaussian_process_td_has_standard_errors_that_grow_off_the_support():
    trajectory, _ = linked_log(n=200)
    estimate = classical.GaussianProcessTD().fit(trajectory, GAMMA).predict(np.array([0, 4, 77]))
    assert estimate.stderr[2] > 2 * estimate.stderr[0] > 0


def test_gaussian_process_td_gives_the_standard_error_of_the_conditioned_gaussian():
    trajectory, _ = linked_log(n=30)
    estimator = classical.GaussianProcessTD(width=0.7, noise=0.2).fit(trajectory, GAMMA)
    prompt, queries = estimator.prompt_, np.array([0, 3, 77])
    columns = np.concatenate([prompt.source_features, prompt.end_features, prompt.queries(queries)])
    squares = ((columns[:, None] - columns) ** 2).sum(axis=2)
    prior = np.exp(-squares / (2 * prompt.kernel_width(0.7) ** 2))
    observed = np.zeros((30, len(columns)))  # TD errors: v(S) - discount v(S')
    observed[np.arange(30), np.arange(30)] = 1.0
    observed[np.arange(30), prompt.successors] -= prompt.discounts
    covariance = observed @ prior @ observed.T + 0.2 * np.eye(30)
    posterior = prior - prior @ observed.T @ np.linalg.inv(covariance) @ observed @ prior
    excess = prompt.rewards - (1 - prompt.discounts) * prompt.constant
    variance_of_rewards = excess @ np.linalg.inv(covariance) @ excess / 30
    expected = np.sqrt(variance_of_rewards * np.diag(posterior)[-3:])
    found = estimator.predict(queries)
    np.testing.assert_allclose(found.stderr, expected, rtol=1e-7)
    assert np.abs(expected - expected**2).min() > 0.1 * expected.max()  # not to be taken for the variance
    np.testing.assert_allclose(found.values[2], prompt.constant, rtol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "expected", "tolerance"),
    [
        (classical.NadarayaWatson(width=0.1), (5.5, 4.5), 1e-9),
        (classical.NearestNeighbours(num_neighbours=20), (5.5, 4.5), 1e-9),
        (classical.LSTD(ridge=1e-9, trace_decay=0.9), None, 1e-4),
        (classical.CertaintyEquivalence(), None, 1e-9),
        (classical.KernelBasedRL(width=0.1), None, 1e-9),
        (classical.FittedValueNetwork(num_steps=2000), None, 0.03),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_end_that_did_not_terminate_is_worth_what_lies_beyond(estimator, expected, tolerance):
    # State 0 pays 1 and leads to 1, which pays 0 and leads back; every transition is cut by a time limit. Beyond a cut
    # a return takes the context's constant, .5 / (1 - .9) = 5, and a Bellman equation the value of the state reached.
    states = np.tile([0, 1], 20)
    log = icrl.Trajectory(states, np.zeros(40), 1.0 - states, 1 - states, np.zeros(40, bool), np.ones(40, bool))
    expected = expected or (1 / (1 - GAMMA**2), GAMMA / (1 - GAMMA**2))
    np.testing.assert_allclose(values(estimator, log, 2), expected, atol=tolerance)


def test_certainty_equivalence_gives_the_constant_to_a_state_that_was_entered_and_never_left():
    flags = np.array([False, False, True])
    log = icrl.Trajectory([0, 0, 1], np.zeros(3), [1.0, 3.0, -2.0], [1, 2, 0], flags, ~flags)
    constant = 2.0 / (3 - 2 * GAMMA)
    # State 2 is only ever a successor; state 0 leads to 1 and to 2 equally often; state 1 terminates.
    found = values(classical.CertaintyEquivalence(), log, 3)
    np.testing.assert_allclose(found, [2.0 + GAMMA * (-2.0 + constant) / 2, -2.0, constant], rtol=1e-12)


def test_certainty_equivalence_gives_the_constant_to_what_was_never_visited():
    trajectory, _ = linked_log(n=200)
    constant = trajectory.rewards.sum() / (1 - GAMMA * ~trajectory.terminated).sum()
    estimate = classical.CertaintyEquivalence().fit(trajectory, GAMMA).predict(np.array([99, 1]))
    assert estimate.values[0] == pytest.approx(constant)
    assert estimate.values[1] != pytest.approx(constant)


@pytest.mark.parametrize("name", sorted(icrl.estimators()))
def test_every_estimator_obeys_the_protocol_and_scales_with_the_rewards(name):
    rng = np.random.default_rng(1)
    states = 0.3 * rng.standard_normal((121, 3)).cumsum(axis=0)
    rewards = np.sin(states[:-1]).sum(axis=1)
    terminated, truncated = rng.random(120) < 0.05, rng.random(120) < 0.03
    is_network = name in ("fitted_value_network", "fqe")
    options = {"num_steps": 200} if is_network else {}
    results = []
    for scale in (1.0, 8.0):
        trajectory = icrl.Trajectory(
            states[:-1], np.zeros(120), scale * rewards, states[1:], terminated, truncated, env_id="E", policy="p"
        )
        estimator = icrl.make_estimator(name, **options)
        assert isinstance(estimator, icrl.Estimator)
        assert estimator.fit(trajectory, 0.95) is estimator
        estimate = estimator.predict(states[:7])
        assert estimate.values.shape == (7,)
        assert estimate.values.dtype == np.float64
        assert np.isfinite(estimate.values).all()
        assert estimate.estimand == icrl.Estimand("E", "p", 0.95)
        results.append(estimate)
    tolerance = 1e-3 if is_network else 1e-8
    first, scaled = results
    np.testing.assert_allclose(scaled.values, 8 * first.values, rtol=tolerance, atol=tolerance)
    assert (first.stderr is None) == (scaled.stderr is None)
    if first.stderr is not None:
        np.testing.assert_allclose(scaled.stderr, 8 * first.stderr, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(icrl.estimators()))
def test_every_setting_of_a_tuning_grid_can_be_made(name):
    grid = tuning_grid(name)
    assert grid
    for options in grid:
        icrl.make_estimator(name, **options)


def test_unknown_names_and_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"estimator must be one of .*'lstd'.* got 'lsdt'"):
        icrl.make_estimator("lsdt")
    for name, options in [
        ("lstd", {"ridge": 0.0}), ("lstd", {"trace_decay": 2.0}), ("kbrl", {"width": -1.0}),
        ("td", {"step_size": float("nan")}), ("gptd", {"noise": 0.0}), ("td", {"basis": "fourier"}),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
            icrl.make_estimator(name, **options)
    with pytest.raises(RuntimeError, match="call fit"):
        classical.LSTD().predict(np.zeros((1, 2)))


def test_estimators_of_other_packages_are_found_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    from icrl_gym import registry

    mine = EntryPoint("mine", "icrl_gym.rivals:KernelBasedRL", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [mine])
    registry._entries.cache_clear()
    try:
        assert isinstance(icrl.make_estimator("mine", width=1.0), classical.KernelBasedRL)
        clash = EntryPoint("lstd", "icrl_gym.rivals:LSTD", registry.ENTRY_POINT_GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [clash])
        registry._entries.cache_clear()
        with pytest.raises(ValueError, match="take names that are in use"):
            icrl.estimators()
    finally:
        monkeypatch.undo()
        registry._entries.cache_clear()
