"""Collecting: the transitions of a plain loop, one environment or many, in every autoreset mode, wherever it is cut."""

from __future__ import annotations

from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO

from icrl_gym.acting.environments import environment_spec
from icrl_gym.acting.policies import ActingPolicy
from icrl_gym.context.collection import collect
from icrl_gym.context.recorder import Recorder
from icrl_gym.observations import map_leaves, rows_equal, stack, take

MODES = list(AutoresetMode)
COLUMNS = ("actions", "rewards", "terminated", "truncated", "episode_ends")


class Counting(gymnasium.Env):
    """Counts episodes and steps; lengths are random, odd ones terminate and even ones are truncated.

    With ``nested`` it is seen as a dictionary that holds a tuple; with ``reused`` the same array is handed out always.
    """

    action_space = spaces.Discrete(3)

    def __init__(self, nested: bool = False, reused: bool = False) -> None:
        box = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self._nested, self._reused = nested, reused
        self.observation_space = (
            spaces.Dict({"id": spaces.Discrete(100), "at": spaces.Tuple((box,))}) if nested else box
        )
        self._episode, self._buffer = 0, np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self._episode = 0
        self._episode += 1
        self._time, self._length = 0, int(self.np_random.integers(1, 6))
        return self._see(), {}

    def step(self, action):
        self._time += 1
        done, odd = self._time == self._length, self._length % 2 == 1
        reward = float(10 * action + self.np_random.random())
        return self._see(), reward, done and odd, done and not odd, {}

    def _see(self):
        self._buffer[:] = self._episode, self._time
        at = self._buffer if self._reused else self._buffer.copy()
        return {"id": self._time, "at": (at,)} if self._nested else at


def by_time(observations) -> np.ndarray:
    at = observations["at"][0] if isinstance(observations, dict) else observations
    return (at.sum(axis=1) % 3).astype(int)


def plain_loop(env: gymnasium.Env, policy, length: int, seed: int) -> dict[str, list]:
    """What anybody would write by hand."""
    rows = {name: [] for name in ("observations", "next_observations", *COLUMNS)}
    observation, _ = env.reset(seed=seed)
    for step in range(length):
        observation = map_leaves(np.array, observation)
        action = policy(stack([observation]))[0]
        successor, reward, terminated, truncated, _ = env.step(action)
        successor = map_leaves(np.array, successor)
        ends = terminated or truncated or step == length - 1
        values = (observation, successor, action, reward, terminated, truncated, ends)
        for name, value in zip(rows, values, strict=True):
            rows[name].append(value)
        observation = env.reset()[0] if terminated or truncated else successor
    return rows


def assert_rows(trajectory, rows: slice, expected: dict[str, list]) -> None:
    for name in COLUMNS:
        assert np.array_equal(getattr(trajectory, name)[rows], expected[name]), name
    for name in ("observations", "next_observations"):
        assert rows_equal(take(getattr(trajectory, name), rows), stack(expected[name])).all(), name


def streams(trajectory, nested: bool = False) -> list[slice]:
    """Where each environment's stream lies in a log of `Counting`, whose first row is episode 1, step 0."""
    at = trajectory.observations["at"][0] if nested else trajectory.observations
    first = [*np.flatnonzero((at == [1, 0]).all(axis=1)), len(trajectory)]
    return [slice(start, stop) for start, stop in pairwise(first)]


# --- one environment ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"nested": True}, {"reused": True}])
@pytest.mark.parametrize("length", [1, 2, 30, 150])
def test_one_environment_gives_the_transitions_of_a_plain_loop(options, length):
    trajectory = collect(Counting(**options), by_time, length, seed=4)
    assert len(trajectory) == length
    assert_rows(trajectory, slice(None), plain_loop(Counting(**options), by_time, length, 4))
    if length > 20:
        assert trajectory.terminated.any()
        assert trajectory.truncated.any()


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1", "Pendulum-v1"])
def test_random_actions_in_real_environments_obey_their_own_log(env_id):
    trajectory = collect(env_id, "random", 300, seed=1)
    env = gymnasium.make(env_id)
    replayed = iter(trajectory.actions)
    assert_rows(trajectory, slice(None), plain_loop(env, lambda _: [next(replayed)], 300, 1))
    assert trajectory.env_id == env_id
    assert trajectory.policy == "random"
    assert trajectory.observation_space == env.observation_space


