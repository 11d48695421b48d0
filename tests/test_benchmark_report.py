"""The report of a benchmark from records whose errors are known, so that every figure can be worked out by hand."""

from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest

from icrl_gym.benchmark import SUITES, Cell, Record, Setting, Suite, Task
from icrl_gym.benchmark.report import (
    assemble,
    benchmark_tables,
    figures,
    folder,
    hparams,
    results,
    tables,
    write_report,
)
from icrl_gym.benchmark.report.page import html_page
from icrl_gym.benchmark.report.ratios import CLASSICAL, HINDSIGHT, hindsight, ratio_tables, short_ratio_table
from icrl_gym.benchmark.report.words import who_wins
from icrl_gym.cli import main
from icrl_gym.configuration import ReportConfig
from icrl_gym.runs import write_json
from icrl_gym.scoring import document as table

CART, PENDULUM = Task("Cart-v0", "Cart-v0/ppo-seed0/steps30000.zip"), Task("Pendulum-v1", "random")


def record(task, estimator, error, seed=0, length=256, options=None, **changes):
    scores = {
        "rmse_over_std": error, "truth_std": 2.0, "noise_floor": 0.1, "truth_magnitude": 10.0, "rmse": 2 * error,
        "rmse_over_magnitude": error / 5, "bias": error, "coverage": 0.8 if estimator == "constructed" else None,
        "width": 1.0 if estimator == "constructed" else None, **changes.pop("scores", {}),
    }  # fmt: skip
    cell = Cell(task, Setting.of(estimator, options or {}), length, seed)
    return Record(cell, scores, 0.5, 0.1, **changes)


def everything():
    """Two tasks, two lengths, two seeds. The error is a base times (1, 1.2) by seed and (1, 0.5) by length."""
    bases = {"constructed": 0.4, "lstd": 0.8, "kbrl": 1.0, "softmax_td": 0.5, "nadaraya_watson": 0.6}
    found = []
    for task in (CART, PENDULUM):
        for length, shrink in ((256, 1.0), (512, 0.5)):
            for seed in (0, 1):
                factor = shrink * (1 + 0.2 * seed)
                for name, base in bases.items():
                    found.append(record(task, name, base * factor, seed, length))
                found.append(record(task, "lstd", 0.3 * factor, seed, length, {"ridge": 1.0}))
                if task is CART:
                    found.append(record(task, "critic", 0.3, seed, length))
    return found


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setitem(SUITES, "small", Suite((CART, PENDULUM)))


@pytest.fixture
def run(tmp_path, suite):
    return save(tmp_path, everything())


def save(folder, records):
    (folder / "records").mkdir(exist_ok=True)
    for one in records:
        write_json(folder / "records" / f"{one.cell.id}.json", asdict(one))
    return folder


def rows(found):
    """Each row as heading -> text."""
    return [dict(zip(found.columns, (entry.text for entry in row), strict=True)) for row in found.rows]


def only(found, **wanted):
    matching = [row for row in rows(found) if all(row[name] == value for name, value in wanted.items())]
    assert len(matching) == 1, matching
    return matching[0]


def test_accuracy_is_the_geometric_mean_over_cells_and_hindsight_takes_the_best_setting(suite):
    found = tables.accuracy_table("small", everything())
    row = only(found, context="256", estimator="lstd")
    assert row["RMSE / std, default"].startswith(f"{0.8 * 1.2**0.5:.2f} [0.80, 0.96]")
    assert row["median"].startswith("0.88 ")
    assert row["optimality gap"].startswith(f"{(0.3 + 0.46) / 2:.2f} ")
    assert row["tuned in hindsight"].startswith(f"{0.3 * 1.2**0.5:.2f} ")
    assert (row["cells"], row["settings"]) == ("4", "2")
    assert only(found, context="256", estimator="kbrl")["tuned in hindsight"] == "-"
    assert [r["estimator"] for r in rows(found)][:2] == ["constructed", "softmax_td"]  # nearest first
    assert "`critic` 1" in found.note  # on one of the two tasks only
    assert "unfair" in found.note


