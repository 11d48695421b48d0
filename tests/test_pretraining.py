"""The pieces of the pretraining: shards, batches, losses, the loop, the tables, and what is refused."""

import json
import os
import re
import shlex
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pretraining import FEW, PLAN, SMALL, not_to_be_called, table

from icrl_gym import cli
from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS
from icrl_gym.pretraining import run, shards, training, validation
from icrl_gym.pretraining.prior import FAMILIES, sample_tasks
from icrl_gym.pretraining.shards import Examples, as_tensors, make_shard, task_prompt

ROOT = Path(__file__).parents[1]


def test_a_shard_has_the_same_bytes_every_time(tmp_path):
    for folder in ("a", "b"):
        make_shard(tmp_path / folder / "one.npz", 7, 3, PLAN)
    make_shard(tmp_path / "a" / "next.npz", 7, 4, PLAN)
    make_shard(tmp_path / "a" / "other.npz", 8, 3, PLAN)
    content = (tmp_path / "a" / "one.npz").read_bytes()
    assert content == (tmp_path / "b" / "one.npz").read_bytes()
    assert content not in ((tmp_path / "a" / name).read_bytes() for name in ("next.npz", "other.npz"))


def test_a_shard_is_made_once(tmp_path):
    path = tmp_path / "one.npz"
    path.write_bytes(b"here already")
    make_shard(path, 0, 0, PLAN)
    assert path.read_bytes() == b"here already"


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_shard(tmp_path / "one.npz", 0, 0, PLAN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["dirichlet", "chain"])
def test_one_hot_tasks_keep_their_columns(family):
    batches = (sample_tasks(family, num_tasks=2, num_transitions=24, num_queries=5, seed=seed) for seed in range(20))
    batch = next(batch for batch in batches if not batch.standardise)
    prompt, queries = task_prompt(batch, 1)
    np.testing.assert_array_equal(prompt.source_features, batch.observations[1].double().numpy())
    np.testing.assert_array_equal(queries, batch.queries[1].double().numpy())
    assert prompt.effective_dimension == 1


def test_going_on_from_a_state_is_bitwise_also_between_validations():
    examples = as_tensors(table(0))
    schedule = training.Schedule(steps=30, batch_size=4, validate_every=10)
    objective, calls = training.spread_objective, []

    def failing(network, batch):
        calls.append(1)
        if len(calls) == 26:  # 1 + 10 + 1 + 10 + 1 calls before the third stretch
            raise KeyboardInterrupt
        return objective(network, batch)

    def train(state=None, objective=objective, keep=lambda state: None):
        torch.manual_seed(0)
        return training.train(
            SpreadHead(8), objective, examples, examples, schedule, seed=1, state=state, on_validation=keep
        )

    expected, kept = train(), []
    with pytest.raises(KeyboardInterrupt):
        train(objective=failing, keep=lambda state: kept.append(training.TrainingState(**vars(state))))
    assert kept[-1].step == 20
    state = train(kept[-1])
    assert state.history == expected.history
    for name in ("network", "average", "best"):
        one, other = getattr(state, name), getattr(expected, name)
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert state.schedule == expected.schedule


def output_bias(spread):
    return spread.network[-1].bias


def test_every_step_has_a_batch_of_its_own_that_the_seed_decides():
    def batches(seed):
        seen = []

        def objective(network, batch):
            if torch.is_grad_enabled():
                seen.append(batch["error"][:, 0].tolist())
            return output_bias(network).sum()

        examples = {"error": torch.arange(500.0)[:, None], "statistics": torch.zeros(500, len(STATISTICS))}
        schedule = training.Schedule(steps=9, batch_size=8, validate_every=3)
        training.train(SpreadHead(4), objective, examples, examples, schedule, seed=seed)
        return seen

    first = batches(3)
    assert first == batches(3)
    assert len({tuple(batch) for batch in first}) == 9
    assert not {tuple(batch) for batch in first} & {tuple(batch) for batch in batches(4)}


def biased(network, batch):
    """Training pulls the biases one way, validation wants the other."""
    return batch["sign"].mean() * output_bias(network).sum() + 5.0


