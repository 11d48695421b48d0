"""The report of a benchmark from records whose errors are known, so that every figure can be worked out by hand."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from icrl_gym.benchmark import SUITES, Cell, Conditions, Record, Suite, Task, Variant
from icrl_gym.benchmark.records import write_record
from icrl_gym.benchmark.report import (
    all_sections,
    archive,
    benchmark_tables,
    comparisons,
    errors,
    figures,
    headline,
    hparams,
    joining,
    pages,
    tables,
    write_report,
)
from icrl_gym.benchmark.report.comparisons import CLASSICAL, HINDSIGHT, hindsight, pooled_table
from icrl_gym.cli import main
from icrl_gym.configuration import ReportConfig
from icrl_gym.registry import tuning_grid
from icrl_gym.scoring import document

CART, BALANCE = Task("Cart-v0", "Cart-v0/ppo-seed0/steps30000.zip"), Task("Balance-v0", "random")
POLE = Task("CartPole-v1", "CartPole-v1/ppo-seed0/steps30000.zip")  # of the selection set
SEEDS = (0, 1, 2, 3, 4)
BASES = {"constructed": 0.4, "lstd": 0.8, "kbrl": 1.0, "softmax_td": 0.5, "nadaraya_watson": 0.6}


def record(task, estimator, error, seed=0, length=512, options=None, **changes):
    scores = {
        "rmse_over_std": error, "truth_std": 2.0, "noise_floor": 0.1, "truth_magnitude": 10.0, "rmse": 2 * error,
        "rmse_over_magnitude": error / 5, "bias": error, "coverage": 0.8 if estimator == "constructed" else None,
        "width": 1.0 if estimator == "constructed" else None, **changes.pop("scores", {}),
    }  # fmt: skip
    cell = Cell(task, Variant.of(estimator, options or {}), length, seed, Conditions(64, 24))
    changes = {"commit": "abc123", "context_terminations": seed, **changes}
    return Record(cell, {**dict.fromkeys(archive.SCORES), "n": 64, **scores}, 0.5, 0.1, **changes)


def everything(tasks=(CART, BALANCE)):
    """Two lengths, five seeds. The error is a base times 1 to 1.4 by seed and 1 or 0.5 by length; lstd is tuned, and
    every other setting of its has 0.3 as its base."""
    found = []
    for task in tasks:
        for length, shrink in ((512, 1.0), (2048, 0.5)):
            for seed in SEEDS:
                factor = shrink * (1 + 0.1 * seed)
                found += [record(task, name, base * factor, seed, length) for name, base in BASES.items()]
                for name in CLASSICAL:
                    for options in filter(None, tuning_grid(name)):
                        base = 0.3 if name == "lstd" else 2.0
                        found.append(record(task, name, base * factor, seed, length, options))
                if task.policy != "random":
                    found.append(record(task, "critic", 0.3, seed, length, environment_steps=30_720))
    return found


def defaults(tasks=(CART, BALANCE)):
    return [one for one in everything(tasks) if one.cell.variant.is_default]


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setitem(SUITES, "small", Suite((CART, BALANCE, POLE)))


@pytest.fixture
def run(tmp_path, suite):
    return save(tmp_path, everything())


def save(folder, records):
    for one in records:
        write_record(folder, one)
    return folder


def rows(found):
    """Each row as heading -> text."""
    return [dict(zip(found.columns, (field.text for field in row), strict=True)) for row in found.rows]


def only(found, **wanted):
    matching = [row for row in rows(found) if all(row[name] == value for name, value in wanted.items())]
    assert len(matching) == 1, matching
    return matching[0]


def test_accuracy_is_the_geometric_mean_over_cells_and_hindsight_takes_the_best_setting(suite):
    found = tables.accuracy_table(everything())
    mean = float(np.prod(1 + 0.1 * np.array(SEEDS))) ** 0.2
    row = only(found, context="512", estimator="lstd")
    assert row["RMSE / std"].startswith(f"{0.8 * mean:.2f} [")
    assert row["tuned in hindsight"].startswith(f"{0.3 * mean:.2f} [")
    assert row["over constructed"] == "2.00"  # the same on every context: no interval
    assert (row["cells"], row["failed"]) == ("10", "0")
    assert only(found, context="512", estimator="constructed")["tuned in hindsight"] == "-"
    assert [r["estimator"] for r in rows(found)][:2] == ["constructed", "softmax_td"]  # nearest first
    assert "some of the tasks only: critic" in found.note


def test_an_estimator_with_part_of_its_grid_is_not_tuned():
    some = [r for r in everything() if r.cell.variant.options != tuple(sorted(tuning_grid("lstd")[3].items()))]
    assert only(tables.accuracy_table(some), context="512", estimator="lstd")["tuned in hindsight"] == "-"
    assert hindsight(errors.at_length(some, 512)) == {}
    words = comparisons.tuning_words(some)
    assert "Tuned (every setting of their grids was run): kbrl, nadaraya_watson, softmax_td." in words
    assert "Not tuned, or not everywhere: constructed, lstd. Not run: " in words
    assert "fqe" in words.split("Not run:")[1]


def test_the_hindsight_rival_takes_the_best_method_and_setting_of_each_tuned_cell():
    part = errors.at_length(everything(), 512)
    assert hindsight(part)[CART, 0] == pytest.approx(0.3)  # lstd under another setting
    assert hindsight([one for one in part if one.cell.variant.estimator != "kbrl"]) == {}  # all four or none
    assert hindsight([one for one in part if one.cell.variant.is_default]) == {}  # nothing was tuned
    one_tuned = [r for r in part if r.cell.variant.is_default or r.cell.seed == 1]
    assert set(hindsight(one_tuned)) == {(CART, 1), (BALANCE, 1)}  # untuned cells do not count


def test_all_environments_weigh_alike_and_their_interval_is_over_environments():
    worse = [
        replace(r, scores={**r.scores, "rmse_over_std": 4 * r.scores["rmse_over_std"]})
        if r.cell.variant.estimator == "kbrl" and r.cell.task == BALANCE else r
        for r in defaults()
    ]  # fmt: skip
    found = only(pooled_table(worse, "constructed", "T"), rival="kbrl")["512 transitions"]
    assert found.startswith("0.20 [")  # geometric mean of 0.4 and 0.1
    assert found.endswith(", 2 of 2")
    assert only(pooled_table(worse, "constructed", "T"), rival="critic")["512 transitions"].endswith(", 0 of 1")


def test_each_environment_is_judged_on_common_cells_by_the_one_rule():
    found = comparisons.verdict_table(defaults(), "constructed")
    lost = only(found, environment="Cart-v0", context="512")
    assert (lost["best rival"], lost["verdict"], lost["critic"]) == ("critic", "critic", "0.30")
    won = only(found, environment="Balance-v0", context="2,048")
    assert (won["best rival"], won["verdict"], won["critic"]) == ("softmax_td", "constructed", "-")
    assert (won["over best rival"], won["over critic"]) == ("0.80", "-")
    assert lost["over critic"].startswith(f"{0.4 * 2.4024**0.2 / 0.3:.2f} [")
    assert "(5 cells a row)" in found.note
    two = [r for r in defaults() if r.cell.seed < 2]
    assert only(comparisons.verdict_table(two, "constructed"), environment="Cart-v0", context="512")["verdict"] == (
        "no verdict (2 cells)"
    )
    lucky = [*defaults(), record(CART, "fqe", 0.001)]  # on one context of five
    assert "left out there: fqe" in comparisons.verdict_table(lucky, "constructed").note
    assert (
        only(comparisons.verdict_table(lucky, "constructed"), environment="Cart-v0", context="512")["verdict"]
        == "critic"
    )


def test_intervals_and_cost_are_those_of_the_records(suite):
    row = only(tables.interval_table(defaults()), context="512")
    assert (row["estimator"], row["coverage"], row["least"], row["width / std"]) == (
        "constructed",
        "0.80",
        "0.80",
        "0.50",
    )
    assert row["environments in 0.85-0.95"] == "0 of 2"
    measured = [replace(one, peak_memory_fit=2**21) for one in defaults()]
    cost = only(tables.cost_table(measured), context="512", estimator="critic")
    assert (cost["environment steps"], cost["fit, MiB"]) == ("30,720", "2")
    unnamed = [replace(one, environment_steps=None) for one in defaults()]
    assert only(tables.cost_table(unnamed), context="512", estimator="critic")["environment steps"] == "30,000"
    assert only(tables.cost_table(unnamed), context="2,048", estimator="lstd")["environment steps"] == "2,048"


def test_tasks_without_spread_are_judged_by_magnitude_and_by_nothing_else():
    flat = [replace(one, scores={**one.scores, "noise_floor": 1.5}) for one in defaults()]
    row = only(tables.magnitude_table(flat, "lstd"), environment="Balance-v0", context="512")
    assert (row["spread / mean |V|"], row["noise / mean |V|"], row["critic"]) == ("20.00%", "15.00%", "-")
    assert not tables.accuracy_table(flat).rows
    assert not tables.magnitude_table(defaults(), "constructed").rows


def test_policy_selection_ranks_the_start_values_of_three_policies_or_more():
    policies = [replace(CART, policy=f"Cart-v0/ppo-seed{i}/steps30000.zip") for i in range(3)]
    ranked = [
        replace(record(task, "lstd", 0.5), start_value=float(-i), start_value_truth=float(i))
        for i, task in enumerate(policies)
    ]
    row = only(tables.selection_table(ranked, ("lstd",)), estimator="lstd")
    assert (row["policies"], row["rank correlation"], row["regret@1"]) == ("3", "-1.00", "1.00")
    assert not tables.selection_table(ranked[:2], ("lstd",)).rows
    assert not tables.selection_table(ranked, ("kbrl",)).rows


def test_lengths_that_few_tasks_have_do_not_speak_for_all():
    records = [*defaults(), record(CART, "lstd", 0.1, length=8192)]
    assert errors.main_lengths(records) == [512, 2048]
    assert errors.lengths_of(records) == [512, 2048, 8192]
    many = [record(CART, "lstd", 0.1, length=2**i) for i in range(9)]
    assert errors.main_lengths(many, 3) == [1, 16, 256]


def test_labels_tell_apart_only_what_differs():
    snapshots = [replace(CART, policy=f"Cart-v0/ppo-seed{i}/steps{30000 - i}.zip") for i in range(2)]
    assert set(errors.labels(snapshots).values()) == {"Cart-v0"}
    several = [*snapshots, replace(CART, policy="random"), replace(CART, behaviour="Cart-v0/dqn-seed1/steps9.zip")]
    assert sorted(set(errors.labels(several).values())) == [
        "Cart-v0 (ppo)", "Cart-v0 (ppo, behaviour dqn)", "Cart-v0 (random)",
    ]  # fmt: skip
    assert sorted(errors.labels([CART, replace(CART, gamma=0.9)]).values()) == [
        "Cart-v0 (gamma 0.9)", "Cart-v0 (gamma 0.99)",
    ]  # fmt: skip


def words_of(sections):
    return "\n".join(part for section in sections for part in section.parts if isinstance(part, str))


def test_the_words_follow_the_records(suite):
    words = words_of(headline.results(everything(), "constructed"))
    assert (
        "The error of `constructed` over that of the policy's own SB3 critic, which saw 30,720 steps (median)" in words
    )
    assert "is 1.59 from 512 transitions and 0.79 from 2,048 transitions, over the 1 of these 2 environments" in words
    assert "From 2,048 transitions it is 1.33 times that of the best classical method and setting, chosen for" in words
    every = "ahead of its best rival on 2 of 2 environments (Balance-v0 and Cart-v0) and behind on 0;"
    assert f"At 2,048 transitions `constructed` is {every}" in words
    assert "behind on 1 (Cart-v0 to `critic`)" in headline.tally(errors.at_length(everything(), 512), "constructed")
    assert (
        "it is nearer than the critic on 0 of 1 environments and behind on 1 (Cart-v0) at 512 transitions and" in words
    )
    assert "and nearer than the critic on 1 of 1 environments and behind on 0 at 2,048 transitions." in words
    assert (
        "makes 25% of its squared error in contexts that saw no episode terminate and 25% where one did" in words
    )  # bias e and rmse 2 e
    assert "hold 80% of the true values" in words
    worse = [replace(r, scores={**r.scores, "rmse_over_std": 3 + r.scores["rmse_over_std"]}) for r in everything()]
    assert "Nobody beats a constant on Balance-v0 and Cart-v0" in words_of(headline.results(worse, "constructed"))
    assert "Nobody beats a constant" not in words


def test_too_few_cells_are_not_called_close(suite):
    two = [r for r in defaults() if r.cell.seed < 2]
    found = headline.tally(two, "constructed")
    assert "behind on 0; 0 are too close to call, and 2 have too few cells for a verdict." in found


def test_ahead_and_behind_are_said_of_the_right_side(suite):
    better = [r for r in defaults() if r.cell.variant.estimator != "critic"]
    words = words_of(headline.results(better, "constructed"))
    assert "ahead of its best rival on 2 of 2 environments (Balance-v0 and Cart-v0) and behind on 0;" in words
    words = words_of(headline.results(better, "kbrl"))
    assert "ahead of its best rival on 0 of 2 environments and behind on 2 (" in words
    assert "Balance-v0 to `constructed` and Cart-v0 to `constructed`" in words
    worse = [replace(r, scores={**r.scores, "rmse_over_std": 0.1}) if r.cell.variant.estimator == "critic" else r
             for r in defaults()]  # fmt: skip
    assert "behind on 1 (Cart-v0) at 2,048 transitions" in words_of(headline.results(worse, "constructed"))


def test_the_headline_is_about_environments_that_nothing_was_chosen_on(suite):
    found = headline.results(everything((CART, BALANCE, POLE)), "constructed")
    first, chosen = found[0], next(s for s in found if "chose" in s.title)
    assert "over the 1 of these 2 environments" in first.parts[0]  # the critic of CartPole does not count
    assert {row["environment"] for row in rows(chosen.parts[1])} == {"CartPole-v1"}
    table = next(part for section in found for part in section.parts if isinstance(part, document.Table))
    assert {row["environment"] for row in rows(table)} == {"Balance-v0", "Cart-v0"}


def test_contexts_of_another_policy_are_judged_apart(suite):
    mixed = replace(CART, behaviour="epsilon:0.3")
    mine = [replace(r, scores={**r.scores, "rmse_over_std": 9.0}) for r in defaults() if r.cell.task == CART]
    other = [replace(r, cell=replace(r.cell, task=mixed)) for r in mine]
    found = headline.results([*defaults(), *other], "constructed")
    assert "9.00" not in document.markdown(found[:-1])
    assert "another policy" in found[-1].title
    assert "of 1 environments" in found[-1].parts[0]


def test_another_policys_values_are_compared_with_fitted_q_evaluation(suite):
    mixed = replace(CART, behaviour="epsilon:0.3")
    other = [
        record(mixed, name, error, seed) for seed in range(3) for name, error in (("constructed", 0.3), ("fqe", 0.6))
    ]
    words = headline.results([*defaults(), *other], "constructed")[-1].parts[0]
    assert "over that of fitted Q evaluation (`fqe`), which is given the same policy, is 0.50" in words
    without = [r for r in other if r.cell.variant.estimator != "fqe"]
    assert "fitted Q" not in headline.results([*defaults(), *without], "constructed")[-1].parts[0]


def test_interval_scores_are_geometric_means_over_environments(suite):
    scored = [replace(r, scores={**r.scores, "interval_score_ratio": 0.4 if r.cell.task == CART else 0.9})
              for r in defaults()]  # fmt: skip
    found = only(tables.interval_table(scored), context="512", estimator="constructed")
    assert found["interval score"] == "0.60"
    assert "interval score is 0.60 times" in words_of(headline.results(scored, "constructed"))
    assert only(tables.interval_table(defaults()), context="512", estimator="constructed")["interval score"] == "-"


def test_what_a_partial_sweep_lacks_is_said(suite):
    whole = pages.suite_page("small", everything((CART, BALANCE, POLE)), pages.choose(everything(), "constructed"))
    assert "Missing" not in whole.parts[0]
    part = [r for r in everything((CART, BALANCE, POLE)) if r.cell.seed != 3 or r.cell.task != CART]
    line = pages.suite_page("small", part, pages.choose(part, "constructed")).parts[0]
    assert "Missing: 2 of 30 contexts of `constructed` (Cart-v0)." in line


def test_a_failed_cell_is_counted_and_its_reason_told(suite):
    failed = replace(record(CART, "kbrl", 1.0, 7), scores={}, error="ZeroDivisionError: division by zero")
    records = [*defaults(), failed]
    assert only(tables.accuracy_table(records), context="512", estimator="kbrl")["failed"] == "1"
    text = document.markdown([pages.provenance(records)])
    assert f"1 of {len(records)} cells failed" in text
    assert "- Cart-v0, `kbrl`: ZeroDivisionError: division by zero (1 cells)" in text
    assert "ZeroDivisionError" in benchmark_tables(records)


def test_commands_budgets_and_commits_come_from_the_records(suite):
    text = document.markdown([pages.provenance(everything())])
    sizes = "--context-lengths 512 2048 --seeds 0 1 2 3 4 --num-queries 64 --num-rollouts 24"
    tuned = "icrl-gym benchmark --suite small --tune --trust-model --estimators kbrl lstd nadaraya_watson softmax_td"
    assert f"`{tuned} {sizes}`" in text
    assert f"--suite small --trust-model --estimators constructed critic {sizes}" in text
    assert "Simulated truths: 64 query states with 24 continuations each." in text
    assert f"`abc123` ({len(everything()):,} cells)" in text
    larger = [replace(r, cell=replace(r.cell, conditions=Conditions(8, 2))) if r.cell.task == CART else r
              for r in everything()]  # fmt: skip
    text = document.markdown([pages.provenance(larger)])
    assert "8 query states with 2 continuations each or 64 query states with 24" in text
    assert "--suite small --envs Cart-v0 --tune" in text


def test_records_survive_the_archive_to_six_digits_and_the_same_records_give_the_same_bytes(tmp_path):
    records = [
        *everything(), replace(record(CART, "fqe", 1 / 3, seed=2), start_value=1.23456789),
        replace(record(replace(CART, env_kwargs=(("size", 4),)), "fqe", 1.0), scores={}, error='ValueError: "a", b\nc'),
    ]  # fmt: skip
    path = tmp_path / "records.csv.gz"
    archive.write_archive_of(records, path)
    first = path.read_bytes()
    found = {r.cell.id: r for r in archive.read_archive_of(path)}
    assert found.keys() == {r.cell.id for r in records}
    for one in records:
        back = found[one.cell.id]
        assert (back.cell, back.error, back.commit) == (one.cell, one.error, one.commit)
        assert back.scores.keys() == one.scores.keys()
        for name, value in one.scores.items():
            assert back.scores[name] == (None if value is None else pytest.approx(value, rel=1e-5))
    archive.write_archive_of(list(found.values())[::-1], path)
    assert path.read_bytes() == first


def with_agents(one, sha):
    """The record as measured with another snapshot of the policy."""
    return replace(one, cell=replace(one.cell, conditions=replace(one.cell.conditions, policy_sha256=sha)))


def test_a_run_brings_an_archive_up_to_date_and_never_mixes_agents():
    old = [record(CART, "lstd", 1.0), record(CART, "td", 2.0), record(BALANCE, "lstd", 3.0)]
    anew = record(CART, "lstd", 0.5)
    assert joining.brought_up_to_date(old, [anew]) == [old[1], old[2], anew]
    retrained = with_agents(record(CART, "lstd", 0.5), "other")
    assert joining.brought_up_to_date(old, [retrained]) == [old[2], retrained]
    assert joining.brought_up_to_date(old, []) == old


def test_a_version_before_stands_beside_this_one_in_the_archive(tmp_path):
    run, before, path = tmp_path / "run", tmp_path / "before", tmp_path / "records.csv.gz"
    for folder, error in ((run, 0.5), (before, 0.8)):
        save(folder, [record(CART, name, error, seed) for name in ("generalist", "td") for seed in SEEDS])
    write_report(ReportConfig(run, archive=path, before=before))
    found = archive.read_archive_of(path)
    assert sorted({r.cell.variant.estimator for r in found}) == ["generalist", "generalist_before", "td"]
    assert {r.scores["rmse_over_std"] for r in found if r.cell.variant.estimator == "generalist_before"} == {0.8}
    save(tmp_path / "more", [record(BALANCE, "generalist", 0.4, seed) for seed in SEEDS])
    write_report(ReportConfig(tmp_path / "more", archive=path, onto=path))
    assert len(archive.read_archive_of(path)) == len(found) + len(SEEDS)


def test_uncommitted_mixed_and_foreign_records_are_refused(tmp_path):
    path = tmp_path / "records.csv.gz"
    for commit in ("abc+changes", None):
        with pytest.raises(ValueError, match="comes from uncommitted code"):
            archive.write_archive_of([replace(record(CART, "lstd", 1.0), commit=commit)], path)
    one = record(CART, "lstd", 1.0)
    other = replace(one, cell=replace(one.cell, conditions=Conditions(64, 8)))
    with pytest.raises(ValueError, match="records of different conditions are in one folder: lstd on Cart-v0"):
        archive.write_archive_of([one, other], path)
    assert not path.exists()
    path.write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"records\.csv\.gz: cannot be read"):
        archive.read_archive_of(path)


def raw_bars(markdown):
    """Lines that a CommonMark parser with tables leaves as text although they hold a bar, so are broken rows."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    texts = [child for token in tokens for child in token.children or [] if child.type == "text"]
    tables_of = [token for token in tokens if token.type == "table_open"]
    inline = [token for token in tokens if token.type == "inline" and token.level < 2]
    return [token.content for token in inline if token.content.lstrip().startswith("|")], tables_of, texts


