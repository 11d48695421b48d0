"""The claims on softmax TD, its limits, the linear ancestor and action values: each measured by a second route."""

import numpy as np
import pytest
import torch

from icrl_gym.evaluator import paper
from icrl_gym.reproduction import (
    bias_variance,
    boyan,
    convergence,
    limits,
    linear_ancestor,
    linear_attention,
    linear_training,
    runner,
    softmax_td,
    special_cases,
    state_action,
)
from icrl_gym.reproduction.claim import Finding
from icrl_gym.reproduction.claims import CLAIMS
from icrl_gym.reproduction.empirical import EmpiricalModel, inf_norm, spectral_radius
from icrl_gym.reproduction.judgement import above, together, within
from icrl_gym.reproduction.mrps import boyan_chains, random_mrps
from icrl_gym.reproduction.reference import ReferenceInput, ReferenceSetting, certainty_equivalence, run
from icrl_gym.reproduction.store import Store

GAMMA = 0.9


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "claim", __name__)


def refuted(outcome):
    """The first words of the statements that do not hold."""
    return [statement.text.split()[0] for statement in outcome.statements if statement.verdict == "does not hold"]


def small_walk(seed=0, num_mrps=3, num_states=5, num_transitions=15):
    rng = np.random.default_rng(seed)
    mrps = random_mrps(rng, num_mrps, num_states, 3)
    return mrps, mrps.walk(rng, num_transitions)


def by_loops(x, rewards, num_layers, queries, kernel="inner_product", terminated=None, lam=0.0, average_ends=False):
    """The NumPy reference on one stretch, (L + 1, n + ends + queries)."""
    n = len(rewards)
    terminated = np.zeros(n, dtype=bool) if terminated is None else terminated
    given = ReferenceInput(
        x[:-1], x[1:], rewards, terminated, terminated | (np.arange(n) == n - 1), GAMMA, np.zeros(n), np.ones(n)
    )
    return run(given, ReferenceSetting(kernel, lam=lam, average_ends=average_ends), queries, num_layers)


# Processes


def test_exact_values_obey_bellman_and_walks_obey_the_chain():
    mrps, _ = small_walk()
    values = mrps.values(GAMMA)
    np.testing.assert_allclose(values, mrps.reward + GAMMA * np.einsum("bst,bt->bs", mrps.transition, values))
    many = boyan_chains(np.random.default_rng(0), 1).repeat(3000)
    states = many.walk(np.random.default_rng(1), 60)
    frequency = np.bincount(states[:, 30:].ravel(), minlength=10) / states[:, 30:].size
    np.testing.assert_allclose(frequency, many.stationary()[0], atol=0.01)


# Claim 1


def test_the_recursion_over_states_is_the_one_of_the_loops():
    mrps, states = small_walk()
    values = softmax_td.softmax_td(mrps, states, GAMMA, 6)
    for b in range(len(mrps)):
        x = mrps.features[b][states[b]]
        loops = by_loops(x, mrps.reward[b][states[b, :-1]], 6, mrps.features[b])
        np.testing.assert_allclose(values[b], loops[:, -5:], atol=1e-12)


def test_the_control_without_a_fault_is_the_printed_form():
    mrps, states = small_walk(1)
    x, rewards = mrps.features_of(states), mrps.rewards_of(states)
    rows = softmax_td.mutated_forward(x, rewards, GAMMA, 5, "none")
    for b in range(len(mrps)):
        np.testing.assert_allclose(rows[b], paper.paper_forward(x[b], rewards[b], GAMMA, 5), atol=1e-13)


def test_claim_1_holds_and_a_sign_error_in_the_transformer_refutes_it(store, monkeypatch):
    assert softmax_td.forward_pass(True, range(1), "cpu", store).verdict == "holds"
    printed = paper.paper_parameters

    def wrong(num_features, alpha=1.0):
        value_matrix, score_matrix = printed(num_features, alpha)
        value_matrix[-1, -1] *= -1.0
        return value_matrix, score_matrix

    monkeypatch.setattr(paper, "paper_parameters", wrong)
    assert softmax_td.forward_pass(True, range(1), "cpu", store).verdict == "does not hold"


