"""Values by counting: exact where theory says so, and the leaf's own where nothing is known."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

import icrl_gym as icrl
from icrl_gym.acting.policies import AskedPolicy, as_policy
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.compiled import CompiledMixture
from icrl_gym.evaluator.world import tables
from icrl_gym.evaluator.world.blend import Blend
from icrl_gym.evaluator.world.tabled import TabledValues
from icrl_gym.evaluator.world.tables import TableWorld, agreements, noise_ratio
from icrl_gym.rivals.tabular import CertaintyEquivalence

GAMMA = 0.9
STATES, ACTIONS = 4, 3


def asked_table(probability_SA, num_states=None):
    table = np.asarray(probability_SA, dtype=float)
    observations = spaces.Discrete(len(table) if num_states is None else num_states)
    space = spaces.Discrete(table.shape[1])
    return AskedPolicy(as_policy(table, space, observations, seed=0), space)


def process(seed=0):
    """Transition probabilities (S, A, S + 1), the last outcome ending the episode, and mean rewards (S, A)."""
    generator = np.random.default_rng(seed)
    return generator.dirichlet(0.5 * np.ones(STATES + 1), (STATES, ACTIONS)), generator.normal(size=(STATES, ACTIONS))


def random_policy(seed=0):
    return np.random.default_rng([seed, 1]).dirichlet(np.ones(ACTIONS), STATES)


def exact(transitions_SAS, rewards_SA, policy_SA, gamma=GAMMA):
    moves_SS = np.einsum("sa,sat->st", policy_SA, transitions_SAS[..., :STATES])
    return np.linalg.solve(np.eye(STATES) - gamma * moves_SS, (policy_SA * rewards_SA).sum(axis=1))


def sampled_log(transitions_SAS, rewards_SA, policy_SA, length, seed=0, noise=0.0):
    """A log of the policy; ended episodes restart anywhere."""
    generator = np.random.default_rng([seed, 2])
    actions_SA, outcomes_SAS = np.cumsum(policy_SA, axis=1), np.cumsum(transitions_SAS, axis=2)
    state, rows = 0, []
    for first, second in generator.random((length, 2)):
        action = min(int(np.searchsorted(actions_SA[state], first)), policy_SA.shape[1] - 1)
        outcome = min(int(np.searchsorted(outcomes_SAS[state, action], second)), STATES)
        reward = rewards_SA[state, action] + noise * generator.normal()
        ended = outcome == STATES
        rows.append((state, action, reward, state if ended else outcome, ended))
        state = int(generator.integers(STATES)) if ended else outcome
    return log_of(rows)


def log_of(rows, truncated=None, space=None):
    states, actions, rewards, successors, terminated = (np.array(column) for column in zip(*rows, strict=True))
    truncated = np.zeros(len(rows), dtype=bool) if truncated is None else np.array(truncated)
    space = spaces.Discrete(STATES) if space is None else space
    return icrl.Trajectory(
        states, actions, rewards.astype(float), successors, terminated.astype(bool), truncated, observation_space=space
    )


def world_of(log, asked, gamma=GAMMA, acted=True):
    world = TableWorld.fit(log, Prompt.from_trajectory(log, gamma), asked, acted=acted)
    assert world is not None
    return world


def constant_leaf(value=0.0, stderr=0.0):
    def leaf(observations):
        size = len(np.asarray(observations))
        return np.full(size, value), np.full(size, stderr)

    return leaf


def read(world, observations, leaf):
    """Values and standard errors of observations: the table's, and the leaf's where that has no such state."""
    solved, rows = world.solve(leaf(world.states)[0][None], leaf(world.states)[1]), world.keys.find(observations)
    values, stderr = leaf(observations)
    values = np.where(rows >= 0, solved.by_layer_LS[0][rows], values)
    return values, None if stderr is None else np.where(rows >= 0, solved.stderr_S[rows], stderr)


EVERYWHERE = np.arange(STATES)


def test_a_deterministic_chain_is_solved_from_another_policys_log():
    # Action 0 stays (reward -1), action 1 goes on (reward 1); the last state ends.
    rows = []
    for state in (0, 1, 2, 3):
        rows += [(state, 0, -1.0, state, False)] * 20 + [(state, 1, 1.0, min(state + 1, 3), state == 3)] * 20
    policy_SA = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.3, 0.7]])
    expected = np.zeros(5)
    for state in (3, 2, 1, 0):
        stay, go = policy_SA[state]
        expected[state] = (go - stay + go * GAMMA * expected[state + 1]) / (1.0 - stay * GAMMA)
    world = world_of(log_of(rows), asked_table(policy_SA))
    values, stderr = read(world, EVERYWHERE, constant_leaf(50.0))
    np.testing.assert_allclose(values, expected[:4], atol=2e-3)
    assert stderr is not None
    assert (stderr[:3] < 0.2).all()


def test_it_is_certainty_equivalence_where_the_probabilities_are_the_empirical_ones(monkeypatch):
    monkeypatch.setattr(tables, "noise_ratio", lambda *_: 0.0)
    log = sampled_log(*process(), np.full((STATES, ACTIONS), 1.0 / ACTIONS), 400)
    counts_SA = np.zeros((STATES, ACTIONS))
    np.add.at(counts_SA, (log.observations, log.actions), 1.0)
    assert (counts_SA > 0).all()
    world = world_of(log, asked_table(counts_SA / counts_SA.sum(axis=1, keepdims=True)))
    expected = CertaintyEquivalence().fit(log, GAMMA).predict(EVERYWHERE).values
    np.testing.assert_allclose(world.values(np.full(STATES, 9.0)), expected, rtol=1e-10)


def test_it_is_certainty_equivalence_where_actions_do_not_matter(monkeypatch):
    monkeypatch.setattr(tables, "noise_ratio", lambda *_: 1e9)
    monkeypatch.setattr(tables, "LEAF_WEIGHT", 0.0)
    log = sampled_log(*process(), random_policy(), 400)
    world = world_of(log, asked_table(np.full((STATES, ACTIONS), 1.0 / ACTIONS)))
    expected = CertaintyEquivalence().fit(log, GAMMA).predict(EVERYWHERE).values
    np.testing.assert_allclose(world.values(np.zeros(STATES)), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_enough_of_any_behaviour_gives_the_policys_values(seed):
    transitions_SAS, rewards_SA = process(seed)
    policy_SA, uniform_SA = random_policy(seed), np.full((STATES, ACTIONS), 1.0 / ACTIONS)
    log = sampled_log(transitions_SAS, rewards_SA, uniform_SA, 20_000, seed)
    truth, of_behaviour = (exact(transitions_SAS, rewards_SA, each) for each in (policy_SA, uniform_SA))
    values = read(world_of(log, asked_table(policy_SA)), EVERYWHERE, constant_leaf())[0]
    assert np.abs(values - truth).max() < 0.1
    assert np.abs(of_behaviour - truth).max() > 0.2  # the log's own values are others


def test_values_are_the_attribution_times_the_rewards():
    log = sampled_log(*process(), random_policy(), 60, noise=1.0)
    world = world_of(log, asked_table(random_policy(1)))
    leaf_SN = 0.02 * np.random.default_rng(5).normal(size=(len(world.states), 60))
    queries = np.array([3, 0, 0, 2])
    solved = world.solve((leaf_SN @ log.rewards)[None], None, lambda rewards: leaf_SN @ rewards)
    assert 0.0 < solved.blend.leaf < 1.0
    matrix_FN = world.attribution(queries, leaf_SN, solved.blend)
    np.testing.assert_allclose(matrix_FN @ log.rewards, solved.by_layer_LS[0][queries], rtol=1e-10)


def test_values_and_errors_scale_with_the_rewards():
    log = sampled_log(*process(), random_policy(), 100, noise=1.0)
    larger = icrl.Trajectory(
        log.observations, log.actions, -100.0 * log.rewards, log.next_observations, log.terminated, log.truncated,
        observation_space=log.observation_space,
    )  # fmt: skip
    asked = asked_table(random_policy(1))
    values, stderr = read(world_of(log, asked), EVERYWHERE, constant_leaf(2.0, 0.5))
    scaled, scaled_stderr = read(world_of(larger, asked), EVERYWHERE, constant_leaf(-200.0, 50.0))
    np.testing.assert_allclose(scaled, -100.0 * values, rtol=1e-9)
    assert stderr is not None
    assert scaled_stderr is not None
    np.testing.assert_allclose(scaled_stderr, 100.0 * stderr, rtol=1e-9)


def test_queries_do_not_depend_on_each_other():
    world = world_of(sampled_log(*process(), random_policy(), 100), asked_table(random_policy()))
    together, stderr = read(world, np.array([2, 0, 3, 2]), constant_leaf(1.0, 1.0))
    for place, query in enumerate([2, 0, 3, 2]):
        alone, stderr_alone = read(world, np.array([query]), constant_leaf(1.0, 1.0))
        assert alone[0] == together[place]
        assert stderr is not None
        assert stderr_alone is not None
        assert stderr_alone[0] == stderr[place]
    assert read(world, np.array([], dtype=int), constant_leaf())[0].shape == (0,)


def test_states_that_were_never_left_are_the_leafs():
    # State 1 is only entered, by truncation; 2 and 3 are never seen.
    rows = [(0, 0, 0.0, 1, False)] * 10
    log = log_of(rows, truncated=[True] * 10)
    world = world_of(log, asked_table(np.full((STATES, 1), 1.0)))

    def leaf(observations):
        return 10.0 * np.asarray(observations), 1.0 + np.asarray(observations)

    values, stderr = read(world, EVERYWHERE, leaf)
    np.testing.assert_allclose(values[1:], [10.0, 20.0, 30.0])
    assert stderr is not None
    np.testing.assert_allclose(stderr[1:], [2.0, 3.0, 4.0])
    leaf_SN = np.random.default_rng(0).normal(size=(2, 10))
    np.testing.assert_allclose(world.attribution(np.array([1]), leaf_SN, Blend(np.array([1.0, 0.0])))[0], leaf_SN[1])


def test_actions_never_seen_fall_to_the_leaf_the_more_the_fewer_others_were_seen():
    policy_SA = np.full((STATES, 2), [0.25, 0.75])
    few, many = (log_of([(0, 0, 1.0, 0, True)] * count + [(1, 0, 1.0, 1, True)] * 40) for count in (2, 40))
    leaning = [world_of(log, asked_table(policy_SA)).leaf_weights[0] for log in (few, many)]
    assert 0.75 * 0.1 < leaning[1] < leaning[0] < 0.75


def test_truncated_ends_bootstrap_and_terminations_do_not(monkeypatch):
    monkeypatch.setattr(tables, "noise_ratio", lambda *_: 0.0)
    # State 0 pays 1 and goes to state 1; state 1 pays 2 and ends. One step is cut by a time limit in between.
    rows = [(0, 0, 1.0, 1, False), (1, 0, 2.0, 0, True)] * 4 + [(0, 0, 1.0, 1, False)]
    asked = asked_table(np.ones((STATES, 1)))
    cut = world_of(log_of(rows, truncated=[False] * 8 + [True]), asked)
    np.testing.assert_allclose(read(cut, np.array([0, 1]), constant_leaf(99.0))[0], [1.0 + GAMMA * 2.0, 2.0])
    ended = world_of(log_of([*rows[:-1], (0, 0, 1.0, 1, True)]), asked)
    counted = ended.values(np.full(2, 99.0))
    np.testing.assert_allclose(counted, [1.0 + 0.8 * GAMMA * 2.0, 2.0])


def test_importance_ratios_change_nothing():
    log = sampled_log(*process(), random_policy(), 100)
    weighted = log.with_importance_ratios(np.linspace(0.0, 2.0, 100), "another")
    asked = asked_table(random_policy(1))
    first, second = (read(world_of(each, asked), EVERYWHERE, constant_leaf())[0] for each in (log, weighted))
    np.testing.assert_array_equal(first, second)


def test_shares_sum_to_one_in_every_state():
    world = world_of(sampled_log(*process(), random_policy(), 50), asked_table(random_policy(2)))
    sums_S = np.bincount(world.pair_states, world.weights, minlength=len(world.leaf_weights)) + world.leaf_weights
    np.testing.assert_allclose(sums_S, 1.0)
    assert (world.weights >= 0).all()


def test_the_noise_ratio_is_that_of_the_outcomes():
    generator = np.random.default_rng(0)
    sources, actions = np.zeros(4000, dtype=int), generator.integers(2, size=4000)
    slips = generator.random(4000) < 0.25
    outcomes = np.where(slips, 2, actions)  # same action: 10/16; other action: 1/16
    same, other = agreements(sources, actions, outcomes)
    assert same == pytest.approx(10 / 16, abs=0.02)
    assert other == pytest.approx(1 / 16, abs=0.01)
    assert noise_ratio(same, other) == pytest.approx(6 / 9, abs=0.06)
    assert noise_ratio(*agreements(sources, actions, actions)) < 1e-3
    assert noise_ratio(*agreements(sources, actions, generator.integers(3, size=4000))) > 10.0


def test_an_ending_is_another_outcome_than_the_state_it_ends_in():
    log = log_of([(0, 0, 1.0, 0, False), (0, 0, 1.0, 0, True)] * 20)
    assert world_of(log, asked_table(np.ones((STATES, 1)))).noise_share == pytest.approx(0.5, abs=0.05)


def test_nine_tenths_of_the_errors_are_within_the_interval():
    # 60 logs: their values are off together, so the bounds are wide; a third of the interval must fail them.
    transitions_SAS, rewards_SA = process(3)
    policy_SA = random_policy(3)
    truth = exact(transitions_SAS, rewards_SA, policy_SA)
    inside, inside_third = [], []
    for seed in range(60):
        log = sampled_log(transitions_SAS, rewards_SA, policy_SA, 150, seed, noise=0.5)
        values, stderr = read(world_of(log, asked_table(policy_SA)), EVERYWHERE, lambda o: (truth[o], 0.0 * truth[o]))
        assert stderr is not None
        inside.append((np.abs(values - truth) < 1.645 * stderr).mean())
        inside_third.append((np.abs(values - truth) < 1.645 * stderr / 3).mean())
    assert 0.8 < np.mean(inside) < 0.995
    assert np.mean(inside_third) < 0.7


def test_rewards_by_chance_at_the_ends_of_episodes_are_noise():
    """One action ends the episode with a reward by chance, which successors do not show; three visits of a state."""
    num_states, length, inside = 40, 120, []
    everywhere = np.arange(num_states)
    chance_S = np.random.default_rng(0).uniform(0.3, 0.7, num_states)
    onwards_SS = np.full((num_states, num_states), 0.5 * GAMMA / num_states)
    truth = np.linalg.solve(np.eye(num_states) - onwards_SS, 0.5 * (2 * chance_S - 1))
    for seed in range(40):
        generator = np.random.default_rng([seed, 5])
        states, following = generator.integers(num_states, size=(2, length))
        rewards = np.where(generator.random(length) < chance_S[states], 1.0, -1.0)
        ended = generator.integers(2, size=length) == 0
        columns = states, 1 - ended, ended * rewards, np.where(ended, states, following), ended
        log = log_of(list(zip(*columns, strict=True)), truncated=~ended, space=spaces.Discrete(num_states))
        world = world_of(log, asked_table(np.full((num_states, 2), 0.5)))
        values, stderr = read(world, everywhere, lambda o: (np.zeros(len(o)), np.zeros(len(o))))
        assert stderr is not None
        inside.append((np.abs(values - truth) < 1.645 * stderr).mean())
    assert 0.82 < np.mean(inside) < 0.98


def bets(wins_S, visits, seed):
    """Episodes of one step: a state, and 1 by its chance or -1."""
    generator = np.random.default_rng(seed)
    states = np.repeat(np.arange(len(wins_S)), visits)
    rewards = np.where(generator.random(len(states)) < wins_S[states], 1.0, -1.0)
    rows = list(zip(states, np.zeros(len(states), int), rewards, states, np.ones(len(states), bool), strict=True))
    return log_of(rows, space=spaces.Discrete(len(wins_S)))


def share_of_counts(world):
    return world.solve(np.zeros((1, len(world.states))), None).blend.counts


@pytest.mark.parametrize(("spread", "largest_ratio"), [(0.0, 0.5), (0.15, 0.8), (0.5, 1.02)])
def test_values_are_drawn_together_by_the_share_of_noise_in_their_spread(spread, largest_ratio):
    ratios, signals = [], []
    for seed in range(10):
        wins_S = np.clip(0.5 + spread * np.random.default_rng([seed, 3]).normal(size=60), 0.0, 1.0)
        world = world_of(bets(wins_S, 5, seed), asked_table(np.ones((60, 1))))
        counted = world.values(np.zeros(60))
        values, truth = read(world, np.arange(60), constant_leaf())[0], 2 * wins_S - 1
        ratios.append(np.square(values - truth).mean() / np.square(counted - truth).mean())
        signals.append(share_of_counts(world))
    assert np.mean(ratios) < largest_ratio
    # What the share should be: variance of the truth over that of what was counted.
    assert np.mean(signals) == pytest.approx(truth.var() / (truth.var() + np.mean(1 - truth**2) / 5), abs=0.15)


def test_values_of_a_policy_that_did_not_act_are_not_drawn_together():
    log = bets(np.full(60, 0.5), 5, 0)
    own, others = (world_of(log, asked_table(np.ones((60, 1))), acted=acted) for acted in (True, False))
    counted = own.values(np.zeros(60))
    assert share_of_counts(own) < 0.5
    np.testing.assert_allclose(read(others, np.arange(60), constant_leaf())[0], counted, rtol=1e-12)


def test_in_a_world_without_chance_nothing_is_drawn_together():
    rows = [(s, 0, float(s), min(s + 1, STATES - 1), s == STATES - 1) for s in range(STATES)] * 5
    world = world_of(log_of(rows), asked_table(np.ones((STATES, 1))))
    counted = world.values(np.zeros(STATES))
    assert share_of_counts(world) == 1.0
    np.testing.assert_allclose(read(world, EVERYWHERE, constant_leaf())[0], counted, rtol=1e-14)


def test_there_is_no_table_where_states_do_not_recur_or_are_too_many(monkeypatch):
    log = sampled_log(*process(), random_policy(), 100)
    prompt, asked = Prompt.from_trajectory(log, GAMMA), asked_table(random_policy())
    stretch = log[:6]
    assert len(np.unique(stretch.observations)) >= 3
    assert TableWorld.fit(stretch, Prompt.from_trajectory(stretch, GAMMA), asked, acted=True) is None
    assert TableWorld.fit(log, prompt, asked, acted=True) is not None
    monkeypatch.setattr(tables, "MOST_STATES", STATES - 1)
    assert TableWorld.fit(log, prompt, asked, acted=True) is None


def box_log(actions):
    """Two states that follow each other, shown as a dict of a float and a byte."""
    state = np.arange(len(actions)) % 2
    shown = {"x": state[:, None].astype(np.float32), "b": np.stack([state, state], axis=1).astype(np.uint8)}
    after = {"x": 1.0 - shown["x"], "b": 1 - shown["b"]}
    space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,)), "b": spaces.Box(0, 255, (2,), np.uint8)})
    ends = np.zeros(len(actions), dtype=bool)
    return icrl.Trajectory(shown, actions, 1.0 * state, after, ends, ends, observation_space=space)


BOX, BOX_1 = (spaces.Box(-1.0, 1.0, (size,), np.float32) for size in (2, 1))


def test_a_deterministic_policy_with_real_actions_is_counted():
    asked = AskedPolicy(as_policy(lambda o: np.repeat(o["x"] / 3.0, 2, axis=1), BOX), BOX)
    own = np.repeat((np.arange(40) % 2)[:, None] / 3.0, 2, axis=1).astype(np.float32)
    log = box_log(own)
    values, _ = read(world_of(log, asked), log.observations, lambda o: (np.zeros(len(o["x"])), None))
    odd = 1.0 / (1.0 - GAMMA**2)
    np.testing.assert_allclose(values[:2], [GAMMA * odd, odd], rtol=0.02)
    others = box_log(own + 0.5)
    assert world_of(others, asked).chances.max() == 0.0


def test_of_a_random_policy_with_real_actions_states_are_counted_if_it_acted():
    log = box_log(np.zeros((40, 2), dtype=np.float32))
    asked, prompt = AskedPolicy(as_policy("random", BOX), BOX), Prompt.from_trajectory(log, GAMMA)
    assert TableWorld.fit(log, prompt, asked, acted=False) is None
    own, unknown = world_of(log, asked), world_of(log, None)
    assert own.chances.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(own.values(np.zeros(2)), unknown.values(np.zeros(2)))


def test_without_its_policy_a_log_is_certainty_equivalence(monkeypatch):
    monkeypatch.setattr(tables, "noise_ratio", lambda *_: 0.0)
    log = sampled_log(*process(), random_policy(), 400, noise=0.3)
    expected = CertaintyEquivalence().fit(log, GAMMA).predict(EVERYWHERE).values
    np.testing.assert_allclose(world_of(log, None).values(np.zeros(STATES)), expected, rtol=1e-8)


def test_the_generalist_counts_without_the_policy_but_not_a_weighted_log():
    log = sampled_log(*process(), random_policy(), 400, noise=0.3)
    ratios = np.random.default_rng(0).uniform(0.5, 1.5, len(log))
    for one, kind in ((log, TabledValues), (replace(log, importance_ratios=ratios), CompiledMixture)):
        fitted = icrl.InContextEvaluator.from_pretrained("generalist").fit(one, GAMMA)
        assert type(fitted.compiled_) is kind
        estimate = fitted.predict(EVERYWHERE)
        np.testing.assert_allclose(estimate.attribution() @ log.rewards, estimate.values, rtol=1e-8)


@pytest.mark.parametrize("space", [spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2])])
def test_policies_that_only_act_are_sampled(space):
    actions = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])[np.arange(40) // 2 % 4]
    world = world_of(box_log(actions), AskedPolicy(as_policy("random", space), space))
    assert len(world.pair_states) == 8
    np.testing.assert_allclose(world.chances, 0.25, atol=0.13)
    np.testing.assert_allclose(np.bincount(world.pair_states, world.chances), 1.0)


def test_states_are_found_whatever_type_a_query_has():
    world = world_of(
        box_log(np.zeros((40, 1), dtype=np.float32)), AskedPolicy(as_policy(lambda o: o["x"] * 0, BOX_1), BOX_1)
    )
    queries = {
        "x": np.array([[-0.0], [1.0], [0.0], [0.0], [0.5]]),
        "b": np.array([0, 1, 256, 1, 0])[:, None].repeat(2, 1),
    }
    rows = world.keys.find(queries)
    assert rows[0] >= 0
    assert rows[1] >= 0
    assert rows[0] != rows[1]
    assert (rows[2:] == -1).all()
