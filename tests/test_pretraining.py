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
from tiny_pretraining import FEW, NUM_HEADS, PLAN, SMALL, not_to_be_called, table

from icrl_gym import cli
from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.checkpoint import new_networks
from icrl_gym.evaluator.gate import (
    SAFE_LEVEL,
    SAFE_PSEUDO_TERMINATIONS,
    Gate,
    Gates,
    distance_from_safe,
    safe_gates,
)
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.statistics import STATISTICS
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
    objective, calls = training.gate_objective("log_rmse"), []

    def failing(network, batch):
        calls.append(1)
        if len(calls) == 26:  # 1 + 10 + 1 + 10 + 1 calls before the third stretch
            raise KeyboardInterrupt
        return objective(network, batch)

    def train(state=None, objective=objective, keep=lambda state: None):
        torch.manual_seed(0)
        gate = Gate(len(STATISTICS), len(FEW), 8)
        return training.train(gate, objective, examples, examples, schedule, seed=1, state=state, on_validation=keep)

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


def output_bias(gate):
    return gate.members[0][-1].bias


def test_every_step_has_a_batch_of_its_own_that_the_seed_decides():
    def batches(seed):
        seen = []

        def objective(network, batch):
            if torch.is_grad_enabled():
                seen.append(batch["truth"][:, 0].tolist())
            return output_bias(network).sum()

        examples = {"truth": torch.arange(500.0)[:, None], "statistics": torch.zeros(500, len(STATISTICS))}
        schedule = training.Schedule(steps=9, batch_size=8, validate_every=3)
        training.train(Gate(len(STATISTICS), 2, 4), objective, examples, examples, schedule, seed=seed)
        return seen

    first = batches(3)
    assert first == batches(3)
    assert len({tuple(batch) for batch in first}) == 9
    assert not {tuple(batch) for batch in first} & {tuple(batch) for batch in batches(4)}


def biased(network, batch):
    """Training pulls the biases one way, validation wants the other."""
    return batch["sign"].mean() * output_bias(network).sum() + 5.0


def sign_batch(sign):
    return {"truth": torch.zeros(4, 2), "statistics": torch.zeros(4, len(STATISTICS)), "sign": torch.full((4,), sign)}


def test_training_stops_early_and_keeps_the_best_weights():
    schedule = training.Schedule(steps=1000, batch_size=4, validate_every=5, patience=3, learning_rate=1e-2)
    gate = Gate(len(STATISTICS), 2, 4)
    before = output_bias(gate).detach().clone()
    state = training.train(gate, biased, sign_batch(1.0), sign_batch(-1.0), schedule, seed=0)
    assert (state.step, state.best_step, state.stale, state.best_loss) == (15, 0, 3, 5.0)
    assert torch.equal(output_bias(gate), before)  # no worse than untrained
    assert state.average["module.members.0.4.bias"].sum() < -0.01

    better = training.train(gate, biased, sign_batch(1.0), sign_batch(1.0), replace(schedule, steps=40), seed=0)
    assert (better.step, better.best_step) == (40, 40)
    assert torch.equal(output_bias(gate), better.average["module.members.0.4.bias"])


def spoil_family(examples, family):
    values = examples.values.copy()
    values[examples.family == family] = np.nan
    return replace(examples, values=values)


def test_an_excluded_family_is_not_trained_on(tmp_path):
    examples, held_out = table(0), table(1)
    name = next(iter(FAMILIES))
    config = replace(SMALL, out=tmp_path, steps=20, tensorboard=False, exclude=(name,))
    model, states = run.fit(config, spoil_family(examples, 0), held_out)
    losses = np.array([history for state in states.values() for history in state.history])
    assert np.isfinite(losses).all()
    spoilt = replace(config, out=tmp_path / "all", exclude=())
    _, states = run.fit(spoilt, spoil_family(examples, 0), held_out)
    assert not np.isfinite(states["gate"].history[-1][1])
    report = run.describe(config, model, examples, held_out, states)
    assert name not in report["families"]
    assert set(report["families"]) == set(FAMILIES) - {name}


def test_a_folder_with_nothing_left_to_train_on_is_bad_input(tmp_path):
    examples = table(0)
    config = replace(SMALL, out=tmp_path, exclude=(next(iter(FAMILIES)),))
    with pytest.raises(ValueError, match="exclude: nothing to train on"):
        run.fit(config, examples.select(examples.family == 0), examples)


TRUTH = torch.tensor([[0.0, 2.0]])  # standard deviation 1


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("log_rmse", [1.0, -1.0], 0.5 * np.log(1 + 0.05**2)),
        ("log_rmse", [3.0, 1.0], 0.5 * np.log(5 + 0.05**2)),
        ("log_rmse", [0.0, 0.0], np.log(0.05)),
        ("relative_rmse", [1.0, -1.0], np.sqrt(1 + 0.05**2)),
        ("relative_rmse", [0.0, 0.0], 0.05),
        ("relative_rmse", [100.0, 100.0], 10.0),
        ("huber", [0.525, 0.525], 0.125),  # half a square, in units of 1.05
        ("huber", [2.1, -2.1], 1.5),  # 2 - 1/2
        ("huber", [0.525, 2.1], 0.8125),
    ],
)
def test_losses_by_hand(name, error, expected):
    assert float(training.LOSSES[name](torch.tensor([error]), TRUTH)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["log_rmse", "relative_rmse", "huber"])