def test_claim_1_without_a_failing_control_is_no_evidence(store, monkeypatch):
    monkeypatch.setattr(softmax_td, "MUTATIONS", ("none",))
    assert softmax_td.forward_pass(True, range(1), "cpu", store).verdict == "not enough evidence"


# Claim 2


def test_the_tabular_limit_is_value_iteration_by_hand():
    states, rewards = np.array([[0, 1, 0, 2]]), np.array([[1.0, 2.0, 3.0]])
    values = special_cases.tabular_limit(states, rewards, 3, 0.5, 2)
    # state 0: mean reward 2, followed by 1 and by the unvisited 2; state 1: reward 2, followed by 0
    first = {0: 2.0, 1: 2.0, 2: 2.0}  # 2 is unvisited: the mean residual
    new_0, new_1 = 2.0 + 0.5 * (first[1] + first[2]) / 2, 2.0 + 0.5 * first[0]
    new_2 = first[2] + (2 * (new_0 - first[0]) + (new_1 - first[1])) / 3
    np.testing.assert_allclose(values[0, 1], [2.0, 2.0, 2.0, 2.0])
    np.testing.assert_allclose(values[0, 2], [new_0, new_1, new_0, new_2])


def test_claim_2_holds_and_sign_errors_refute_it(store, monkeypatch):
    assert special_cases.special_cases(True, range(1), "cpu", store).verdict == "holds"
    right = special_cases.weighted_td
    wrong = lambda kernel, states, rewards, gamma, layers: right(kernel, states, rewards, -gamma, layers)  # noqa: E731
    monkeypatch.setattr(special_cases, "weighted_td", wrong)
    assert refuted(special_cases.special_cases(True, range(1), "cpu", store)) == ["(b)"]
    monkeypatch.setattr(special_cases, "weighted_td", right)
    limit = special_cases.tabular_limit
    monkeypatch.setattr(special_cases, "tabular_limit", lambda *given: -limit(*given))
    assert refuted(special_cases.special_cases(True, range(1), "cpu", store)) == ["(a)"]


def test_slopes_of_powers_are_their_exponents():
    x = np.array([1.0, 2.0, 5.0])
    y = np.log(np.stack([x**2, 3 * x**4]))
    np.testing.assert_allclose(special_cases.slopes(np.log(x), y), [2.0, 4.0])


# Claim 3


def test_counts_alone_give_the_recursion_over_transitions():
    mrps, states = small_walk(2, num_transitions=40)
    model = EmpiricalModel.of(states, mrps.rewards_of(states), 5)
    mass = model.source_mass(mrps.features @ np.swapaxes(mrps.features, 1, 2))
    np.testing.assert_allclose(model.layers(mass, GAMMA, 7), softmax_td.softmax_td(mrps, states, GAMMA, 7), atol=1e-12)


def test_certificates_of_two_states_by_hand():
    model = EmpiricalModel(np.array([[1.0, 3.0]]), np.array([[[0.0, 1.0], [1.0, 0.0]]]), np.array([[1.0, 0.0]]))
    mass = model.source_mass(np.zeros((1, 2, 2)))
    np.testing.assert_allclose(mass, [[[0.25, 0.75], [0.25, 0.75]]])
    iteration = model.iteration(mass, 0.8)
    # I - M + gamma M P, with M P = [[.75, .25], [.75, .25]]
    np.testing.assert_allclose(iteration, [[[1.35, -0.55], [0.35, 0.45]]])
    np.testing.assert_allclose(inf_norm(iteration), [1.9])
    np.testing.assert_allclose(spectral_radius(iteration), [1.0])  # eigenvalues 1 and .8
    decay = convergence.decay_of(model, np.log(5.0) * np.eye(2)[None], 0.8, 150)
    np.testing.assert_allclose(decay.smallest_mass, [5.0 / 8.0])
    np.testing.assert_allclose(
        decay.radius, spectral_radius(model.iteration(model.source_mass(np.log(5.0) * np.eye(2)), 0.8))
    )


