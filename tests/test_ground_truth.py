"""Truth: Monte Carlo returns and exact solves."""

import threading
from collections import Counter

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit, TransformReward

import icrl_envs  # noqa: F401  (registers its environments)
from icrl_gym.acting.policies import as_policy
from icrl_gym.acting.policies.acting import ActingPolicy
from icrl_gym.ground_truth.rollouts import continue_in_lockstep, draw_queries, realised_outcomes
from icrl_gym.ground_truth.simulators import choose_strategy, environment_factory
from icrl_gym.ground_truth.transitions import TransitionTable
from icrl_gym.ground_truth.values import exact_values, monte_carlo_values, rollout_horizon
from icrl_gym.observations import take

CHAIN = "icrl/BoyanChain-v0"


def value_iteration(table, probabilities, gamma):
    """By sweeps over the nested dictionaries, without any matrix."""
    values = np.zeros(len(table))
    for _ in range(3000):
        new = np.zeros(len(table))
        for state, of_state in table.items():
            for action, outcomes in of_state.items():
                for probability, successor, reward, terminated in outcomes:
                    target = reward + (0.0 if terminated else gamma * values[successor])
                    new[state] += probabilities[state, action] * probability * target
        if np.abs(new - values).max() < 1e-12:
            break
        values = new
    return values


@pytest.mark.parametrize(("env_id", "num_listed"), [("FrozenLake-v1", 11), ("CliffWalking-v1", 47), ("Taxi-v4", 496)])
def test_exact_values_agree_with_value_iteration(env_id, num_listed):
    env = gymnasium.make(env_id)
    shape = int(env.observation_space.n), int(env.action_space.n)
    table = np.random.default_rng(0).dirichlet(np.ones(shape[1]), size=shape[0])
    gamma = 0.8
    exact = exact_values(env, table, gamma)
    expected = value_iteration(env.unwrapped.P, table, gamma)
    assert len(exact) == num_listed
    assert (np.diff(exact.observations) > 0).all()
    np.testing.assert_allclose(exact.values, expected[exact.observations], atol=1e-9)
    np.testing.assert_array_equal(exact.stderr, 0.0)


def test_terminal_states_are_those_that_can_only_be_entered_by_terminating():
    def terminal(env_id):
        return np.flatnonzero(TransitionTable.from_environment(gymnasium.make(env_id)).terminal_states()).tolist()

    assert terminal("FrozenLake-v1") == [5, 7, 11, 12, 15]
    assert terminal("CliffWalking-v1") == [47]
    assert terminal("Taxi-v4") == [0, 85, 410, 475]


class FromTable(gymnasium.Env):
    """Plays a transition table; state 0 first."""

    def __init__(self, table, num_actions=1):
        self.P = table
        self.observation_space, self.action_space = spaces.Discrete(len(table)), spaces.Discrete(num_actions)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        outcomes = self.P[self.state][int(action)]
        pick = self.np_random.choice(len(outcomes), p=[outcome[0] for outcome in outcomes])
        _, self.state, reward, terminated = outcomes[pick]
        return self.state, reward, terminated, False, {}


def test_a_state_entered_both_ways_is_not_terminal():
    table = {
        0: {0: [(0.5, 1, 1.0, False), (0.5, 2, 0.0, True)]},
        1: {0: [(0.5, 2, 0.0, False), (0.5, 3, 5.0, True)]},
        2: {0: [(1.0, 0, 2.0, False)]},
        3: {0: [(1.0, 3, 0.0, True)]},
    }
    exact = exact_values(FromTable(table), "random", 0.9)
    assert exact.observations.tolist() == [0, 1, 2]
    v0, v1, v2 = exact.values
    np.testing.assert_allclose([v0, v1, v2], [0.5 * (1 + 0.9 * v1), 0.5 * 0.9 * v2 + 2.5, 2 + 0.9 * v0])


