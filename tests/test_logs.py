"""Logs of other people: tables, D4RL's names and Minari's datasets, and what is assumed where they say too little."""

import builtins
import re
import sys
import warnings
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pandas
import polars
import pytest
from gymnasium import spaces

import icrl_gym
from icrl_gym.context.log_files import read_log
from icrl_gym.context.logs.columns import column_mapping
from icrl_gym.context.trajectory import Trajectory


@pytest.fixture(scope="module")
def walked():
    """Several whole episodes of CartPole and a cut one."""
    return icrl_gym.collect("CartPole-v1", "random", num_transitions=90, seed=0)


def table(trajectory, **more):
    """All that a careful person logs, by the names that are looked for."""
    named = {f"obs_{i}": trajectory.observations[:, i] for i in range(trajectory.observations.shape[1])}
    named |= {f"next_obs_{i}": trajectory.next_observations[:, i] for i in range(trajectory.observations.shape[1])}
    flags = {"terminated": trajectory.terminated, "truncated": trajectory.truncated}
    return {**named, "action": trajectory.actions, "reward": trajectory.rewards, **flags, **more}


def assert_same(found, trajectory):
    for name in ("observations", "next_observations", "actions", "rewards", "terminated", "truncated", "episode_ends"):
        np.testing.assert_array_equal(getattr(found, name), getattr(trajectory, name), err_msg=name)


FRAMES = {
    "pandas": lambda columns: pandas.DataFrame(columns),
    "polars": lambda columns: polars.DataFrame(columns),
    "arrow": lambda columns: polars.DataFrame(columns).to_arrow(),
    "arrays": dict,
}


@pytest.mark.parametrize("library", FRAMES)
def test_a_whole_table_is_the_trajectory_that_it_was_made_from(walked, library):
    found = Trajectory.from_frame(FRAMES[library](table(walked)), env_id="CartPole-v1", policy="random")
    assert_same(found, walked)
    assert (found.env_id, found.policy) == ("CartPole-v1", "random")


@pytest.mark.parametrize("library", ["pandas", "polars", "arrow"])
def test_a_column_may_hold_a_vector_per_row(walked, library):
    named = {name: column for name, column in table(walked).items() if "obs_" not in name}
    named |= {"state": list(walked.observations), "next_state": list(walked.next_observations)}
    assert_same(Trajectory.from_frame(FRAMES[library](named)), walked)


def test_columns_of_pandas_own_kinds_and_of_categories():
    frame = pandas.DataFrame(small()).convert_dtypes()
    frame["terminated"] = frame["terminated"].astype("boolean")
    plain, _ = read(small())
    np.testing.assert_array_equal(read(frame)[0].terminated, plain.terminated)
    frame["episode"] = pandas.Categorical(["a"] * 3 + ["b"] * 3)
    assert len(read(frame)[0]) == 5
    frame.loc[2, "reward"] = pandas.NA
    with pytest.raises(ValueError, match="column 'reward' has no value in row 2"):
        read(frame)


