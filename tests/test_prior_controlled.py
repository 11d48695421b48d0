"""Controlled tasks of the prior: equations, endings, policies and truths that are what they say."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from scipy.special import ndtri

from icrl_gym.acting.policies import as_policy
from icrl_gym.pretraining.prior.controlled import (
    FAMILIES,
    ControlledTask,
    GaussianController,
    SoftmaxController,
    draw_controlled_task,
    generate,
    tasks,
)
from icrl_gym.pretraining.prior.controlled.acrobot import THREE_WAYS, Acrobot
from icrl_gym.pretraining.prior.controlled.cartpole import TWO_WAYS, CartPole
from icrl_gym.pretraining.prior.controlled.endings import BALL, BOX, GOAL, HALF_SPACE, NONE, QUADRIC, Ending
from icrl_gym.pretraining.prior.controlled.families import DRAWS
from icrl_gym.pretraining.prior.controlled.mountain_car import MountainCar
from icrl_gym.pretraining.prior.controlled.pendulum import Pendulum
from icrl_gym.pretraining.prior.controlled.policies import draw_policy
from icrl_gym.pretraining.prior.controlled.rollouts import NO_LIMIT, run_streams
from icrl_gym.pretraining.prior.controlled.room import Room
from icrl_gym.pretraining.prior.controlled.shaped import ShapedSystem
from icrl_gym.pretraining.prior.controlled.systems import Actuation, System
from icrl_gym.pretraining.prior.controlled.truths import Truth, true_values

NUM_TRANSITIONS, NUM_QUERIES, NUM_ROLLOUTS = 200, 12, 16
ARRAYS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "episode_ends")
SHAPED = ("joints", "hopper", "noisy_linear")
FAST = tuple(family for family in FAMILIES if family != "tree")  # seconds per task, and only where MuJoCo is installed


def draw(family: str | None, seed: int = 0) -> ControlledTask:
    return draw_controlled_task(np.random.default_rng(seed), NUM_TRANSITIONS, NUM_QUERIES, NUM_ROLLOUTS, family)


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[ControlledTask]]:
    return {family: [draw(family, seed) for seed in range(4)] for family in FAST}


def same(first: ControlledTask, second: ControlledTask) -> bool:
    arrays = [np.array_equal(getattr(first.trajectory, name), getattr(second.trajectory, name)) for name in ARRAYS]
    arrays += [np.array_equal(getattr(first, name), getattr(second, name)) for name in ("queries", "truth")]
    return all(arrays) and (first.gamma, first.policy.identity) == (second.gamma, second.policy.identity)


def settled_system(family: str, seed: int) -> tuple[System, SoftmaxController | GaussianController]:
    rng = np.random.default_rng(seed)
    system = DRAWS[family](rng)
    policy = draw_policy(system, rng)
    pilot = run_streams(system, policy, rng, 16, 100, NO_LIMIT)
    return system.settled(pilot.next_states, 0.97, rng), policy


# Tasks


@pytest.mark.parametrize("family", FAST)
def test_shapes_types_and_ranges(family, drawn):
    for task in drawn[family]:
        log, columns = task.trajectory, task.queries.shape[1]
        assert log.observations.shape == log.next_observations.shape == (NUM_TRANSITIONS, columns)
        assert log.observations.dtype == task.queries.dtype == task.truth.dtype == np.float64
        assert task.queries.shape == (NUM_QUERIES, columns)
        assert task.truth.shape == task.truth_stderr.shape == (NUM_QUERIES,)
        assert np.isfinite(task.truth).all()
        assert (task.truth_stderr >= 0).all()
        assert 0.9 - 1e-9 <= task.gamma <= 0.997 + 1e-9
        assert isinstance(log.observation_space, spaces.Box)
        assert (task.family, log.env_id, log.policy) == (family, f"prior/controlled/{family}", task.policy.identity)
        assert (task.source == "synthetic") == (family in (*SHAPED, "room"))


@pytest.mark.parametrize("family", FAST)
def test_the_library_accepts_the_policies_and_their_actions_are_the_logged_kind(family, drawn):
    for task in drawn[family]:
        actions = task.trajectory.actions
        if isinstance(task.policy, SoftmaxController):
            space = spaces.Discrete(task.policy.num_actions)
            assert ((actions >= 0) & (actions < space.n)).all()
        else:
            space = spaces.Box(task.policy.low, task.policy.high, dtype=np.float64)
            assert ((actions >= space.low) & (actions <= space.high)).all()
        acting = as_policy(task.policy, space, seed=0)
        assert acting.act(task.queries).shape == (NUM_QUERIES, *actions.shape[1:])
        assert acting.identity == task.policy.identity


@pytest.mark.parametrize("family", FAST)
def test_true_values_vary_by_more_than_their_error(family, drawn):
    for task in drawn[family]:
        assert task.truth.std() >= 3 * task.truth_stderr.mean()


@pytest.mark.parametrize("family", FAST)
def test_the_same_seed_gives_the_same_task_and_another_seed_another(family, drawn):
    assert same(drawn[family][0], draw(family))
    assert not same(drawn[family][0], drawn[family][1])


def test_a_generated_task_does_not_depend_on_how_many_are_drawn():
    few, more = list(generate(5, 2, 64)), list(generate(5, 3, 64))
    assert len(more) == 3
    assert all(same(*pair) for pair in zip(few, more, strict=False))
    assert not same(more[0], more[1])
    assert not same(few[0], next(generate(6, 1, 64)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "maze"}, "family must be one of"),
        ({"num_transitions": 0}, "num_transitions must be"),
        ({"num_queries": 1}, "num_queries must be"),
        ({"num_rollouts": 1.5}, "num_rollouts must be"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        draw_controlled_task(np.random.default_rng(0), **{"num_transitions": 10} | changes)


@pytest.mark.parametrize(
    ("values", "stderr", "tail", "kept"),
    [
        ([0.0, 2.0], [0.1, 0.1], 0.0, True),
        ([0.0, 2.0], [0.34, 0.34], 0.0, False),  # noise
        ([500.0, 502.0], [0.0, 0.0], 0.0, False),  # hardly varies
        ([0.0, np.nan], [0.0, 0.0], 0.0, False),
        ([0.0, 2.0], [0.0, 0.0], 0.1, False),  # too much cut off
    ],
)
def test_tasks_without_known_varying_values_are_rejected(values, stderr, tail, kept):
    assert tasks._worth_learning(Truth(np.array(values), np.array(stderr), tail)) == kept


def test_a_chain_of_capsules_is_a_task_like_any_other_where_mujoco_is_installed():
    pytest.importorskip("mujoco")
    first, again = (draw_controlled_task(np.random.default_rng(3), 30, 4, 2, "tree") for _ in range(2))
    assert same(first, again)
    assert first.source == "synthetic"
    assert first.queries.shape == (4, first.trajectory.observations.shape[1])
    assert first.truth.std() >= 3 * first.truth_stderr.mean()
    system = DRAWS["tree"](np.random.default_rng(1))
    assert isinstance(system, ShapedSystem)
    states = system.reset(5, np.random.default_rng(0))
    inputs = np.random.default_rng(0).uniform(-1.0, 1.0, (5, system.dynamics.num_inputs))
    for _ in range(30):
        after = system.dynamics.advance(states, inputs, np.random.default_rng(0))
        alone = system.dynamics.advance(states[3:4], inputs[3:4], np.random.default_rng(0))
        np.testing.assert_allclose(after[3:4], alone, rtol=0, atol=1e-12)
        states = after
    assert np.isfinite(states).all()


def test_draws_without_a_family_take_the_fast_ones(monkeypatch):
    chosen = []
    monkeypatch.setattr(
        tasks, "_attempt", lambda rng, transitions, queries, rollouts, family: chosen.append(family) or 1
    )
    for seed in range(300):
        draw_controlled_task(np.random.default_rng(seed), 10)
    assert set(chosen) == set(FAST)


# Episodes


@pytest.mark.parametrize("family", FAST)
def test_successors_are_true_and_episodes_follow_their_flags(family, drawn):
    for task in drawn[family]:
        log = task.trajectory
        assert not (log.terminated & log.truncated).any()
        flagged = log.terminated | log.truncated
        np.testing.assert_array_equal(log.episode_ends[:-1], flagged[:-1])
        going = ~log.episode_ends[:-1]
        np.testing.assert_array_equal(log.next_observations[:-1][going], log.observations[1:][going])
        jumps = (log.next_observations[:-1] != log.observations[1:]).any(axis=1)
        assert (jumps == ~going).all()


@pytest.mark.parametrize("family", FAST)
def test_episodes_are_truncated_at_the_limit_and_terminate_where_the_system_says(family):
    system, policy = settled_system(family, 3)
    streams = run_streams(system, policy, np.random.default_rng(0), 5, 60, 13)
    ages = np.zeros(5, dtype=int)
    for step in range(60):
        ages += 1
        ended = streams.terminated[step] | streams.truncated[step]
        np.testing.assert_array_equal(streams.truncated[step], (ages == 13) & ~streams.terminated[step])
        ages[ended] = 0
    if not system.is_random:
        rows = (streams.states[:, 2], streams.actions[:, 2], np.random.default_rng(1))
        after, rewards, terminated = system.step(*rows)
        np.testing.assert_allclose(after, streams.next_states[:, 2], rtol=0, atol=1e-12)
        np.testing.assert_allclose(rewards, streams.rewards[:, 2], rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(terminated, streams.terminated[:, 2])


# Equations


def compare_with_gymnasium(env_id: str, system: System, seed: int, atol: float) -> int:
    """Steps an environment and a system side by side; returns how many episodes terminated."""
    env = gymnasium.make(env_id, max_episode_steps=400)
    rng = np.random.default_rng(seed)
    num_terminated = 0
    for episode in range(4):
        observation, _ = env.reset(seed=seed + episode)
        states = np.array([env.unwrapped.state], dtype=np.float64)
        ended = False
        while not ended:
            np.testing.assert_allclose(system.observe(states)[0], observation, rtol=1e-6, atol=1e-6)
            action = system.actuation.uniform(1, rng)
            if "Mountain" in env_id and rng.random() < 0.95:  # along the motion, so that the goal is reached
                direction = 1 if states[0, 1] >= 0 else -1
                action = (
                    np.array([[float(direction)]]) if env_id.endswith("Continuous-v0") else np.array([1 + direction])
                )
            observation, reward, terminated, truncated, _ = env.step(action[0])
            states, rewards, ends = system.step(states, action, rng)
            np.testing.assert_allclose(states[0], np.array(env.unwrapped.state), rtol=0, atol=atol)
            states = np.array([env.unwrapped.state], dtype=np.float64)
            assert rewards[0] == pytest.approx(float(reward), abs=1e-9)
            assert ends[0] == terminated
            ended = terminated or truncated
            num_terminated += terminated
    env.close()
    return num_terminated


def test_cartpole_is_gymnasiums_step_for_step():
    assert compare_with_gymnasium("CartPole-v1", CartPole(Actuation.discrete(TWO_WAYS)), 0, 1e-12) == 4


def test_pendulum_is_gymnasiums_step_for_step():
    assert compare_with_gymnasium("Pendulum-v1", Pendulum(Actuation(None, np.array([2.0]))), 0, 1e-12) == 0


def test_acrobot_is_gymnasiums_step_for_step():
    easier = Acrobot(Actuation.discrete(THREE_WAYS))
    compare_with_gymnasium("Acrobot-v1", easier, 0, 1e-9)
    env = gymnasium.make("Acrobot-v1").unwrapped
    env.reset(seed=0)
    for angles, height in (([2.0, 0.5], 1.1), ([1.5, 0.5], 0.3)):  # above and below the line
        env.state = np.array([*angles, 0.0, 0.0])
        assert bool(easier.height_of(env.state[None])[0] > easier.height) == env._terminal() == (height > 1)


def test_mountain_car_is_gymnasiums_step_for_step():
    assert compare_with_gymnasium("MountainCar-v0", MountainCar(Actuation.discrete(THREE_WAYS)), 0, 1e-12) == 4


def test_continuous_mountain_car_is_gymnasiums_step_for_step():
    system = MountainCar(
        Actuation(None, np.ones(1)),
        force=0.0015,
        goal=0.45,
        step_reward=0.0,
        goal_reward=100.0,
        effort_cost=0.1,
    )
    assert compare_with_gymnasium("MountainCarContinuous-v0", system, 0, 1e-7) == 4  # theirs is rounded to float32


def test_a_step_does_not_depend_on_what_else_is_in_the_batch():
    for family in FAST:
        system, policy = settled_system(family, 5)
        if system.is_random:
            continue
        rng = np.random.default_rng(0)
        states = run_streams(system, policy, rng, 6, 20, NO_LIMIT).states[-1]
        before, actions = states.copy(), policy.sample(system.observe(states), rng)
        together = system.step(states, actions, rng)
        alone = system.step(states[2:3], actions[2:3], rng)
        np.testing.assert_array_equal(states, before)
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[2:3], part, rtol=1e-10, atol=1e-10)


# Endings


@pytest.mark.parametrize(("position", "angle", "ended"), [(2.39, 0.0, False), (2.41, 0.0, True), (0.0, 0.211, True)])
def test_cartpole_ends_at_its_limits(position, angle, ended):
    states = np.array([[position, 0.0, angle, 0.0]])
    system = CartPole(Actuation.discrete(TWO_WAYS))
    assert system.step(states, np.array([0]), np.random.default_rng(0))[2][0] == ended


@pytest.mark.parametrize("kind", [HALF_SPACE, BOX, BALL, QUADRIC, GOAL])
def test_endings_are_crossed_about_as_often_as_drawn(kind):
    rng = np.random.default_rng(4)
    pilot = np.cumsum(rng.normal(size=(300, 64, 3)), axis=0) * 0.05
    shares = []
    for _ in range(20):
        ending = Ending.draw(kind, pilot, rng)
        reached = ending.reached(pilot.reshape(-1, 3)).reshape(300, 64)
        score = ending.score(pilot.reshape(-1, 3)).reshape(300, 64)
        np.testing.assert_array_equal(reached, score > ending.threshold)
        shares.append(reached.any(axis=0).mean())
    assert 0.2 < np.mean(shares) <= 1.0  # rates from .001 to .06 over 300 steps
    assert np.ptp(shares) > 0.2


def test_forms_of_endings_by_hand():
    pilot = np.random.default_rng(0).normal(size=(50, 20, 2))
    rng = np.random.default_rng(1)
    ball = Ending.draw(BALL, pilot, rng)
    centre = pilot.mean(axis=(0, 1))
    point = np.array([[0.3, -1.2]])
    expected = ((point - centre) ** 2 @ ball.square_FK)[0, 0]
    constant = (centre**2 @ ball.square_FK)[0]
    np.testing.assert_allclose(ball.constant_K[0], constant, rtol=1e-12)
    np.testing.assert_allclose(ball.score(point), [expected], rtol=1e-9)
    quadric = Ending.draw(QUADRIC, pilot, rng)
    matrix = np.diag(quadric.square_FK[:, 0]) + quadric.first_FK @ quadric.second_FK.T
    np.testing.assert_allclose(quadric.score(point), [point[0] @ matrix @ point[0]], rtol=1e-9)
    assert not Ending.draw(NONE, pilot, rng).reached(point * 1e9).any()


@pytest.mark.parametrize("family", SHAPED)
def test_drawn_systems_end_where_their_outcome_says(family):
    for seed in range(6):
        system, policy = settled_system(family, seed)
        assert isinstance(system, ShapedSystem)
        streams = run_streams(system, policy, np.random.default_rng(0), 8, 100, NO_LIMIT)
        after = streams.next_states.reshape(-1, streams.states.shape[-1])
        reached = system.outcome.ending.score(system.dynamics.features(after)) > system.outcome.ending.threshold
        np.testing.assert_array_equal(reached, streams.terminated.reshape(-1))


def test_walls_stop_a_point_and_goals_end_its_episode():
    system = Room.draw(np.random.default_rng(0))
    system = replace(
        system,
        actuation=Actuation(None, np.ones(2)),
        low_W2=np.array([[0.1, -0.5]]),
        high_W2=np.array([[0.2, 0.5]]),
        goal_G2=np.array([[0.0, 0.8]]),
        hazard_H2=np.zeros((0, 2)),
        goal_radius=0.1,
        inertia=0.0,
        pace=0.06,
        slip=0.0,
        pays=(-1.0, 5.0, 0.0, 0.0),
    )
    states = np.array([[0.05, 0.0, 0.0, 0.0], [0.05, 0.6, 0.0, 0.0], [0.0, 0.67, 0.0, 0.0], [0.98, 0.98, 0.0, 0.0]])
    actions = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    after, rewards, ended = system.step(states, actions, np.random.default_rng(0))
    np.testing.assert_allclose(after[:, :2], [[0.05, 0.06], [0.11, 0.6], [0.0, 0.73], [0.98, 0.98]])
    np.testing.assert_array_equal(ended, [False, False, True, False])
    np.testing.assert_allclose(rewards, [-1.0, -1.0, 4.0, -1.0])


# Policies


@pytest.mark.parametrize("family", FAST)
def test_stated_probabilities_are_the_frequencies_of_the_actions(family, drawn):
    """False alarm about 1e-4 per comparison: 4 standard errors."""
    rng = np.random.default_rng(0)
    for task in drawn[family]:
        if not isinstance(task.policy, SoftmaxController):
            continue
        stated = task.policy.action_probabilities(task.queries[:3])
        np.testing.assert_allclose(stated.sum(axis=1), 1.0, rtol=1e-12)
        assert (stated >= 0).all()
        count = 4000
        actions = task.policy.sample(np.repeat(task.queries[:3], count, axis=0), rng).reshape(3, count)
        seen = np.stack([(actions == action).mean(axis=1) for action in range(task.policy.num_actions)], axis=1)
        assert (np.abs(seen - stated) <= 4 * np.sqrt(stated * (1 - stated) / count) + 1 / count).all()
        assert (np.abs(seen - np.roll(stated, 1, axis=1)) > 0.02).any() or np.ptp(stated) < 0.05


def test_a_gaussian_controllers_actions_are_its_stated_distribution():
    high, std = np.array([1.0, 2.0]), np.array([0.3, 0.1])
    policy = GaussianController(lambda x: x[:, :2] * 0.5, std, high, 0, "g")
    observations = np.array([[1.0, -1.0, 9.0], [1.9, 0.2, 9.0]])
    np.testing.assert_allclose(policy.mean(observations), [[0.5, -1.0], [0.95, 0.2]])
    noise = np.array([[0.5, 0.5], [0.99, 0.1]])
    expected = np.clip(policy.mean(observations) + std * ndtri(noise), -high, high)
    np.testing.assert_allclose(policy.actions(observations, noise), expected)
    assert policy.actions(observations, noise)[1, 0] == 1.0  # clipped
    assert np.isfinite(policy.actions(observations, np.array([[0.0, 1.0], [1.0, 0.0]]))).all()
    with pytest.raises(ValueError, match="noise must have shape"):
        policy.actions(observations, noise[:, :1])
    many = np.repeat(observations[:1], 20_000, axis=0)
    own, stated = policy(many), policy.actions(many, np.random.default_rng(1).random((20_000, 2)))
    np.testing.assert_allclose(own.mean(axis=0), stated.mean(axis=0), atol=4 * 0.3 * (2 / 20_000) ** 0.5)
    np.testing.assert_allclose(own.std(axis=0), stated.std(axis=0), rtol=0.05)
    repeated = GaussianController(policy.law, std, high, 0, "g")
    np.testing.assert_array_equal(repeated(many), own)


def test_a_deterministic_controller_needs_no_noise():
    policy = GaussianController(lambda x: x, np.zeros(1), np.ones(1), 0, "g")
    assert (policy.num_noise, policy.deterministic, policy.identity) == (0, True, "g (deterministic)")
    np.testing.assert_array_equal(policy.actions(np.array([[0.3], [4.0]]), np.zeros((2, 0))), [[0.3], [1.0]])


def test_hand_made_controllers_do_better_than_uniform_actions():
    rng = np.random.default_rng(0)
    lengths = {}
    for name in ("guided", "uniform"):
        rows = []
        for seed in range(12):
            system = CartPole(Actuation.discrete(TWO_WAYS))
            guide = system.guide(np.random.default_rng(seed))
            states = system.reset(8, rng)
            alive, total = np.ones(8, dtype=bool), 0
            for _ in range(200):
                wish = guide(system.observe(states))[:, 0]
                actions = (wish > 0).astype(int) if name == "guided" else system.actuation.uniform(8, rng)
                states, _, ended = system.step(states, actions, rng)
                alive &= ~ended
                total += alive.sum()
            rows.append(total / 8)
        lengths[name] = float(np.median(rows))
    assert lengths["guided"] > 4 * lengths["uniform"]


# Truths


def slow_returns(system: System, policy, state: np.ndarray, gamma: float, copies: int, horizon: int) -> np.ndarray:
    """Discounted returns of single rollouts, one step of one copy at a time, acting through the library's adapter."""
    rng = np.random.default_rng(77)
    acting = as_policy(policy, system.actuation.space, seed=78)
    returns = np.zeros(copies)
    for copy in range(copies):
        current = state[None]
        for step in range(horizon):
            current, reward, ended = system.step(current, acting.act(system.observe(current)), rng)
            returns[copy] += gamma**step * reward[0]
            if ended[0]:
                break
    return returns