def test_comparisons_count_only_shared_cells_and_a_critic_that_wins_is_seen(suite):
    found = tables.comparison_table("small", everything())
    row = only(found, context="256", estimator="constructed")
    assert row["ahead of critic"] == "0 of 2"
    assert row["error ratio to critic"].startswith(f"{0.4 * 1.2**0.5 / 0.3:.2f} ")
    assert row["P(better than) critic"] == "0.00"
    assert row["ahead of constructed"] == "-"
    row = only(found, context="512", estimator="constructed")
    assert (row["ahead of critic"], row["P(better than) critic"]) == ("2 of 2", "1.00")
    row = only(found, context="256", estimator="softmax_td")
    assert row["ahead of constructed"] == "0 of 4"
    assert row["P(better than) constructed"].startswith("0.00")  # 0.5 against 0.48 is the nearest pair


def test_intervals_and_cost_are_those_of_the_records(suite):
    found = tables.interval_table("small", everything())
    assert {row["estimator"] for row in rows(found)} == {"constructed"}
    row = only(found, context="256")
    assert (row["coverage"], row["cells in 0.85-0.95"], row["width / std"]) == ("0.80", "0 of 4", "0.50")
    measured = [replace(one, peak_memory_fit=2**21, environment_steps=777) for one in everything()]
    cost = only(tables.cost_table("small", measured), context="256", estimator="critic")
    assert (cost["environment steps"], cost["fit, MiB"], cost["predict, MiB"]) == ("777", "2", "-")
    unmeasured = tables.cost_table("small", everything())
    assert only(unmeasured, context="256", estimator="critic")["environment steps"] == "30,000"
    assert only(unmeasured, context="512", estimator="lstd")["environment steps"] == "512"


def test_each_environment_names_the_nearest_and_the_winner():
    found = tables.environment_table(everything(), "constructed", ("lstd",))
    lost = only(found, environment="Cart-v0", context="256")
    assert (lost["nearest of all"], lost["verdict"], lost["critic"]) == ("critic", "critic", "0.30")
    won = only(found, environment="Pendulum-v1", context="512")
    assert (won["nearest of all"], won["verdict"], won["critic"]) == ("constructed", "constructed", "-")
    assert won["constructed / best rival"] == "0.80"  # against softmax_td, the same on both contexts
    even = [replace(r, scores={**r.scores, "rmse_over_std": 0.4}) for r in everything() if r.cell.seed == 0]
    assert {row["verdict"] for row in rows(tables.environment_table(even, "constructed", ()))} == {tables.TOO_CLOSE}


def test_tasks_without_spread_are_judged_by_magnitude_and_by_nothing_else():
    flat = [replace(one, scores={**one.scores, "noise_floor": 1.5}) for one in everything()]
    row = only(tables.magnitude_table(flat, "constructed", ("lstd",)), environment="Pendulum-v1", context="256")
    assert row["lstd"] == f"{0.8 * 1.2**0.5 / 5:.2%}"
    assert (row["spread / mean |V|"], row["noise / mean |V|"], row["critic"]) == ("20.00%", "15.00%", "-")
    assert not tables.accuracy_table("small", flat).rows
    assert not tables.magnitude_table(everything(), "constructed", ()).rows


def test_policy_selection_ranks_start_values(suite):
    policies = [replace(CART, policy=f"Cart-v0/ppo-seed{i}/steps30000.zip") for i in range(3)]
    ranked = [
        replace(record(task, "lstd", 0.5), start_value=float(-i), start_value_truth=float(i))
        for i, task in enumerate(policies)
    ]
    row = only(tables.selection_table(ranked), estimator="lstd")
    assert (row["policies"], row["rank correlation"], row["regret@1"]) == ("3", "-1.00", "1.00")
    assert not tables.selection_table(everything()).rows
    other = [replace(r, cell=replace(r.cell, task=replace(r.cell.task, behaviour="random"))) for r in ranked]
    opposite = [replace(r, start_value=-r.start_value) for r in other]
    found = assemble.sections([*ranked, *opposite], assemble.choose(ranked))
    views = next(section for section in found if section.title == "Other views").parts
    assert [only(view, estimator="lstd")["rank correlation"] for view in views] == ["-1.00", "1.00"]


