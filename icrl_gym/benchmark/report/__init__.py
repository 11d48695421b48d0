"""The benchmark's report, computed from records: pages in Markdown, one HTML page, figures, and HParams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icrl_gym.benchmark.records import Record, load_records
from icrl_gym.benchmark.report import errors, headline, pages, tables
from icrl_gym.benchmark.report.archive import read_archive_of, write_archive_of
from icrl_gym.benchmark.report.hparams import write_hparams
from icrl_gym.benchmark.report.joining import as_before, brought_up_to_date
from icrl_gym.configuration import ReportConfig
from icrl_gym.runs import write_text
from icrl_gym.scoring.document import Picture, Section, html_page, markdown, markdown_table

__all__ = [
    "all_sections",
    "benchmark_tables",
    "read_archive_of",
    "read_run",
    "write_archive_of",
    "write_pictures",
    "write_report",
]


def write_report(config: ReportConfig) -> tuple[str, list[Path]]:
    """Write report.md, its figures, the HTML page and, where asked, the HParams and the records as one CSV.

    Returns:
        The claim and who wins where, as Markdown, and the paths of what was written.

    Raises:
        ValueError: no record in a folder, one that cannot be read, an estimator that was not run, or, for the CSV, a
            record from uncommitted code.
        OSError: a file cannot be written.
    """
    records = read_run(config.run)
    if config.before is not None:
        records += as_before(read_run(config.before))
    if config.onto is not None:
        records = brought_up_to_date(read_archive_of(config.onto), records)
    choice = pages.choose(records, config.subject, config.show)
    found = all_sections(records, choice)
    written = []
    if config.archive is not None:
        config.archive.parent.mkdir(parents=True, exist_ok=True)
        write_archive_of(records, config.archive)
        written.append(config.archive)
    page = config.html or config.run / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    written += [config.run / "report.md", *write_pictures(found, config.run), page]
    write_text(config.run / "report.md", markdown(found) + "\n")
    write_text(page, html_page(found, f"In-context evaluation: {choice.subject} in the benchmark", choice.subject))
    if config.tensorboard:
        folder = config.run / "tensorboard"
        write_hparams(records, folder)
        written.append(folder)
    return markdown(found[:2]), written


def all_sections(records: Sequence[Record], choice: pages.Choice) -> list[Section]:
    """The whole report in reading order, from the answer to the details."""
    suites = [pages.suite_page(suite, part, choice) for suite, part in errors.by_suite(records).items()]
    together = pages.together(records, choice)
    return [*headline.results(records, choice.subject), together, *suites, pages.provenance(records)]


def read_run(run: Path) -> list[Record]:
    """All finished cells of a run's folder.

    Raises:
        ValueError: no folder, no finished cell, or a record that cannot be read.
    """
    if not run.is_dir():
        raise ValueError(f"run: {str(run)!r} is not a folder; `icrl-gym benchmark --out {run}` makes one")
    records = load_records(run)
    if not records:
        raise ValueError(f"run: {str(run)!r} holds no finished cell (records/*.json); `icrl-gym benchmark` makes them")
    return records


def write_pictures(found: Sequence[Section], folder: Path) -> list[Path]:
    """Draw the sections' figures as PNG files into a folder; returns their paths."""
    written = []
    for picture in (part for section in found for part in section.parts if isinstance(part, Picture)):
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path, metadata={"Software": None})
        written.append(path)
    return written


def benchmark_tables(records: Sequence[Record]) -> str:
    """Markdown for the end of a sweep: accuracy by suite, and what failed."""
    parts = []
    for suite, part in errors.by_suite(records).items():
        table = tables.accuracy_table(part)
        if table.rows:
            parts += [f"{table.title}, suite {suite}\n\n{markdown_table(table)}"]
    failed = [record for record in records if record.error is not None]
    if failed:
        reasons = sorted({f"- {r.cell.task.env}, {r.cell.variant.estimator}: {r.error}" for r in failed})
        parts.append(f"{len(failed)} cells failed:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)