def test_every_table_of_every_page_is_a_table_to_a_parser(suite):
    flat = [replace(one, scores={**one.scores, "noise_floor": 1.5}) for one in everything((BALANCE,))]
    records = [*everything((CART,)), *flat]
    sections = all_sections(records, pages.choose(records))
    markdown = document.markdown(sections)
    broken, found, _ = raw_bars(markdown)
    assert broken == []
    assert len(found) == sum(isinstance(part, document.Table) for section in sections for part in section.parts)
    widths = {line.replace("\\|", "").count("|") - 1 for line in markdown.splitlines() if "spread / mean" in line}
    assert widths == {8}  # the bars of "mean |V|" do not make columns
    assert raw_bars("| a | b |\n| one of three |\n")[0]  # a broken table would be seen


def test_markdown_and_html_show_the_same_fields():
    made = document.Table(
        "T", ("name", "|n|"), ((document.text("a|b <c>"), document.number(1.5)), (document.text("d"), document.MISSING))
    )
    assert document.markdown_table(made).splitlines() == [
        "| name | \\|n\\| |", "| --- | ---: |", "| a\\|b <c> | 1.50 |", "| d | - |",
    ]  # fmt: skip
    html = document.html_page([document.Section("S", (made,))], "T", "s")
    assert "a|b &lt;c&gt;" in html
    assert 'data-order="1.5">1.50<' in html
    assert 'data-order="">-<' in html