def test_the_measured_rate_is_the_spectral_radius():
    mrps, states = small_walk(3, num_mrps=8, num_transitions=200)
    model = EmpiricalModel.of(states, mrps.rewards_of(states), 5)
    decay = convergence.decay_of(model, 5.0 * np.broadcast_to(np.eye(5), (8, 5, 5)), GAMMA, 200)
    np.testing.assert_allclose(decay.rate, decay.radius, atol=1e-3)
    np.testing.assert_allclose(decay.radius, GAMMA, atol=1e-9)


def test_a_slope_is_found_with_its_interval():
    rng = np.random.default_rng(0)
    lengths = (100, 1000, 10000)
    errors = rng.lognormal(0.0, 0.3, (80, 1)) * np.array(lengths) ** -0.5 * rng.lognormal(0.0, 0.2, (80, 3))
    slope = convergence.slope_with_interval(lengths, errors)
    assert slope.low is not None
    assert slope.high is not None
    assert slope.low < -0.5 < slope.high
    assert slope.high - slope.low < 0.1


def test_claim_3_holds_and_a_sign_error_refutes_it(store, monkeypatch):
    assert convergence.error_decay(True, range(1), "cpu", store).verdict == "holds"
    right = EmpiricalModel.certainty_equivalence
    monkeypatch.setattr(EmpiricalModel, "certainty_equivalence", lambda model, gamma: right(model, -gamma))
    assert "Where" in refuted(convergence.error_decay(True, range(1), "cpu", store))


# Claim 4


@pytest.mark.parametrize("kernel", limits.KERNELS)
def test_infinitely_many_layers_are_certainty_equivalence(kernel):
    mrps, states = small_walk(4, num_mrps=1, num_transitions=120)
    states[:, -1] = states[:, 0]
    rewards = mrps.rewards_of(states)
    model = EmpiricalModel.of(states, rewards, 5)
    mass = model.source_mass(limits.kernel_scores(np.random.default_rng(0), 1, 5)[kernel])
    limit, settled = limits.deep_limit(model, mass, GAMMA)
    expected = certainty_equivalence(states[0, :-1], states[0, 1:], rewards[0], np.full(120, GAMMA))
    assert settled.all()
    np.testing.assert_allclose(limit[0], expected, atol=1e-9)


def test_an_open_end_follows_the_interpolated_formula():
    mrps, states = small_walk(5, num_mrps=4, num_transitions=100)
    states[:, -1] = 5
    rewards = np.take_along_axis(mrps.reward, states[:, :-1], axis=1)
    model = EmpiricalModel.of(states, rewards, 6)
    mass = model.source_mass(4.0 * np.eye(6) + np.random.default_rng(0).random((4, 6, 6)))
    deep = model.layers(mass, GAMMA, 2000)[:, -1]
    np.testing.assert_allclose(deep, limits.interpolated_limit(model, mass, GAMMA), atol=1e-9)
    np.testing.assert_allclose(deep, limits.deep_limit(model, mass, GAMMA)[0], atol=1e-9)
    assert np.abs(deep[:, :5] - model.certainty_equivalence(GAMMA)[:, :5]).max() > 1e-3


def test_true_values_on_the_line_obey_bellman():
    state = np.linspace(-2.0, 2.0, 9)
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    later = 0.9 * state[:, None] + 0.5 * node
    expected = (
        np.cos(2 * state)
        + 0.95 * (bias_variance.true_values(later.ravel()).reshape(later.shape) @ weight) / weight.sum()
    )
    np.testing.assert_allclose(bias_variance.true_values(state), expected, atol=1e-9)