def test_the_hindsight_rival_takes_the_best_method_and_setting_of_each_cell():
    part = results.at_length(everything(), 256)
    assert hindsight(part)[CART, 0] == pytest.approx(0.3)  # lstd with another ridge
    assert hindsight([one for one in part if one.cell.setting.estimator != "kbrl"]) == {}  # all four or none
    assert hindsight([one for one in part if one.cell.setting.is_default]) == {}  # nothing was tuned
    whole, without = ratio_tables(everything(), "constructed")[:2]
    row = only(whole, context="256", rival=HINDSIGHT)
    assert (row["error ratio"], row["ahead"], row["worst ratio"]) == ("1.33", "0 of 4", "1.33")
    assert only(whole, context="256", rival="kbrl")["ahead"] == "4 of 4"
    assert only(whole, context="256", rival="critic")["worst cell"] == "Cart-v0, ppo-seed0, context 1"
    assert "without Pendulum-v1" in without.title
    assert only(without, context="256", rival="kbrl")["cells"] == "2"


def test_the_short_table_shows_at_most_four_lengths_with_both_ends():
    found = short_ratio_table(everything(), "constructed")
    assert found.columns == ("rival", "256 transitions", "512 transitions")
    assert only(found, rival=HINDSIGHT)["256 transitions"] == "1.33, 0 of 4"
    many = [record(CART, name, 0.5, length=2**i) for i in range(6, 14) for name in ("constructed", "lstd")]
    columns = short_ratio_table(many, "constructed").columns
    assert len(columns) == 5
    assert (columns[1], columns[-1]) == ("64 transitions", "8,192 transitions")


def test_lengths_that_few_tasks_have_do_not_speak_for_all():
    records = [*everything(), record(CART, "lstd", 0.1, length=8192)]
    assert results.main_lengths(records) == [256, 512]
    assert results.lengths_of(records) == [256, 512, 8192]
    assert "8,192" not in "\n".join(who_wins(records, "constructed"))
    many = [record(CART, "lstd", 0.1, length=2**i) for i in range(9)]
    assert results.main_lengths(many, 3) == [1, 16, 256]


def test_an_environment_with_tuned_settings_alone_is_shown_without_a_winner():
    records = [*everything(), record(Task("Half-v0", "random"), "lstd", 0.2, length=512, options={"ridge": 1.0})]
    (row,) = [
        row for row in rows(tables.environment_table(records, "constructed", ())) if row["environment"] == "Half-v0"
    ]
    assert row["nearest of all"] == "-"
    assert "Half-v0" not in "\n".join(who_wins(records, "constructed"))


def test_any_estimator_can_be_the_subject_and_is_no_rival_of_itself():
    rivals = {row["rival"] for row in rows(ratio_tables(everything(), "lstd")[0])}
    assert rivals == {"critic", "constructed", HINDSIGHT, *CLASSICAL} - {"lstd"}


def test_the_words_follow_the_records():
    words = "\n".join(who_wins(everything(), "constructed"))
    assert "`critic` on 1 (Cart-v0)" in words
    assert "clearly behind on 1 (to `critic` on Cart-v0)" in words
    assert "falls in 4 of 4 cells" in words
    assert "25 % of the squared error of `constructed`" in words  # bias e and rmse 2 e
    short = "At 256 transitions the error of `constructed` is 1.46 [1.33, 1.60] times that of `critic`"
    assert f"{short} (larger, ahead in 0 of 2 cells) and 1.33 times that of the best classical method" in words
    assert words.index("In short") < words.index("512 transitions.") < words.index("256 transitions.")
    worse = [replace(r, scores={**r.scores, "rmse_over_std": 3 + r.scores["rmse_over_std"]}) for r in everything()]
    assert "Nobody beats a constant" in "\n".join(who_wins(worse, "constructed"))
    assert "Nobody beats a constant" not in words
    better = [r for r in everything() if r.cell.setting.estimator != "critic"]
    assert "clearly behind on 0, and" in "\n".join(who_wins(better, "constructed"))
    assert "critic is nearer" not in "\n".join(who_wins(better, "constructed"))