def sign_batch(sign):
    return {"statistics": torch.zeros(4, len(STATISTICS)), "sign": torch.full((4,), sign)}


def test_training_stops_early_and_keeps_the_best_weights():
    schedule = training.Schedule(steps=1000, batch_size=4, validate_every=5, patience=3, learning_rate=1e-2)
    spread = SpreadHead(4)
    before = output_bias(spread).detach().clone()
    state = training.train(spread, biased, sign_batch(1.0), sign_batch(-1.0), schedule, seed=0)
    assert (state.step, state.best_step, state.stale, state.best_loss) == (15, 0, 3, 5.0)
    assert torch.equal(output_bias(spread), before)  # no worse than untrained
    assert state.average["module.network.4.bias"].sum() < -0.01

    better = training.train(spread, biased, sign_batch(1.0), sign_batch(1.0), replace(schedule, steps=40), seed=0)
    assert (better.step, better.best_step) == (40, 40)
    assert torch.equal(output_bias(spread), better.average["module.network.4.bias"])


def spoil_family(examples, family):
    values = examples.values.copy()
    values[examples.family == family] = np.nan
    return replace(examples, values=values)


def test_an_excluded_family_is_not_trained_on(tmp_path):
    examples, held_out = table(0), table(1)
    name = next(iter(FAMILIES))
    config = replace(SMALL, out=tmp_path, steps=20, tensorboard=False, exclude=(name,))
    spread, state = run.fit(config, spoil_family(examples, 0), held_out)
    assert np.isfinite(np.array(state.history)).all()
    spoilt = replace(config, out=tmp_path / "all", exclude=())
    assert not np.isfinite(run.fit(spoilt, spoil_family(examples, 0), held_out)[1].history[-1][1])
    report = run.describe(config, spread, examples, held_out, state)
    assert name not in report["families"]
    assert set(report["families"]) == set(FAMILIES) - {name}


def test_a_folder_with_nothing_left_to_train_on_is_bad_input(tmp_path):
    examples = table(0)
    config = replace(SMALL, out=tmp_path, exclude=(next(iter(FAMILIES)),))
    with pytest.raises(ValueError, match="exclude: nothing to train on"):
        run.fit(config, examples.select(examples.family == 0), examples)


def test_training_reads_the_errors_of_the_robust_mean():
    examples = table_examples([[1.0, 3.0]], [[0.5, 1.0]], [[0.1, 0.2]], [0])
    examples.values[0, 1] += 1e3  # one head of three stands apart
    batch = as_tensors(examples)
    assert set(batch) == {"statistics", "query_statistics", "error", "truth_stderr"}
    torch.testing.assert_close(batch["error"], torch.tensor([[0.5, 2.0]]), rtol=0, atol=1e-3)  # a mean is 333 off
    assert all(tensor.dtype == torch.float32 for tensor in batch.values())
    tasks = table(0)
    for name in ("statistics", "query_statistics", "truth_stderr"):
        np.testing.assert_array_equal(as_tensors(tasks)[name], getattr(tasks, name))


class Constant(torch.nn.Module):
    """One log standard error for all."""

    def __init__(self, log_error):
        super().__init__()
        self.log_error = log_error

    def forward(self, statistics, query_statistics):
        return torch.full(query_statistics.shape[:2], self.log_error)


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("shape", ["normal", "heavy", "uniform"])
def test_the_best_spread_covers_nine_tenths(shape, noise):
    rng = np.random.default_rng(0)
    size = (1, 40_000)
    draws = {
        "normal": rng.normal(size=size),
        "heavy": rng.standard_t(3, size=size),
        "uniform": rng.uniform(-2, 2, size),
    }
    error = draws[shape] + 1.5
    batch = {
        "error": torch.as_tensor(error),
        "truth_stderr": torch.full(size, noise),
        "statistics": torch.zeros(1, 1),
        "query_statistics": torch.zeros(*size, 1),
    }
    grid = np.arange(-1.0, 2.0, 0.01)
    losses = [float(training.spread_objective(Constant(log_error), batch)) for log_error in grid]
    half_width = training.Z_LEVEL * np.hypot(np.exp(grid[np.argmin(losses)]), noise)
    assert half_width == pytest.approx(np.quantile(np.abs(error), 0.9), rel=0.015)
    assert 0 < np.argmin(losses) < len(grid) - 1