def test_a_model_under_a_seed_gives_the_transitions_of_a_plain_loop_under_that_torch_seed():
    env = gymnasium.make("CartPole-v1")
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": [8]}, n_steps=8, batch_size=8, device="cpu")
    state = torch.get_rng_state()
    trajectory = collect("CartPole-v1", model, 100, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert_rows(trajectory, slice(None), plain_loop(env, lambda batch: model.predict(batch)[0], 100, 7))
    greedy = collect("CartPole-v1", model, 20, deterministic=True)
    assert greedy.policy == f"{trajectory.policy} (deterministic)"


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others():
    logs = [collect("CartPole-v1", "random", 50, seed=seed) for seed in (3, 3, 4)]
    assert logs[0].observations.tobytes() == logs[1].observations.tobytes()
    assert logs[0].observations.tobytes() != logs[2].observations.tobytes()
    drawn = [collect("CartPole-v1", "random", 50, seed=np.random.default_rng(3)) for _ in range(2)]
    assert drawn[0].observations.tobytes() == drawn[1].observations.tobytes()


def test_a_time_limit_ends_an_episode_and_the_logs_end_does_not():
    trajectory = collect(gymnasium.make("Pendulum-v1", max_episode_steps=10), "random", 25)
    assert np.flatnonzero(trajectory.truncated).tolist() == [9, 19]
    assert np.flatnonzero(trajectory.episode_ends).tolist() == [9, 19, 24]
    assert trajectory.env_id == "Pendulum-v1"


def test_arguments_and_wrappers_reach_the_environment():
    spec = environment_spec("minigrid:MiniGrid-Empty-5x5-v0", {"size": 6}, "minigrid.wrappers:ImgObsWrapper")
    trajectory = collect(spec, "random", 5)
    assert trajectory.observations.shape == (5, 7, 7, 3)
    assert trajectory.env_id == 'MiniGrid-Empty-5x5-v0 {"size": 6} + ImgObsWrapper'


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 50, 299])
@pytest.mark.parametrize("mode", MODES)
def test_every_stream_of_a_vector_is_a_plain_loop_in_every_mode_wherever_it_is_cut(mode, length, nested):
    vector = SyncVectorEnv([lambda: Counting(nested)] * 3, autoreset_mode=mode)
    trajectory = collect(vector, by_time, length, seed=4)
    assert len(trajectory) == length
    found = streams(trajectory, nested)
    assert len(found) == min(length, 3)
    for index, rows in enumerate(found):
        expected = plain_loop(Counting(nested), by_time, rows.stop - rows.start, 4 + index)
        assert_rows(trajectory, rows, expected)


@pytest.mark.parametrize("mode", MODES)
def test_a_vector_that_hands_out_one_buffer_again_and_again_is_recorded_right(mode):
    logs = [
        collect(SyncVectorEnv([Counting] * 3, copy=copy, autoreset_mode=mode), by_time, 60) for copy in (True, False)
    ]
    for name in ("observations", "next_observations", *COLUMNS):
        assert np.array_equal(getattr(logs[0], name), getattr(logs[1], name)), name


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_where_no_step_is_lost_streams_have_equal_lengths_and_the_newest_is_dropped(mode):
    trajectory = collect(SyncVectorEnv([Counting] * 3, autoreset_mode=mode), by_time, 50, seed=4)
    assert [rows.stop - rows.start for rows in streams(trajectory)] == [17, 17, 16]


def test_reset_steps_are_no_transitions():
    trajectory = collect(SyncVectorEnv([Counting] * 3), by_time, 50, seed=4)
    steps = 1 + max(len_of_stream_with_resets(trajectory, rows) for rows in streams(trajectory))
    assert sum(rows.stop - rows.start for rows in streams(trajectory)) == 50 < 3 * steps
    assert (trajectory.observations[:, 1] + 1 == trajectory.next_observations[:, 1]).all()


def len_of_stream_with_resets(trajectory, rows: slice) -> int:
    return rows.stop - rows.start + int((trajectory.terminated | trajectory.truncated)[rows].sum())


def test_worker_processes_give_the_same_log():
    makers = [lambda: gymnasium.make("CartPole-v1", max_episode_steps=9)] * 2
    logs = []
    for vector in (SyncVectorEnv(makers), AsyncVectorEnv(makers)):
        logs.append(collect(vector, lambda observations: (observations[:, 2] > 0).astype(int), 40, seed=2))
        vector.close()
    assert logs[0].observations.tobytes() == logs[1].observations.tobytes()
    assert logs[0].env_id == logs[1].env_id == "CartPole-v1"