@pytest.mark.parametrize("trace", [0.0, 0.8])
def test_read_outs_on_the_line_are_those_of_the_loops(trace, monkeypatch):
    states = bias_variance.walks(np.random.default_rng(0), 2, 12)
    found = bias_variance.read_outs(states, 0.4, trace, 5)
    x = states[1][:, None] / (0.4 * bias_variance.SPREAD)
    query = bias_variance.queries()[0][:, None] / (0.4 * bias_variance.SPREAD)
    n = 12
    given = ReferenceInput(
        x[:-1], x[1:], np.cos(2 * states[1, :-1]), np.zeros(n, dtype=bool), np.arange(n) == n - 1, 0.95,
        np.zeros(n), np.ones(n),
    )  # fmt: skip
    loops = run(given, ReferenceSetting("gaussian", lam=trace, average_ends=True), query, 5)
    np.testing.assert_allclose(found[1], loops[1:, -len(query) :], atol=1e-12)


def test_bias_and_spread_of_noise_around_a_shift_are_found():
    rng = np.random.default_rng(0)
    error = 0.3 + 0.5 * rng.standard_normal((1, 1, 4000, 1, bias_variance.NUM_QUERIES))
    weight = bias_variance.queries()[1]
    piece = {"squared": error**2 @ weight, "mean": error.mean(axis=2)}
    found = bias_variance.ErrorMap.of([piece])
    assert found.bias.item() == pytest.approx(0.3, abs=0.02)
    assert found.spread.item() == pytest.approx(0.5, abs=0.02)


def test_distinct_states_end_in_their_returns_and_only_the_inner_product_diverges():
    distance, diverges = limits.distinct_states(0, 40)
    assert np.nanmax(distance) < 1e-6
    assert not diverges[:, 0].any()
    assert diverges[:, 1].mean() > 0.5


def test_equalities_of_claim_4_fail_under_a_sign_error(monkeypatch):
    closed, opened, returns = (
        [limits.same_limit(0, 10, False)], [limits.same_limit(0, 10, True)], [limits.distinct_states(0, 10)],
    )  # fmt: skip
    assert [one.verdict for one in limits._limit_findings(closed, opened, returns)[1]] == ["holds"] * 3
    right = EmpiricalModel.iteration
    monkeypatch.setattr(EmpiricalModel, "iteration", lambda model, mass, gamma: right(model, mass, -gamma))
    certainty, *_ = limits._limit_findings([limits.same_limit(0, 10, False)], opened, returns)[1]
    assert certainty.verdict == "does not hold"


# Claim 7


def test_errors_on_boyan_chains_are_those_of_the_loops():
    rng = np.random.default_rng(6)
    mrps = boyan_chains(rng, 2)
    states = mrps.walk(rng, 20)
    error = boyan.errors_by_depth(mrps, states, "softmax TD", 4)
    loops = by_loops(mrps.features[1][states[1]], mrps.reward[1][states[1, :-1]], 4, mrps.features[1])[:, -10:]
    expected = ((loops - mrps.values(GAMMA)[1]) ** 2) @ mrps.stationary()[1]
    np.testing.assert_allclose(error[1], expected)


def test_claim_7_is_refuted_by_the_reversed_order_and_left_open_where_intervals_hold_zero():
    errors = boyan.measure(0, 60)["errors"]
    better, equal, worse = (
        Finding("", 1.0, 9, 0.5, 1.5),
        Finding("", 0.0, 9, -0.5, 0.5),
        Finding("", -1.0, 9, -1.5, -0.5),
    )

    def verdicts(ordered, gains, distance=0.0):
        return [statement.verdict for statement in boyan._statements(ordered, gains, distance)]

    assert verdicts([better] * 8, [better] * 4) == ["holds"] * 7
    assert verdicts([better] * 8, [equal, worse, better, better])[2:5] == [
        "not enough evidence", "does not hold", "holds",
    ]  # fmt: skip
    assert verdicts([*[better] * 3, equal, *[better] * 4], [better] * 4)[0] == "not enough evidence"
    assert verdicts([better] * 8, [better] * 4, boyan.AGREEMENT)[-1] == "does not hold"
    assert boyan._judge(errors[:, ::-1]).statements[0].verdict == "does not hold"