def test_a_property_that_goes_with_losing_is_named_and_one_that_does_not_is_not():
    # On task i the subject's error grows with the observation's size, by construction; the noise is shuffled.
    tasks = [Task(f"Env{i}-v0") for i in range(12)]
    noise = np.random.default_rng(3).permutation(12) / 20
    records = [
        record(task, name, error, scores={"noise_floor": noise[i]}, context_terminations=20 - i)
        for i, task in enumerate(tasks)
        for name, error in (("constructed", 0.1 + 0.05 * i), ("lstd", 0.4))
    ]
    words = "\n".join(who_wins(records, "constructed", {task: 2 * i + 1 for i, task in enumerate(tasks)}))
    named, silent = words.split("**What goes with it.**")[1].split("No clear sign:")
    assert "numbers in an observation (against the best other estimator: +1.00 [+1.00, +1.00], 12 tasks)" in named
    assert "the more `constructed` loses" in named
    assert "noise of the truth" in silent
    assert "terminations in the context (against the best other estimator: -1.00 [-1.00, -1.00], 12 tasks)" in named
    assert "the more `constructed` gains" in named
    assert "episodes" not in words  # not recorded


def test_labels_tell_apart_only_what_differs():
    snapshots = [replace(CART, policy=f"Cart-v0/ppo-seed{i}/steps{30000 - i}.zip") for i in range(2)]
    assert set(results.labels(snapshots).values()) == {"Cart-v0"}
    several = [*snapshots, replace(CART, policy="random"), replace(CART, behaviour="Cart-v0/dqn-seed1/steps9.zip")]
    assert sorted(set(results.labels(several).values())) == [
        "Cart-v0 (ppo)", "Cart-v0 (ppo, behaviour dqn)", "Cart-v0 (random)",
    ]  # fmt: skip
    assert sorted(results.labels([CART, replace(CART, gamma=0.9)]).values()) == [
        "Cart-v0 (gamma 0.9)", "Cart-v0 (gamma 0.99)",
    ]  # fmt: skip


def test_contexts_of_another_policy_are_judged_apart(suite):
    other = [
        replace(r, cell=replace(r.cell, task=replace(CART, behaviour="epsilon:0.3")))
        for r in everything()
        if r.cell.task == CART
    ]
    worse = [replace(r, scores={**r.scores, "rmse_over_std": 9.0}) if r.cell.setting == Setting("constructed") else r
             for r in other]  # fmt: skip
    found = assemble.sections([*everything(), *worse], assemble.choose(everything()))
    one = next(section for section in found if section.title.startswith("One estimator"))
    whole, apart = (
        next(t for t in one.parts if t.title.endswith(end)) for end in ("all environments", "off-policy contexts")
    )
    assert only(whole, context="256", rival="kbrl")["cells"] == "4"
    assert only(apart, context="256", rival="kbrl")["ahead"] == "0 of 2"
    text = table.markdown(found)
    assert "**Contexts of another policy.** **512 transitions.**" in text
    assert "Cart-v0 (behaviour epsilon:0.3)" in text
    assert assemble.split(worse) == (worse, [])  # nothing else to judge them apart from