@pytest.mark.parametrize("observation", ["id", "features"])
def test_exact_values_of_a_chain_solve_its_own_equations(observation):
    env = gymnasium.make(CHAIN, observation=observation, termination_probability=0.05, mrp_seed=3)
    base = env.unwrapped
    exact = exact_values(env, "random", 0.9)
    expected = np.linalg.solve(np.eye(base.num_states) - 0.9 * base.transition_matrix, base.expected_rewards)
    np.testing.assert_allclose(exact.values, expected, atol=1e-12)
    shown = base.features[:-1] if observation == "features" else np.arange(base.num_states)
    np.testing.assert_array_equal(exact.observations, shown)


def test_observation_wrappers_are_applied_to_the_states():
    exact = exact_values(FlattenObservation(gymnasium.make("FrozenLake-v1")), "random", 0.9)
    np.testing.assert_array_equal(exact.observations, np.eye(16)[[0, 1, 2, 3, 4, 6, 8, 9, 10, 13, 14]])


def test_a_model_and_the_table_of_its_probabilities_have_the_same_values():
    from stable_baselines3 import PPO

    env = gymnasium.make("FrozenLake-v1")
    model = PPO("MlpPolicy", "FrozenLake-v1", seed=1, device="cpu")
    model.policy.action_net.weight.data.normal_()
    table = as_policy(model, env.action_space, env.observation_space).action_probabilities(np.arange(16))
    assert table.std() > 0.05
    by_model, by_table = exact_values(env, model, 0.95), exact_values(env, table, 0.95)
    np.testing.assert_allclose(by_model.values, by_table.values, rtol=1e-6)
    greedy = exact_values(env, np.eye(4)[table.argmax(axis=1)], 0.95)
    assert np.abs(greedy.values - by_table.values).max() > 1e-3
    np.testing.assert_allclose(exact_values(env, model, 0.95, deterministic=True).values, greedy.values, rtol=1e-9)


def disagreement(truth, exact):
    """The mean difference and the largest, in standard errors."""
    expected = dict(zip(exact.observations.tolist(), exact.values, strict=True))
    difference = truth.values - np.array([expected[state] for state in truth.observations.tolist()])
    stderr = np.maximum(truth.stderr, 1e-3)
    return abs(difference.mean()) / np.sqrt((stderr**2).mean() / len(stderr)), np.abs(difference / stderr).max()


FROZEN_LAKE_TABLE = np.tile([0.1, 0.5, 0.3, 0.1], (16, 1))


@pytest.mark.parametrize(
    ("env_id", "policy"), [(CHAIN, "random"), ("FrozenLake-v1", "random"), ("FrozenLake-v1", FROZEN_LAKE_TABLE)]
)
def test_monte_carlo_agrees_with_exact_values_and_not_with_those_of_another_gamma(env_id, policy):
    # Normal limits of 4 and 5 standard errors: false-alarm rate below 1e-4 for a seed (fixed here).
    options = {"num_queries": 24, "num_rollouts": 150, "gamma": 0.8, "tolerance": 1e-4}
    truth = monte_carlo_values(env_id, policy, seed=0, **options)
    mean, largest = disagreement(truth, exact_values(env_id, policy, 0.8))
    assert mean < 4.0
    assert largest < 5.0
    mean, largest = disagreement(truth, exact_values(env_id, policy, 0.9))
    assert mean > 4.0
    assert largest > 5.0


def test_standard_errors_have_the_size_of_the_errors():
    exact = exact_values(CHAIN, "random", 0.8)
    truth = monte_carlo_values(CHAIN, "random", num_queries=100, num_rollouts=32, gamma=0.8, seed=1, tolerance=1e-4)
    z = (truth.values - exact.values[truth.observations]) / truth.stderr
    assert 0.8 < np.sqrt((z**2).mean()) < 1.25  # chi-square with 100 degrees of freedom: false alarm below 0.5 %


def push_away(observations):
    """Moves CartPole's pole further over: no randomness, and it depends on the state."""
    return (observations[:, 2] > 0).astype(int)


