"""Sweeps whose workers, nodes or main process are killed with SIGKILL, on real processes and a real Ray cluster."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from icrl_gym.benchmark import load_records, runner
from icrl_gym.benchmark.backends import open_backend
from icrl_gym.cli import main

# An estimator package outside this one: it says what it does in a file that all processes append to.
PLUGIN = """
import hashlib, os, sys, time
from icrl_gym import make_estimator


class Telling:
    seconds = 0.0

    def __init__(self):
        self.inner, self.num_predictions = make_estimator("lstd"), 0

    def tell(self, event):
        ray = sys.modules.get("ray")
        node = ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else "-"
        line = f"{event} {type(self).__name__} {self.context} {os.getpid()} {node}\\n"
        with open(os.environ["TOLD"], "ab", buffering=0) as file:
            file.write(line.encode())

    def fit(self, trajectory, gamma, policy=None):
        self.context = hashlib.sha256(trajectory.observations.tobytes()).hexdigest()[:8]
        self.tell("fit")
        time.sleep(self.seconds)
        self.inner.fit(trajectory, gamma)
        return self

    def predict(self, observations):
        self.num_predictions += 1
        if self.num_predictions == 2:  # at the start states, the last thing before the record
            self.tell("done")
        return self.inner.predict(observations)


class Quick(Telling):
    pass


class Slow(Telling):
    seconds = 0.6
"""
ENTRY_POINTS = "[icrl_gym.estimators]\nquick = telling:Quick\nslow = telling:Slow\n"
SWEEP = """
from pathlib import Path
from icrl_gym.benchmark import runner
from icrl_gym.configuration import BenchmarkConfig
runner.run_benchmark(BenchmarkConfig(
    out=Path({out!r}), estimators=("quick", "slow"), context_lengths=(64,), seeds=(0, 1, 2),
    num_queries=4, num_rollouts=2, {options}
))
"""
NUM_JOBS = 6  # two tasks, three seeds; each has a quick and a slow cell


@dataclass(frozen=True)
class Event:
    kind: str
    estimator: str
    context: str
    pid: int
    node: str


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The file of events, with the outside package on the path of every process started from here."""
    package = tmp_path / "package"
    (package / "telling-1.0.dist-info").mkdir(parents=True)
    (package / "telling.py").write_text(PLUGIN)
    (package / "telling-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (package / "telling-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: telling\nVersion: 1.0\n")
    source = Path(runner.__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (package, source, source / "envs"))))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else the cluster writes one into the home folder
    return tmp_path / "told"


def start_sweep(out, options):
    code = SWEEP.format(out=str(out), options=options)
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)


def events(told):
    lines = told.read_text().splitlines() if told.exists() else []
    return [Event(kind, name, context, int(pid), node) for kind, name, context, pid, node in map(str.split, lines)]


def wait_for_slow_fit(told, sweep, after=0, wanted=lambda event: True):
    """The next slow fit that begins; what begins is seen within a tenth of its time."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert sweep.poll() is None, sweep.stderr.read()
        for event in events(told)[after:]:
            if (event.kind, event.estimator) == ("fit", "Slow") and wanted(event):
                return event
        time.sleep(0.02)
    raise AssertionError("no slow fit began")


def written(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "records").glob("*.json")}


def fits(told):
    return [(event.estimator, event.context) for event in events(told) if event.kind == "fit"]


@pytest.mark.slow  # half a minute of starting processes
@pytest.mark.parametrize("victim", ["sweep", "worker"])
def test_a_killed_sweep_of_one_machine_goes_on_where_it_stopped(tmp_path, told, victim):
    jobs = f"jobs={1 if victim == 'sweep' else 2}"
    sweep = start_sweep(tmp_path / "run", jobs)
    first = wait_for_slow_fit(told, sweep)
    event = wait_for_slow_fit(told, sweep, wanted=lambda e: e.pid == first.pid and e.context != first.context)
    if victim == "worker":
        os.kill(event.pid, signal.SIGKILL)
        assert sweep.wait(30) != 0
        assert "ChildProcessError: a worker process died; finished cells are kept" in sweep.stderr.read()
    else:
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait(30)
    sweep.stderr.close()
    kept, num_fits = written(tmp_path / "run"), len(fits(told))
    assert 3 <= len(kept) < 2 * NUM_JOBS
    again = start_sweep(tmp_path / "run", jobs)
    assert again.communicate(timeout=240)[1] == ""
    assert kept.items() <= written(tmp_path / "run").items()
    assert len(fits(told)) == num_fits + 2 * NUM_JOBS - len(kept)
    assert [record.error for record in load_records(tmp_path / "run")] == [None] * (2 * NUM_JOBS)


@pytest.mark.slow  # and sensitive to load: Ray takes a node that is late for dead
def test_a_ray_sweep_survives_the_death_of_a_worker_and_of_a_node(tmp_path, told):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    node_options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node_options)
    sweep = None
    try:
        second = cluster.add_node(**node_options)
        options = f'backend="ray", address={cluster.address!r}'
        sweep = start_sweep(tmp_path / "run", options)
        worker = wait_for_slow_fit(told, sweep, wanted=lambda e: e.node != second.node_id)
        os.kill(worker.pid, signal.SIGKILL)
        seen = len(events(told))
        on_node = wait_for_slow_fit(told, sweep, after=seen, wanted=lambda e: e.node == second.node_id)
        os.kill(on_node.pid, signal.SIGKILL)
        cluster.remove_node(second, allow_graceful=False)
        kept = written(tmp_path / "run")
        assert "Error" not in sweep.communicate(timeout=240)[1]
        assert sweep.returncode == 0
        assert len(kept) < 2 * NUM_JOBS
        assert kept.items() <= written(tmp_path / "run").items()
        assert [record.error for record in load_records(tmp_path / "run")] == [None] * (2 * NUM_JOBS)
        begun = Counter(fits(told))
        done = Counter((event.estimator, event.context) for event in events(told) if event.kind == "done")
        assert len(done) == 2 * NUM_JOBS
        assert set(done.values()) == {1}  # no cell was finished twice
        assert begun - done == Counter([("Slow", worker.context), ("Slow", on_node.context)])
    finally:
        if sweep is not None:
            sweep.kill()
            sweep.communicate()
        cluster.shutdown()


def test_without_ray_the_error_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["benchmark", "--backend", "ray", "--out", str(tmp_path)]) == 2
    assert 'backend "ray" needs an extra: pip install "icrl-gym[ray]"' in capsys.readouterr().err
    assert not list(tmp_path.glob("records/*"))


def test_an_address_where_nothing_listens_is_an_error_at_once(tmp_path, capsys):
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(["benchmark", "--backend", "ray", "--address", address, "--out", str(tmp_path)]) == 2
    assert f"address: nothing answers at '{address}'" in capsys.readouterr().err


def test_joblib_yields_every_result():
    with open_backend("joblib", 2) as run:
        assert sorted(run(pow, [(2, 3), (3, 2), (5, 1)])) == [5, 8, 9]


def test_what_a_job_raises_is_not_swallowed():
    with open_backend("joblib", 1) as run, pytest.raises(TypeError):
        list(run(pow, [("a", "b")]))
