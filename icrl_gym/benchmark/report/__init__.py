"""The benchmark's report: tables, figures and words computed from records, as Markdown, one HTML page, and HParams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report import results, tables
from icrl_gym.benchmark.report.assemble import choose, sections
from icrl_gym.benchmark.report.folder import last_commit, observation_sizes, read_records, truth_budgets
from icrl_gym.benchmark.report.hparams import write_hparams
from icrl_gym.benchmark.report.page import html_page
from icrl_gym.configuration import ReportConfig
from icrl_gym.runs import write_text
from icrl_gym.scoring.document import Picture, Section, markdown, markdown_table

__all__ = ["benchmark_tables", "run_sections", "write_pictures", "write_report"]


def write_report(config: ReportConfig) -> tuple[str, list[Path]]:
    """Write report.md, its figures, the HTML page and, where asked, the HParams.

    Returns:
        The summary and who wins where, as Markdown, and the paths of what was written.

    Raises:
        ValueError: no record in the folder, one that cannot be read, or an estimator that was not run.
        OSError: a file cannot be written.
    """
    records, found, subject = run_sections(config)
    page = config.html or config.run / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    written = [config.run / "report.md", *write_pictures(found, config.run), page]
    write_text(config.run / "report.md", markdown(found) + "\n")
    write_text(page, html_page(found, f"In-context evaluation: {subject} in the benchmark", subject))
    if config.tensorboard:
        folder = config.run / "tensorboard"
        write_hparams(records, folder)
        written.append(folder)
    return markdown(found[:2]), written


def run_sections(config: ReportConfig) -> tuple[list[Record], list[Section], str]:
    """Records of a run's folder, the report's sections, and the subject; raises as `write_report`."""
    records = read_records(config.run)
    choice = choose(records, config.subject, config.show)
    tasks = {record.cell.task for record in records}
    sizes, budgets = observation_sizes(config.run, tasks), truth_budgets(config.run, tasks)
    found = sections(records, choice, sizes, budgets, last_commit(config.run))
    return records, found, choice.subject


def write_pictures(found: Sequence[Section], folder: Path) -> list[Path]:
    """Draw the sections' figures as PNG files into a folder; returns their paths."""
    written = []
    for picture in (part for section in found for part in section.parts if isinstance(part, Picture)):
        path = folder / f"{picture.name}.png"
        picture.figure.savefig(path)
        written.append(path)
    return written


def benchmark_tables(records: Sequence[Record]) -> str:
    """Markdown for the end of a sweep: accuracy by suite, and what failed."""
    parts = []
    for suite, part in results.by_suite(records).items():
        table = tables.accuracy_table(suite, part)
        if table.rows:
            parts += [f"{table.title}\n\n{markdown_table(table)}"]
    failed = [record for record in records if record.error is not None]
    if failed:
        reasons = sorted({f"- {r.cell.task.env}, {r.cell.setting.estimator}: {r.error}" for r in failed})
        parts.append(f"{len(failed)} cells failed:\n\n" + "\n".join(reasons))
    return "\n\n".join(parts)