def walk_the_lake(observations):
    """The best policy for FrozenLake: the environment's own slipping is all the noise."""
    return np.array([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])[observations]


def queries_of(env_id, policy, number, seed=0):
    factory = environment_factory(env_id)
    strategy = choose_strategy(factory)
    env = factory()
    actor = as_policy(policy, env.action_space, env.observation_space, seed=seed)
    return draw_queries(factory, strategy, actor, number, np.random.SeedSequence(seed)), actor


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1"])
def test_lockstep_equals_one_at_a_time(env_id):
    policy = push_away if env_id == "CartPole-v1" else walk_the_lake
    queries, actor = queries_of(env_id, policy, 12)
    seeds = np.random.SeedSequence(4).spawn(12)

    def envs():
        return [saved.branch(seed) for saved, seed in zip(queries.saved_states, seeds, strict=True)]

    together = continue_in_lockstep(envs(), queries.observations, actor, None, 0.99, 300)
    singly = [
        continue_in_lockstep([env], take(queries.observations, slice(k, k + 1)), actor, None, 0.99, 300)
        for k, env in enumerate(envs())
    ]
    assert len(set(together.returns)) > 1
    np.testing.assert_array_equal(together.returns, [one.returns[0] for one in singly])
    assert together.num_steps == sum(one.num_steps for one in singly)
    assert together.num_steps < 300 * 12


@pytest.mark.parametrize(
    ("env_id", "policy", "strategy"),
    [
        ("InvertedPendulum-v5", lambda seen: 2 * seen[:, 1:2].astype(np.float32), "mujoco"),
        ("LunarLander-v3", lambda seen: np.zeros(len(seen), int), "replay"),  # engines off: no noise
        ("CartPole-v1", push_away, "deepcopy"),
    ],
)
def test_copies_of_a_noiseless_simulator_return_what_the_episode_itself_returned(env_id, policy, strategy):
    truth = monte_carlo_values(env_id, policy, num_queries=5, num_rollouts=2, gamma=0.97, seed=2)
    assert strategy in truth.notes[0]
    np.testing.assert_allclose(truth.stderr, 0.0, atol=1e-12)
    queries, _ = queries_of(env_id, policy, 5, seed=2)
    copies = [saved.restore() for saved in queries.saved_states]
    ahead = continue_in_lockstep(copies, queries.observations, queries.runs.policy, None, 0.97, 227)
    realised = realised_outcomes(queries, 0.97, 227)
    terminated = ahead.tail_weights == 0
    assert terminated.any()
    assert np.ptp(ahead.returns) > 0
    np.testing.assert_allclose(ahead.returns[terminated], realised.returns[terminated], rtol=1e-12)


def test_the_same_seed_gives_the_same_bytes_however_the_copies_are_chunked():
    def truth(seed, max_copies):
        options = {"num_queries": 6, "num_rollouts": 5, "gamma": 0.9}
        return monte_carlo_values("FrozenLake-v1", walk_the_lake, seed=seed, max_copies=max_copies, **options)

    first, chunked, other = truth(0, 1024), truth(0, 7), truth(1, 1024)
    assert first.values.tobytes() == chunked.values.tobytes()
    assert first.stderr.tobytes() == chunked.stderr.tobytes()
    assert first.values.tobytes() != other.values.tobytes()