def test_the_page_asks_for_nothing_outside_itself(run):
    _, written = write_report(ReportConfig(run))
    page = next(path for path in written if path.suffix == ".html").read_text()
    assert page.count("<svg") == 5
    ids = [part.split('"')[0] for part in page.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    outside = page.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http:" not in outside
    assert "https:" not in outside
    assert "src=" not in outside.replace("script-src", "")
    assert "default-src 'none'" in page
    write_report(ReportConfig(run))
    assert page == (run / "report.html").read_text()  # the same bytes every time


def test_the_report_command_writes_everything(run, tmp_path, capsys):
    places = ["--html", str(tmp_path / "new" / "p.html"), "--archive", str(tmp_path / "new" / "r.csv.gz")]
    assert main(["report", str(run), "--subject", "lstd", "--show", "kbrl", *places]) == 0
    written, printed = (run / "report.md").read_text(), capsys.readouterr().out
    assert written.startswith(printed.split("\n\nWritten:")[0][:1500])
    assert str(tmp_path / "new" / "p.html") in printed
    assert len(archive.read_archive_of(tmp_path / "new" / "r.csv.gz")) == len(everything())
    assert max(len(line) for line in written.splitlines() if line[:1] not in "|-!*") <= 120
    names = ("error_by_steps", "error_by_context_small", "performance_profiles", "coverage_by_environment",
             "cost_against_accuracy")  # fmt: skip
    for name in names:
        assert f"({name}.png)" in written
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert 'data-subject="lstd"' in (tmp_path / "new" / "p.html").read_text()
    assert not (run / "report.html").exists()
    assert not (run / "tensorboard").exists()


def test_bad_input_is_one_clear_line(run, tmp_path, capsys):
    def complaint(*arguments):
        assert main(["report", *map(str, arguments)]) == 2
        return capsys.readouterr().err

    assert "is not a folder" in complaint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no finished cell" in complaint(tmp_path / "empty")
    known = "estimators that were run, ['constructed', 'kbrl', 'lstd', 'nadaraya_watson', 'softmax_td'], got 'lsdt'"
    assert known in complaint(run, "--subject", "lsdt")
    assert known in complaint(run, "--show", "kbrl", "lsdt")
    failed = save(tmp_path / "empty", [replace(record(CART, "lstd", 1.0), scores={}, error="ValueError: no")])
    assert "no cell of an estimator succeeded; 1 cells, first error: ['ValueError: no']" in complaint(failed)


def test_a_run_without_spread_still_has_a_report(tmp_path, suite):
    flat = [replace(one, scores={**one.scores, "truth_std": 0.0, "rmse_over_std": None}) for one in defaults()]
    write_report(ReportConfig(save(tmp_path, flat)))
    assert "Tasks whose values hardly vary" in (tmp_path / "report.md").read_text()


def test_hparams_are_read_back_one_entry_per_variant(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    hparams.write_hparams([*defaults(), record(CART, "lstd", 0.25, options={"ridge": 1.0})], tmp_path)
    entries = {path.name: path for path in tmp_path.iterdir()}
    assert set(entries) == {"constructed", "critic", "lstd-ridge=1.0", *CLASSICAL}
    events = EventAccumulator(str(entries["lstd-ridge=1.0"])).Reload()
    assert events.Scalars("rmse_over_std/512")[0].value == pytest.approx(0.25, rel=1e-6)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    started = metadata.parse_session_start_info_plugin_data(content)
    assert started.hparams["estimator"].string_value == "lstd"
    assert started.hparams["ridge"].number_value == 1.0
    assert hparams.variant_metrics([record(CART, "constructed", 0.25)])["coverage/512"] == pytest.approx(0.8)


def test_the_first_figure_puts_the_critic_at_its_training_steps():
    (panel, *_) = figures.error_by_steps(defaults(), ["Cart-v0"], "constructed").axes
    drawn = {bars.get_label().split(",")[0]: bars.lines[0].get_xydata() for bars in panel.containers}
    mean = float(np.prod(1 + 0.1 * np.array(SEEDS))) ** 0.2
    np.testing.assert_allclose(drawn["SB3 critic"], [[30_720, 0.3]])
    np.testing.assert_allclose(drawn["constructed"], [[512, 0.4 * mean], [2048, 0.2 * mean]])
    with pytest.raises(figures.NothingToDraw):
        figures.error_by_steps(defaults(), ["Nowhere-v0"], "constructed")


def test_the_figure_draws_one_panel_per_environment_and_the_critic_as_a_line():
    curves = {"A-v0": {"lstd": {64: 0.5, 128: 0.3}, "critic": {64: 0.8, 128: 0.8}}, "B-v0": {"lstd": {64: 1.5}}}
    figure = figures.error_by_context(curves, "lstd")
    first, second = figure.axes[:2]
    assert (first.get_title(), second.get_title()) == ("A-v0", "B-v0")
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.5, 0.3])
    np.testing.assert_allclose(first.lines[1].get_ydata(), [0.8, 0.8])
    assert first.lines[0].get_linewidth() > 2  # the subject
    assert (first.lines[1].get_color(), first.lines[1].get_linestyle()) == ("#000000", "--")


