"""Parts summed elsewhere: processes, a Ray cluster and a torch.distributed group give the values of one process."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym import workers

HELD = 1536
ROOT = Path(__file__).parents[1]


def make_part(seed, num_stretches=4):
    """Stretches of a smooth walk in a plane."""
    rng, states = np.random.default_rng(seed), np.zeros((num_stretches, 151, 2))
    for step in range(150):
        states[:, step + 1] = 0.95 * states[:, step] + 0.3 * (rng.random((num_stretches, 2)) - 0.5)
    sources, following = states[:, :-1].reshape(-1, 2), states[:, 1:].reshape(-1, 2)
    ended = np.arange(len(sources)) % 150 == 149
    rewards = sources[:, 0] + 0.1 * rng.random(len(sources))
    return icrl.Trajectory(sources, np.zeros(len(sources)), rewards, following, ended, np.zeros_like(ended))


@pytest.fixture
def paths(tmp_path):
    return [make_part(seed).save(tmp_path / f"{seed}.npz") for seed in range(6)]


def values_of(paths, where=None):
    evaluator = icrl.InContextEvaluator.from_pretrained(imagination=False)
    evaluator.fit_parts(paths, 0.95, held=HELD, workers=where)
    assert len(evaluator.trajectory_) == HELD
    return evaluator.predict(make_part(99).observations[:50]).values


def dies_once(marker, path):
    """A part whose first reader after ``marker`` is there dies."""

    def load():
        if marker.exists():
            marker.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return icrl.Trajectory.load(path)

    return load


def place_while_summing(marker):
    """A progress callback that puts the marker down when the sums begin."""
    return lambda name, done, total: marker.touch() if name.startswith("summing") and not done else None


@pytest.mark.parametrize("where", [0, -1, True, 1.5, None, ""])
def test_workers_that_are_none_are_refused(where):
    with pytest.raises((TypeError, ValueError), match="where must be"), icrl.open_workers(where):
        pass


@contextmanager
def backend_that_loses_processes(name, num_workers):
    """Processes that do one call, and then die; they never do the call of 13."""

    def run(function, calls):
        for call in calls[:1]:
            if call[-1] != (13,):
                yield function(*call)
        if len(calls) > 1 or calls[0][-1] == (13,):
            raise ChildProcessError("a worker process died")

    yield run


def test_calls_that_were_not_finished_when_a_process_died_are_made_again(monkeypatch):
    monkeypatch.setattr(workers, "open_backend", backend_that_loses_processes)
    made = []
    with icrl.open_workers(2) as run:
        assert list(run(lambda x: made.append(x) or -x, [(1,), (2,), (3,)])) == [-1, -2, -3]
        assert made == [1, 2, 3]
        with pytest.raises(ChildProcessError, match="workers: 2 calls lost 4 processes"):
            list(run(abs, [(1,), (13,), (3,)]))


def fitted_while_one_dies(tmp_path, paths, where):
    marker = tmp_path / "marker"
    given_parts = [*paths[:3], dies_once(marker, paths[3]), *paths[4:]]
    evaluator = icrl.InContextEvaluator.from_pretrained(imagination=False)
    evaluator.fit_parts(given_parts, 0.95, held=HELD, workers=where, progress=place_while_summing(marker))
    assert not marker.exists()
    return evaluator.predict(make_part(99).observations[:50]).values


@pytest.mark.slow  # starts processes
def test_processes_give_the_same_values_also_where_one_is_killed(tmp_path, paths):
    expected = values_of(paths)
    with icrl.open_workers(2) as opened:
        np.testing.assert_allclose(values_of(paths, opened), expected, rtol=1e-6)
        np.testing.assert_allclose(fitted_while_one_dies(tmp_path, paths, opened), expected, rtol=1e-6)


def check_a_cluster(folder, paths, expected):
    """Run in a process of its own, as Ray reads its variables once."""
    from ray.cluster_utils import Cluster

    node_options = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node_options)
    try:
        cluster.add_node(**node_options)
        with icrl.open_workers(cluster.address) as opened:
            nodes = {node for node, _ in opened(node_of_call, [(number,) for number in range(8)])}
            assert len(nodes) == 2
            np.testing.assert_allclose(values_of(paths, opened), expected, rtol=1e-6)
            np.testing.assert_allclose(fitted_while_one_dies(folder, paths, opened), expected, rtol=1e-6)
    finally:
        cluster.shutdown()


def node_of_call(number):
    """Where a call runs, after long enough for the other node to take one too."""
    import ray

    time.sleep(0.5)
    return ray.get_runtime_context().get_node_id(), number


@pytest.mark.slow  # a real cluster of two nodes
def test_a_ray_cluster_gives_the_same_values_also_where_a_worker_is_killed(tmp_path, paths):
    pytest.importorskip("ray")
    np.save(tmp_path / "expected.npy", values_of(paths))
    code = (
        "import sys, numpy, pathlib, test_workers\nfolder, *paths = map(pathlib.Path, sys.argv[1:])\n"
        "test_workers.check_a_cluster(folder, paths, numpy.load(folder / 'expected.npy'))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "envs", ROOT / "tests"))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # else the cluster writes one into the home folder
    }
    command = [sys.executable, "-c", code, str(tmp_path), *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


RANK = """
import sys, numpy as np, torch, icrl_gym as icrl
address, rank, out, queries, *paths = sys.argv[1:]
torch.distributed.init_process_group("gloo", init_method=address, rank=int(rank), world_size=2)
evaluator = icrl.InContextEvaluator.from_pretrained(imagination=False)
evaluator.fit_parts(paths, 0.95, held={held}, workers="torch.distributed")
np.save(out + rank, evaluator.predict(np.load(queries)).values)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow  # starts two processes
def test_two_processes_of_torch_distributed_give_the_same_values(tmp_path, paths):
    expected = values_of(paths)
    np.save(tmp_path / "queries.npy", make_part(99).observations[:50])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "envs")))}
    arguments = [str(tmp_path / "values"), str(tmp_path / "queries.npy"), *map(str, paths)]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK.format(held=HELD), address, str(rank), *arguments],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"values{rank}.npy"), expected, rtol=1e-6)
