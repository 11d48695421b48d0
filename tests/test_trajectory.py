"""Trajectories: what is accepted, what is refused and how, cutting, joining, and the way to disk and back."""

from __future__ import annotations

import os

import numpy as np
import pytest
from gymnasium import spaces

from icrl_gym.context.space_description import space_from_json, space_to_json
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import as_batch, infer_space, map_leaves, rows_equal

SPACES = {
    "box": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "mixed bounds": spaces.Box(np.array([0.1, -np.inf]), np.array([np.inf, 2.5]), dtype=np.float64),
    "image": spaces.Box(0, 255, (4, 5, 3), np.uint8),
    "number": spaces.Box(-np.inf, np.inf, (), np.float64),
    "discrete": spaces.Discrete(5, start=2),
    "multi discrete": spaces.MultiDiscrete([3, 4]),
    "multi binary": spaces.MultiBinary(4),
    "multi binary table": spaces.MultiBinary([2, 3]),
    "nested": spaces.Dict(
        {"goal/x": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,)))), "a": spaces.MultiBinary(2)}
    ),
}


def log(space: spaces.Space, length: int, seed: int = 0, **more) -> Trajectory:
    space.seed(seed)
    states = [space.sample() for _ in range(length + 1)]
    batch = map_leaves(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
    generator = np.random.default_rng(seed)
    return Trajectory(
        map_leaves(lambda leaf: leaf[:-1], batch),
        generator.integers(2, size=length),
        generator.normal(size=length),
        map_leaves(lambda leaf: leaf[1:], batch),
        np.zeros(length, bool),
        np.zeros(length, bool),
        **{"observation_space": space, **more},
    )


def arrays(**changes) -> dict:
    values = {
        "observations": np.arange(8.0).reshape(4, 2),
        "actions": np.zeros(4, int),
        "rewards": np.ones(4),
        "next_observations": np.arange(2.0, 10.0).reshape(4, 2),
        "terminated": np.zeros(4, bool),
        "truncated": np.zeros(4, bool),
    }
    return {**values, **changes}


def same(first: Trajectory, second: Trajectory) -> bool:
    columns = ("actions", "rewards", "terminated", "truncated", "episode_ends")
    plain = all(np.array_equal(getattr(first, name), getattr(second, name)) for name in columns)
    trees = all(
        rows_equal(getattr(first, name), getattr(second, name)).all() for name in ("observations", "next_observations")
    )
    labels = all(getattr(first, name) == getattr(second, name) for name in ("observation_space", "env_id", "policy"))
    return plain and trees and labels


def test_episode_ends_are_found_from_flags_jumps_and_the_logs_end():
    states = np.array([0, 1, 2, 5, 6, 0])
    successors = np.array([1, 2, 3, 6, 0, 1])
    terminated = np.array([0, 0, 0, 0, 1, 0], bool)
    trajectory = Trajectory(states, np.zeros(6), np.zeros(6), successors, terminated, np.zeros(6, bool))
    assert trajectory.episode_ends.tolist() == [False, False, True, False, True, True]
    assert trajectory.truncated.tolist() == [False] * 6


def test_a_flag_ends_an_episode_even_where_the_states_agree():
    truncated = np.array([0, 1, 0, 0], bool)
    assert Trajectory(**arrays(truncated=truncated)).episode_ends.tolist() == [False, True, False, True]


def test_one_transition_is_a_trajectory():
    trajectory = Trajectory([[1.0]], [0], [2.0], [[3.0]], [False], [False])
    assert len(trajectory) == 1
    assert trajectory.episode_ends.tolist() == [True]


def test_stated_episode_ends_are_kept_and_may_not_deny_a_flag():
    ends = np.array([0, 1, 0, 1], bool)
    assert Trajectory(**arrays(episode_ends=ends)).episode_ends.tolist() == ends.tolist()
    with pytest.raises(ValueError, match=r"episode_ends\[2\] is False"):
        Trajectory(**arrays(terminated=np.array([0, 0, 1, 0], bool), episode_ends=ends))
    with pytest.raises(ValueError, match=r"episode_ends\[3\] is False"):
        Trajectory(**arrays(episode_ends=np.zeros(4, bool)))
    with pytest.raises(ValueError, match="episode_ends must have length 4, got 3"):
        Trajectory(**arrays(episode_ends=np.ones(3, bool)))


def test_spaces_are_inferred_from_observations_and_successors():
    integers = Trajectory([0, 1], [0, 0], [0.0, 0.0], [1, 6], [False] * 2, [False] * 2)
    assert integers.observation_space == spaces.Discrete(7)
    box = Trajectory(**arrays()).observation_space
    assert box == spaces.Box(-np.inf, np.inf, (2,), np.float64)
    assert infer_space({"a": np.array([0, 3]), "b": np.zeros((2, 5))}) == spaces.Dict(
        {"a": spaces.Discrete(4), "b": spaces.Box(-np.inf, np.inf, (5,), np.float64)}
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": [1.0, np.nan, 1.0, 1.0]}, ValueError, r"rewards must be finite: rewards\[1\] is nan"),
        ({"observations": [[0, 0], [0, 0], [0, np.inf], [0, 0]]}, ValueError, r"observations\[2, 1\] is inf"),
        ({"next_observations": [[0, 0], [-np.inf, 0], [0, 0], [0, 0]]}, ValueError, r"ations\[1, 0\] is -inf"),
        ({"rewards": np.ones(3)}, ValueError, "one length"),
        ({"actions": np.ones(5)}, ValueError, "one length"),
        ({"actions": 3}, ValueError, "actions must have shape"),
        ({"rewards": np.ones((4, 1))}, ValueError, r"rewards must have shape \(n,\), got \(4, 1\)"),
        ({"next_observations": np.zeros((4, 3))}, ValueError, r"next_observations must have shape \(B, 2\)"),
        ({"next_observations": np.zeros((3, 2))}, ValueError, "one length"),
        ({"next_observations": {"a": np.zeros((4, 2))}}, TypeError, "next_observations must be one array"),
        ({"observations": [["a", "b"]] * 4}, TypeError, "observations must be numeric"),
        ({"observations": [[1.0], [1.0, 2.0], [1.0], [1.0]]}, ValueError, "observations must be one array"),
        ({"actions": [None] * 4}, TypeError, "actions must be numeric"),
        ({"terminated": [0.5, 0, 0, 0]}, TypeError, "terminated must be boolean"),
        ({"terminated": np.zeros((4, 1), bool)}, ValueError, r"terminated must have shape \(n,\)"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        Trajectory(**arrays(**changes))


def test_an_empty_log_is_refused():
    empty = {name: values[:0] for name, values in arrays().items()}
    with pytest.raises(ValueError, match="trajectory is empty"):
        Trajectory(**empty)
    with pytest.raises(ValueError, match="trajectory is empty"):
        Trajectory([], [], [], [], [], [], observation_space=spaces.Discrete(3))


def test_ids_must_lie_in_a_stated_space_and_be_integers():
    columns = {"actions": [0] * 2, "rewards": [0.0] * 2, "terminated": [False] * 2, "truncated": [False] * 2}
    with pytest.raises(ValueError, match=r"next_observations must lie in Discrete\(3\): next_observations\[1\] is 3"):
        Trajectory(observations=[0, 1], next_observations=[1, 3], observation_space=spaces.Discrete(3), **columns)
    with pytest.raises(ValueError, match=r"observations\[0\] is -1"):
        Trajectory(observations=[-1, 1], next_observations=[1, 2], **columns)
    with pytest.raises(TypeError, match="observations must be integers"):
        Trajectory(observations=[0.0, 1.0], next_observations=[1, 2], observation_space=spaces.Discrete(3), **columns)


def test_nan_inside_a_dictionary_is_named_by_its_path():
    observations = {"a": np.zeros((2, 1)), "b": (np.array([0.0, np.nan]),)}
    with pytest.raises(ValueError, match=r"observations\['b'\]\[0\]\[1\] is nan"):
        Trajectory(observations, [0, 0], [0.0, 0.0], observations, [False] * 2, [False] * 2)


@pytest.mark.parametrize(
    ("observations", "error", "message"),
    [
        ({"x": np.zeros(2)}, TypeError, r"query must be a dict with keys \['a', 'goal/x'\], got \['x'\]"),
        (np.zeros(2), TypeError, "query must be a dict"),
        ({"goal/x": np.zeros(2), "a": np.zeros((2, 2))}, TypeError, r"query\['goal/x'\] must be a tuple of 2"),
        (
            {"goal/x": (np.zeros(3, int), np.zeros((2, 2))), "a": np.zeros((2, 2))},
            ValueError,
            "query: batch lengths disagree",
        ),
    ],
)
def test_batches_of_another_structure_are_refused(observations, error, message):
    with pytest.raises(error, match=message):
        as_batch(observations, SPACES["nested"], "query")


def test_a_single_observation_is_not_a_batch():
    with pytest.raises(ValueError, match=r"must have shape \(B, 3\)"):
        as_batch(np.zeros(3), SPACES["box"], "query")
    with pytest.raises(ValueError, match=r"must have shape \(B,\)"):
        as_batch(3, spaces.Discrete(5), "query")


def test_a_slice_is_cut_at_its_end_without_a_flag():
    trajectory = log(SPACES["box"], 6, env_id="E", policy="p")
    part = trajectory[1:4]
    assert np.array_equal(part.rewards, trajectory.rewards[1:4])
    assert part.episode_ends.tolist() == [False, False, True]
    assert not part.truncated.any()
    assert trajectory.episode_ends.tolist() == [False] * 5 + [True]
    assert (part.env_id, part.policy, part.observation_space) == ("E", "p", SPACES["box"])
    with pytest.raises(ValueError, match=r"slice 4:4 .* is empty"):
        trajectory[4:4]
    with pytest.raises(TypeError, match="slice of step 1"):
        trajectory[::2]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("cut", [1, 3])
def test_append_undoes_a_cut(name, cut):
    trajectory = log(SPACES[name], 5, env_id="E")
    assert same(trajectory[:cut].append(trajectory[cut:]), trajectory)


def test_append_does_not_link_states_that_differ_or_flags():
    trajectory = log(SPACES["box"], 6)
    assert trajectory[:2].append(trajectory[3:]).episode_ends.tolist() == [False, True, False, False, True]
    flagged = Trajectory(**arrays(truncated=np.array([0, 1, 0, 0], bool)))
    assert flagged[:2].append(flagged[2:]).episode_ends.tolist() == [False, True, False, True]


def test_append_refuses_other_worlds_and_fills_in_unknown_names():
    first, second = log(SPACES["box"], 3, env_id="E"), log(SPACES["box"], 3, policy="p")
    joined = first.append(second)
    assert (joined.env_id, joined.policy) == ("E", "p")
    with pytest.raises(ValueError, match="append: env_id differs: 'E' against 'F'"):
        first.append(log(SPACES["box"], 3, env_id="F"))
    with pytest.raises(ValueError, match="append: observation_space differs"):
        first.append(log(spaces.Box(-2.0, 2.0, (3,)), 3))


def test_an_inferred_space_grows_with_the_log_and_gives_way_to_a_stated_one():
    columns = ([0, 0], [0.0, 0.0])
    small = Trajectory([0, 1], *columns, [1, 2], [False] * 2, [False] * 2)
    large = Trajectory([2, 5], *columns, [5, 6], [False] * 2, [False] * 2)
    stated = Trajectory([2, 3], *columns, [3, 1], [False] * 2, [False] * 2, observation_space=spaces.Discrete(9))
    assert small.append(large).observation_space == spaces.Discrete(7)
    assert large.append(small).append(small).observation_space == spaces.Discrete(7)
    assert large[:1].observation_space == spaces.Discrete(7)
    assert small[1:].append(large[1:]).observation_space == spaces.Discrete(7)
    assert small.append(stated).observation_space == spaces.Discrete(9)
    assert stated.append(small).observation_space == spaces.Discrete(9)
    with pytest.raises(ValueError, match="append: observations must have shape"):
        small.append(log(SPACES["box"], 2))


@pytest.mark.parametrize("name", SPACES)
def test_a_file_gives_back_every_space_and_array(name, tmp_path):
    trajectory = log(SPACES[name], 7, env_id='E {"a": 1}', policy=None)
    assert same(Trajectory.load(trajectory.save(tmp_path / "log")), trajectory)
    assert space_from_json(space_to_json(SPACES[name])) == SPACES[name]


def test_a_file_remembers_that_its_space_was_inferred(tmp_path):
    inferred = Trajectory([0, 1], [0, 0], [0.0, 0.0], [1, 2], [False] * 2, [False] * 2)
    loaded = Trajectory.load(inferred.save(tmp_path / "log"))
    larger = Trajectory([0, 1], [0, 0], [0.0, 0.0], [1, 4], [False] * 2, [False] * 2)
    assert loaded.append(larger).observation_space == spaces.Discrete(5)


def test_a_file_keeps_its_whole_name_and_leaves_nothing_beside_it(tmp_path):
    trajectory = log(SPACES["box"], 3)
    assert trajectory.save(tmp_path / "ppo.seed3").name == "ppo.seed3.npz"
    assert trajectory.save(tmp_path / "ppo.npz").name == "ppo.npz"
    assert sorted(os.listdir(tmp_path)) == ["ppo.npz", "ppo.seed3.npz"]
    assert same(Trajectory.load(tmp_path / "ppo.seed3"), trajectory)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    trajectory = log(SPACES["box"], 3)
    path = trajectory.save(tmp_path / "log")
    before = path.read_bytes()

    def fail(file, **_):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError, match="disk full"):
        log(SPACES["box"], 4).save(tmp_path / "log")
    assert os.listdir(tmp_path) == ["log.npz"]
    assert path.read_bytes() == before


def test_files_of_another_kind_are_refused_without_loading_a_pickle(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trajectory file"):
        Trajectory.load(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(ValueError, match="not a trajectory file"):
        Trajectory.load(tmp_path / "text.npz")
    np.savez(tmp_path / "pickle.npz", header=np.array([{"schema_version": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        Trajectory.load(tmp_path / "pickle.npz")
    path = log(SPACES["box"], 3).save(tmp_path / "log")
    with np.load(path) as file:
        stored = dict(file)
    np.savez(
        tmp_path / "future.npz", **{**stored, "header": np.array(str(stored["header"]).replace(": 1,", ": 99,", 1))}
    )
    with pytest.raises(ValueError, match="schema version 99"):
        Trajectory.load(tmp_path / "future.npz")
    del stored["rewards"]
    np.savez(tmp_path / "damaged.npz", **stored)
    with pytest.raises(ValueError, match="rewards"):
        Trajectory.load(tmp_path / "damaged.npz")


def test_spaces_without_arrays_are_refused():
    with pytest.raises(TypeError, match="no array form"):
        space_to_json(spaces.Dict({"a": spaces.Text(5)}))


def test_rows_are_compared_key_by_key_whatever_the_order_of_the_keys():
    first = {"a": np.array([1, 2]), "b": np.zeros((2, 3))}
    second = {"b": np.array([[0, 0, 0], [0, 0, 1]]), "a": np.array([1, 2])}
    assert rows_equal(first, second).tolist() == [True, False]