def table_examples(values, truth, truth_stderr, family):
    """Tasks of two queries on which all heads say the same, and the first one as it stands errs by half as much."""
    count, truth = len(truth), np.asarray(truth, np.float32)
    values = np.asarray(values, np.float32)
    return Examples(
        statistics=np.zeros((count, len(STATISTICS)), np.float32),
        query_statistics=np.zeros((count, 2, len(QUERY_STATISTICS)), np.float32),
        values=np.repeat(values[:, None], 3, axis=1),
        constructed=(values + truth) / 2,
        sampling_error=np.ones((count, 2), np.float32),
        truth=truth,
        truth_stderr=np.asarray(truth_stderr, np.float32),
        constant=np.zeros(count),
        scale=np.ones(count),
        family=np.array(family),
        length=np.full(count, 24),
    )


def test_validation_tables_by_hand():
    examples = table_examples(
        values=[[1.0, 3.0], [4.0, 6.0], [0.5, 0.5], [9.0, 9.0]],
        truth=[[0.0, 2.0], [0.0, 2.0], [0.0, 4.0], [5.0, 5.0]],  # the last one does not vary
        truth_stderr=np.zeros((4, 2)),
        family=[0, 0, 2, 2],
    )
    rows = validation.by_family(SpreadHead(4), examples)
    names = list(FAMILIES)
    assert list(rows) == [*names, "all"]
    assert rows[names[0]]["tasks"] == 2
    assert rows[names[0]]["error"] == pytest.approx(np.sqrt(1.0 * 4.0))  # geometric mean of RMSE / std
    assert rows[names[0]]["coverage"] == pytest.approx(0.5)  # within 1.645: both of the first, none of the second
    assert rows[names[2]]["tasks"] == 2
    assert rows[names[2]]["error"] == pytest.approx(np.sqrt((0.5**2 + 3.5**2) / 2) / 2)
    assert rows[names[2]]["coverage"] == pytest.approx(0.25)
    assert rows["all"]["tasks"] == 4
    assert rows["all"]["error"] == pytest.approx((rows[names[0]]["error"] ** 2 * rows[names[2]]["error"]) ** (1 / 3))
    for name in (names[0], names[2], "all"):
        assert rows[name]["constructed"] == pytest.approx(rows[name]["error"] / 2)
        assert rows[name]["ratio"] == rows[name]["worst_ratio"] == pytest.approx(2.0)
    assert rows[names[1]] == {"tasks": 0.0} | dict.fromkeys(
        ("error", "constructed", "ratio", "worst_ratio", "coverage")
    )


def test_coverage_allows_for_the_noise_of_the_truth():
    def coverage(noise):
        examples = table_examples([[4.0, 6.0]], [[0.0, 2.0]], [[noise, noise]], [0])
        return validation.by_family(SpreadHead(4), examples)["all"]["coverage"]

    assert (coverage(0.0), coverage(3.0)) == (0.0, 1.0)  # 1.645 sqrt(1 + 9) = 5.2


def test_the_learning_rate_rises_and_falls():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = training.learning_rate(optimizer, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates[:6], 2.0 * np.array([1, 2, 3, 4, 5, 6]) / 6, rtol=1e-6)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[52] == pytest.approx(2.0 * (1 + training.LAST_RATE) / 2, rel=0.03)  # half-way down the cosine
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * training.LAST_RATE)


def test_losses_by_family_make_up_the_loss():
    examples, spread = table(0), SpreadHead(4)
    batch, objective = as_tensors(examples), training.spread_objective
    losses = validation.losses_by_family(spread, objective, batch, examples.family)
    tasks = {name: int((examples.family == list(FAMILIES).index(name)).sum()) for name in losses}
    assert sum(tasks.values()) == len(examples)
    with torch.no_grad():
        whole = float(objective(spread, batch))
    assert sum(losses[name] * tasks[name] for name in losses) / len(examples) == pytest.approx(whole, rel=1e-4)


