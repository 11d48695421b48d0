"""Values of a policy that did not act: exact where they can be, linear in rewards, honest about what was not tried."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym as icrl
from icrl_gym.acting.policies import AskedPolicy, as_policy
from icrl_gym.context.features import FeatureMap
from icrl_gym.context.target_pairs import (
    ActionLikeness,
    WeightedActions,
    expected_actions,
    spread_actions,
    stratified_noise,
    target_pair_prompt,
)
from icrl_gym.evaluator.network import Compiler
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.target_values import TargetValues
from icrl_gym.evaluator.world import ImaginedValues
from icrl_gym.evaluator.world.tabled import TabledValues

NETWORKS = ["constructed", "generalist"]


class Leaning:
    """Goes right on CartPole with a probability that grows with angle and angular velocity."""

    identity = "leaning"
    action_space = spaces.Discrete(2)

    def __init__(self, gain=3.0):
        self.gain = gain

    def action_probabilities(self, observations):
        score_B = self.gain * (3 * observations[:, 2] + observations[:, 3])
        right_B = 1 / (1 + np.exp(-score_B.astype(np.float64)))
        return np.stack([1 - right_B, right_B], axis=1)


def random_mdp(seed, num_transitions, num_states=4, num_actions=3, gamma=0.8):
    """A log of a uniform behaviour, a target, and the target's exact values (S,) and action values (S, A)."""
    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.ones(num_states), size=(num_states, num_actions))
    reward = rng.uniform(-1, 1, (num_states, num_actions))
    target = rng.dirichlet(0.3 * np.ones(num_actions), size=num_states)
    states, actions = [0], rng.integers(num_actions, size=num_transitions)
    for action in actions:
        states.append(int(rng.choice(num_states, p=transition[states[-1], action])))
    flags = np.zeros(num_transitions, dtype=bool)
    log = icrl.Trajectory(
        np.array(states[:-1]), actions, reward[states[:-1], actions], np.array(states[1:]), flags, flags,
        observation_space=spaces.Discrete(num_states), env_id="mdp", policy="random",
    )  # fmt: skip
    chain = np.einsum("sa,sat->st", target, transition)
    values = np.linalg.solve(np.eye(num_states) - gamma * chain, (target * reward).sum(axis=1))
    return log, target, values, reward + gamma * transition @ values


def cartpole(n=200, seed=0):
    return icrl.collect("CartPole-v1", "random", n, seed=seed)


def with_rewards(log, rewards):
    return icrl.Trajectory(
        log.observations, log.actions, rewards, log.next_observations, log.terminated, log.truncated,
        log.episode_ends, log.observation_space, log.env_id, log.policy,
    )  # fmt: skip


def evaluator(name):
    """Softmax TD alone: no walks before it."""
    return icrl.InContextEvaluator.from_pretrained(name, imagination=False)


def asked(policy, log, space=None):
    return AskedPolicy(as_policy(policy, space or spaces.Discrete(2), log.observation_space, seed=0))


def test_long_random_logs_approach_the_targets_values_and_action_values():
    log, target, values, q_SA = random_mdp(0, 2000)
    fitted = evaluator("constructed").fit(log, 0.8, policy=target)
    found = fitted.predict(np.arange(4))
    assert found.estimand == icrl.Estimand("mdp", as_policy(target, spaces.Discrete(3)).identity, 0.8)
    assert (np.abs(found.values - values) < 4 * found.stderr).all()  # false alarm below 1 in 2,000
    assert found.stderr.max() < 0.3 * values.std()
    of_behaviour = evaluator("constructed").fit(log, 0.8).predict(np.arange(4)).values
    assert np.abs(of_behaviour - values).max() > 10 * np.abs(found.values - values).max()
    q = fitted.predict_q(np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4))
    assert q.estimand.env == "mdp (state-action pairs)"
    np.testing.assert_allclose(q.values, q_SA.ravel(), atol=0.3 * q_SA.std())
    np.testing.assert_allclose((target * q.values.reshape(4, 3)).sum(axis=1), found.values, atol=1e-10)
    variance_SA = np.square(q.stderr).reshape(4, 3)  # errors of one state's actions may all have one sign
    np.testing.assert_allclose((target * variance_SA).sum(axis=1), found.stderr**2, rtol=1e-10)
    support_SA = q.diagnostics.support.reshape(4, 3)
    np.testing.assert_allclose((target * support_SA).sum(axis=1), found.diagnostics.support, rtol=1e-10)


