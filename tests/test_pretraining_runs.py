"""Pretraining end to end on tiny tasks: the same weights however often it was interrupted, and what is left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import FEW, SMALL, not_to_be_called

from icrl_gym import cli
from icrl_gym.evaluator.checkpoint import load_checkpoint
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS
from icrl_gym.pretraining import pretrain, run, shards
from icrl_gym.pretraining.prior import FAMILIES, sample_tasks
from icrl_gym.pretraining.shards import load_shards

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FLAGS = [
    "--shards=4", "--validation-shards=2", "--tasks-per-shard=2", "--lengths", "24", "0.5", "32", "0.5",
    "--num-queries=6", "--heads", "0", "1", "2", "--batch-size=8", "--width=8", "--no-tensorboard",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("pretrain") / "run"
    pretrain(replace(SMALL, out=out))
    return out


@pytest.fixture
def solved(finished, tmp_path):
    """A folder with the shards of that run, and nothing trained."""
    out = tmp_path / "run"
    for part in ("train", "validation"):
        shutil.copytree(finished / part, out / part)
    return out


def weights(path):
    return {name: tensor.numpy() for name, tensor in load_file(path).items()}


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def state_file(out):
    (path,) = out.glob("training-*/spread.pt")
    return path


def test_examples_are_in_units_of_the_first_head(finished):
    examples = load_shards(sorted((finished / "train").iterdir()))
    count = len(examples)
    assert examples.values.shape == (count, len(FEW), 6)
    assert examples.statistics.shape == (count, len(STATISTICS))
    assert examples.query_statistics.shape == (count, 6, len(QUERY_STATISTICS))
    assert set(examples.length) <= {24, 32}
    assert all(np.isfinite(getattr(examples, field.name)).all() for field in fields(examples))
    family = str(np.array(list(FAMILIES))[examples.family[0]])
    length = int(examples.length[0])
    batch = sample_tasks(family, num_tasks=4, num_transitions=length, num_queries=6, seed=(0, 0))
    in_rewards = examples.constant[:, None] + examples.scale[:, None] * examples.truth
    truth = (batch.values[0] + batch.values_second[0]).double().numpy() / 2
    np.testing.assert_allclose(in_rewards[0], truth, rtol=1e-4, atol=1e-5)


def test_a_second_call_makes_no_shard_and_takes_no_step(finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    expected = weights(out / "generalist.safetensors")
    (out / "generalist.safetensors").unlink()
    monkeypatch.setattr(shards, "sample_tasks", not_to_be_called)
    monkeypatch.setattr(torch.optim.AdamW, "step", not_to_be_called)
    assert_same_weights(weights(pretrain(replace(SMALL, out=out))), expected)


@pytest.mark.parametrize(("part", "step"), [("drawing", 3), ("training", 100), ("training", 200)])
def test_an_interrupted_run_goes_on_to_the_same_weights(part, step, finished, solved):
    def interrupt(doing, done, total):
        if part in doing and done == step:
            raise KeyboardInterrupt

    if part == "drawing":
        shutil.rmtree(solved)
    config = replace(SMALL, out=solved)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, interrupt)
    assert not (solved / "generalist.safetensors").exists()
    assert_same_weights(weights(pretrain(config)), weights(finished / "generalist.safetensors"))
    one, other = (torch.load(state_file(out), weights_only=True) for out in (solved, finished))
    assert one["history"] == other["history"]
    for key in ("network", "average"):
        assert all(torch.equal(one[key][tensor], other[key][tensor]) for tensor in one[key])


def run_script(code, folder, *arguments, launcher=()):
    """A script in a process of its own."""
    script = folder / "script.py"
    script.write_text("import os, signal, sys\nfrom pathlib import Path\n" + code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_a_killed_run_goes_on_to_the_same_weights(finished, solved, tmp_path):
    code = """
import tyro
from icrl_gym.configuration import PretrainConfig
from icrl_gym.pretraining import pretrain
def kill(part, done, total):
    if "training" in part:
        os.kill(os.getpid(), signal.SIGKILL)
