"""Action values in context: exact where they can be, and honest about what the log does not say."""

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.context.pairs import state_action_trajectory
from icrl_gym.reproduction.reference import certainty_equivalence


def walk(seed, num_transitions, num_states=3, num_actions=2, termination=0.0):
    """A random MDP under a random policy: (trajectory, transition (S, A, S), reward (S, A), policy (S, A))."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(num_states), size=(num_states, num_actions))
    reward = rng.uniform(-1, 1, (num_states, num_actions))
    policy = rng.dirichlet(3 * np.ones(num_actions), size=num_states)
    states, actions, terminated = [], [], []
    state = 0
    for _ in range(num_transitions):
        states.append(state)
        actions.append(int(rng.choice(num_actions, p=policy[state])))
        terminated.append(bool(rng.random() < termination))
        state = int(rng.choice(num_states, p=transition[state, actions[-1]]))
    states = np.array(states)
    following = np.append(states[1:], state)
    ends = np.array(terminated)
    trajectory = icrl.Trajectory(
        states, np.array(actions), reward[states, actions], following, ends, np.zeros(num_transitions, dtype=bool),
        ends | (np.arange(num_transitions) == num_transitions - 1), env_id="mdp", policy="pi",
    )  # fmt: skip
    return trajectory, transition, reward, policy


def all_pairs(num_states=3, num_actions=2):
    return np.repeat(np.arange(num_states), num_actions), np.tile(np.arange(num_actions), num_states)


def exact_evaluator():
    """No ridge and no sink, so that an equilibrium is certainty equivalence."""
    return icrl.InContextEvaluator(sink=0.0, forgetting=0.0, bandwidth=0.5)


def test_discrete_pairs_at_equilibrium_are_certainty_equivalence_of_the_pairs():
    trajectory, _, _, _ = walk(0, 120, termination=0.15)
    last = int(np.flatnonzero(trajectory.terminated)[-1])
    trajectory = trajectory[: last + 1]
    pairs = 2 * trajectory.observations + trajectory.actions
    expected = certainty_equivalence(pairs, np.append(pairs[1:], 0), trajectory.rewards, 0.9 * ~trajectory.terminated)
    found = exact_evaluator().fit(trajectory, 0.9).predict_q(*all_pairs()).values
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_long_contexts_approach_the_true_action_values():
    trajectory, transition, reward, policy = walk(1, 2000)
    chain = np.einsum("sa,sat->st", policy, transition)
    values = np.linalg.solve(np.eye(3) - 0.8 * chain, (policy * reward).sum(axis=1))
    truth = reward + 0.8 * transition @ values
    evaluator = icrl.InContextEvaluator().fit(trajectory, 0.8)
    estimates = evaluator.predict_q(*all_pairs())
    assert (np.abs(estimates.values - truth.ravel()) < 4 * estimates.stderr).all()  # false alarm below 1 in 2,000
    assert estimates.stderr.max() < 0.1 < 0.3 < truth.std()


def test_the_last_transition_of_an_open_stretch_is_the_end_column_and_its_reward_unused():
    trajectory, *_ = walk(2, 12)
    truncated = np.zeros(12, dtype=bool)
    truncated[5] = True
    ends = truncated | (np.arange(12) == 11)
    cut = icrl.Trajectory(
        trajectory.observations, trajectory.actions, trajectory.rewards, trajectory.next_observations,
        np.zeros(12, dtype=bool), truncated, ends,
    )  # fmt: skip
    pairs = state_action_trajectory(cut)
    kept = [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(pairs.observations[0], cut.observations[kept])
    np.testing.assert_array_equal(pairs.observations[1], cut.actions[kept])
    np.testing.assert_array_equal(np.flatnonzero(pairs.episode_ends), [4, 9])
    np.testing.assert_array_equal(pairs.next_observations[1], cut.actions[[1, 2, 3, 4, 5, 7, 8, 9, 10, 11]])
    assert not pairs.terminated.any()
    estimates = icrl.InContextEvaluator().fit(cut, 0.9).predict_q(*all_pairs())
    attribution = estimates.attribution()
    assert attribution.shape == (6, 12)
    np.testing.assert_array_equal(np.flatnonzero((attribution == 0).all(axis=0)), [5, 11])
    np.testing.assert_allclose(attribution @ cut.rewards, estimates.values, atol=1e-10)


def test_a_terminated_transition_does_not_bootstrap_from_the_next_pair():
    ids, reward = np.array([0, 1]), np.array([1.0, 100.0])
    log = icrl.Trajectory(ids, ids, reward, np.array([1, 1]), np.array([True, True]), np.zeros(2, dtype=bool))
    found = exact_evaluator().fit(log, 0.9).predict_q([0, 1], [0, 1]).values
    np.testing.assert_allclose(found, [1.0, 100.0], atol=1e-6)


def test_the_best_action_of_a_continuous_state_is_found():
    rng = np.random.default_rng(3)
    state = rng.uniform(-1, 1, (400, 1))
    action = rng.integers(2, size=400)
    reward = np.where(action == 1, state[:, 0], -state[:, 0])
    ones, none = np.ones(400, dtype=bool), np.zeros(400, dtype=bool)
    log = icrl.Trajectory(state, action, reward, state, ones, none)
    evaluator = icrl.InContextEvaluator(bandwidth=0.5, sink=1.0).fit(log, 0.9)
    query = np.array([[-0.8], [-0.4], [0.4], [0.8]])
    left, right = (evaluator.predict_q(query, np.full(4, a)).values for a in (0, 1))
    np.testing.assert_array_equal(right > left, [False, False, True, True])
    np.testing.assert_allclose(right, query[:, 0], atol=0.2)


def test_continuous_actions_and_nested_observations_pass():
    rng = np.random.default_rng(4)
    seen = {"x": rng.standard_normal((30, 2)), "mode": rng.integers(2, size=30)}
    following = {"x": rng.standard_normal((30, 2)), "mode": rng.integers(2, size=30)}
    action, ones = rng.standard_normal((30, 3)), np.ones(30, dtype=bool)
    log = icrl.Trajectory(seen, action, rng.standard_normal(30), following, ones, ~ones)
    estimates = icrl.InContextEvaluator().fit(log, 0.9).predict_q(seen, action)
    assert estimates.values.shape == (30,)
    assert np.isfinite(estimates.values).all()
    assert (estimates.stderr > 0).all()


def test_state_values_are_untouched_and_an_update_reaches_the_pairs():
    trajectory, *_ = walk(5, 60)
    more, *_ = walk(5, 90)
    evaluator = icrl.InContextEvaluator().fit(trajectory, 0.9)
    before = evaluator.predict([0, 1, 2]).values
    first = evaluator.predict_q(*all_pairs()).values
    np.testing.assert_array_equal(evaluator.predict_q(*all_pairs()).values, first)
    np.testing.assert_array_equal(evaluator.predict([0, 1, 2]).values, before)
    evaluator.update(more)
    fresh = icrl.InContextEvaluator().fit(evaluator.trajectory_, 0.9).predict_q(*all_pairs()).values
    np.testing.assert_allclose(evaluator.predict_q(*all_pairs()).values, fresh, atol=1e-9)
    assert np.abs(fresh - first).max() > 1e-3


def test_action_values_are_not_scored_as_state_values():
    trajectory, *_ = walk(6, 40)
    evaluator = icrl.InContextEvaluator().fit(trajectory, 0.9)
    with pytest.raises(ValueError, match="env"):
        icrl.score(evaluator.predict_q([0, 1], [0, 1]), evaluator.predict([0, 1]))


@pytest.mark.parametrize(
    ("observations", "actions", "error", "message"),
    [
        ([0, 1], [0], ValueError, r"actions must be as many as observations \(2\), got 1"),
        ([0, 1], [0.5, 1.0], TypeError, "actions must be integers"),
        ([0, 1], [[0], [1]], ValueError, "actions must have shape"),
        ([[0.5]], [0], ValueError, "observations must have shape"),
    ],
)
def test_bad_pairs_are_named(observations, actions, error, message):
    trajectory, *_ = walk(7, 20)
    evaluator = icrl.InContextEvaluator().fit(trajectory, 0.9)
    with pytest.raises(error, match=message):
        evaluator.predict_q(observations, actions)


def test_one_open_transition_says_nothing_about_actions():
    trajectory, *_ = walk(8, 20)
    evaluator = icrl.InContextEvaluator().fit(trajectory[:1], 0.9)
    with pytest.raises(ValueError, match="no transition that terminated or whose next action is known"):
        evaluator.predict_q([0], [0])


def test_predicting_before_fitting_is_refused():
    with pytest.raises(RuntimeError, match="call fit"):
        icrl.InContextEvaluator().predict_q([0], [0])
