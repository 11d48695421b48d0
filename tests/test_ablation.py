"""Ablations of the pretraining, on tables of values: each takes out what it says, and finished rows are kept."""

import importlib.util
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pretraining import NUM_HEADS, not_to_be_called, table

from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.gate import SAFE_LEVEL, SAFE_PSEUDO_TERMINATIONS, Gates, gated
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.statistics import STATISTICS
from icrl_gym.pretraining import ablation, ablation_tables, run
from icrl_gym.pretraining.ablation import Ablation
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.shards import as_tensors
from icrl_gym.pretraining.validation import values_vary

SCRIPT = Path(__file__).parents[1] / "scripts" / "ablate_pretraining.py"
SMALL = replace(ablation.RECIPE, steps=30, batch_size=16, width=8, members=2, pull=0.0, learning_rate=0.02)
PLAIN = Ablation("plain", SMALL)


TRAINING, VALIDATION = table(0), table(1)


def decide(one, training=TRAINING, validation=VALIDATION, seed=0):
    gates, _ = ablation.gates_on(one, training, validation, seed)
    return gates


def spread(tensor):
    return float(tensor.std(dim=0).max())


def is_constant():
    return VALIDATION.statistics[:, STATISTICS.index("constant_reward")] > 0.5


@pytest.fixture
def calls(monkeypatch):
    """What every training was given."""
    found, train = [], ablation.train

    def watched(network, objective, examples, validation, schedule, **options):
        found.append((network, examples, validation, schedule))
        return train(network, objective, examples, validation, schedule, **options)

    monkeypatch.setattr(ablation, "train", watched)
    return found


def test_the_plain_ablation_is_the_pretraining_itself(tmp_path):
    heads = tuple(range(NUM_HEADS))
    model, _ = run.fit(replace(SMALL, out=tmp_path, heads=heads, tensorboard=False), TRAINING, VALIDATION)
    with torch.no_grad():
        expected = model.gate(torch.as_tensor(VALIDATION.statistics))
    for name, tensor in vars(decide(PLAIN)).items():
        torch.testing.assert_close(tensor, getattr(expected, name), rtol=0, atol=0)
    assert spread(expected.shares_BH) > 0.01


def test_a_blind_gate_decides_the_same_for_all_but_still_obeys_the_rule():
    blind, seeing = decide(replace(PLAIN, blind=True)), decide(PLAIN)
    for name in ("shares_BH", "free_level_B"):
        assert spread(getattr(blind, name)) < 1e-6 < 0.01 < spread(getattr(seeing, name))
    first_B1 = torch.eye(NUM_HEADS)[:1]
    assert (blind.shares_BH - first_B1).abs().max() > 0.01  # it has learned something
    pseudo_B = blind.pseudo_terminations_B
    assert len(pseudo_B[is_constant()].unique()) == 1
    assert not pseudo_B[~is_constant()].any()


@pytest.mark.parametrize(
    ("part", "gate"),
    [
        ("free_level", "free_level_B"),
        ("pseudo_terminations", "pseudo_terminations_B"),
    ],
)
def test_a_dial_that_is_taken_out_stays_at_zero(part, gate):
    changed = replace(SMALL, pull=1.0)  # the safe mixture has all dials open
    assert not getattr(decide(replace(PLAIN, config=changed, **{part: False})), gate).any()
    assert getattr(decide(replace(PLAIN, config=changed)), gate).abs().max() > 0.01


def spoil_head(examples, head):
    values = examples.values.copy()
    values[:, head] = np.nan
    return replace(examples, values=values)