def test_losses_do_not_see_the_scale_of_rewards_and_average_over_tasks(name):
    loss = training.LOSSES[name]
    truth = torch.tensor([[0.0, 20.0], [1.0, 61.0]])
    error = torch.tensor([[3.0, -1.0], [7.0, 0.0]])
    if name != "huber":  # its floor is in units of reward
        assert float(loss(1000 * error, 1000 * truth)) == pytest.approx(float(loss(error, truth)), rel=1e-4)
    apart = [float(loss(error[i : i + 1], truth[i : i + 1])) for i in range(2)]
    assert float(loss(error, truth)) == pytest.approx(np.mean(apart), rel=1e-5)


def test_gate_objective_is_the_loss_of_the_mixed_values():
    gate = Gate(len(STATISTICS), 2, 4)  # untrained: the first head at level 0
    values = torch.full((1, 2, 2, 2, 2), 50.0)
    values[0, 0, 0, 0] = TRUTH[0] + torch.tensor([3.0, 1.0])
    values[0, 0, 0, 1] = TRUTH[0] + torch.tensor([1.0, -1.0])
    batch = {"values": values, "statistics": torch.zeros(1, len(STATISTICS)), "truth": TRUTH}
    objective = training.gate_objective("log_rmse")
    with torch.no_grad():
        assert float(objective(gate, batch)) == pytest.approx(0.5 * np.log(5 + 0.05**2), abs=1e-5)
        output_bias(gate)[-2] = np.arctanh(0.5)  # half-way to the free level: errors 2 and 0
        assert float(objective(gate, batch)) == pytest.approx(0.5 * np.log(2 + 0.05**2), abs=1e-5)


def test_members_learn_each_on_its_own_and_are_validated_together():
    gate = Gate(len(STATISTICS), 2, 4, num_members=2)
    with torch.no_grad():
        gate.members[0][-1].bias[-2], gate.members[1][-1].bias[-2] = 50.0, -50.0  # levels 1 and -0.3
    values = torch.zeros(1, 2, 2, 2, 2)
    values[:, :, :, 1] = 1.0
    batch = {"values": values, "statistics": torch.zeros(1, len(STATISTICS)), "truth": TRUTH - 0.65}
    objective = training.gate_objective("log_rmse")

    def loss_at(level):
        return float(training.log_rmse(torch.full((1, 2), level) - batch["truth"], batch["truth"]))

    with torch.no_grad():
        assert float(objective(gate, batch)) == pytest.approx(loss_at(0.35), abs=1e-5)
    assert float(objective(gate, batch).detach()) == pytest.approx((loss_at(1.0) + loss_at(-0.3)) / 2, abs=1e-5)


