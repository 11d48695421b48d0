"""The guard: what compiling takes and what is free, and contexts that get landmarks or are refused by it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator import heads, memory, mixture
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.setting import Setting

LANDMARKS = {"landmarks": 512, "forgetting": 1e-7}


@pytest.fixture
def short_contexts_are_guarded(monkeypatch):
    monkeypatch.setattr(memory, "MOST_SOURCES", 100)
    monkeypatch.setattr(heads, "MOST_SOURCES", 100)
    monkeypatch.setattr(heads, "NUM_LANDMARKS", 30)


def walk(num_rows):
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.normal(size=(num_rows + 1, 2)), axis=0)
    never = np.zeros(num_rows, dtype=bool)
    return icrl.Trajectory(states[:-1], never.astype(int), rng.normal(size=num_rows), states[1:], never, never)


def only(monkeypatch, num_bytes):
    monkeypatch.setattr(memory, "available_memory", lambda: num_bytes)


@pytest.mark.usefixtures("short_contexts_are_guarded")
def test_a_context_that_does_not_fit_gets_landmarks_and_says_so(monkeypatch):
    log, only_landmarks = walk(600), icrl.InContextEvaluator()
    with monkeypatch.context() as small:
        only(small, 10_000_000)
        warned = only_landmarks.fit(log, 0.9).predict(log.observations[:3]).diagnostics
    assert only_landmarks.compiled_.members[0].setting.landmarks > 0
    said = "600 transitions with every source as a key need about 0.023 GB, 0.01 GB are free: 73 landmarks are the keys"
    assert any(said in note for note in warned.warnings)
    only(monkeypatch, 100_000_000)
    plenty = icrl.InContextEvaluator().fit(log, 0.9)
    assert not plenty.compiled_.members[0].setting.landmarks
    assert not any("free" in note for note in plenty.predict(log.observations[:3]).diagnostics.warnings)


@pytest.mark.usefixtures("short_contexts_are_guarded")
@pytest.mark.parametrize("options", [{"averaging": 0.5}, {"forgetting": 0.0}], ids=str)
@pytest.mark.parametrize("name", ["generalist", "constructed"])
def test_a_context_that_fits_no_way_is_refused_with_the_figure(monkeypatch, name, options):
    only(monkeypatch, 10_000_000)
    evaluator = icrl.InContextEvaluator.from_pretrained(name, **options)
    said = r"context: 600 transitions with every source as a key need about [.\d]+ GB, 0.01 GB are free, of which 80%"
    with pytest.raises(ValueError, match=said + " may be taken; give a shorter context, or a setting with landmarks"):
        evaluator.fit(walk(600), 0.9)


@pytest.mark.usefixtures("short_contexts_are_guarded")
def test_landmarks_that_do_not_fit_are_refused(monkeypatch):
    only(monkeypatch, 100_000)
    with pytest.raises(ValueError, match=r"context: 600 transitions need about .* give a shorter context$"):
        icrl.InContextEvaluator().fit(walk(600), 0.9)


def test_what_cannot_be_told_is_not_guarded(monkeypatch):
    prompt, wanted = Prompt.from_trajectory(walk(1100), 0.9), (Setting(),)
    for free, device in ((None, "cpu"), (1, "meta")):
        only(monkeypatch, free)
        assert memory.heads_that_fit(prompt, wanted, device, torch.float64) == memory.FittingHeads(wanted)
    only(monkeypatch, 1)
    short = Prompt.from_trajectory(walk(1000), 0.9)
    assert memory.heads_that_fit(short, wanted, "cpu", torch.float64) == memory.FittingHeads(wanted)


@pytest.mark.usefixtures("short_contexts_are_guarded")
def test_a_single_head_says_when_its_length_alone_gives_it_landmarks(monkeypatch):
    monkeypatch.setattr(mixture, "MOST_SOURCES_ALONE", 500)
    log = walk(600)
    estimates = icrl.InContextEvaluator().fit(log, 0.9).predict(log.observations[:3])
    said = "above 500 transitions not every state is a key: 73 landmarks cover the 600 of this context"
    assert said in estimates.diagnostics.warnings
    streamed = icrl.InContextEvaluator(features=None).fit(log, 0.9).update(walk(20))
    assert any("not every state" in note for note in streamed.predict(log.observations[:3]).diagnostics.warnings)


def test_free_memory_is_the_least_of_the_machines_and_the_groups(monkeypatch, tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    group = groups / "a" / "b"
    group.mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", groups)
    (proc / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  5000 kB\n")
    assert memory.available_memory() == 5000 * 1024
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    limit(group, "max", 10, 0)
    assert memory.available_memory() == 5000 * 1024
    limit(groups / "a", "3000000", 1_000_000, 500_000)  # the limit of a group above holds as well
    assert memory.available_memory() == 2_500_000
    limit(group, "1000", 2000, 0)
    assert memory.available_memory() == 0


def limit(folder, most, used, cache):
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\ninactive_file {cache}\n")


def test_free_memory_of_the_first_version_of_control_groups(monkeypatch, tmp_path):
    proc, folder = tmp_path / "proc", tmp_path / "cgroup" / "memory" / "job"
    (proc / "self").mkdir(parents=True)
    folder.mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    (proc / "meminfo").write_text("MemAvailable:  5000 kB\n")
    (proc / "self" / "cgroup").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    for name, words in (("limit_in_bytes", "900"), ("usage_in_bytes", "500"), ("stat", "total_inactive_file 20")):
        (folder / f"memory.{name}").write_text(words)
    assert memory.available_memory() == 420


def test_memory_grows_with_the_square_of_a_context_only_where_every_source_is_a_key():
    short, long = (Prompt.from_trajectory(walk(n), 0.9) for n in (5_000, 10_000))
    dense, few = (Setting(),), (Setting(**LANDMARKS),)
    assert memory.needed_memory(long, dense) / memory.needed_memory(short, dense) == pytest.approx(4, rel=0.01)
    assert memory.needed_memory(long, few) < 1.1 * memory.needed_memory(short, few)
    assert memory.needed_memory(long, dense, torch.float32) == pytest.approx(memory.needed_memory(long, dense) / 2)
    mixed = memory.needed_memory(long, (replace(HEADS[0], landmarks=512), *HEADS[2:]))
    assert memory.needed_memory(long, few) < mixed < 3 * memory.needed_memory(long, few)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
@pytest.mark.parametrize(
    ("kind", "num_transitions", "num_features", "options"),
    [
        *(("one", n, 4, {}) for n in (1_000, 2_000, 4_000, 8_000)),
        ("one", 4_000, 4, {"trace_decay": 0.9}),
        ("one", 2_500, 4, {"forgetting": 0.0}),
        ("generalist", 1_500, 4, {"averaging": 0.5}),
        ("generalist", 2_500, 4, {"averaging": 0.5}),
        *(("one", n, 4, LANDMARKS) for n in (10_000, 50_000)),
        ("one", 10_000, 4, LANDMARKS | {"landmarks": 1_500}),
        ("one", 300_000, 17, LANDMARKS | {"relevance": "returns", "trace_decay": 0.9}),
        *(("generalist", n, 4, {}) for n in (2_000, 10_000, 50_000)),
    ],
)
def test_the_peak_is_predicted_within_30_percent(kind, num_transitions, num_features, options):
    script = Path(__file__).parent / "measured_memory.py"
    command = [sys.executable, str(script), kind, str(num_transitions), str(num_features), json.dumps(options)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parents[1])
    predicted, measured = map(int, run.stdout.split())
    assert predicted == pytest.approx(measured, rel=0.3)