def test_a_head_that_is_left_out_has_no_share_and_is_never_looked_at():
    one = replace(PLAIN, heads=(0, 2))
    gates = decide(one, spoil_head(TRAINING, 1), spoil_head(VALIDATION, 1))
    assert gates.shares_BH.shape == (len(VALIDATION), 2)
    torch.testing.assert_close(gates.shares_BH.sum(dim=1), torch.ones(len(VALIDATION)))
    logs = ablation.log_ratios(gates, one, spoil_head(VALIDATION, 1))
    assert np.isfinite(logs).all()
    np.testing.assert_array_equal(logs, ablation.log_ratios(gates, one, VALIDATION))
    assert torch.equal(gates.shares_BH, decide(one).shares_BH)
    assert spread(gates.shares_BH) > 0.01  # it has learned something


def test_one_head_alone_leaves_the_dials():
    gates = decide(replace(PLAIN, heads=(0,)))
    assert torch.equal(gates.shares_BH, torch.ones(len(VALIDATION), 1))
    assert gates.free_level_B.abs().max() > 0.01


def test_errors_are_relative_to_the_constructed_evaluator_even_where_it_is_left_out():
    one = Ablation("without the first head", heads=(2,))
    count = len(VALIDATION)
    ones_B = torch.ones(count)
    gates = Gates(torch.ones(count, 1), ones_B, torch.zeros(count), ones_B)
    truth = VALIDATION.truth
    ours = VALIDATION.values[:, 2, 0, 1] - truth
    constructed = VALIDATION.values[:, 0, 0, 0] - truth
    expected = 0.5 * np.log(np.mean(ours**2, axis=1) / np.mean(constructed**2, axis=1))
    np.testing.assert_allclose(ablation.log_ratios(gates, one, VALIDATION), expected, atol=1e-5)


def test_tasks_whose_values_do_not_vary_have_no_ratio():
    truth = VALIDATION.truth.copy()
    truth[3] = 1.0
    noise = VALIDATION.truth_stderr.copy()
    noise[5] = 10.0
    flat = replace(VALIDATION, truth=truth, truth_stderr=noise)
    assert len(ablation.log_ratios(decide(Ablation("safe", trained=False)), PLAIN, flat)) == len(VALIDATION) - 2


def spoil_family(examples, family):
    statistics = examples.statistics.copy()
    statistics[examples.family == family] = np.nan
    return replace(examples, statistics=statistics)


def test_a_family_that_is_left_out_is_neither_trained_on_nor_stopped_by(calls):
    (one,) = ablation.left_out(list(FAMILIES)[:1])
    one = replace(one, config=replace(SMALL, exclude=one.config.exclude))
    others = VALIDATION.family != 0
    expected = decide(one).shares_BH[others]
    assert len(calls[0][1]["truth"]) == (TRAINING.family != 0).sum() < len(TRAINING)
    spoilt = decide(one, spoil_family(TRAINING, 0), spoil_family(VALIDATION, 0)).shares_BH
    assert torch.equal(spoilt[others], expected)
    assert spread(expected) > 0.01
    assert spoilt[~others].isnan().all()  # but decided on


def test_nothing_left_to_train_on_is_bad_input():
    with pytest.raises(ValueError, match="exclude: nothing is left of"):
        decide(*ablation.left_out(list(FAMILIES)[:1]), training=TRAINING.select(TRAINING.family == 0))


def test_a_share_of_the_tasks_is_drawn_by_the_seed(calls):
    for seed in (0, 1):
        decide(replace(PLAIN, share_of_tasks=0.5), seed=seed)
    first, second = (call[1]["truth"][:, 0].tolist() for call in calls)
    assert len(first) == len(second) == len(set(first)) == len(TRAINING) // 2
    assert set(first) != set(second)
    assert len(calls[0][2]["truth"]) == len(VALIDATION)


def test_settings_reach_the_training(calls, monkeypatch):
    asked, objective = [], ablation.gate_objective
    monkeypatch.setattr(ablation, "gate_objective", lambda *given: asked.append(given) or objective(*given))
    decide(Ablation("changed", replace(SMALL, members=1, width=5, steps=7, loss="huber", pull=0.25), robust=False))
    ((network, _, _, schedule),) = calls
    assert (len(network.members), network.width, schedule.steps) == (1, 5, 7)
    assert (schedule.batch_size, schedule.learning_rate) == (16, 0.02)
    assert asked == [("huber", 0.25, ablation.plain_shares)]