def test_a_vector_written_as_one_class_is_recorded_too():
    trajectory = collect(gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point"), "random", 203)
    assert len(trajectory) == 203
    assert trajectory.env_id == "CartPole-v1"
    inside = ~trajectory.episode_ends[:-1]
    assert np.array_equal(trajectory.next_observations[:-1][inside], trajectory.observations[1:][inside])
    starts = trajectory.observations[1:][(trajectory.terminated | trajectory.truncated)[:-1]]
    assert len(starts) > 3
    assert np.abs(starts).max() <= 0.05  # where CartPole starts: no reset observation became a successor


class CountingMemory(ActingPolicy):
    """Remembers how many actions it has taken in the episode and plays that number."""

    identity, recurrent = "memory", True

    def act(self, observations):
        raise AssertionError("a recurrent policy is asked with its state")

    def initial_state(self, batch):
        return np.full(batch, 99)

    def act_recurrent(self, observations, state, episode_starts):
        taken = np.where(episode_starts, 0, state)
        return taken % 3, taken + 1


@pytest.mark.parametrize("mode", [None, *MODES])
def test_recurrent_policies_forget_exactly_at_episode_starts(mode):
    env = Counting() if mode is None else SyncVectorEnv([Counting] * 3, autoreset_mode=mode)
    trajectory = collect(env, CountingMemory(), 100, seed=4)
    assert np.array_equal(trajectory.actions, trajectory.observations[:, 1] % 3)


# --- arguments ------------------------------------------------------------------------------------------------------


def test_progress_is_told_and_never_beyond_the_total():
    told: list[tuple[int, int]] = []
    vector = SyncVectorEnv([Counting] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    collect(vector, by_time, 7, progress=lambda *now: told.append(now))
    collect(vector, by_time, 6, progress=lambda *now: told.append(now))
    assert told == [(3, 7), (6, 7), (7, 7), (3, 6), (6, 6)]


@pytest.mark.parametrize("number", [0, -3, 2.5, "many"])
def test_a_number_of_transitions_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match="num_transitions must be an integer of at least 1"):
        collect("CartPole-v1", "random", number)


def test_a_policy_of_other_actions_is_refused_before_a_step_is_taken():
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"action space Discrete\(2\) does not fit the environment's Box"):
        collect("Pendulum-v1", model, 5)


def test_spaces_without_arrays_are_refused():
    env = Counting()
    env.observation_space = spaces.Text(5)
    with pytest.raises(TypeError, match=r"observation space Text.* has no array form"):
        collect(env, by_time, 5)
    env = Counting()
    env.action_space = spaces.Dict({"a": spaces.Discrete(2)})
    with pytest.raises(TypeError, match=r"action space Dict.* has no array form"):
        collect(env, by_time, 5)


def test_an_observation_that_is_not_finite_is_named():
    class Broken(Counting):
        def _see(self):
            return np.array([np.nan, 0.0]) if self._time == 3 else super()._see()

    with pytest.raises(ValueError, match=r"observations\[\d+, 0\] is nan"):
        collect(Broken(), "random", 60)


# --- the recorder ---------------------------------------------------------------------------------------------------


def recorded(recorder: Recorder, vector: SyncVectorEnv, num_steps: int, resets: dict[int, np.ndarray]) -> Recorder:
    """Step a vector, with masked resets before some steps."""
    observations, _ = vector.reset(seed=4)
    recorder.reset(observations)
    for step in range(num_steps):
        mask = resets.get(step, np.zeros(3, bool)) | recorder.waiting
        if mask.any():
            observations, _ = vector.reset(options={"reset_mask": mask.copy()})
            recorder.reset(observations, mask)
        actions = by_time(observations)
        observations, *outcome = vector.step(actions)
        recorder.step(actions, observations, *outcome)
    return recorder


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("capacity", [1, 5, 64, 200])
def test_a_window_is_the_newest_part_of_the_whole_log(mode, capacity):
    vector = SyncVectorEnv([Counting] * 3, autoreset_mode=mode)
    masks = np.random.default_rng(0).random((300, 3)) < np.minimum(np.arange(300), 1)[:, None] * 0.2  # none at first
    resets = dict(enumerate(masks)) if mode is AutoresetMode.DISABLED else {}
    for num_steps in (1, 30, 123, 300):
        whole = recorded(Recorder(vector), vector, num_steps, resets)
        window = recorded(Recorder(vector, capacity=capacity), vector, num_steps, resets).trajectory()
        rows = whole.trajectory()
        assert len(window) == min(capacity, len(rows))
        # In which step of the vector a row was recorded can be told from the row's place in its stream.
        clock = np.concatenate([clock_of(rows, one, mode) for one in streams(rows)])
        member = np.concatenate([np.full(one.stop - one.start, i) for i, one in enumerate(streams(rows))])
        newest = np.sort(np.lexsort((member, clock))[-len(window) :])
        assert np.array_equal(window.observations, rows.observations[newest])
        assert np.array_equal(window.rewards, rows.rewards[newest])
        continues = np.append(np.diff(newest) == 1, False) & ~rows.episode_ends[newest]
        assert np.array_equal(window.episode_ends, ~continues)


