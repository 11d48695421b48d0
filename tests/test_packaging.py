"""The wheel alone beside the tested dependencies: built from a copy, installed into an empty folder, used elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "icrl_gym", "envs")


def run(*command, cwd, **environment):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the setuptools at hand from a copy, so that the work tree stays as it is."""
    copy, dist = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "-w", dist, copy, cwd=dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder that holds the unpacked wheel and nothing else."""
    target = tmp_path_factory.mktemp("target")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel, cwd=target)
    return target


def ask(installed, tmp_path, code):
    """Run code in an empty folder with the installed wheel in front of everything else; its printed JSON."""
    empty = tmp_path / "empty"
    empty.mkdir()
    return json.loads(run(sys.executable, "-c", f"import json\n{code}", cwd=empty, PYTHONPATH=str(installed)))


def test_the_wheel_holds_two_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"icrl_gym", "icrl_envs"}
    assert {"icrl_gym/py.typed", "icrl_envs/py.typed"} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)
    for package, folder in (("icrl_gym", ROOT / "icrl_gym"), ("icrl_envs", ROOT / "envs" / "icrl_envs")):
        modules = {f"{package}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules <= set(names)


def test_the_library_and_its_environments_work_from_an_empty_folder(installed, tmp_path):
    found = ask(
        installed,
        tmp_path,
        "import gymnasium, icrl_envs, icrl_gym\n"
        "trajectory = icrl_gym.collect('icrl_envs:icrl/BoyanChain-v0', 'random', num_transitions=64, seed=0)\n"
        "fitted = icrl_gym.make_estimator('constructed').fit(trajectory, gamma=0.9)\n"
        "estimates = fitted.predict(trajectory.observations)\n"
        "print(json.dumps([icrl_gym.__file__, icrl_envs.__file__, len(estimates)]))",
    )
    assert found == [str(installed / "icrl_gym/__init__.py"), str(installed / "icrl_envs/__init__.py"), 64]


def test_weights_travel_with_their_cards(installed, tmp_path):
    found = ask(
        installed,
        tmp_path,
        "import safetensors.torch, pathlib, icrl_gym\n"
        "folder = pathlib.Path(icrl_gym.__file__).parent / 'checkpoints'\n"
        "weights = {p.stem: len(safetensors.torch.load_file(p)) for p in folder.glob('*.safetensors')}\n"
        "cards = {p.stem: json.loads(p.read_text()) for p in folder.glob('*.json')}\n"
        "print(json.dumps([weights, cards]))",
    )
    weights, cards = found
    assert weights
    assert all(weights.values())
    assert set(weights) <= set(cards)


def test_the_demo_policy_loads_from_the_wheel(installed, tmp_path):
    code = (
        "import numpy, icrl_gym\n"
        "model = icrl_gym.load_demo_policy()\n"
        "action, _ = model.predict(numpy.zeros((1, 4), dtype=numpy.float32), deterministic=True)\n"
        "print(json.dumps([type(model).__name__, int(action[0])]))"
    )
    name, action = ask(installed, tmp_path, code)
    assert name == "PPO"
    assert action in (0, 1)


def test_the_command_is_installed_and_knows_its_checkpoints(installed, tmp_path):
    code = (
        "import contextlib, io\n"
        "from importlib.metadata import distribution\n"
        "(entry,) = distribution('icrl-gym').entry_points.select(group='console_scripts')\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    code = entry.load()(['info', '--json'])\n"
        "print(json.dumps([entry.name, code, json.loads(out.getvalue())]))"
    )
    name, code, info = ask(installed, tmp_path, code)
    assert (name, code) == ("icrl-gym", 0)
    assert info["checkpoints"]
    assert "constructed" in info["estimators"]


def test_the_offline_page_is_made_from_the_wheel(installed, tmp_path):
    code = """
import icrl_gym
from icrl_gym.scoring.document import Section, html_page
page = html_page([Section("A", ("b",))], "T", "s")
print(json.dumps([page.startswith("<!doctype html>"), icrl_gym.__file__]))
"""
    starts, place = ask(installed, tmp_path, code)
    assert starts
    assert place.startswith(str(installed))