def test_a_failed_cell_is_counted_and_its_reason_told(suite):
    failed = record(CART, "kbrl", 1.0, 7)
    failed = replace(failed, scores={}, error="ZeroDivisionError: division by zero")
    records = [*everything(), failed]
    assert only(tables.accuracy_table("small", records), context="256", estimator="kbrl")["failed"] == "1"
    text = table.markdown(assemble.sections(records, assemble.choose(records)))
    assert f"1 of {len(records)} cells failed" in text
    assert "- Cart-v0, `kbrl`: ZeroDivisionError: division by zero (1 cells)" in text
    assert "ZeroDivisionError" in benchmark_tables(records)


def test_commands_and_commits_come_from_the_records(suite, tmp_path):
    records = [replace(one, commit="abc123") for one in everything()]
    text = table.markdown(assemble.sections(records, assemble.choose(records)))
    assert "`icrl-gym benchmark --suite small --tune --estimators lstd --context-lengths 256 512 --seeds 0 1`" in text
    assert "--suite small --estimators constructed critic kbrl nadaraya_watson softmax_td" in text
    assert "`abc123` (52 cells)" in text
    text = table.markdown(assemble.sections([*records[1:], everything()[0]], assemble.choose(records), commit="def456"))
    assert "`abc123` (51 cells); 1 cells do not name theirs; the last sweep of the folder ran at `def456`" in text
    (tmp_path / "versions.json").write_text('{"commit": "def456"}')
    assert folder.last_commit(tmp_path) == "def456"
    assert folder.last_commit(tmp_path / "nowhere") is None


def test_sizes_of_observations_and_truths_come_from_the_truths(tmp_path, suite):
    (tmp_path / "truth").mkdir()
    name = tmp_path / "truth" / f"{CART.id}-q64-r24.npz"
    np.savez(
        name, values=np.zeros(64), **{"observations['a']": np.zeros((64, 2, 3)), "observations['b']": np.zeros(64)}
    )
    (tmp_path / "truth" / f"{PENDULUM.id}-q8-r2.npz").write_bytes(b"torn")
    tasks = (CART, replace(CART, behaviour="random"), PENDULUM)
    assert folder.observation_sizes(tmp_path, tasks) == {CART: 7, tasks[1]: 7}  # 2 x 3 numbers and one
    budgets = folder.truth_budgets(tmp_path, tasks)
    assert budgets[CART] == (64, 24)
    lines = assemble.commands([one for one in everything() if one.cell.task == CART], budgets)
    assert all(line.endswith("--num-queries 64 --num-rollouts 24") for line in lines)
    both = assemble.commands(everything(), {**budgets, PENDULUM: folder.Budget(8, 2)})
    assert sum("--envs Cart-v0 " in line and line.endswith("--num-rollouts 24") for line in both) == 2
    assert sum("--envs Pendulum-v1 " in line and line.endswith("--num-rollouts 2") for line in both) == 2
    assert len(both) == 4


def test_markdown_and_html_show_the_same_entries():
    made = table.Table(
        "T", ("name", "n"), ((table.text("a|b <c>"), table.number(1.5)), (table.text("d"), table.MISSING))
    )
    assert table.markdown_table(made).splitlines() == [
        "| name | n |", "| --- | ---: |", "| a\\|b <c> | 1.50 |", "| d | - |",
    ]  # fmt: skip
    html = table.html_table(made)
    assert "a|b &lt;c&gt;" in html
    assert 'data-order="1.5">1.50<' in html
    assert 'data-order="">-<' in html