def test_looks_tell_every_estimator_apart():
    looks = figures.looks(["generalist", "constructed", "critic", *CLASSICAL], "generalist")
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 7
    assert next(iter(looks)) == "generalist"


def test_profiles_count_cells_at_or_below_each_threshold():
    panel = figures.performance_profiles(defaults(), CLASSICAL, "lstd").axes[0]
    assert panel.get_title() == "512 transitions, 5 cells"  # those that the critic has too
    across, up = next(line for line in panel.lines if line.get_label() == "lstd").get_data()
    assert set(np.round(up, 6)) <= {0.0, 0.2, 0.4, 0.6, 0.8, 1.0}
    assert across[np.argmax(up > 0)] == pytest.approx(0.8, rel=0.04)


def test_coverage_points_lie_where_the_records_say():
    (panel,) = figures.coverage_by_environment(defaults(), "constructed").axes
    points = np.concatenate([part.get_offsets() for part in panel.collections])
    np.testing.assert_allclose(points[:, 0], 0.8)
    assert len(points) == 4  # two environments, two lengths
    with pytest.raises(figures.NothingToDraw, match="gives intervals"):
        figures.coverage_by_environment([record(CART, "lstd", 1.0)], "lstd")


def test_cost_labels_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    records = [record(CART, f"estimator_{i}", 0.5 + 0.001 * i) for i in range(14)]
    figure = figures.cost_against_accuracy(records, "estimator_3")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [Text.get_window_extent(note, canvas.get_renderer()) for note in figure.axes[0].texts]  # without the line
    boxes = sorted(words, key=lambda box: box.y0)
    assert len(boxes) == 14
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


def test_an_html_page_of_nothing_is_still_a_page():
    page = document.html_page([document.Section("Empty & sons", ("- a `b`\n- c", "**d**"))], "T <1>", "s")
    assert '<a href="#empty-sons">Empty &amp; sons</a>' in page
    assert "<li>a <code>b</code></li><li>c</li>" in page
    assert "<title>T &lt;1&gt;</title>" in page
    assert HINDSIGHT not in page


@pytest.mark.parametrize("num_panels", [1, 2])
def test_legend_and_labels_of_few_panels_are_not_cut(num_panels):
    names = ("generalist", "constructed", "kbrl", "lstd", "nadaraya_watson", "softmax_td", "critic")
    curves = {f"Env{i}-v0": {name: {512: 1.1, 2048: 0.9} for name in names} for i in range(num_panels)}
    figure = figures.error_by_context(curves, "generalist")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    frame = figure.bbox
    for part in (figure.legends[0], figure._supylabel, figure._supxlabel):
        box = part.get_window_extent(canvas.get_renderer())
        assert box.x0 >= frame.x0
        assert box.x1 <= frame.x1
        assert box.y0 >= frame.y0
        assert box.y1 <= frame.y1