class Clock(gymnasium.Env):
    """Shows the time; pays 1 a step; an episode lasts ``lengths[k]`` steps, k drawn at the reset (0 = for ever).

    With a lock it can neither be copied nor be repeated: the seed is ignored and each episode shows another fraction.
    """

    observation_space, action_space = spaces.Box(0, np.inf, (1,)), spaces.Discrete(2)

    def __init__(self, lengths=(0,), holds_a_lock=False):
        self.lengths, self.holds_a_lock = lengths, holds_a_lock

    def reset(self, *, seed=None, options=None):
        super().reset(seed=None if self.holds_a_lock else seed)
        self.lock = threading.Lock() if self.holds_a_lock else None
        self.time, self.length = 0, self.lengths[self.np_random.integers(len(self.lengths))]
        self.fraction = self.np_random.uniform(0.1, 0.9) if self.holds_a_lock else 0.0
        return self.observation(), {}

    def observation(self):
        return np.array([self.time + self.fraction], np.float32)

    def reward(self, action):
        return 1.0

    def step(self, action):
        reward = self.reward(action)
        self.time += 1
        return self.observation(), reward, self.time == self.length, False, {}


@pytest.mark.parametrize("time_limit", [None, 5])
def test_copies_alive_at_the_horizon_get_the_tail_and_the_time_limit_ends_nothing(time_limit):
    env = Clock() if time_limit is None else TimeLimit(Clock(), time_limit)
    truth = monte_carlo_values(env, "random", num_queries=4, num_rollouts=3, gamma=0.9, tolerance=0.5)
    np.testing.assert_allclose(truth.values, 10.0, rtol=1e-12)  # without the tail: 5.2
    assert any("12 of 12 copies were alive" in note for note in truth.notes)
    limit = 2000 if time_limit is None else 5
    assert truth.observations.max() < limit
    assert any("were cut at 2000" in note for note in truth.notes) == (time_limit is None)


class OneBuffer(Clock):
    """Writes every observation into the same memory."""

    def observation(self):
        self.buffer = getattr(self, "buffer", np.zeros(1, np.float32))
        self.buffer[:] = self.time
        return self.buffer


@pytest.mark.parametrize("policy", ["random", "counting"])
def test_observations_are_kept_although_the_environment_overwrites_them(policy):
    policy = CountingPolicy() if policy == "counting" else policy
    queries, _ = queries_of(OneBuffer((5, 9)), policy, 20)
    np.testing.assert_array_equal(queries.observations[:, 0], queries.times)
    np.testing.assert_array_equal([saved.observation[0] for saved in queries.saved_states], queries.times)
    for time, history in zip(queries.times, queries.histories, strict=False):
        np.testing.assert_array_equal(history[:, 0], np.arange(time + 1))


class EndsItself(Clock):
    """Truncates after 5 steps by itself, and has nothing to show after that."""

    def step(self, action):
        if self.time >= 5:
            raise IndexError("no data beyond step 5")
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, self.time >= 5, info


@pytest.mark.parametrize("time_limit", [None, 5, 3])
@pytest.mark.parametrize("holds_a_lock", [False, True])
def test_an_environment_that_truncates_by_itself_is_not_stepped_beyond_and_its_border_bootstraps(
    time_limit, holds_a_lock
):
    env = EndsItself(holds_a_lock=holds_a_lock)
    env = env if time_limit is None else TimeLimit(env, time_limit)
    truth = monte_carlo_values(env, "random", num_queries=30, num_rollouts=2, gamma=0.9)
    # A reward of 1 a step for ever; the same process with a time limit in place of its own border has these values too.
    np.testing.assert_allclose(truth.values, 10.0, rtol=1e-12)
    assert truth.observations.max() < (time_limit or 5)
    total = 30 if holds_a_lock else 60
    assert ("cannot be copied" in truth.notes[0]) == holds_a_lock
    assert truth.notes[1:] == (
        f"{total} of {total} copies stopped after t steps where the environment itself truncates; "
        "each got the tail gamma^t mean(V)",
    )


class PaysAtFirst(EndsItself):
    def reward(self, action):
        return float(self.time < 2)


def test_the_value_of_a_border_is_the_mean_over_the_queries():
    truth = monte_carlo_values(PaysAtFirst(), "random", num_queries=40, num_rollouts=2, gamma=0.9)
    times = truth.observations[:, 0].astype(int)
    within = np.array([1.9, 1.0, 0.0, 0.0, 0.0])[times]
    expected = within + 0.9 ** (5 - times) * truth.values.mean()
    np.testing.assert_allclose(truth.values, expected, rtol=1e-12)
    assert set(times) == set(range(5))