# Claim 11


def test_linear_updates_are_those_of_loops_over_transitions():
    rng = np.random.default_rng(7)
    x, rewards = rng.standard_normal((7, 2)), rng.standard_normal(6)
    matrix, weight, trace = rng.standard_normal((2, 2)), np.zeros(2), np.zeros(2)
    expected = {"td": np.zeros(2), "residual_gradient": np.zeros(2), "average_reward": np.zeros(2)}
    weight = rng.standard_normal(2)
    for k in range(6):
        delta = rewards[k] + weight @ (GAMMA * x[k + 1] - x[k])
        trace = 0.5 * trace + x[k]
        expected["td"] += matrix @ trace * delta / 6
        expected["residual_gradient"] += matrix @ (x[k] - GAMMA * x[k + 1]) * delta / 6
        expected["average_reward"] += matrix @ x[k] * (delta - rewards[: k + 1].mean()) / 6
    for method, step in expected.items():
        # one update from `weight` is the update from zero on shifted rewards
        moved = rewards + (GAMMA * x[1:] - x[:-1]) @ weight
        if method == "average_reward":
            means = np.cumsum(rewards) / np.arange(1, 7)
            moved = moved - means
            found = linear_attention.linear_updates(x[:-1], GAMMA * x[1:], moved, matrix, 1, "td")
        else:
            decay = 0.5 if method == "td" else 0.0
            found = linear_attention.linear_updates(x[:-1], GAMMA * x[1:], moved, matrix, 1, method, decay)
        np.testing.assert_allclose(found[1], step)


def test_average_reward_updates_subtract_the_running_mean():
    x, rewards = np.ones((3, 1)), np.array([4.0, 8.0])
    found = linear_attention.linear_updates(x[:-1], x[1:], rewards, np.eye(1), 1, "average_reward")
    np.testing.assert_allclose(found, [[0.0], [(0.0 + 2.0) / 2]])


def test_all_constructions_equal_their_updates_and_a_sign_error_shows(monkeypatch):
    assert linear_ancestor.update_errors(0, 5).max() < 1e-12
    right = linear_attention.td_heads

    def wrong(preconditioner, num_transitions, decay=0.0):
        (head,) = right(preconditioner, num_transitions, decay)
        return (linear_attention.LinearHead(head.value, -head.score, head.mask),)

    monkeypatch.setattr(linear_attention, "td_heads", wrong)
    errors = linear_ancestor.update_errors(0, 5)
    assert errors[:2].max(axis=2).min() > 1e-2
    assert errors[2:].max() < 1e-12


def test_layers_on_moments_are_layers_on_columns():
    mrps, moments, column = linear_training.validation(0, 3, 12)
    rng = np.random.default_rng(8)
    value, score = (torch.as_tensor(0.3 * rng.standard_normal((9, 9))) for _ in range(2))
    weight = linear_training.implicit_weight(torch.as_tensor(moments), value, score, 3)
    query = mrps.features[:, 4]
    Z = np.concatenate([np.swapaxes(column, 1, 2), np.zeros((3, 9, 1))], axis=2)
    Z[:, :4, -1] = query
    head = linear_attention.LinearHead(value.numpy(), score.numpy(), linear_attention.source_mask(12))
    expected = -linear_attention.forward(Z, (head,), 3)[:, -1, -1]
    np.testing.assert_allclose((weight.numpy() * query).sum(axis=1), expected, atol=1e-12)


def test_moments_of_windows_are_sums_over_their_transitions():
    column = np.random.default_rng(9).standard_normal((2, 10, 3))
    moments = linear_training.window_moments(column, 4, 6)
    for k in range(4):
        window = column[:, k : k + 6]
        np.testing.assert_allclose(moments[:, k], np.swapaxes(window, 1, 2) @ window / 6, atol=1e-12)


