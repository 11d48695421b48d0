"""scripts/make_results.py: the pages of the repository, from the records in it, byte for byte."""

import importlib.util
import sys
from pathlib import Path

import pytest
from test_benchmark_report import BALANCE, CART, POLE, everything, raw_bars

from icrl_gym.benchmark import SUITES, Suite
from icrl_gym.benchmark.report import write_archive_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def make_results(monkeypatch):
    spec = importlib.util.spec_from_file_location("make_results", ROOT / "scripts" / "make_results.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "make_results", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def config(make_results, folder):
    return make_results.Config(folder / "records.csv.gz", folder / "RESULTS.md", folder / "results")


def written(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_answer_comes_first_and_every_page_is_made(make_results, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "small", Suite((CART, BALANCE, POLE)))
    write_archive_of(everything((CART, BALANCE, POLE)), tmp_path / "records.csv.gz")
    make_results.main(config(make_results, tmp_path))
    page = (tmp_path / "RESULTS.md").read_text()
    order = [
        "# Results",
        "## In short",
        "## Who wins where",
        "## Where it loses",
        "## The environments that chose",
        "## How",
    ]
    places = [page.index(heading) for heading in order]
    assert places == sorted(places)
    assert page.count("\n") <= 160
    for name in ("together", "small", "provenance"):
        assert f"docs/results/{name}.md" in page
        other = (tmp_path / "results" / f"{name}.md").read_text()
        assert other.startswith("# ")
        assert raw_bars(other)[0] == []
    first = written(tmp_path)
    make_results.main(config(make_results, tmp_path))
    assert written(tmp_path) == first


def test_without_records_there_is_one_clear_error(make_results, tmp_path):
    with pytest.raises(ValueError, match=r"records .*records\.csv\.gz: cannot be read"):
        make_results.main(config(make_results, tmp_path))


def test_the_answer_of_the_repository_fits_one_screen_and_every_table_is_one():
    pages = [ROOT / "RESULTS.md", *(ROOT / "docs" / "results").glob("*.md")]
    assert len(pages) > 5
    assert len(pages[0].read_text().splitlines()) <= 160
    for page in pages:
        broken, tables, _ = raw_bars(page.read_text())
        assert broken == []
        assert tables or page.name == "provenance.md"


@pytest.mark.slow  # thirty thousand records
def test_the_pages_of_the_repository_are_those_of_its_records(make_results, tmp_path, monkeypatch):
    records, pages = ROOT / "docs" / "results" / "records.csv.gz", ROOT / "docs" / "results"
    monkeypatch.chdir(tmp_path)
    make_results.main(make_results.Config(records))
    assert (tmp_path / "RESULTS.md").read_text() == (ROOT / "RESULTS.md").read_text()
    made = {path.name: path.read_text() for path in (tmp_path / "docs" / "results").glob("*.md")}
    assert made == {path.name: path.read_text() for path in pages.glob("*.md")}