@pytest.mark.parametrize(("family", "seed"), [("cartpole", 2), ("joints", 2), ("room", 0)])
def test_true_values_agree_with_slow_rollouts_without_a_time_limit(family, seed):
    """False alarm about 1e-4 per state; the partner asks for another discount and must fail."""
    gamma = 0.93
    system, policy = settled_system(family, seed)
    states = run_streams(system, policy, np.random.default_rng(0), 2, 30, NO_LIMIT).states[::15].reshape(4, -1)
    truth = true_values(system, policy, states, gamma, 200, np.random.default_rng(1))
    other = true_values(system, policy, states, 0.9, 200, np.random.default_rng(1))
    gaps, wrong = [], []
    for query, state in enumerate(states):
        returns = slow_returns(system, policy, state, gamma, 40, 250)
        error = np.hypot(returns.std(ddof=1) / 40**0.5, truth.stderr[query]) + 1e-3 * truth.spread
        gaps.append(abs(returns.mean() - truth.values[query]) / error)
        wrong.append(abs(returns.mean() - other.values[query]) / error)
    assert max(gaps) < 4
    assert max(wrong) > 4


def test_the_truth_of_a_constant_reward_is_a_geometric_sum():
    system = CartPole(Actuation.discrete(TWO_WAYS), position_limit=1e12, angle_limit=1e12)
    policy = SoftmaxController(lambda x: np.zeros((len(x), 2)), 2, 1.0, 0.0, "uniform")
    truth = true_values(system, policy, np.zeros((2, 4)), 0.98, 4, np.random.default_rng(0))
    np.testing.assert_allclose(truth.values, 50.0, rtol=1e-9)
    np.testing.assert_allclose(truth.stderr, 0.0, atol=1e-9)


def test_where_nothing_is_random_one_rollout_is_the_truth():
    system = Pendulum(Actuation(None, np.array([2.0])))
    policy = GaussianController(lambda x: -x[:, 1:2], np.zeros(1), np.array([2.0]), 0, "g")
    states = np.array([[0.5, 0.0], [2.0, 1.0]])
    truth = true_values(system, policy, states, 0.95, 32, np.random.default_rng(0))
    np.testing.assert_array_equal(truth.stderr, 0.0)
    assert slow_returns(system, policy, states[0], 0.95, 1, 400)[0] == pytest.approx(
        truth.values[0], abs=1e-3 * truth.spread
    )