def test_a_termination_at_the_border_ends_the_return():
    class Both(EndsItself):
        def step(self, action):
            observation, reward, _, truncated, info = super().step(action)
            return observation, reward, truncated, truncated, info

    truth = monte_carlo_values(Both(), "random", num_queries=20, num_rollouts=2, gamma=0.9)
    left = 5 - truth.observations[:, 0].astype(float)
    np.testing.assert_allclose(truth.values, (1 - 0.9**left) / 0.1, rtol=1e-12)
    assert len(truth.notes) == 1


def test_no_tail_where_every_copy_terminates():
    truth = monte_carlo_values(Clock((6,)), "random", num_queries=8, num_rollouts=2, gamma=0.9)
    np.testing.assert_allclose(
        truth.values, (1 - 0.9 ** (6 - truth.observations[:, 0].astype(float))) / 0.1, rtol=1e-12
    )
    assert len(truth.notes) == 1


def test_queries_are_uniform_over_steps_and_not_over_episodes():
    env = Clock((1, 9))
    truth = monte_carlo_values(env, "random", num_queries=800, num_rollouts=2, gamma=0.5)
    # Each episode starts once and lasts 5 steps on average: 20 % of all steps are first steps (56 % if an episode were
    # drawn first). Episode lengths vary, 800 queries: standard deviation below .02, false alarm below 1e-3.
    times = Counter(truth.observations[:, 0].astype(int).tolist())
    assert abs(times[0] / 800 - 0.2) < 0.07
    assert set(times) == set(range(9))


def test_queries_are_different_moments():
    queries, _ = queries_of("CartPole-v1", "random", 40)
    moments = list(zip(queries.episodes.tolist(), queries.times.tolist(), strict=True))
    assert len(set(moments)) == 40
    assert moments == sorted(moments)
    assert len(set(queries.episodes.tolist())) > 15


class CountingPolicy(ActingPolicy):
    """Acts by the parity of the steps it remembers."""

    identity, recurrent = "counting", True

    def act(self, observations):
        raise AssertionError("a recurrent policy is asked with its state")

    def initial_state(self, batch):
        return (np.zeros((1, batch, 1), int),)

    def act_recurrent(self, observations, state, episode_starts):
        (count,) = state
        count = np.where(episode_starts[None, :, None], 0, count)
        return count[0, :, 0] % 2, (count + 1,)

    def take_state(self, state, index):
        return tuple(part[:, index] for part in state)


class PaysForParity(Clock):
    def reward(self, action):
        return float(action == self.time % 2)


def test_recurrent_policies_carry_their_state_into_the_copies():
    env = TimeLimit(PaysForParity((0, 9)), 30)
    truth = monte_carlo_values(env, CountingPolicy(), num_queries=20, num_rollouts=2, gamma=0.5, tolerance=1e-12)
    times = truth.observations[:, 0].astype(float)
    assert set(times % 2) == {0.0, 1.0}
    # Every action is right: 1 a step, for ever or for the rest of 9 steps. Forgetting would make half of them wrong.
    left = np.stack([np.full(20, np.inf), 9 - times])
    np.testing.assert_allclose(np.abs(truth.values - 2 * (1 - 0.5**left)).min(axis=0), 0.0, atol=1e-9)
    assert truth.values.min() < 1.99 < truth.values.max()
    factory = environment_factory(env)
    queries = draw_queries(factory, "deepcopy", CountingPolicy(), 6, np.random.SeedSequence(0))
    for time, history in zip(queries.times, queries.histories, strict=True):
        np.testing.assert_array_equal(history[:, 0], np.arange(time + 1))


