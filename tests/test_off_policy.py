"""A log of one policy about the values of another: ratios, what refuses them, and exact values where they can be."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym as icrl
from icrl_gym import rivals as classical
from icrl_gym.acting.policies import as_policy

GAMMA = 0.9
NUM_STATES, NUM_ACTIONS = 4, 2
TARGET = np.array([[0.9, 0.1], [0.25, 0.75], [0.5, 0.5], [0.0, 1.0]])
ACTIONS = spaces.Discrete(NUM_ACTIONS)


def enumerated_log():
    """Each state, action and successor with the frequencies of a uniform behaviour; and exact values and action values
    of the target, and exact values of the behaviour."""
    rng = np.random.default_rng(3)
    successors = np.array([[rng.choice(NUM_STATES, 2, replace=False) for _ in range(NUM_ACTIONS)]
                           for _ in range(NUM_STATES)])  # fmt: skip
    reward = rng.standard_normal((NUM_STATES, NUM_ACTIONS))
    rows = np.array([(s, a, t) for _ in range(20) for s in range(NUM_STATES) for a in range(NUM_ACTIONS)
                     for t in successors[s, a]])  # fmt: skip
    states, actions, following = rows.T
    terminated = (states == 2) & (actions == 0)
    n = len(states)
    trajectory = icrl.Trajectory(
        states, actions, reward[states, actions], following, terminated, np.zeros(n, bool), np.ones(n, bool),
        spaces.Discrete(NUM_STATES), "mdp", "random",
    )  # fmt: skip
    transition = np.zeros((NUM_STATES, NUM_ACTIONS, NUM_STATES))
    for s in range(NUM_STATES):
        for a in range(NUM_ACTIONS):
            transition[s, a, successors[s, a]] = 0.0 if (s, a) == (2, 0) else 0.5

    def solve(policy):
        chain = np.einsum("sa,sat->st", policy, transition)
        return np.linalg.solve(np.eye(NUM_STATES) - GAMMA * chain, (policy * reward).sum(axis=1))

    values = solve(TARGET)
    uniform = np.full_like(TARGET, 0.5)
    return trajectory, values, reward + GAMMA * transition @ values, solve(uniform)


def enumerated_episodes():
    """All episodes of a deterministic tree of depth 3 under a uniform behaviour, once each, and the target's values.

    State s has the children 2 s + 1 + a, and an episode terminates after three actions.
    """
    rng = np.random.default_rng(5)
    reward = rng.standard_normal((7, 2))
    policy = rng.dirichlet(np.ones(2), size=7)
    states, actions = [], []
    for path in np.ndindex(2, 2, 2):
        state = 0
        for action in path:
            states.append(state)
            actions.append(action)
            state = 2 * state + 1 + action
    states, actions = np.array(states), np.array(actions)
    terminated = np.tile([False, False, True], 8)
    following = np.where(terminated, 0, 2 * states + 1 + actions)
    trajectory = icrl.Trajectory(
        states, actions, reward[states, actions], following, terminated, np.zeros(24, bool),
        observation_space=spaces.Discrete(7), policy="random",
    )  # fmt: skip
    values = np.zeros(15)
    for state in reversed(range(7)):
        children = values[2 * state + 1 : 2 * state + 3]
        values[state] = policy[state] @ (reward[state] + GAMMA * children)
    return trajectory, policy, values[:7]


def constructed(**options):
    return icrl.InContextEvaluator(sink=0.0, forgetting=0.0, bandwidth=0.5, **options)


def test_ratios_are_the_quotients_of_the_logged_actions_probabilities():
    log = icrl.collect("FrozenLake-v1", "random", 200, seed=1)
    target = np.random.default_rng(0).dirichlet(np.ones(4), size=16)
    weighted = icrl.reweight(log, target, "random")
    np.testing.assert_allclose(weighted.importance_ratios, target[log.observations, log.actions] / 0.25)
    assert weighted.policy == as_policy(target, spaces.Discrete(4), spaces.Discrete(16)).identity
    assert log.importance_ratios is None
    np.testing.assert_array_equal(weighted.next_observations, log.next_observations)
    np.testing.assert_array_equal(weighted.episode_ends, log.episode_ends)
    assert icrl.Prompt.from_trajectory(weighted, GAMMA).estimand.policy == weighted.policy


def test_a_uniform_mixture_acts_and_states_its_probabilities():
    table = np.eye(4)[np.zeros(16, int)]
    own = as_policy(table, spaces.Discrete(4), spaces.Discrete(16))
    mixture = icrl.UniformMixture(own, 0.4)
    log = icrl.collect("FrozenLake-v1", mixture, 2000, seed=0)
    assert log.policy == mixture.identity == f"{own.identity} mixed with 0.4 uniform"
    assert np.mean(log.actions == 0) == pytest.approx(0.7, abs=0.05)  # 4.9 standard errors
    weighted = icrl.reweight(log, table, mixture)
    np.testing.assert_allclose(weighted.importance_ratios, np.where(log.actions == 0, 1 / 0.7, 0.0))
    with pytest.raises(ValueError, match=r"epsilon must be a number in \[0, 1\], got 1.5"):
        icrl.UniformMixture(own, 1.5)


def test_a_stable_baselines_model_is_a_target_and_states_its_own_action_space():
    model = icrl.load_demo_policy()
    own = as_policy(model, model.action_space, model.observation_space)
    mixture = icrl.UniformMixture(own, 0.5)
    log = icrl.collect("CartPole-v1", mixture, 100, seed=0)
    weighted = icrl.reweight(log, model, mixture)
    probability = own.action_probabilities(log.observations)[np.arange(100), log.actions]
    np.testing.assert_allclose(weighted.importance_ratios, probability / (0.5 * probability + 0.25))
    assert weighted.policy == own.identity


@pytest.mark.parametrize(
    ("estimator", "tolerance"),
    [
        (constructed(), 1e-6),
        (classical.CertaintyEquivalence(), 1e-10),
        (classical.LSTD(ridge=1e-9), 1e-5),
        (classical.KernelBasedRL(width=0.2), 1e-8),
        (classical.TDLambda(step_size=1.0, num_passes=400), 4e-2),
        (classical.LinearInContextTD(num_layers=3000), 1e-3),
        pytest.param(classical.FittedValueNetwork(num_steps=2500), 1e-1, marks=pytest.mark.slow),
        (classical.FittedQEvaluation(num_steps=1500, learning_rate=3e-3), 5e-2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_from_the_behaviours_log_the_targets_values_are_reached(estimator, tolerance):
    log, exact, _, of_behaviour = enumerated_log()
    weighted = icrl.reweight(log, TARGET, "random")
    found = estimator.fit(weighted, GAMMA, policy=TARGET).predict(np.arange(NUM_STATES))
    np.testing.assert_allclose(found.values, exact, atol=tolerance * np.ptp(exact))
    assert found.estimand.policy == as_policy(TARGET, ACTIONS, spaces.Discrete(NUM_STATES)).identity
    if not isinstance(estimator, classical.FittedQEvaluation):  # it needs no ratios
        without = estimator.fit(log, GAMMA).predict(np.arange(NUM_STATES)).values
        np.testing.assert_allclose(without, of_behaviour, atol=tolerance * np.ptp(exact))
    assert np.abs(exact - of_behaviour).max() > 0.2 * np.ptp(exact)


@pytest.mark.parametrize("method", [classical.GTD2, classical.TDC])
def test_gradient_methods_reach_the_targets_values_more_slowly(method):
    log, exact, _, of_behaviour = enumerated_log()
    weighted = icrl.reweight(log[:16], TARGET, "random")  # each state, action and successor once
    found = method(step_size=0.5, num_passes=4000).fit(weighted, GAMMA).predict(np.arange(NUM_STATES)).values
    assert np.abs(found - exact).max() < 0.05 * np.ptp(exact) < 0.25 * np.abs(of_behaviour - exact).max()


def test_the_weighted_bellman_residual_solves_its_weighted_normal_equations():
    log, _, _, _ = enumerated_log()
    weighted = icrl.reweight(log, TARGET, "random")
    eye, root = np.eye(NUM_STATES), np.sqrt(weighted.importance_ratios)
    difference = eye[log.observations] - GAMMA * ~log.terminated[:, None] * eye[log.next_observations]
    expected = np.linalg.lstsq(root[:, None] * difference, root * log.rewards, rcond=None)[0]
    found = classical.BellmanResidual(ridge=1e-10).fit(weighted, GAMMA).predict(np.arange(NUM_STATES)).values
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("estimator", "tolerance"),
    [
        (classical.NadarayaWatson(width=0.1), 1e-9),
        (classical.LSTD(ridge=1e-9, trace_decay=1.0), 1e-5),
        (classical.LSTD(ridge=1e-9, trace_decay=0.5), 1e-5),
        (constructed(trace_decay=0.7), 1e-6),
    ],
    ids=["NadarayaWatson", "LSTD(1)", "LSTD(.5)", "constructed"],
)
def test_returns_and_traces_weighted_per_decision_are_exact_on_all_episodes(estimator, tolerance):
    log, policy, exact = enumerated_episodes()
    weighted = icrl.reweight(log, policy, "random")
    found = estimator.fit(weighted, GAMMA).predict(np.arange(7)).values
    np.testing.assert_allclose(found, exact, atol=tolerance)
    ratios = weighted.importance_ratios.copy()
    ratios[1:] = 1.0  # a later action's ratio that goes missing is noticed
    broken = log.with_importance_ratios(ratios, weighted.policy)
    assert np.abs(estimator.fit(broken, GAMMA).predict(np.arange(7)).values - exact).max() > 0.05


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_off_policy_td_passes_each_error_back_over_the_ratios_between(trace_decay):
    rng = np.random.default_rng(4)
    states, ratios, rewards = rng.standard_normal((7, 2)), rng.uniform(0.2, 3.0, 6), rng.standard_normal(6)
    ends = np.array([False, False, True, False, False, True])
    log = icrl.Trajectory(states[:-1], np.zeros(6), rewards, states[1:], ends, np.zeros(6, bool))
    options = {"step_size": 0.3, "num_passes": 1, "basis": "linear", "relative": False}
    estimator = classical.TDLambda(trace_decay=trace_decay, **options)
    estimator.fit(log.with_importance_ratios(ratios, "pi"), GAMMA)
    phi = np.c_[estimator.prompt_.queries(states), np.ones(7)]
    step, weights = 0.3 / np.square(phi[:-1]).sum(axis=1).mean(), np.zeros(3)
    for k in range(6):
        delta = rewards[k] + GAMMA * (0.0 if ends[k] else weights @ phi[k + 1]) - weights @ phi[k]
        first = 0 if k < 3 else 3  # of the episode
        for j in range(first, k + 1):  # state j is credited with the product of the ratios from j to k
            weights = weights + step * delta * (GAMMA * trace_decay) ** (k - j) * np.prod(ratios[j : k + 1]) * phi[j]
    np.testing.assert_allclose(estimator.weights_, weights, rtol=1e-12)


def test_nearest_neighbours_weigh_their_returns_and_never_count_a_ratio_of_zero():
    states = np.array([[0.0], [0.1], [0.2], [5.0]])
    ends = np.ones(4, bool)
    log = icrl.Trajectory(states, np.zeros(4), [1.0, 2.0, 100.0, -7.0], states, ends, ~ends)
    weighted = log.with_importance_ratios([3.0, 1.0, 0.0, 1.0], "pi")
    assert classical.NearestNeighbours(2).fit(weighted, GAMMA).predict([[0.0]]).values[0] == pytest.approx(1.25)
    assert classical.NearestNeighbours(9).fit(weighted, GAMMA).predict([[0.0]]).values[0] == pytest.approx(-0.4)


def test_action_values_of_the_target_from_the_behaviours_log():
    log, policy, exact = enumerated_episodes()
    weighted = icrl.reweight(log, policy, "random")
    states, actions = np.repeat(np.arange(3), 2), np.tile([0, 1], 3)
    expected = np.array([
        log.rewards[(log.observations == s) & (log.actions == a)][0] + GAMMA * exact[2 * s + 1 + a]
        for s, a in zip(states, actions, strict=True)
    ])  # fmt: skip
    found = constructed().fit(weighted, GAMMA).predict_q(states, actions).values
    np.testing.assert_allclose(found, expected, atol=1e-6)
    unweighted = constructed().fit(log, GAMMA).predict_q(states, actions).values
    assert np.abs(unweighted - expected).max() > 0.05


@pytest.mark.parametrize("name", ["true_online_td", "gptd"])
def test_a_method_without_use_for_ratios_refuses_them(name):
    log, _, _, _ = enumerated_log()
    weighted = icrl.reweight(log, TARGET, "random")
    with pytest.raises(ValueError, match=r"does not use importance_ratios: .* values of the behaviour, not of"):
        icrl.make_estimator(name).fit(weighted, GAMMA)


def test_ratios_are_cut_joined_and_stored_with_their_transitions(tmp_path):
    log, _, _, _ = enumerated_log()
    weighted = icrl.reweight(log, TARGET, "random")
    np.testing.assert_array_equal(weighted[3:9].importance_ratios, weighted.importance_ratios[3:9])
    again = icrl.Trajectory.load(weighted.save(tmp_path / "log"))
    np.testing.assert_array_equal(again.importance_ratios, weighted.importance_ratios)
    assert icrl.Trajectory.load(log.save(tmp_path / "plain")).importance_ratios is None
    own = log[:5].with_importance_ratios(None, weighted.policy)  # as if the target itself had acted
    joined = weighted[:2].append(own).append(weighted[2:4])
    expected = [*weighted.importance_ratios[:2], 1, 1, 1, 1, 1, *weighted.importance_ratios[2:4]]
    assert joined.importance_ratios.tolist() == expected
    assert own.append(own).importance_ratios is None
    update = constructed().fit(weighted[:40], GAMMA).update(weighted[40:])
    np.testing.assert_allclose(
        update.predict(np.arange(4)).values, constructed().fit(weighted, GAMMA).predict(np.arange(4)).values
    )


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        (np.ones(3), r"importance_ratios must have shape \(5,\), got \(3,\)"),
        ([1, 1, -0.5, 1, 1], r"importance_ratios\[2\] is -0.5"),
        ([1, np.inf, 1, 1, 1], r"importance_ratios.*\[1\]"),
    ],
)
def test_bad_ratios_are_named(ratios, message):
    log, _, _, _ = enumerated_log()
    with pytest.raises(ValueError, match=message):
        log[:5].with_importance_ratios(ratios, "pi")


def test_ratios_that_are_all_zero_are_refused_by_every_kind_of_estimator():
    log, _, _, _ = enumerated_log()
    nothing = log.with_importance_ratios(np.zeros(len(log)), "pi")
    for estimator in (constructed(), classical.LSTD()):
        with pytest.raises(ValueError, match="importance_ratios: every"):
            estimator.fit(nothing, GAMMA)


def test_reweighting_refuses_what_it_cannot_do():
    log, _, _, _ = enumerated_log()
    with pytest.raises(ValueError, match="action_space is needed: no policy states one"):
        icrl.reweight(log, "random", "random")
    with pytest.raises(ValueError, match=r"behaviour is 'table:.*but the log is of 'random'"):
        icrl.reweight(log, TARGET, TARGET)
    anonymous = log.with_importance_ratios(None, None)
    with pytest.raises(ValueError, match=r"behaviour gives the logged action actions\[\d+\] = 0 probability 0"):
        icrl.reweight(anonymous, "random", TARGET)
    with pytest.raises(ValueError, match="cannot give action probabilities"):
        icrl.reweight(log, lambda observations: np.zeros(len(observations), int), "random", ACTIONS)
    with pytest.raises(ValueError, match="action_space must be Discrete"):
        icrl.reweight(log, TARGET, "random", spaces.Box(-1, 1, (1,)))
    with pytest.raises(ValueError, match=r"actions must lie in Discrete\(1\): actions\[\d+\] is 1"):
        icrl.reweight(log, "random", "random", spaces.Discrete(1))
    with pytest.raises(ValueError, match="has importance_ratios already"):
        icrl.reweight(icrl.reweight(log, TARGET, "random"), TARGET, "random")
    with pytest.raises(TypeError, match="trajectory must be a Trajectory, got list"):
        icrl.reweight([], TARGET, "random")
    pendulum = icrl.collect("Pendulum-v1", "random", 5)
    with pytest.raises(ValueError, match="action_space must be Discrete"):
        icrl.reweight(pendulum, "random", "random", gymnasium.make("Pendulum-v1").action_space)


def test_intervals_of_weighted_contexts_cover_the_targets_values():
    rng = np.random.default_rng(0)
    transition, reward = rng.dirichlet(np.ones(4), size=(4, 2)), rng.uniform(-1, 1, (4, 2))
    chain = np.einsum("sa,sat->st", TARGET, transition)
    exact = np.linalg.solve(np.eye(4) - GAMMA * chain, (TARGET * reward).sum(axis=1))
    covered, errors = [], {"weighted": [], "as logged": []}
    for _ in range(30):
        states, actions = [0], rng.integers(2, size=300)
        for action in actions:
            states.append(int(rng.choice(4, p=transition[states[-1], action])))
        flags = np.zeros(300, bool)
        log = icrl.Trajectory(
            np.array(states[:-1]), actions, reward[states[:-1], actions], np.array(states[1:]), flags, flags,
            observation_space=spaces.Discrete(4), policy="random",
        )  # fmt: skip
        weighted = icrl.reweight(log, TARGET, "random")
        for name, context in (("weighted", weighted), ("as logged", log)):
            estimate = icrl.InContextEvaluator().fit(context, GAMMA).predict(np.arange(4))
            errors[name].append(np.mean((estimate.values - exact) ** 2))
            if name == "weighted":
                low, high = estimate.interval(0.9)
                covered.append(np.mean((low <= exact) & (exact <= high)))
    # Were the coverage .9, states of one log all alike, fewer than .73 would cover once in 500 such tests.
    assert np.mean(covered) > 0.73
    assert np.mean(errors["weighted"]) < 0.25 * np.mean(errors["as logged"])


def test_fitted_q_evaluation_reaches_the_targets_action_values_from_any_log():
    log, exact, q_exact, of_behaviour = enumerated_log()
    estimator = classical.FittedQEvaluation(num_steps=1500, learning_rate=3e-3).fit(log, GAMMA, policy=TARGET)
    states, actions = np.repeat(np.arange(NUM_STATES), NUM_ACTIONS), np.tile([0, 1], NUM_STATES)
    found = estimator.predict_q(states, actions)
    np.testing.assert_allclose(found.values, q_exact.ravel(), atol=0.05 * np.ptp(q_exact))
    values = estimator.predict(np.arange(NUM_STATES))
    np.testing.assert_allclose(values.values, (TARGET * found.values.reshape(-1, 2)).sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(values.values, exact, atol=0.05 * np.ptp(exact))
    identity = as_policy(TARGET, ACTIONS, spaces.Discrete(NUM_STATES)).identity
    assert values.estimand == icrl.Estimand("mdp", identity, GAMMA)
    assert found.estimand.env == "mdp (state-action pairs)"
    assert np.abs(exact - of_behaviour).max() > 0.2 * np.ptp(exact)


def test_fitted_q_evaluation_without_a_policy_takes_the_next_logged_action():
    log, policy, exact = enumerated_episodes()
    tolerance = 0.1 * np.ptp(exact)  # minibatches of 24 transitions leave half of that

    def found(trajectory, acting=None):
        estimator = classical.FittedQEvaluation(num_steps=1000, learning_rate=3e-3, batch_size=256)
        return estimator.fit(trajectory, GAMMA, policy=acting).predict(np.arange(7)).values

    of_behaviour = found(log, np.full_like(policy, 0.5))
    np.testing.assert_allclose(found(log), of_behaviour, atol=tolerance)
    np.testing.assert_allclose(found(icrl.reweight(log, policy, "random")), exact, atol=tolerance)
    assert np.abs(of_behaviour - exact).max() > 3 * tolerance


def test_fitted_q_evaluation_takes_continuous_actions_and_policies_that_only_act():
    log = icrl.collect("Pendulum-v1", "random", 300)
    space = gymnasium.make("Pendulum-v1").action_space

    def still(observations):
        return np.zeros((len(observations), 1))

    of_still = classical.FittedQEvaluation(num_steps=300).fit(log, GAMMA, policy=still)
    values = of_still.predict(log.observations[:6])
    q_values = of_still.predict_q(log.observations[:6], np.zeros((6, 1)))
    np.testing.assert_allclose(values.values, q_values.values, atol=1e-4)
    assert values.estimand.policy == as_policy(still, space).identity != log.policy
    of_anyone = classical.FittedQEvaluation(num_steps=300).fit(log, GAMMA, policy=as_policy("random", space))
    anyone = of_anyone.predict(log.observations[:6])
    assert np.abs(anyone.values - values.values).max() > 1e-3
    np.testing.assert_array_equal(of_anyone.predict(log.observations[:6]).values, anyone.values)


def test_fitted_q_evaluation_reads_the_log_of_a_policy_that_cannot_be_asked():
    generator = np.random.default_rng(0)

    def restless(observations):
        return generator.integers(4, size=len(observations))

    log = icrl.collect("FrozenLake-v1", restless, 300)
    options = {"num_steps": 20}
    told = classical.FittedQEvaluation(**options).fit(log, GAMMA, policy=restless).predict(np.arange(16))
    untold = classical.FittedQEvaluation(**options).fit(log, GAMMA).predict(np.arange(16))
    np.testing.assert_array_equal(told.values, untold.values)
    assert "its actions are taken from the log instead" in told.notes[0]
    assert untold.notes == ()


def test_fitted_q_evaluation_names_what_it_lacks():
    log, _, _, _ = enumerated_log()
    with pytest.raises(ValueError, match="policy: is needed"):
        classical.FittedQEvaluation().fit(icrl.collect("Pendulum-v1", "random", 1), GAMMA)
    never_again = icrl.collect("FrozenLake-v1", "random", 3).with_importance_ratios([1.0, 0.0, 0.0], "pi")
    with pytest.raises(ValueError, match=r"policy: is needed, .* and counts"):
        classical.FittedQEvaluation().fit(never_again, GAMMA)
    with pytest.raises(ValueError, match="policy 'random' needs an action space"):
        classical.FittedQEvaluation().fit(icrl.collect("Pendulum-v1", "random", 9), GAMMA, policy="random")
    weighted = icrl.reweight(log, TARGET, "random")
    with pytest.raises(ValueError, match=r"policy is 'table:.*but the log's ratios are those of 'table:"):
        classical.FittedQEvaluation().fit(weighted, GAMMA, policy=TARGET[::-1])


@pytest.mark.parametrize("name", ["lstd", "gptd", "fitted_value_network", "nearest_neighbours"])
def test_a_method_that_knows_the_policy_by_its_actions_refuses_the_log_of_another(name):
    log, _, _, _ = enumerated_log()
    options = {"num_steps": 5} if name == "fitted_value_network" else {}
    with pytest.raises(ValueError, match=r"values of the behaviour 'random', not of the policy 'table:"):
        icrl.make_estimator(name, **options).fit(log, GAMMA, policy=TARGET)
    own = icrl.make_estimator(name, **options).fit(log, GAMMA, policy="random").predict(np.arange(NUM_STATES))
    plain = icrl.make_estimator(name, **options).fit(log, GAMMA).predict(np.arange(NUM_STATES))
    np.testing.assert_array_equal(own.values, plain.values)
    anonymous = log.with_importance_ratios(None, None)
    unnamed = icrl.make_estimator(name, **options).fit(anonymous, GAMMA, policy=TARGET).predict(np.arange(NUM_STATES))
    np.testing.assert_array_equal(unnamed.values, plain.values)


def test_the_evaluator_is_told_the_policy_and_says_whose_values_it_estimates():
    log, _, _, _ = enumerated_log()
    identity = as_policy(TARGET, ACTIONS, spaces.Discrete(NUM_STATES)).identity
    evaluator = constructed().fit(log[:40], GAMMA, policy=TARGET)
    assert evaluator.asked_policy_.identity == identity
    assert evaluator.predict([0]).estimand.policy == identity
    assert evaluator.predict_q([0], [1]).estimand.policy == identity
    evaluator.update(log[40:80])
    assert evaluator.predict([0]).estimand.policy == identity
    evaluator.update(log[80:], refit=True, policy="random")
    assert evaluator.predict([0]).estimand.policy == "random"
    assert any("policy 'random' is taken to choose" in note for note in evaluator.predict([0]).diagnostics.warnings)
    evaluator.fit(log, GAMMA)
    assert evaluator.asked_policy_ is None
    assert not any("policy" in note for note in evaluator.predict([0]).diagnostics.warnings)