def test_the_page_asks_for_nothing_outside_itself(run):
    _, written = write_report(ReportConfig(run))
    page = next(path for path in written if path.suffix == ".html").read_text()
    assert page.count("<svg") == 4
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
    assert (
        main(["report", str(run), "--subject", "lstd", "--show", "kbrl", "--html", str(tmp_path / "new" / "p.html")])
        == 0
    )
    written = (run / "report.md").read_text()
    printed = capsys.readouterr().out
    assert written.startswith(printed.split("\n\nWritten:")[0][:2000])
    assert str(tmp_path / "new" / "p.html") in printed
    assert "Error of `lstd` over the error of each rival" in written
    assert max(len(line) for line in written.splitlines() if line[:1] not in "|-!*") <= 120
    assert "| Cart-v0 | " in written
    for name in ("error_by_context", "performance_profiles", "coverage_by_environment", "cost_against_accuracy"):
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
    good = next((run / "records").glob("*.json"))
    stored = good.read_text()
    good.write_text(stored.replace('"scores"', '"figures_of_merit"'))
    assert "figures_of_merit" in complaint(run)
    good.write_text(stored[: len(stored) // 2])
    assert f"{good.name} is not JSON" in complaint(run)
    good.write_text("[]")
    assert "is not the record of a benchmark's cell" in complaint(run)
    good.write_text(stored)
    failed = save(tmp_path / "empty", [replace(record(CART, "lstd", 1.0), scores={}, error="ValueError: no")])
    assert "no cell of an estimator succeeded; 1 cells, first error: ['ValueError: no']" in complaint(failed)


def test_a_run_without_spread_still_has_a_report(tmp_path, suite):
    flat = [replace(one, scores={**one.scores, "truth_std": 0.0, "rmse_over_std": None}) for one in everything()]
    write_report(ReportConfig(save(tmp_path, flat)))
    text = (tmp_path / "report.md").read_text()
    assert "Tasks whose values hardly vary" in text
    assert "Who wins" not in text


def test_hparams_are_read_back_one_entry_per_setting(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    write_report(ReportConfig(run, tensorboard=True))
    entries = {path.name: path for path in (run / "tensorboard").iterdir()}
    assert set(entries) == {"constructed", "critic", "kbrl", "lstd", "lstd-ridge_1.0".replace("_", "="), *CLASSICAL}
    events = EventAccumulator(str(entries["lstd-ridge=1.0"])).Reload()
    (value,) = events.Scalars("rmse_over_std/256")
    assert value.value == pytest.approx(0.3 * 1.2**0.5, rel=1e-6)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    started = metadata.parse_session_start_info_plugin_data(content)
    assert started.hparams["estimator"].string_value == "lstd"
    assert started.hparams["ridge"].number_value == 1.0
    assert hparams.setting_metrics([record(CART, "constructed", 0.25)])["coverage/256"] == pytest.approx(0.8)


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
    figure = figures.performance_profiles(everything(), CLASSICAL, "lstd")
    panel = figure.axes[0]
    assert panel.get_title() == "256 transitions, 2 cells"  # those that the critic has too
    across, up = next(line for line in panel.lines if line.get_label() == "lstd").get_data()
    assert set(up) == {0.0, 0.5, 1.0}  # errors of 0.8 and 0.96
    assert across[np.argmax(up > 0)] == pytest.approx(0.8, rel=0.04)


def test_coverage_points_lie_where_the_records_say():
    figure = figures.coverage_by_environment(everything(), "constructed")
    (panel,) = figure.axes
    points = np.concatenate([part.get_offsets() for part in panel.collections])
    np.testing.assert_allclose(points[:, 0], 0.8)
    assert len(points) == 4  # two environments, two lengths
    with pytest.raises(figures.NothingToDraw, match="gives intervals"):
        figures.coverage_by_environment([record(CART, "lstd", 1.0)], "lstd")


def test_cost_labels_do_not_overlap():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    records = [record(CART, f"estimator_{i}", 0.5 + 0.001 * i) for i in range(14)]
    figure = figures.cost_against_accuracy(records, (), "estimator_3")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = [Text.get_window_extent(note, canvas.get_renderer()) for note in figure.axes[0].texts]  # without the line
    boxes = sorted(words, key=lambda box: box.y0)
    assert len(boxes) == 14
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))


def test_an_html_page_of_nothing_is_still_a_page():
    page = html_page([table.Section("Empty & sons", ("- a `b`\n- c", "**d**"))], "T <1>", "s")
    assert '<a href="#empty-sons">Empty &amp; sons</a>' in page
    assert "<li>a <code>b</code></li><li>c</li>" in page
    assert "<title>T &lt;1&gt;</title>" in page