def test_a_plain_mean_takes_the_shares_as_weights_everywhere():
    gates = decide(Ablation("safe", trained=False))
    plain, robust = (ablation.log_ratios(gates, Ablation("safe", robust=one), VALIDATION) for one in (False, True))
    batch = as_tensors(VALIDATION)
    expected = gated(batch["values"], gates, lambda values, shares: shares[..., None] + 0 * values)
    truth = batch["truth"]
    ratio = (expected - truth).square().mean(dim=1) / (batch["values"][:, 0, 0, 0] - truth).square().mean(dim=1)
    np.testing.assert_allclose(plain, 0.5 * torch.log(ratio)[values_vary(batch)], rtol=1e-4, atol=1e-5)
    assert np.abs(plain - robust).max() > 1e-3


def test_the_safe_mixture_learns_nothing(monkeypatch):
    monkeypatch.setattr(ablation, "train", not_to_be_called)
    gates = decide(Ablation("safe", trained=False))
    torch.testing.assert_close(gates.shares_BH, torch.full((len(VALIDATION), NUM_HEADS), 1 / NUM_HEADS))
    assert gates.free_level_B.unique().tolist() == pytest.approx([SAFE_LEVEL])
    np.testing.assert_allclose(gates.pseudo_terminations_B, SAFE_PSEUDO_TERMINATIONS * is_constant(), atol=1e-6)


def test_the_list_takes_heads_out_by_what_they_have_and_has_no_row_twice():
    rows = ablation.ablations()
    assert rows[0] == Ablation("small recipe")
    assert rows[1].config == PretrainConfig()
    assert len({one.label for one in rows}) == len(rows)
    settings = [{name: value for name, value in asdict(one).items() if name != "label"} for one in rows]
    assert all(settings.count(one) == 1 for one in settings)
    kept = [[HEADS[number] for number in one.heads] for one in rows if one.label.startswith("heads: only")]
    assert all(0 < len(heads) < len(HEADS) for heads in kept)
    assert [any(head.landmarks for head in heads) for heads in kept] == [False, True, True, True]
    assert [any(head.trace_decay for head in heads) for heads in kept] == [False, True, False, True]
    assert [any(head.relevance != "uniform" for head in heads) for heads in kept] == [False, True, True, False]
    assert [one.heads for one in rows if "alone" in one.label] == [(number,) for number in range(len(HEADS))]
    assert [one.config.exclude for one in ablation.left_out(["grid", "loop"])] == [("grid",), ("loop",)]


def test_hindsight_picks_each_tasks_best_head():
    values = VALIDATION.values.copy()
    best = np.arange(len(VALIDATION)) % NUM_HEADS
    values[np.arange(len(VALIDATION)), best] = VALIDATION.truth[:, None, None] + 1e-3
    (found,) = ablation.hindsight(replace(VALIDATION, values=values))
    constructed = np.sqrt(np.square(values[:, 0, 0, 0] - VALIDATION.truth).mean(axis=1))
    np.testing.assert_allclose(found, np.log(1e-3 / constructed), atol=1e-2)


WANTED = (PLAIN, Ablation("safe", trained=False), replace(PLAIN, label="blind", blind=True))


def measure(folder, wanted=WANTED, training=TRAINING, progress=lambda *given: None):
    return ablation.measure(wanted, training, VALIDATION, (0, 1), folder, progress)


