"""Run folders and atomic files."""

import csv
import json
import math
import re
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

import icrl_gym
from icrl_gym import runs


def test_default_name_is_environment_time_and_number(tmp_path):
    with runs.run_folder(None, "CartPole-v1", root=tmp_path) as folder:
        pass
    assert re.fullmatch(r"CartPole-v1-\d{8}T\d{6}Z-0", folder.final.name)
    assert list(tmp_path.iterdir()) == [folder.final]


@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "icrl_envs:icrl/BoyanChain-v0", "../../etc", "a b\nc", ".."])
def test_default_name_is_one_safe_path_part(tmp_path, env_id):
    with runs.run_folder(None, env_id, root=tmp_path) as folder:
        pass
    assert folder.final.parent == tmp_path
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-0", folder.final.name)


def test_default_folders_never_collide(tmp_path, monkeypatch):
    class StoppedClock(runs.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(runs, "datetime", StoppedClock)
    names, barrier = [], threading.Barrier(8)

    def run():
        barrier.wait()
        for _ in range(5):
            with runs.run_folder(None, "Env", root=tmp_path) as folder:
                (folder.path / "mark").touch(exist_ok=False)
            names.append(folder.final)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 40
    assert sorted(tmp_path.iterdir()) == sorted(names)
    assert all(path.name.startswith("Env-20260102T030405Z-") for path in names)


def test_the_final_name_appears_only_when_the_run_is_complete(tmp_path):
    with runs.run_folder(tmp_path / "mine", "Env") as folder:
        (folder.path / "file").write_text("x")
        assert not (tmp_path / "mine").exists()
    assert (tmp_path / "mine" / "file").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_run_leaves_no_folder(tmp_path, error):
    def failing_run():
        with runs.run_folder(tmp_path / "mine", "Env") as folder:
            (folder.path / "half").write_text("x")
            raise error("stop")

    with pytest.raises(error):
        failing_run()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "empty", "file", "dangling"])
def test_a_named_folder_must_not_exist(tmp_path, kind):
    taken = tmp_path / "mine"
    {
        "folder": lambda: (taken.mkdir(), (taken / "old").touch()),
        "empty": taken.mkdir,
        "file": taken.touch,
        "dangling": lambda: taken.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with pytest.raises(FileExistsError, match=r"exists already") as caught, runs.run_folder(taken, "Env"):
        pytest.fail("the run started")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_name_that_another_run_is_filling_is_taken(tmp_path):
    with (
        runs.run_folder(tmp_path / "mine", "Env"),
        pytest.raises(FileExistsError, match="another run"),
        runs.run_folder(tmp_path / "mine", "Env"),
    ):
        pytest.fail("the run started")
    assert (tmp_path / "mine").is_dir()


@pytest.mark.parametrize("name", [None, "file/mine"])
def test_a_parent_that_is_a_file_is_refused_in_one_line(tmp_path, name):
    (tmp_path / "file").touch()
    directory = None if name is None else tmp_path / name
    with (
        pytest.raises(OSError, match=r"run_dir: cannot make the folder .*file") as caught,
        runs.run_folder(directory, "Env", root=tmp_path / "file"),
    ):
        pytest.fail("the run started")
    assert "\n" not in str(caught.value)


def test_json_is_standard_and_whole(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"nan": math.nan, "inf": [math.inf, 1.5], "path": Path("x"), "tuple": (1, None), "text": "γ"})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "nan": None, "inf": [None, 1.5], "path": "x", "tuple": [1, None], "text": "γ",
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    runs.write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        runs.write_json(path, {"new": 2, "bad": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_csv_keeps_every_digit(tmp_path):
    path = tmp_path / "a.csv"
    runs.write_csv(path, ("name", "value"), [("a,b", 0.1 + 0.2), ("c", None)])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"name": "a,b", "value": repr(0.1 + 0.2)}, {"name": "c", "value": ""}]
    assert float(rows[0]["value"]) == 0.1 + 0.2


def test_versions_name_python_and_the_packages_that_matter():
    found = runs.versions()
    assert found["python"].startswith("3.")
    assert found["packages"]["icrl-gym"] == icrl_gym.__version__
    assert all(found["packages"][name] for name in ("gymnasium", "torch", "numpy", "stable-baselines3"))


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("init")
    git("commit", "--allow-empty", "-m", "start")
    return package, git


def test_the_commit_is_that_of_the_checkout_which_tracks_the_package(checkout):
    package, git = checkout
    assert runs.source_commit(package) is None  # lies inside a checkout, but is not part of it
    git("add", "package")
    git("commit", "-m", "add")
    assert re.fullmatch("[0-9a-f]{40}", runs.source_commit(package) or "")
    (package / "__init__.py").write_text("changed = True")
    assert re.fullmatch(r"[0-9a-f]{40}\+changes", runs.source_commit(package) or "")


def test_outside_a_checkout_there_is_no_commit(tmp_path):
    (tmp_path / "__init__.py").touch()
    assert runs.source_commit(tmp_path) is None


def test_an_archive_gives_back_its_header_and_its_arrays(tmp_path):
    path = tmp_path / "archive.npz"
    header, arrays = {"name": "Toy-v0", "none": None, "sizes": [1, 2]}, {"a['key'][0]": np.eye(2), "b": np.arange(3)}
    runs.write_archive(path, header, arrays)
    assert list(tmp_path.iterdir()) == [path]
    read_header, read_arrays = runs.read_archive(path)
    assert read_header == header
    assert list(read_arrays) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read_arrays[name], array)
        assert read_arrays[name].dtype == array.dtype


def test_an_archive_without_pickle_holds_no_objects(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        runs.write_archive(tmp_path / "archive.npz", {}, {"a": np.array([{}])})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["text", "cut", "no header", "header of a list", "one bare array"])
def test_a_damaged_archive_is_named(tmp_path, damage):
    path = tmp_path / "archive.npz"
    runs.write_archive(path, {}, {"a": np.arange(1000.0)})
    whole = path.read_bytes()
    if damage in ("text", "cut"):
        path.write_bytes(b"no zip" if damage == "text" else whole[: len(whole) // 2])
    elif damage == "one bare array":
        with open(path, "wb") as file:
            np.save(file, np.arange(3))
    else:
        np.savez(path, a=np.arange(3), **({} if damage == "no header" else {"header": np.array("[1]")}))
    with pytest.raises(ValueError, match=r"archive\.npz is not an archive of arrays that can be read"):
        runs.read_archive(path)


def test_a_missing_archive_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        runs.read_archive(tmp_path / "nowhere.npz")
