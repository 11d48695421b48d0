"""The worth of the pretraining: scores of intervals by hand, rivals fitted to the score, and the page."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_pretraining import FEW, NUM_QUERIES, table

from icrl_gym.evaluator.checkpoint import save_checkpoint
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.pretraining import ablation, ablation_tables
from icrl_gym.pretraining.ablation import Intervals
from icrl_gym.pretraining.training import Z_LEVEL

SCRIPT = Path(__file__).parents[1] / "scripts" / "ablate_pretraining.py"
TRAINING, HELD_OUT = table(0), table(1)


def test_the_interval_score_by_hand():
    half, error = np.array([1.0, 1.0, 0.0]), np.array([0.5, 1.5, 0.1])
    np.testing.assert_allclose(ablation.interval_score(half, error), [2.0, 2.0 + 20 * 0.5, 2.0])


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_score_is_least_where_nine_tenths_are_inside(seed):
    error = np.abs(np.random.default_rng(seed).standard_t(4, size=20_000))
    grid = np.quantile(error, np.arange(0.80, 0.99, 0.01))
    scores = [ablation.interval_score(half, error).mean() for half in grid]
    assert abs(np.argmin(scores) - 10) <= 1


def test_intervals_count_the_noise_of_the_truth_and_are_in_units_of_its_spread():
    noisy = replace(HELD_OUT, truth_stderr=np.full_like(HELD_OUT.truth, 3.0))
    found = ablation.intervals(np.full(HELD_OUT.truth.shape, 4.0), noisy)
    half, error = Z_LEVEL * 5.0, np.abs(noisy.mixed - noisy.truth)
    np.testing.assert_allclose(found.covered_B, (error <= half).mean(axis=1))
    score = 2 * half + 20 * np.maximum(error - half, 0).mean(axis=1)
    np.testing.assert_allclose(found.score_B, score / noisy.truth.std(axis=1), rtol=1e-5)


@pytest.mark.parametrize("unit", [0.2, 1.0, 7.0])
def test_the_constant_to_score_is_the_one_with_the_least_score(unit):
    stderr = np.full(TRAINING.truth.shape, unit)

    def score(factor):
        return ablation.intervals(factor * stderr, TRAINING).score

    best = ablation.scoring_factor(stderr, TRAINING)
    assert best == pytest.approx(ablation.scoring_factor(np.ones_like(stderr), TRAINING) / unit, rel=0.02)
    assert all(score(best) <= score(other * best) + 1e-6 for other in (0.5, 0.9, 1.1, 2.0))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_constant_to_cover_covers_nine_tenths(noise):
    noisy = replace(TRAINING, truth_stderr=np.full_like(TRAINING.truth, noise))
    stderr = np.random.default_rng(0).uniform(1, 3, size=TRAINING.truth.shape)
    factor = ablation.covering_factor(stderr, noisy)
    assert ablation.intervals(factor * stderr, noisy).covered_B.mean() == pytest.approx(0.9, abs=0.01)


def test_rivals_are_fitted_to_the_training_tasks_and_measured_on_the_others():
    found = ablation.compare(SpreadHead(4), TRAINING, HELD_OUT)
    assert list(found)[:2] == [ablation.PRETRAINED, ablation.SAMPLING]
    assert len(found) == 9
    raw = ablation.intervals(HELD_OUT.sampling_error, HELD_OUT)
    np.testing.assert_array_equal(found[ablation.SAMPLING].score_B, raw.score_B)
    spread = ablation.disagreement(TRAINING)
    np.testing.assert_allclose(spread, np.exp(TRAINING.query_statistics[..., 0]), rtol=1e-5)
    for aim, factor_of in (("cover", ablation.covering_factor), ("score", ablation.scoring_factor)):
        factor = factor_of(spread, TRAINING)
        expected = ablation.intervals(factor * ablation.disagreement(HELD_OUT), HELD_OUT)
        scaled = found[f"disagreement of the heads, times {factor:.2f} to {aim}"]
        np.testing.assert_array_equal(scaled.score_B, expected.score_B)


def test_only_tasks_whose_values_vary_and_that_every_rival_speaks_of_are_compared():
    truth, sampling_error = HELD_OUT.truth.copy(), HELD_OUT.sampling_error.copy()
    truth[3] = 1.0
    sampling_error[5, 0] = np.nan
    spoilt = replace(HELD_OUT, truth=truth, sampling_error=sampling_error)
    found = ablation.compare(SpreadHead(4), TRAINING, spoilt)
    assert {len(one.score_B) for one in found.values()} == {len(HELD_OUT) - 2}


def test_tasks_of_one_value_are_refused():
    flat = replace(HELD_OUT, truth=np.ones_like(HELD_OUT.truth))
    with pytest.raises(ValueError, match="in none of 40 tasks the true values spread"):
        ablation.compare(SpreadHead(4), TRAINING, flat)


def test_the_table_has_coverage_score_and_ratio_of_every_group():
    ours = Intervals(np.array([1.0, 0.8]), np.array([1.0, 4.0]))
    theirs = Intervals(np.array([0.5, 0.5]), np.array([2.0, 18.0]))
    group = {ablation.PRETRAINED: ours, "rival": theirs}
    header, _, first, second = ablation_tables.interval_table({"one": group, "two": group}).strip().splitlines()
    assert header.count("coverage") == header.count("over pretrained") == 2
    assert first == f"| {ablation.PRETRAINED} | 0.900 | 2.00 |  | 0.900 | 2.00 |  |"
    figures = "0.500 | 6.00 | 3.000 [2.000, 4.500]"  # of two tasks, the bootstrap's ends are one of them twice
    assert second == f"| rival | {figures} | {figures} |"


def test_the_table_of_the_card_ends_with_all():
    row = {"tasks": 3.0, "error": 0.5, "constructed": 1.0, "ratio": 0.5, "worst_ratio": 2.0, "coverage": 0.9}
    none = {"tasks": 0.0} | dict.fromkeys(("error", "constructed", "ratio", "worst_ratio", "coverage"))
    lines = ablation_tables.card_table({"all": row, "b": none, "a": row}).strip().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["a", "b", "all"]
    assert lines[2] == "| a | 3 | 0.500 | 1.000 | 0.500 | 2.000 | 0.900 |"
    assert lines[3] == "| b | 0 |  |  |  |  |  |"


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


def test_the_script_writes_the_page(script, tmp_path, monkeypatch):
    row = {"tasks": 3.0, "error": 0.5, "constructed": 1.0, "ratio": 0.5, "worst_ratio": 2.0, "coverage": 0.9}
    save_checkpoint(tmp_path / "a.safetensors", Generalist(FEW, SpreadHead(4)), {"validation": {"all": row}})
    monkeypatch.setattr(script, "load_shards", lambda paths: TRAINING if paths[0].parent.name == "train" else HELD_OUT)
    monkeypatch.setattr(script, "DEVELOPMENT", ("CartPole-v1",))
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- tables -->\n\nafter\n")
    config = script.Config(
        out=tmp_path, page=page, checkpoint=tmp_path / "a.safetensors", contexts=1, context_length=60,
        num_queries=NUM_QUERIES, num_rollouts=24,
    )  # fmt: skip
    script.main(config)
    text = page.read_text()
    assert text.startswith("before\n\n<!-- begin tables -->\n\nGenerated by")
    assert text.endswith("<!-- end tables -->\n\nafter\n")
    assert "\n| all | 3 | 0.500 | 1.000 |" in text
    assert f"\n| {ablation.PRETRAINED} | 0." in text
    assert f"to the {len(TRAINING)} training tasks" in text.replace("\n", " ")
    page.write_text("no place")
    monkeypatch.setattr(script, "load_shards", None)
    with pytest.raises(ValueError, match="page must hold one"):
        script.main(config)