def test_a_folder_of_other_examples_is_refused(tmp_path):
    for _ in range(2):
        run._claim_folder(tmp_path, 0, PLAN)
    changes = {"heads": FEW[:2], "num_queries": 7, "lengths": ((24, 1.0),), "tasks_per_shard": 9}
    others = {name: (0, replace(PLAN, **{name: other})) for name, other in changes.items()} | {"seed": (1, PLAN)}
    for name, (seed, plan) in others.items():
        with pytest.raises(ValueError, match=rf"out: .* of another choice of {name}; take another"):
            run._claim_folder(tmp_path, seed, plan)
    path = tmp_path / "examples.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"seed": 0, "heads": content["heads"]}))
    with pytest.raises(ValueError, match=r"out: .* holds shards of version 1, not 5; take another"):
        run._claim_folder(tmp_path, 0, PLAN)


def test_a_state_belongs_to_all_settings_that_change_the_weights(tmp_path):
    def key(**changes):
        return run._key(replace(SMALL, **changes))

    others = {
        "out": tmp_path, "checkpoint": tmp_path / "a.safetensors", "jobs": 2, "device": "cuda", "tensorboard": False
    }  # fmt: skip
    assert key(**others) == key()
    for field in fields(SMALL):
        value = getattr(SMALL, field.name)
        if field.name not in others:
            other = {tuple: ("grid",)}.get(type(value), value / 2 if isinstance(value, float) else 77)
            assert key(**{field.name: other}) != key(), field.name


BAD_INPUT = {
    "shards": ("--shards", "0"),
    "validation_shards": ("--validation-shards", "0"),
    "tasks_per_shard": ("--tasks-per-shard", "0"),
    "num_queries": ("--num-queries", "0"),
    "lengths": ("--lengths", "128", "0.5", "1", "0.5"),
    "heads": ("--heads", "0", "77"),
    "steps": ("--steps", "0"),
    "batch_size": ("--batch-size", "0"),
    "width": ("--width", "0"),
    "jobs": ("--jobs", "-1"),
    "seed": ("--seed", "-1"),
    "learning_rate": ("--learning-rate", "2"),
    "checkpoint": ("--checkpoint", "weights.bin"),
    "exclude": ("--exclude", "cartpole"),
    "device": ("--device", "abacus"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_line_that_names_the_argument(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shards, "sample_tasks", not_to_be_called)
    assert cli.main(["pretrain", *BAD_INPUT[name]]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(rf"icrl-gym: error: {name}\b.*\n", captured.err)
    assert list(tmp_path.iterdir()) == []


def test_excluding_every_family_is_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pretrain", "--exclude", *FAMILIES]) == 2
    assert "exclude must name some, not all" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "checkpoint"])
def test_a_folder_that_cannot_be_made_is_bad_input_before_any_work(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "sample_tasks", not_to_be_called)
    (tmp_path / "file").touch()
    flags = {"out": ["--out", f"{tmp_path}/file/x"]}
    flags["checkpoint"] = ["--out", f"{tmp_path}/run", "--checkpoint", f"{tmp_path}/file/x/a.safetensors"]
    assert cli.main(["pretrain", *flags[name]]) == 2
    assert f"error: {name}: cannot write to the folder" in capsys.readouterr().err


def test_the_documented_commands_are_good_input(monkeypatch):
    page = (ROOT / "docs" / "mixture.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (?:icrl-gym pretrain|torchrun .* scripts/pretrain.py) *(.*)$", page, flags=re.MULTILINE)
    given = []
    monkeypatch.setitem(cli.COMMANDS, "pretrain", (PretrainConfig, given.append))
    for line in lines:
        assert cli.main(["pretrain", *shlex.split(line, comments=True)]) == 0
    assert len(given) == 4
    for config in given:
        config.check()
        assert set(config.exclude) <= set(FAMILIES)
        assert config.out != PretrainConfig.out or config == replace(PretrainConfig(), jobs=2)