@pytest.mark.parametrize("constant_reward", [0.0, 1.0])
def test_the_distance_from_the_safe_mixture_by_hand(constant_reward):
    pseudo, constant_B = SAFE_PSEUDO_TERMINATIONS * constant_reward, torch.tensor([constant_reward])

    def distance(shares, level, pseudo, trust):
        gates = Gates(torch.tensor([shares]), *(torch.tensor([gate]) for gate in (level, pseudo, trust)))
        return float(distance_from_safe(gates, constant_B))

    assert distance([0.25] * 4, SAFE_LEVEL, pseudo, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert distance([1.0, 0.0, 0.0, 0.0], 0.0, 0.0, 0.0) == 0.0  # withdrawn, there is nothing to pull at
    half = distance([0.625, 0.125, 0.125, 0.125], SAFE_LEVEL / 2, pseudo / 2, 0.5)
    assert half == pytest.approx(0.0, abs=1e-12)
    far = distance([1.25, 0.25, -0.75, 0.25], SAFE_LEVEL - 0.5, pseudo + 0.25, 1.0)
    assert far == pytest.approx(1.0**2 + 1.0**2 + 0.5**2 + 0.25**2)
    assert float(distance_from_safe(safe_gates(torch.tensor([0.3]), constant_B, 4), constant_B)) == 0.0


@pytest.mark.parametrize("constant_reward", [0.0, 1.0])
def test_the_pull_adds_the_distance_to_the_loss(constant_reward):
    gate, zeros = Gate(len(STATISTICS), 2, 4), torch.zeros(1, 2, 2, 2, 2)
    statistics = torch.zeros(1, len(STATISTICS))
    statistics[0, gate.constant_reward] = constant_reward
    batch = {"values": zeros, "statistics": statistics, "truth": TRUTH}
    with torch.no_grad():
        plain, pulled = (float(training.gate_objective("huber", pull)(gate, batch)) for pull in (0.0, 0.3))
    shares = 0.5**2 + 0.5**2  # from (1, 0)
    squares = shares + SAFE_LEVEL**2 + (SAFE_PSEUDO_TERMINATIONS * constant_reward) ** 2
    assert pulled - plain == pytest.approx(0.3 * squares, rel=1e-5)


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
    count = len(truth)
    zeros = np.zeros(count, np.float32)
    by_head = np.broadcast_to(np.asarray(values, np.float32)[:, None, None, None, :], (count, 2, 2, 2, 2)).copy()
    return Examples(
        statistics=np.zeros((count, len(STATISTICS)), np.float32),
        values=by_head,
        mass=np.ones((count, 2), np.float32),
        level_shift=zeros,
        truth=np.asarray(truth, np.float32),
        truth_stderr=np.asarray(truth_stderr, np.float32),
        constant=zeros.astype(float),
        scale=zeros + 1.0,
        family=np.array(family),
        length=np.full(count, 24),
    )


def untrained_model():
    model = Generalist(FEW[:2], *new_networks(2, 4))
    model.spread.standardisation.get_buffer("scale_S").fill_(100.0)  # trust everything: errors of one value scale
    return model


def test_validation_tables_by_hand():
    examples = table_examples(
        values=[[1.0, 3.0], [4.0, 6.0], [0.5, 0.5], [9.0, 9.0]],
        truth=[[0.0, 2.0], [0.0, 2.0], [0.0, 4.0], [5.0, 5.0]],  # the last one does not vary
        truth_stderr=np.zeros((4, 2)),
        family=[0, 0, 2, 2],
    )
    rows = validation.by_family(untrained_model(), examples)
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
    for name in (names[0], names[2], "all"):  # untrained, it is the first head
        assert rows[name]["constructed"] == pytest.approx(rows[name]["error"])
        assert rows[name]["ratio"] == rows[name]["worst_ratio"] == pytest.approx(1.0)
    assert rows[names[1]] == {"tasks": 0.0} | dict.fromkeys(
        ("error", "constructed", "ratio", "worst_ratio", "coverage")
    )


def test_coverage_allows_for_the_noise_of_the_truth():
    def coverage(noise):
        examples = table_examples([[4.0, 6.0]], [[0.0, 2.0]], [[noise, noise]], [0])
        return validation.by_family(untrained_model(), examples)["all"]["coverage"]

    assert (coverage(0.0), coverage(3.0)) == (0.0, 1.0)  # 1.645 sqrt(1 + 9) = 5.2


def test_tables_compare_the_mixture_with_its_first_head():
    examples = table_examples([[4.0, 6.0]], [[0.0, 2.0]], [[0.0, 0.0]], [0])
    examples.values[0, 0, 0, 0] = [2.0, 4.0]  # the first head errs by 2, every other corner by 4
    model = untrained_model()
    with torch.no_grad():
        output_bias(model.gate)[-2] = 50.0  # the level, free
    row = validation.by_family(model, examples)["all"]
    assert (row["error"], row["constructed"], row["ratio"]) == pytest.approx((4.0, 2.0, 2.0))


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
    examples = table(0)
    model = Generalist(FEW, *new_networks(NUM_HEADS, 4))
    batch = as_tensors(examples)
    for network, objective, inputs in (
        (model.gate, training.gate_objective("log_rmse", 1.0), batch),
        (model.spread, training.spread_objective, training.with_errors(batch, model.gate)),
    ):
        losses = validation.losses_by_family(network, objective, inputs, examples.family)
        tasks = {name: int((examples.family == list(FAMILIES).index(name)).sum()) for name in losses}
        assert sum(tasks.values()) == len(examples)
        with torch.no_grad():
            whole = float(objective(network, inputs))
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
    with pytest.raises(ValueError, match=r"out: .* holds shards of version 1, not 3; take another"):
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
            other = {str: "huber", tuple: ("grid",)}.get(type(value), value / 2 if isinstance(value, float) else 77)
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
    "members": ("--members", "0"),
    "pull": ("--pull", "-1"),
    "jobs": ("--jobs", "-1"),
    "seed": ("--seed", "-1"),
    "learning_rate": ("--learning-rate", "2"),
    "checkpoint": ("--checkpoint", "weights.bin"),
    "loss": ("--loss", "hinge"),
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
    page = (ROOT / "docs" / "generalist.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    (?:icrl-gym pretrain|torchrun .* scripts/pretrain.py) *(.*)$", page, flags=re.MULTILINE)
    given = []
    monkeypatch.setitem(cli.COMMANDS, "pretrain", (PretrainConfig, given.append))
    for line in lines:
        assert cli.main(["pretrain", *shlex.split(line, comments=True)]) == 0
    assert len(given) == 5
    for config in given:
        config.check()
        assert set(config.exclude) <= set(FAMILIES)
        assert config.loss in training.LOSSES