pretrain(tyro.cli(PretrainConfig), kill)
"""
    killed = run_script(code, tmp_path, "--out", solved, "--steps", 200, *FLAGS)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(state_file(solved), weights_only=True)["step"] == 100
    assert_same_weights(weights(pretrain(replace(SMALL, out=solved))), weights(finished / "generalist.safetensors"))


def test_the_card_tells_what_was_trained(finished):
    model, card = load_checkpoint(finished / "generalist.safetensors")
    told = card.training
    assert model.heads == FEW
    assert told["settings"]["steps"] == 200
    assert "out" not in told["settings"]
    assert told["families"] == {name: family.weight for name, family in FAMILIES.items()}
    assert told["tasks"] == len(load_shards(sorted((finished / "train").iterdir())))
    assert set(told["validation"]) == {*FAMILIES, "all"}
    assert told["best_step"] <= told["steps"] == 200
    assert told["known_limits"]


def test_the_card_names_the_commit_of_the_training_not_of_the_writing(finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    _, before = load_checkpoint(out / "generalist.safetensors")
    monkeypatch.setattr(run, "versions", lambda: {"commit": "later"})
    pretrain(replace(SMALL, out=out))
    assert load_checkpoint(out / "generalist.safetensors")[1].training == before.training
    pretrain(replace(SMALL, out=out, steps=100))
    assert load_checkpoint(out / "generalist.safetensors")[1].training["commit"] == "later"


def test_training_leaves_the_untrained_network(finished):
    model, card = load_checkpoint(finished / "generalist.safetensors")
    assert card.training["best_step"] > 0
    assert any(parameter.any() for parameter in model.spread.network[-1].parameters())


def test_the_global_generator_is_left_alone(solved):
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    pretrain(replace(SMALL, out=solved, steps=5, tensorboard=False))
    assert torch.equal(torch.get_rng_state(), expected)


def test_bfloat16_trains_other_weights_to_nearly_the_same_loss(solved):
    losses = []
    for bf16 in (False, True):
        pretrain(replace(SMALL, out=solved, steps=100, bf16=bf16, tensorboard=False))
        (state,) = [
            torch.load(path, weights_only=True)
            for path in sorted(solved.glob("training-*/spread.pt"), key=lambda path: path.stat().st_mtime_ns)[-1:]
        ]
        losses.append(state["history"][-1][2])
    assert len(list(solved.glob("training-*"))) == 2
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_shards_of_other_heads_are_refused_although_nothing_says_whose_they_are(solved):
    with pytest.raises(ValueError, match=r"out: .* holds shards of 3 heads, not 2"):
        pretrain(replace(SMALL, out=solved, heads=(0, 1)))


def test_other_settings_train_again_on_the_same_shards(finished, tmp_path, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    monkeypatch.setattr(shards, "sample_tasks", not_to_be_called)
    before = weights(out / "generalist.safetensors")
    after = weights(pretrain(replace(SMALL, out=out, learning_rate=1e-3, steps=100)))
    assert any((before[name] != after[name]).any() for name in before)
    assert len(list(out.glob("training-*"))) == 2


@pytest.mark.parametrize("name", ["shard", "state", "examples"])
def test_a_damaged_file_is_named(name, finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    paths = {
        "shard": out / "train" / "shard00001.npz",
        "state": state_file(out),
        "examples": out / "examples.json",
    }
    path = paths[name]
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=re.escape(str(path))):
        pretrain(replace(SMALL, out=out))


def test_the_command_prints_the_checkpoint_and_shows_the_time_left(finished, solved, tmp_path, capsys):
    target = tmp_path / "there" / "mine.safetensors"
    flags = ["--out", str(solved), "--steps", "200", *FLAGS]
    assert cli.main(["pretrain", "--checkpoint", str(target), *flags]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}\n"
    assert re.search(r"training the error bars .*200/200 \d:\d\d:\d\d \d:\d\d:\d\d", captured.err)
    assert_same_weights(weights(target), weights(finished / "generalist.safetensors"))
    assert not (solved / "tensorboard").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "TimeRemainingColumn", not_to_be_called)
        with pytest.raises(AssertionError):
            cli.main(["pretrain", *flags])


def test_events_can_be_read_back(finished):
    from test_tracking import read_events

    (folder,) = (finished / "tensorboard").iterdir()
    events = read_events(folder)
    state = torch.load(state_file(finished), weights_only=True)
    assert [(point.step, point.value) for point in events.Scalars("spread/validation")] == [
        (step, pytest.approx(loss)) for step, _, loss in state["history"]
    ]
    steps = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("spread/train", "spread/validation"):
        assert steps[tag] == [100, 200]
    held_out = load_shards(sorted((finished / "validation").glob("*.npz"))).family
    for number in np.unique(held_out):
        assert steps[f"spread_loss/{list(FAMILIES)[number]}"] == [100, 200]
    card = json.loads((finished / "generalist.json").read_text())
    for name in ("error", "coverage", "ratio"):
        assert events.Scalars(f"{name}/all")[0].value == pytest.approx(card["training"]["validation"]["all"][name])


TWO_PROCESSES = """
import importlib.util
from safetensors.torch import save_file
import torch
import tyro
from icrl_gym.pretraining import run
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("pretrain_script", sys.argv.pop(1))
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
config, fit = tyro.cli(script.PretrainConfig), run.fit
def fit_and_keep(*arguments, **options):
    spread, state = fit(*arguments, **options)
    save_file(spread.state_dict(), config.out / f"spread{os.environ['RANK']}.safetensors")
    return spread, state
run.fit = fit_and_keep
script.main(config)
"""


def test_two_processes_end_with_the_same_weights(finished, solved, tmp_path):
    out = tmp_path / "pair"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    script = ROOT / "scripts" / "pretrain.py"
    flags = ("--out", out, "--steps", 100, *FLAGS)
    done = run_script(TWO_PROCESSES, tmp_path, script, *flags, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert_same_weights(*(weights(out / f"spread{rank}.safetensors") for rank in range(2)))
    assert done.stdout.strip().splitlines()[-1] == str(out / "generalist.safetensors")
    assert (
        done.stdout.count("training the error bars: 100 of 100") == 2
    )  # one process speaks: the last step, and the end
    for part in ("train", "validation"):  # the same tasks as one process draws
        for path in (finished / part).iterdir():
            assert (out / part / path.name).read_bytes() == path.read_bytes()
    pretrain(replace(SMALL, out=solved, steps=100))
    together, alone = (torch.load(state_file(folder), weights_only=True)["network"] for folder in (out, solved))
    assert any(not torch.equal(together[name], alone[name]) for name in alone)  # two batches per step