def clock_of(rows, one: slice, mode: AutoresetMode) -> np.ndarray:
    done = (rows.terminated | rows.truncated)[one]
    lost = np.concatenate([[0], np.cumsum(done)[:-1]]) if mode is AutoresetMode.NEXT_STEP else 0
    return np.arange(one.stop - one.start) + lost


def test_a_window_needs_memory_for_the_window_only():
    vector = SyncVectorEnv([Counting] * 3)
    recorder = recorded(Recorder(vector, capacity=100), vector, 2000, {})
    assert len(recorder._columns["inside"]) <= 256
    assert 100 <= len(recorder) < 103


def test_a_masked_reset_ends_the_episodes_that_it_cuts_and_no_other():
    vector = SyncVectorEnv([lambda: gymnasium.make("Pendulum-v1")] * 3, autoreset_mode=AutoresetMode.DISABLED)
    recorder = Recorder(vector)
    observations, _ = vector.reset(seed=0)
    recorder.reset(observations)
    for step in range(6):
        if step == 4:
            mask = np.array([False, True, False])
            recorder.reset(vector.reset(options={"reset_mask": mask.copy()})[0], mask)
        actions = np.full((3, 1), 0.5, np.float32)
        recorder.step(actions, *vector.step(actions))
    trajectory = recorder.trajectory()
    assert np.flatnonzero(trajectory.episode_ends).tolist() == [5, 9, 11, 17]
    assert not (trajectory.terminated | trajectory.truncated).any()
    assert not np.array_equal(trajectory.next_observations[9], trajectory.observations[10])
    assert np.array_equal(trajectory.next_observations[3], trajectory.observations[4])


def test_what_a_masked_reset_shows_of_the_others_is_not_believed():
    recorder = Recorder(SyncVectorEnv([Counting] * 2, autoreset_mode=AutoresetMode.DISABLED))
    recorder.reset(np.full((2, 2), 1.0))
    recorder.reset(np.full((2, 2), 7.0), np.array([False, True]))
    recorder.step(np.zeros(2, int), np.zeros((2, 2)), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {})
    assert recorder.trajectory().observations.tolist() == [[1.0, 1.0], [7.0, 7.0]]


def test_steps_after_an_end_are_not_recorded_until_the_reset():
    env = Counting()
    recorder = Recorder(env)
    recorder.reset(stack([env.reset(seed=4)[0]]))

    def step():
        observation, reward, terminated, truncated, info = env.step(0)
        flags = np.array([terminated]), np.array([truncated])
        recorder.step(np.array([0]), stack([observation]), np.array([reward]), *flags, info)
        return terminated or truncated

    while not step():
        pass
    length = len(recorder)
    for _ in range(3):
        step()
    assert len(recorder) == length
    recorder.reset(stack([env.reset()[0]]))
    step()
    assert len(recorder) == length + 1
    assert recorder.trajectory().observations[-1].tolist() == [2, 0]


def test_values_are_not_rounded_to_the_type_of_the_first_ones():
    recorder = Recorder(Counting())
    recorder.reset(np.zeros((1, 2), np.float32))
    third = np.array([[1 / 3, 2 / 3]])
    for _ in range(2):
        recorder.step(np.array([0]), third, np.array([1]), np.array([False]), np.array([False]), {})
    assert np.array_equal(recorder.trajectory().observations[1], third[0])


def test_a_recorder_says_what_it_lacks():
    recorder = Recorder(Counting())
    with pytest.raises(ValueError, match="no transition has been recorded yet"):
        recorder.trajectory()
    with pytest.raises(RuntimeError, match="before the first reset"):
        recorder.step(np.array([0]), np.zeros((1, 2)), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), {})
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        Recorder(Counting(), capacity=0)