def test_a_simulator_that_cannot_be_copied_falls_back_to_its_own_episodes():
    env = TimeLimit(Clock((10, 8), holds_a_lock=True), 4)
    truth = monte_carlo_values(env, "random", num_queries=30, gamma=0.9, seed=1)
    assert "cannot be copied" in truth.notes[0]
    times = np.floor(truth.observations[:, 0].astype(float))
    assert times.max() < 4
    candidates = np.stack([(1 - 0.9 ** (length - times)) / 0.1 for length in (10, 8)])
    np.testing.assert_allclose(np.abs(truth.values - candidates).min(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose(truth.stderr, truth.values.std(ddof=1))


def test_start_states_are_fresh_resets_and_their_values_agree_with_the_exact_ones():
    # Normal limits of 4 and 5 standard errors: false-alarm rate below 1e-4 for a seed (fixed here).
    options = {"num_queries": 30, "num_rollouts": 100, "gamma": 0.8, "tolerance": 1e-4, "states": "start"}
    truth = monte_carlo_values("CliffWalking-v1", "random", seed=0, **options)
    assert set(truth.observations.tolist()) == {36}
    mean, largest = disagreement(truth, exact_values("CliffWalking-v1", "random", 0.8))
    assert mean < 4.0
    assert largest < 5.0
    many = monte_carlo_values(CHAIN, "random", seed=0, **options)
    env = gymnasium.make(CHAIN)
    starts = {int(env.reset(seed=seed)[0]) for seed in range(50)}
    assert set(many.observations.tolist()) <= starts
    with pytest.raises(ValueError, match="states must be"):
        monte_carlo_values(CHAIN, "random", states="all")


def test_a_simulator_that_cannot_be_copied_gives_the_returns_of_its_episodes_at_their_starts():
    env = TimeLimit(Clock((10, 8), holds_a_lock=True), 4)
    truth = monte_carlo_values(env, "random", num_queries=30, gamma=0.9, seed=1, states="start")
    assert "cannot be copied" in truth.notes[0]
    assert np.floor(truth.observations[:, 0].astype(float)).max() == 0
    assert set(np.round(truth.values, 9)) == {round((1 - 0.9**length) / 0.1, 9) for length in (10, 8)}


def test_progress_reaches_its_total():
    calls = []
    monte_carlo_values(
        "FrozenLake-v1",
        "random",
        num_queries=4,
        num_rollouts=4,
        gamma=0.9,
        max_copies=8,
        progress=lambda *c: calls.append(c),
    )
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]} == {2 * rollout_horizon(0.9, 1e-3)}


def test_the_horizon_is_the_first_step_of_negligible_weight():
    for gamma in (0.5, 0.9, 0.99):
        horizon = rollout_horizon(gamma, 1e-3)
        assert gamma**horizon <= 1e-3 < gamma ** (horizon - 1)
    assert rollout_horizon(0.0, 1e-3) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.0}, r"gamma must be in \[0, 1\), got 1.0"),
        ({"num_rollouts": 1}, "num_rollouts must be an integer of at least 2, got 1"),
        ({"num_queries": 0}, "num_queries must be an integer of at least 1, got 0"),
        ({"tolerance": 0.0}, "tolerance must be in"),
    ],
)
def test_bad_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo_values("CartPole-v1", "random", **options)


def test_what_has_no_exact_values_is_refused():
    with pytest.raises(ValueError, match="transition table P, which CartPoleEnv does not expose"):
        exact_values("CartPole-v1", "random", 0.9)
    with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\), got 1"):
        exact_values("FrozenLake-v1", "random", 1)
    with pytest.raises(ValueError, match="wrapper TransformReward"):
        exact_values(TransformReward(gymnasium.make("FrozenLake-v1"), abs), "random", 0.9)
    with pytest.raises(ValueError, match="fickle_passenger"):
        exact_values(gymnasium.make("Taxi-v4", fickle_passenger=True), "random", 0.9)
    with pytest.raises(ValueError, match="cannot give action probabilities"):
        exact_values("FrozenLake-v1", lambda observations: observations * 0, 0.9)