def test_finished_rows_are_kept(tmp_path, monkeypatch, calls):
    rows = measure(tmp_path)
    assert [(label, found.shape) for label, found in rows.items()] == [
        ("plain", (2, len(VALIDATION))),
        ("safe", (1, len(VALIDATION))),  # no seed enters
        ("blind", (2, len(VALIDATION))),
    ]
    assert len(calls) == 4
    assert not np.array_equal(*rows["plain"])
    for number, found in enumerate(rows["plain"]):
        gates = decide(PLAIN, seed=number)
        np.testing.assert_array_equal(found, ablation.log_ratios(gates, PLAIN, VALIDATION))
    calls.clear()
    again = measure(tmp_path)
    assert not calls
    assert all(np.array_equal(again[label], rows[label]) for label in rows)
    stored = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert {(row["label"], row["seed"]) for row in stored} == {
        ("plain", 0), ("plain", 1), ("safe", 0), ("blind", 0), ("blind", 1),
    }  # fmt: skip


def test_another_setting_or_other_examples_make_rows_of_their_own(tmp_path, calls):
    one = (PLAIN,)
    measure(tmp_path, one)
    measure(tmp_path, (replace(PLAIN, config=replace(SMALL, steps=31)),))
    measure(tmp_path, one, training=table(7))
    assert len(calls) == len(list(tmp_path.iterdir())) == 6
    measure(tmp_path, (replace(PLAIN, label="renamed", config=replace(SMALL, out=tmp_path, seed=5)),))
    assert len(calls) == 6  # neither the name, nor the folder, nor the configuration's own seed has an effect


def test_an_interrupted_call_goes_on(tmp_path, calls):
    def interrupt(label, done, total):
        assert total == 5
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, progress=interrupt)
    assert len(list(tmp_path.iterdir())) == 3
    measure(tmp_path)
    assert len(calls) == 4


def test_a_row_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        measure(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"log_ratios": ["a"]}'])
def test_a_damaged_row_is_named(tmp_path, content):
    untrained = WANTED[1:2]
    measure(tmp_path, untrained)
    path = next(tmp_path.iterdir())
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path.name} is damaged; remove it"):
        measure(tmp_path, untrained)


def test_geometric_means_with_intervals_over_tasks():
    rng = np.random.default_rng(3)
    logs_T = rng.normal(0.1, 0.5, size=400)
    value, low, high = ablation_tables.ratio_with_interval(
        np.stack([logs_T - 1.0, logs_T + 1.0])
    )  # seeds are averaged, not resampled
    assert value == pytest.approx(np.exp(logs_T.mean()))
    half = 1.96 * logs_T.std() / 20
    assert np.log([low, high]) == pytest.approx([logs_T.mean() - half, logs_T.mean() + half], abs=0.006)


def test_the_table_compares_with_the_recipe_task_by_task():
    reference = np.log([[0.5, 2.0, 1.0], [0.5, 2.0, 1.0]])
    rows = {"small recipe": reference, "other": reference + np.log(1.1), "safe": np.log([[1.0, 1.0, 4.0]])}
    lines = ablation_tables.ablation_table(rows).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in cells] == list(rows)
    assert cells[0][1].startswith("1.000 [0.500, 2.000]")
    assert cells[0][2:] == ["", "1.000 / 1.000", "2.00"]
    assert cells[1][2:] == ["1.100 [1.100, 1.100]", "1.100 / 1.100", "2.20"]  # paired: no spread
    assert cells[2][3:] == ["1.587", "4.00"]


def test_the_table_of_families_takes_a_familys_own_tasks():
    names = np.array(["grid", "loop", "grid"])
    reference = np.log([[0.5, 3.0, 0.5]])
    rows = {"without grid": np.log([[0.6, 9.0, 0.6]]), "without loop": np.log([[9.0, 3.3, 9.0]])}
    lines = ablation_tables.family_table(rows, reference, names, ["loop", "queue", "grid"]).splitlines()[2:]
    assert lines == [
        "| loop | 1 | 3.300 | 3.000 | 1.100 |",
        "| queue | 0 | no validation task |  |  |",
        "| grid | 2 | 0.600 [0.600, 0.600] | 0.500 [0.500, 0.500] | 1.200 [1.200, 1.200] |",
        lines[-1],
    ]
    assert lines[-1].startswith(f"| all | 3 | {(0.6 * 3.3 * 0.6) ** (1 / 3):.3f} [0.600, 3.300] | 0.909 [0.500, ")
    assert lines[-1].endswith(f"| {(1.2 * 1.1 * 1.2) ** (1 / 3):.3f} [1.100, 1.200] |")