def test_neither_pandas_nor_polars_is_imported_by_the_library(walked):
    named = table(walked)
    blocked = dict.fromkeys(("pandas", "polars", "pyarrow", "h5py", "minari"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in blocked.items():
            patch.setitem(sys.modules, name, value)
        assert_same(Trajectory.from_frame(named), walked)


def test_columns_are_mapped_by_name_by_list_and_by_pattern(walked):
    frame = pandas.DataFrame(table(walked)).rename(
        columns={"action": "u", "obs_0": "x", "obs_1": "v", "terminated": "end"}
    )
    frame = frame.rename(columns={"obs_2": "angle", "obs_3": "spin"})
    mapping = {
        "actions": "u", "observations": ["x", "v", "angle", "spin"], "terminated": "end",
        "next_observations": "next_obs_*",
    }  # fmt: skip
    assert_same(Trajectory.from_frame(frame, mapping), walked)


def test_the_command_line_maps_by_pairs_and_by_json():
    pairs = column_mapping(["observations=x,v", "rewards=r"])
    assert pairs == {"observations": ["x", "v"], "rewards": "r"}
    assert column_mapping(['{"observations": ["x", "v"], "rewards": "r"}']) == pairs
    assert column_mapping([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rewards"], "FIELD=COLUMN pairs, got 'rewards'"),
        (["rewards="], "FIELD=COLUMN pairs, got 'rewards='"),
        (["prize=r"], "there is no field 'prize'; fields are observations"),
        (["rewards=r", "rewards=s"], "rewards is stated twice"),
        (["rewards=r,s"], "rewards is one column"),
        (["{nonsense"], "must be a JSON object"),
    ],
)
def test_a_mapping_that_is_none_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        column_mapping(words)


def test_ten_and_more_numbered_columns_come_in_the_order_of_their_numbers():
    columns = {f"obs_{i}": np.full(3, float(i)) for i in reversed(range(12))}
    columns |= {"reward": np.ones(3), "terminated": [False, False, True], "truncated": [False] * 3}
    with pytest.warns(UserWarning, match="next_observations"):
        found = Trajectory.from_frame(columns)
    np.testing.assert_array_equal(found.observations[0], np.arange(12.0))


def small(**more):
    """Two episodes of three rows on a line: the first terminates, the second is stopped by a time limit."""
    return {
        "obs": [0.0, 1.0, 2.0, 0.0, 1.0, 2.0],
        "action": [1] * 6,
        "reward": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "terminated": [0, 0, 1, 0, 0, 0],
        "truncated": [0, 0, 0, 0, 0, 1],
    } | more


def read(columns, **options):
    """The trajectory, and all that was assumed in one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Trajectory.from_frame(columns, **options)
    return found, " | ".join(str(warning.message) for warning in caught)


def without(columns, *names):
    return {name: column for name, column in columns.items() if name not in names}


def test_a_row_that_leads_nobody_knows_where_is_left_out_and_the_one_before_it_ends_the_stretch():
    found, assumed = read(small())
    np.testing.assert_array_equal(found.rewards, [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(found.next_observations.ravel(), [1, 2, 2, 1, 2])
    np.testing.assert_array_equal(found.terminated, [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(found.episode_ends, [0, 0, 1, 0, 1])
    assert not found.truncated.any()
    assert "where a row terminated (1), its own state stands" in assumed
    assert "(1) are left out" in assumed


def test_successors_that_are_missing_at_ends_alone_are_known_elsewhere():
    shifted = [1.0, 2.0, np.nan, 1.0, 2.0, np.nan]  # as pandas' shift(-1) within each episode
    found, _ = read(small(next_obs=shifted))
    np.testing.assert_array_equal(found.next_observations.ravel(), [1, 2, 2, 1, 2])


def test_successors_that_are_the_next_episodes_starts_are_not_believed():
    columns = small(next_obs=[1.0, 2.0, 0.0, 1.0, 2.0, 3.0])  # the third is the start after the reset
    found, assumed = read(columns)
    assert found.next_observations[2] == 2
    assert "not known: where a row terminated (1)" in assumed
    believed, assumed = read(columns | {"next_obs": [1.0, 2.0, 2.5, 1.0, 2.0, 3.0]})
    assert (believed.next_observations[2], assumed) == (2.5, "")


def test_done_alone_is_taken_for_a_true_ending_and_said():
    columns = without(small(done=[0, 0, 1, 0, 0, 1]), "terminated", "truncated")
    found, assumed = read(columns)
    np.testing.assert_array_equal(found.terminated, [0, 0, 1, 0, 0, 1])
    assert "every done is taken for a true ending" in assumed


def test_many_endings_after_the_same_number_of_steps_look_like_a_time_limit():
    done = np.tile([False, False, False, True], 5)
    columns = {"obs": np.arange(20.0), "reward": np.ones(20), "done": done}
    assert "5 of 5 episodes that end do so after exactly 4 steps" in read(columns)[1]
    done[5] = done[9] = True
    assert "exactly" in read(columns)[1]
    done[13] = done[17] = True
    assert "exactly" not in read(columns)[1]


def test_done_with_truncated_tells_terminations():
    columns = without(small(done=[0, 0, 1, 0, 0, 1]), "terminated")
    np.testing.assert_array_equal(read(columns)[0].terminated, [0, 0, 1, 0, 0])


def test_episodes_alone_bring_borders_and_no_ending():
    columns = without(small(episode=["a", "a", "a", "b", "b", "b"]), "terminated", "truncated")
    found, assumed = read(columns)
    np.testing.assert_array_equal(found.rewards, [1, 2, 4, 5])
    np.testing.assert_array_equal(found.episode_ends, [0, 1, 0, 1])
    assert "none is taken to terminate" in assumed


def test_rows_of_several_episodes_may_be_interleaved():
    plain, _ = read(small(episode=[0, 0, 0, 1, 1, 1]))
    mixed = [0, 3, 1, 4, 2, 5]
    shuffled = {name: np.array(column)[mixed] for name, column in small(episode=[0, 0, 0, 1, 1, 1]).items()}
    found, _ = read(shuffled)
    for name in ("observations", "rewards", "next_observations", "terminated", "episode_ends"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_without_any_end_the_log_is_one_stretch():
    found, assumed = read(without(small(), "terminated", "truncated"))
    np.testing.assert_array_equal(found.episode_ends, [0, 0, 0, 0, 1])
    assert "a row is taken to lead to the next" in assumed


def test_ids_stay_ids_and_decimals_become_vectors():
    ids, _ = read(small(obs=[0, 1, 2, 0, 1, 2]))
    assert ids.observation_space == spaces.Discrete(3)
    decimals, _ = read(small())
    assert decimals.observations.shape == (5, 1)
    written, assumed = read(small(action=[1.0, 0.0, 1.0, 2.0, 0.0, 1.0]))
    assert written.actions.dtype.kind == "i"
    assert "taken to be discrete" in assumed
    assert read(small(action=[0.5, 0.0, 1.0, 2.0, 0.0, 1.0]))[0].actions.shape == (5, 1)


def test_probabilities_of_two_policies_give_importance_ratios():
    probabilities = {"target_probability": [0.5] * 6, "behaviour_probability": [0.25, 0.5, 1.0, 0.5, 0.5, 0.5]}
    found, _ = read(small(**probabilities))
    np.testing.assert_array_equal(found.importance_ratios, [2, 1, 0.5, 1, 1])
    assert found.policy == "target"
    rows = np.tile([0.2, 0.8], (6, 1))
    by_action, _ = read(small(target_probability=list(rows), behaviour_probability=list(rows[:, ::-1])))
    np.testing.assert_allclose(by_action.importance_ratios, 4.0)


REFUSED = {
    "no rewards": (without(small(), "reward"), "no column of rewards among obs, action"),
    "no observations": (without(small(), "obs"), "say which it is: columns={'observations': ...}"),
    "words": (small(obs=["left"] * 6), "column 'obs' must hold numbers or vectors of numbers: row 0 is 'left'"),
    "a gap": (small(reward=[1.0, None, 1.0, 1.0, 1.0, 1.0]), "column 'reward' has no value in row 1"),
    "a ragged column": (small(obs=[[1.0, 2.0]] * 5 + [[1.0]]), "vectors of one length, (2,): row 5 has (1,)"),
    "another length": (small(reward=[1.0]), "all fields must have one length"),
    "no row": ({"obs": [], "reward": []}, "holds no transition"),
    "a flag of two": (small(terminated=[0, 0, 2, 0, 0, 0]), "terminated must be True, False, 1 or 0"),
    "times": (small(obs=np.array(["2026-01-01"] * 6, dtype="datetime64[D]")), "holds times, not numbers"),
    "one probability": (small(target_probability=[0.5] * 6), "needs behaviour_probability beside it"),
    "impossible": (small(target_probability=[0.5] * 6, behaviour_probability=[0.0] * 6), "row 0 has 0"),
    "no probability": (small(target_probability=[1.5] * 6, behaviour_probability=[1] * 6), "must lie in [0, 1]"),
    "other successors": (small(next_obs=[[1.0, 2.0]] * 6), "must have the shape of observations"),
    "nothing left": ({"obs": [1.0], "reward": [1.0]}, "no row is left"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case):
    columns, message = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Trajectory.from_frame(columns)
    assert "\n" not in str(caught.value)


def test_a_mapped_column_that_is_not_there_has_a_neighbour_named():
    with pytest.raises(ValueError, match="did you mean 'reward'"):
        Trajectory.from_frame(small(), {"rewards": "rewrad"})
    with pytest.raises(TypeError, match="got int"):
        Trajectory.from_frame(3)


def written(walked, folder, suffix):
    frame, path = pandas.DataFrame(table(walked)), folder / f"log{suffix}"
    if suffix == ".csv":
        frame.to_csv(path)  # with pandas' index, a column without a name
    elif suffix == ".parquet":
        frame.to_parquet(path)
    elif suffix == ".npz":
        walked.save(path)
    else:
        with h5py.File(path, "w") as file:
            named = {"terminals": walked.terminated, "timeouts": walked.truncated, "actions": walked.actions}
            named |= {"observations": walked.observations, "next_observations": walked.next_observations}
            for name, array in {**named, "rewards": walked.rewards, "infos/qpos": np.zeros(90)}.items():
                file[name] = array
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".hdf5", ".h5"])
def test_files_are_read_by_their_ending(walked, tmp_path, suffix):
    log = read_log(written(walked, tmp_path, suffix))
    np.testing.assert_allclose(log.trajectory.observations, walked.observations, rtol=1e-6)
    for name in ("actions", "rewards", "terminated", "truncated", "episode_ends"):
        np.testing.assert_array_equal(getattr(log.trajectory, name), getattr(walked, name))
    assert log.assumptions == ()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_text_tables_of_several_kinds(tmp_path, delimiter):
    lines = [["obs", "action", "reward", "terminated", "truncated"]]
    lines += [["[0.5, 1.5]", "0", "1", "False", "false"], ["[1 2]", "1", "1.5", "TRUE", "0"]]
    text = "\n".join(delimiter.join(f'"{cell}"' for cell in line) for line in lines)
    (tmp_path / "log.csv").write_text("\ufeff" + text + "\n\n", encoding="utf-8")
    found = read_log(tmp_path / "log.csv").trajectory
    np.testing.assert_array_equal(found.observations, [[0.5, 1.5], [1, 2]])
    np.testing.assert_array_equal(found.terminated, [False, True])
    assert found.actions.dtype.kind == "i"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a line per transition"),
        ("obs,reward\n", "a line per transition"),
        ("0.1,0.2\n0.3,0.4\n", "the first line must name the columns"),
        ("obs,obs\n0.3,0.4\n", "got 'obs' twice"),
        ("obs,reward\n0.3,0.4\n1\n", "row 3 has 1 cells, the first has 2"),
    ],
)
def test_text_that_is_no_table_is_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_log(tmp_path / "log.csv")


def test_files_that_are_not_what_their_ending_says(tmp_path):
    for suffix, message in ((".parquet", "not a parquet file"), (".hdf5", "not an HDF5 file"), (".npz", "not a traj")):
        (tmp_path / f"log{suffix}").write_text("something else")
        with pytest.raises(ValueError, match=message) as caught:
            read_log(tmp_path / f"log{suffix}")
        assert f"log{suffix}" in str(caught.value)
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(ValueError, match=r"must be \.npz, \.csv, \.parquet, \.hdf5, \.h5 or minari:DATASET"):
        read_log(tmp_path / "log.txt")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_log(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="fields of its own"):
        read_log("minari:any/thing-v0", {"rewards": "r"})


@pytest.mark.parametrize(
    ("source", "package"), [("log.parquet", "pyarrow"), ("log.hdf5", "h5py"), ("minari:some/thing-v0", "minari")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, source, package):
    (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
    if not source.startswith("minari"):
        (tmp_path / source).write_text("")
        source = str(tmp_path / source)
    real = builtins.__import__

    def without_package(name, *arguments, **options):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_package)
    with pytest.raises(ImportError, match=rf"needs {package}: pip install 'icrl-gym\[logs\]'"):
        read_log(source)


def test_d4rls_optional_names_may_be_absent(walked):
    full = {"observations": walked.observations, "actions": walked.actions, "rewards": walked.rewards}
    full |= {
        "terminals": walked.terminated,
        "timeouts": walked.truncated,
        "next_observations": walked.next_observations,
    }
    assert_same(Trajectory.from_d4rl(full | {"metadata/algorithm": "none"}), walked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = Trajectory.from_d4rl({name: full[name] for name in ("observations", "actions", "rewards", "terminals")})
    assert len(found) == len(walked) - 1  # the last episode is cut: its last row leads nobody knows where
    assert len(caught) == 4


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.filterwarnings("ignore:::minari")
def test_a_minari_dataset_survives_the_way_there_and_back(walked, minari_folder):
    walked.to_minari("test/walked-v0", spaces.Discrete(2), env="CartPole-v1")
    found = Trajectory.from_minari("test/walked-v0")
    assert_same(found, walked)
    assert found.env_id == "CartPole-v1"
    assert found.observation_space == gymnasium.make("CartPole-v1").observation_space
    log = read_log("minari:test/walked-v0")
    assert_same(log.trajectory, walked)
    assert log.assumptions == ()


@pytest.mark.filterwarnings("ignore:::minari")
def test_minaris_structured_observations_keep_their_structure(minari_folder):
    space = spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "room": spaces.Discrete(3)})
    states = {"place": np.linspace(0, 1, 10, dtype=np.float32).reshape(5, 2), "room": np.array([0, 1, 2, 1, 0])}
    before, after = ({key: leaf[rows] for key, leaf in states.items()} for rows in (slice(-1), slice(1, None)))
    made = Trajectory(
        before, np.zeros((4, 1), np.float32), np.ones(4), after, [False] * 3 + [True], [False] * 4,
        observation_space=space,
    )  # fmt: skip
    found = Trajectory.from_minari(made.to_minari("test/rooms-v0"))
    for key in states:
        np.testing.assert_array_equal(found.observations[key], before[key])
        np.testing.assert_array_equal(found.next_observations[key], after[key])
    assert found.observation_space == space


@pytest.mark.filterwarnings("ignore:::minari")
def test_a_minari_dataset_that_is_not_here_is_not_downloaded(walked, minari_folder):
    with pytest.raises(FileNotFoundError, match=r"there is none here.*minari download D4RL/door/human-v2"):
        Trajectory.from_minari("D4RL/door/human-v2")
    with pytest.raises(ValueError, match="to_minari needs the logged actions"):
        Trajectory(np.zeros(2), None, np.ones(2), np.zeros(2), [0, 1], [0, 0]).to_minari("test/none-v0")
    with pytest.raises(TypeError, match="must be a MinariDataset"):
        Trajectory.from_minari(Path("x"))
