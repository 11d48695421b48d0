"""scripts/make_report.py: one page from the main job's runs and the benchmark's records."""

import importlib.util
import sys
from pathlib import Path

import pytest
from test_benchmark_report import everything, save
from test_report import write_run

from icrl_gym.benchmark import SUITES, Suite

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_report.py"


@pytest.fixture
def make_report(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_report", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path, monkeypatch):
    tasks = tuple(dict.fromkeys(one.cell.task for one in everything()))
    monkeypatch.setitem(SUITES, "small", Suite(tasks))
    (tmp_path / "benchmark").mkdir()
    save(tmp_path / "benchmark", everything())
    (tmp_path / "main").mkdir()
    write_run(tmp_path / "main" / "a", 0, 1.0, 0.5)
    return tmp_path


def config(make_report, folders, **changes):
    places = {"main": "main", "benchmark": "benchmark", "output": "RESULTS.md", "figures": "figures", **changes}
    return make_report.Config(**{name: folders / place for name, place in places.items()})


def test_the_answer_comes_first_and_the_details_are_folded_away(make_report, folders):
    make_report.main(config(make_report, folders))
    page = (folders / "RESULTS.md").read_text()
    order = [
        "# Results", "## Summary", "## Who wins where, and why", "## Figures", "## One estimator against all others",
        "## Suite by suite", "<summary>Suite small</summary>", "## How it was run", "## The main job",
    ]  # fmt: skip
    places = [page.index(heading) for heading in order]
    assert places == sorted(places)
    assert page.count("<details>") == page.count("</details>") == 2
    for name in ("error_by_context", "performance_profiles", "coverage_by_environment", "cost_against_accuracy"):
        assert f"({folders / 'figures'}/{name}.png)" in page
        assert (folders / "figures" / f"{name}.png").stat().st_size > 1000
    assert "Of 1 rows: 0 nearer in context, 1 nearer for the critic, 0 too close to call." in page


def test_each_source_alone_makes_a_page_and_none_is_an_error(make_report, folders):
    make_report.main(config(make_report, folders, benchmark="nowhere"))
    assert "## Summary" not in (folders / "RESULTS.md").read_text()
    make_report.main(config(make_report, folders, main="nowhere"))
    assert "## The main job" not in (folders / "RESULTS.md").read_text()
    with pytest.raises(SystemExit, match="neither"):
        make_report.main(config(make_report, folders, main="nowhere", benchmark="nowhere", output="other.md"))
    (folders / "empty").mkdir()
    with pytest.raises(SystemExit, match="no finished run below"):
        make_report.main(config(make_report, folders, main="empty", output="other.md"))
    with pytest.raises(ValueError, match="holds no finished cell"):
        make_report.main(config(make_report, folders, benchmark="empty", output="other.md"))
    assert not (folders / "other.md").exists()