def lake_log(num_times=8):
    """FrozenLake: every outcome of every action in every state that does not end an episode, one step each."""
    table = gymnasium.make("FrozenLake-v1").unwrapped.P
    rows = []
    for state in sorted(set(range(16)) - {5, 7, 11, 12, 15}):
        for action in range(4):
            for _, following, reward, ends in num_times * table[state][action]:  # three outcomes, equally likely
                rows.append((state, action, reward, following, ends))
    states, actions, rewards, following, ends = map(np.array, zip(*rows, strict=True))
    return icrl.Trajectory(
        states, actions, rewards, following, ends, ~ends,
        observation_space=spaces.Discrete(16), env_id="FrozenLake-v1", policy="random",
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_lake_is_solved_from_every_outcome_of_actions_at_random(name):
    target = np.random.default_rng(1).dirichlet(0.5 * np.ones(4), size=16)
    target = 0.1 * target + 0.9 * np.eye(4)[[1, 2, 1, 0, 1, 0, 1, 0, 2, 1, 1, 0, 0, 2, 2, 0]]
    truth = icrl.exact_values("FrozenLake-v1", target, gamma=0.9)
    found = evaluator(name).fit(lake_log(), 0.9, policy=target).predict(truth.observations)
    assert icrl.score(found, truth).rmse_over_std < 0.02
    of_behaviour = evaluator(name).fit(lake_log(), 0.9).predict(truth.observations).values
    assert np.sqrt(np.mean((of_behaviour - truth.values) ** 2)) > 0.5 * truth.values.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_linear_in_all_rewards_and_scale_with_them(name):
    log, rng = cartpole(), np.random.default_rng(0)
    log = with_rewards(log, rng.standard_normal(len(log)))
    queries = log.observations[::20]
    found = evaluator(name).fit(log, 0.95, policy=Leaning()).predict(queries)
    attribution = found.attribution()
    assert attribution.shape == (10, 200)
    np.testing.assert_allclose(attribution @ log.rewards, found.values, atol=1e-8)
    scaled = evaluator(name).fit(with_rewards(log, 7.0 * log.rewards), 0.95, policy=Leaning()).predict(queries)
    np.testing.assert_allclose(scaled.values, 7.0 * found.values, rtol=1e-6)
    np.testing.assert_allclose(scaled.stderr, 7.0 * found.stderr, rtol=1e-4)
    np.testing.assert_array_equal(found.by_layer[-1], found.values)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("policy", [Leaning(), lambda x: (x[:, 2] > 0).astype(int)], ids=["stated", "acts"])
def test_a_batch_is_answered_as_one_by_one(name, policy):
    log = cartpole()
    fitted = evaluator(name).fit(log, 0.95, policy=policy)
    queries = log.observations[::25]
    together = fitted.predict(queries)
    alone = [fitted.predict(queries[i : i + 1]) for i in range(len(queries))]
    np.testing.assert_allclose([one.values[0] for one in alone], together.values, rtol=1e-8)
    np.testing.assert_allclose([one.stderr[0] for one in alone], together.stderr, rtol=1e-6)
    np.testing.assert_allclose([one.diagnostics.support[0] for one in alone], together.diagnostics.support, rtol=1e-6)


def test_a_target_that_acted_under_another_name_has_nearly_the_same_values():
    log = icrl.collect("CartPole-v1", Leaning(), 400, seed=0)
    known = evaluator("generalist").fit(log, 0.95, policy=Leaning())
    assert not isinstance(known.compiled_, TargetValues)
    renamed = evaluator("generalist").fit(log.with_importance_ratios(None, "somebody"), 0.95, policy=Leaning())
    assert isinstance(renamed.compiled_, TargetValues)
    queries = log.observations[::8]
    expected, found = (each.predict(queries).values for each in (known, renamed))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.2 * expected.std()
    other = evaluator("generalist").fit(log.with_importance_ratios(None, "somebody"), 0.95, policy=Leaning(-3.0))
    assert np.sqrt(np.mean((other.predict(queries).values - expected) ** 2)) > 0.8 * expected.std()


def test_ratios_in_the_log_are_not_needed_and_not_used():
    log, target, *_ = random_mdp(2, 300)
    weighted = icrl.reweight(log, target, "random")
    states = np.arange(4)
    with_ratios = evaluator("generalist").fit(weighted, 0.8, policy=target).predict(states).values
    without = evaluator("generalist").fit(log, 0.8, policy=target).predict(states).values
    np.testing.assert_allclose(with_ratios, without, rtol=1e-12)
    by_ratios = evaluator("generalist").fit(weighted, 0.8).predict(states).values
    assert np.abs(by_ratios - without).max() > 1e-3


def test_actions_that_the_log_never_shows_are_warned_of():
    log = cartpole(300)
    always_left = log.actions == 0
    only_left = icrl.Trajectory(
        log.observations[always_left], log.actions[always_left], log.rewards[always_left],
        log.next_observations[always_left], log.terminated[always_left], log.truncated[always_left],
        np.ones(always_left.sum(), dtype=bool), log.observation_space, log.env_id, "left",
    )  # fmt: skip
    queries = only_left.observations[:20]

    def right(observations):
        return np.ones(len(observations), dtype=int)

    found = evaluator("generalist").fit(only_left, 0.95, policy=as_policy(right, spaces.Discrete(2))).predict(queries)
    text = "20 of 20 queries lie where the log holds few actions like the policy's: expect the context's constant"
    assert text in found.diagnostics.warnings
    np.testing.assert_allclose(found.diagnostics.support, 0.0, atol=1e-9)

    def left(observations):
        return np.zeros(len(observations), dtype=int)

    found = evaluator("generalist").fit(only_left, 0.95, policy=as_policy(left, spaces.Discrete(2))).predict(queries)
    assert not any("few actions" in warning for warning in found.diagnostics.warnings)
    assert (found.diagnostics.support > 0.5).all()


def test_support_off_the_context_is_worded_by_who_acted():
    log = cartpole()
    far = log.observations[:3] + np.float32(50.0)
    of_another = evaluator("generalist").fit(log, 0.95, policy=Leaning()).predict(far).diagnostics.warnings
    of_behaviour = evaluator("generalist").fit(log, 0.95).predict(far).diagnostics.warnings
    assert any(w.startswith("3 of 3 queries lie where the log holds few actions like") for w in of_another)
    assert any(w.startswith("3 of 3 queries lie off the context's support") for w in of_behaviour)


BOX = spaces.Box(-1.0, 1.0, (2,), np.float64)


def continuous_log(n=500, width=1.0):
    """Rewards are the first number of the action, states are drawn anew: V = E a_0 / (1 - gamma)."""
    rng = np.random.default_rng(0)
    states, actions = rng.standard_normal((n + 1, 2)), width * rng.uniform(-1, 1, (n, 2))
    flags = np.zeros(n, dtype=bool)
    return icrl.Trajectory(states[:-1], actions, actions[:, 0], states[1:], flags, flags, env_id="draws", policy="mu")


@pytest.mark.parametrize(
    ("policy", "mean"),
    [(as_policy(lambda x: np.full((len(x), 2), 0.5), BOX), 0.5), (as_policy("random", BOX), 0.0)],
    ids=["deterministic", "random"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_continuous_actions_are_asked(name, policy, mean):
    log = continuous_log()
    found = evaluator(name).fit(log, 0.5, policy=policy).predict(log.observations[:20])
    np.testing.assert_allclose(found.values, 2 * mean, atol=0.25)
    assert not any("few actions" in warning for warning in found.diagnostics.warnings)
    np.testing.assert_allclose(found.attribution() @ log.rewards, found.values, atol=1e-8)


def test_continuous_actions_far_from_the_logs_are_warned_of():
    log, policy = continuous_log(width=0.05), as_policy(lambda x: np.full((len(x), 2), 0.9), BOX)
    warnings = evaluator("constructed").fit(log, 0.5, policy=policy).predict(log.observations[:20]).diagnostics.warnings
    assert any(w.startswith("20 of 20 queries lie where the log holds few actions") for w in warnings)


def test_every_open_transition_has_the_targets_mixture_as_its_successor():
    log = cartpole(60)
    policy, states = asked(Leaning(), log), FeatureMap(log.observation_space).fit(log.observations)
    prompt = target_pair_prompt(log, 0.9, states, policy)
    num_open = int((~log.terminated).sum())
    assert 0 < num_open < 60 == len(prompt)
    np.testing.assert_array_equal(prompt.rewards, log.rewards)
    np.testing.assert_array_equal(prompt.discounts, 0.9 * ~log.terminated)
    np.testing.assert_array_equal(prompt.successors[~log.terminated], 60 + np.arange(num_open))
    assert not prompt.trace_links.any()
    assert prompt.importance_ratios is None
    assert prompt.estimand == icrl.Estimand(log.env_id, policy.identity, 0.9)
    mixtures = prompt.end_mixtures
    assert mixtures is not None
    probability = Leaning().action_probabilities(log.next_observations[~log.terminated])
    np.testing.assert_allclose(mixtures.weights_ME, probability.T)
    np.testing.assert_allclose(prompt.end_features[:, -2:], 1.5 * probability)
    kernel = Compiler(prompt).compile(Setting()).kernel
    parts = [kernel.attend(part).numpy() for part in mixtures.features_MED]
    expected = np.einsum("me,mek->ek", mixtures.weights_ME, parts)
    np.testing.assert_allclose(kernel.columns_CK[60:].numpy(), expected, atol=1e-12)


def test_a_log_of_terminations_alone_has_no_successors():
    log = icrl.Trajectory([0, 1, 0, 1], [0, 0, 1, 1], [1.0, 2.0, 3.0, 4.0], [0] * 4, [True] * 4, [False] * 4)
    target = np.array([[0.0, 1.0], [0.5, 0.5]])
    found = icrl.InContextEvaluator(sink=0.0, forgetting=0.0, bandwidth=0.2).fit(log, 0.9, policy=target)
    np.testing.assert_allclose(found.predict([0, 1]).values, [3.0, 3.0], atol=1e-6)


def test_noise_is_stratified_over_rows_and_within_them():
    noise_MBU = stratified_noise(50, 8, 3)
    assert noise_MBU.shape == (8, 50, 3)
    for u in range(3):
        np.testing.assert_array_equal(np.sort((noise_MBU[:, :, u] * 400).astype(int).ravel()), np.arange(400))
        assert (np.sort((noise_MBU[:, :, u] * 8).astype(int), axis=0) == np.arange(8)[:, None]).all()
    np.testing.assert_array_equal(noise_MBU, stratified_noise(50, 8, 3))
    assert np.abs(np.corrcoef(noise_MBU.reshape(400, 3).T) - np.eye(3)).max() < 0.2


def test_actions_are_weighted_by_probabilities_or_asked_and_once_where_chance_has_no_part():
    log = cartpole(20)
    stated = expected_actions(asked(Leaning(), log), log.observations)
    np.testing.assert_array_equal(stated.actions, np.tile([0, 1], (20, 1)))
    np.testing.assert_allclose(stated.weights_BM, Leaning().action_probabilities(log.observations))
    acts = expected_actions(asked(lambda x: (x[:, 2] > 0).astype(int), log), log.observations)
    np.testing.assert_array_equal(acts.actions[:, 0], log.observations[:, 2] > 0)
    assert acts.weights_BM.tolist() == [[1.0]] * 20
    drawn = spread_actions(asked("random", log, BOX), log.observations)
    assert drawn.actions.shape == (20, 8, 2)
    np.testing.assert_allclose(drawn.actions.mean(axis=(0, 1)), 0.0, atol=1e-9)  # of a linear function exact


def test_likeness_of_actions():
    box = ActionLikeness.of(spaces.Box(-9, 9, (2,)), np.array([[0.0, 0.0], [2.0, 4.0]]))
    np.testing.assert_allclose(box(np.array([[0.0, 0.0]])), [[1.0, np.exp(-2.0)]])
    constant = ActionLikeness.of(spaces.Box(-9, 9, (1,)), np.ones((3, 1)))
    np.testing.assert_allclose(constant(np.array([[1.0], [1.1]])), [[1.0] * 3, [0.0] * 3])
    discrete = ActionLikeness.of(spaces.Discrete(3), np.array([0, 2]))
    np.testing.assert_array_equal(discrete(np.array([2, 1])), [[0, 1], [0, 0]])
    several = ActionLikeness.of(spaces.MultiDiscrete([3, 3]), np.array([[0, 2], [1, 1]]))
    np.testing.assert_array_equal(several(np.array([[0, 1]])), [[0.5, 0.5]])


def test_attention_is_that_of_the_pairs_in_the_mean():
    log = cartpole()
    fitted = evaluator("generalist").fit(log, 0.95, policy=Leaning())
    queries = log.observations[:5]
    compiled = fitted.compiled_
    assert isinstance(compiled, TargetValues)
    features_QD = fitted.prompt_.queries(queries)
    one_action = [
        compiled.with_actions(WeightedActions(np.full((5, 1), a), np.ones((5, 1)))).attention(features_QD)
        for a in (0, 1)
    ]
    weights = Leaning().action_probabilities(queries).T[:, :, None]
    np.testing.assert_allclose(fitted.attention(queries), (weights * one_action).sum(axis=0), atol=1e-12)
    with pytest.raises(ValueError, match="actions are needed"):
        replace(compiled, ask=None).read(features_QD)


def test_by_default_values_are_counted_where_states_recur():
    target = np.random.default_rng(1).dirichlet(0.5 * np.ones(4), size=16)
    truth = icrl.exact_values("FrozenLake-v1", target, gamma=0.9)
    log = lake_log()
    fitted = icrl.InContextEvaluator.from_pretrained().fit(log, 0.9, policy=target)
    assert isinstance(fitted.compiled_, TabledValues)
    assert isinstance(fitted.compiled_.leaf, TargetValues)
    found = fitted.predict(truth.observations)
    assert icrl.score(found, truth).rmse_over_std < 0.1
    np.testing.assert_allclose(found.attribution() @ log.rewards, found.values, atol=1e-8)
    np.testing.assert_array_equal(found.by_layer[-1], found.values)


def test_by_default_values_are_followed_in_the_world_where_states_are_new():
    log, policy = cartpole(), Leaning(-3.0)
    truth = icrl.monte_carlo_values("CartPole-v1", policy, num_queries=16, num_rollouts=32, gamma=0.95, seed=1)
    fitted = icrl.InContextEvaluator.from_pretrained().fit(log, 0.95, policy=policy)
    assert isinstance(fitted.compiled_, ImaginedValues)
    assert isinstance(fitted.compiled_.leaf, TargetValues)
    found = fitted.predict(truth.observations)
    alone = evaluator("generalist").fit(log, 0.95, policy=policy).predict(truth.observations)
    assert found.estimand == alone.estimand == truth.estimand
    assert icrl.score(found, truth).rmse_over_std < 0.15
    assert icrl.score(alone, truth).rmse_over_std > 0.25
    np.testing.assert_allclose(found.attribution() @ log.rewards, found.values, atol=1e-8)
    np.testing.assert_array_equal(found.by_layer[-1], found.values)


def test_by_default_few_actions_like_the_policys_are_warned_of_too():
    log = cartpole()
    fitted = icrl.InContextEvaluator.from_pretrained().fit(log, 0.95, policy=Leaning())
    assert isinstance(fitted.compiled_, ImaginedValues)
    warnings = fitted.predict(log.observations[:3] + np.float32(50.0)).diagnostics.warnings
    assert any(w.startswith("3 of 3 queries lie where the log holds few actions like") for w in warnings)


def test_an_update_reaches_the_pairs_and_another_policy_can_be_asked_for():
    first, second = cartpole(150), cartpole(150, seed=5)
    queries = first.observations[:10]
    fitted = evaluator("constructed").fit(first, 0.95, policy=Leaning()).update(second, refit=True)
    fresh = evaluator("constructed").fit(first.append(second), 0.95, policy=Leaning())
    np.testing.assert_allclose(fitted.predict(queries).values, fresh.predict(queries).values, atol=1e-9)
    before = fitted.predict(queries).values
    after = fitted.update(second, policy=Leaning(-3.0)).predict(queries)
    assert np.abs(after.values - before).max() > 1e-2