def test_the_table_of_the_card_ends_with_all():
    row = {"tasks": 4.0, "error": 0.5, "constructed": 1.0, "ratio": 0.5, "worst_ratio": 1.25, "coverage": 0.9}
    empty = dict.fromkeys(row) | {"tasks": 0.0}
    lines = ablation_tables.card_table({"all": row, "queue": empty, "grid": row}).splitlines()
    assert lines[2:] == [
        "| grid | 4 | 0.500 | 1.000 | 0.500 | 1.250 | 0.900 |",
        "| queue | 0 |  |  |  |  |  |",
        "| all | 4 | 0.500 | 1.000 | 0.500 | 1.250 | 0.900 |",
    ]


def test_the_page_keeps_its_other_text():
    page = "# Head\n\ntext\n\n<!-- tables -->\n\n## Tail\n"
    once = ablation_tables.insert_tables(page, "| a |\n")
    assert once == "# Head\n\ntext\n\n<!-- begin tables -->\n\n| a |\n\n<!-- end tables -->\n\n## Tail\n"
    assert ablation_tables.insert_tables(once, "| a |\n") == once
    edited = once.replace("text", "other text")
    assert ablation_tables.insert_tables(edited, "| b |") == edited.replace("| a |", "| b |")


@pytest.mark.parametrize(
    "page",
    ["", "<!-- begin tables -->", "<!-- end tables --> <!-- begin tables -->", "<!-- tables --> <!-- tables -->"],
)
def test_a_page_without_a_place_is_refused(page):
    with pytest.raises(ValueError, match="page must hold one"):
        ablation_tables.insert_tables(page, "| a |")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("ablate_pretraining", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablate_pretraining", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_script_writes_the_page_and_goes_on_from_its_rows(script, tmp_path, monkeypatch, capsys):
    def small(one):
        return replace(one, config=replace(SMALL, exclude=one.config.exclude))

    without = ablation.left_out
    monkeypatch.setattr(ablation, "ablations", lambda: (small(ablation.REFERENCE), Ablation("safe", trained=False)))
    monkeypatch.setattr(ablation, "left_out", lambda names: tuple(map(small, without(names))))
    monkeypatch.setattr(
        script, "load_shards", lambda paths: TRAINING if paths[0].parent.name == "train" else VALIDATION
    )
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- tables -->\n\nafter\n")
    config = script.Config(out=tmp_path, page=page, seeds=(0,))
    script.main(config)
    printed = capsys.readouterr().out
    assert "1 of 2: safe" in printed
    assert "2 of 3: without" in printed
    text = page.read_text()
    assert text.startswith("before\n\n<!-- begin tables -->\n\nGenerated by")
    assert text.endswith("<!-- end tables -->\n\nafter\n")
    first, second, *others = FAMILIES
    assert all(
        f"\n| {label} |" in text
        for label in ("small recipe", "safe", "best head of each task, in hindsight", "all", first, second)
    )
    assert all(f"\n| {name} | 0 | no validation task |" in text for name in others)
    assert "after a mean over one seed of" in text.replace("\n", " ")
    assert "as above, over one seed." in text
    monkeypatch.setattr(ablation, "train", not_to_be_called)
    script.main(config)
    assert page.read_text() == text
    page.write_text("no place")
    monkeypatch.setattr(ablation, "measure", not_to_be_called)
    with pytest.raises(ValueError, match="page must hold one"):
        script.main(config)