def test_training_brings_the_linear_transformer_towards_td(store):
    found = linear_ancestor.learn(range(2), 100, 100, 30, "cpu")
    np.testing.assert_array_equal(found["chains"], [0, 100])
    assert np.abs(found["similarity"][:, 0]).max() < 0.4
    assert (found["similarity"][:, 1] > found["similarity"][:, 0] + 0.2).all()


def test_the_nearest_step_size_of_td_itself_is_its_own():
    mrps, moments, _ = linear_training.validation(0, 20, 30)
    candidates = linear_ancestor._td_weights(torch.as_tensor(moments))
    chosen = linear_ancestor._closest(candidates[[7, 30]], candidates, mrps.features)
    np.testing.assert_array_equal(chosen, [7, 30])


def test_the_axis_of_the_softmax_matters_through_its_factor():
    sources, destinations, _ = linear_ancestor.axis_errors(0, 20)
    assert sources[:, -1].mean() < 0.2 * destinations[:, -1].mean()
    np.testing.assert_allclose(sources[:, 0], destinations[:, 0])


# Claim 12


def test_action_values_by_way_of_states_are_values_of_pairs():
    mdps = state_action.random_mdps(np.random.default_rng(10), 4)
    pairs = mdps.pairs(np.zeros((4, 15, 1)))
    np.testing.assert_allclose(pairs.transition.sum(axis=2), 1.0)
    np.testing.assert_allclose(mdps.action_values(GAMMA).reshape(4, 15), pairs.values(GAMMA))


def test_linear_attention_on_pairs_is_sarsa():
    assert state_action.sarsa_errors(0, 4).max() < 1e-12


def test_the_table_of_sarsa_by_hand():
    found = state_action.tabular_sarsa(np.array([0, 1, 0]), np.array([2.0, 4.0]), 2)
    # first update: q0 = 1, q1 = 2; second: q0 = 1 + (2 + .9 * 2 - 1) / 2
    np.testing.assert_allclose(found, [0.0, 1.0, 1.0 + (2.0 + 0.9 * 2.0 - 1.0) / 2])


def test_more_transitions_bring_the_library_nearer_to_the_action_values():
    found = state_action.library(0, 2)
    assert (found["squared"][:, -1] < found["squared"][:, 0]).all()
    assert found["best"][:, -1].min() > 0.5


# Verdicts


def test_intervals_that_hold_their_bound_decide_nothing():
    assert above(Finding("", 1.0, 5, 0.5, 1.5)) == "holds"
    assert above(Finding("", 1.0, 5, -0.5, 1.5)) == "not enough evidence"
    assert above(Finding("", -1.0, 5, -1.5, -0.5)) == "does not hold"
    assert above(Finding("", 1.0, 1)) == "not enough evidence"
    assert within(Finding("", 0.0, 5, -0.1, 0.1), -1, 1) == "holds"
    assert within(Finding("", 0.0, 5, -0.1, 1.1), -1, 1) == "not enough evidence"
    assert within(Finding("", 2.0, 5, 1.9, 2.1), -1, 1) == "does not hold"
    assert together(["holds", "not enough evidence"]) == "not enough evidence"
    assert together(["does not hold", "not enough evidence"]) == "does not hold"


@pytest.mark.slow
def test_every_claim_runs_quickly_and_leaves_a_figure_and_a_verdict(tmp_path):
    from icrl_gym.configuration import ReproduceConfig

    results = runner.reproduce(ReproduceConfig(quick=True, run_dir=tmp_path / "run", tensorboard=False))
    assert [result.claim.id for result in results] == list(CLAIMS)
    for result in results:
        assert result.figure is not None, result.claim.id
        assert result.outcome.findings, result.claim.id
    assert not [result.claim.id for result in results if result.outcome.verdict == "does not hold"]
