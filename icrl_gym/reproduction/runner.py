"""`reproduce`: run claims, keep each result on disk as soon as it is there, reuse what an earlier run finished."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from icrl_gym.configuration import ReproduceConfig
from icrl_gym.reproduction.claim import Claim, Finding, Outcome, Result, Statement
from icrl_gym.reproduction.claims import CLAIMS
from icrl_gym.reproduction.report import write_report
from icrl_gym.reproduction.sources import fingerprint
from icrl_gym.reproduction.store import Store
from icrl_gym.runs import Progress, replacing, versions, write_json
from icrl_gym.scoring.document import Field, Table
from icrl_gym.tracking import check_writable, open_writer

_logger = logging.getLogger(__name__)
STAMPS = ("quick", "num_seeds", "device", "seconds", "commit", "sources", "criterion")
RESULT, FIGURE, EVENTS, CONFIG, REPORT = "result.json", "figure.png", "events", "config.json", "reproduction.md"


def reproduce(config: ReproduceConfig, progress: Progress | None = None) -> list[Result]:
    """Run the claims of ``config`` and write the report; finished claims of the run folder are not run again.

    Returns:
        One result per claim, in the order of the report.

    Raises:
        ValueError: an unknown claim or device, a bad number, or a run folder of another kind of run.
        OSError: the run folder cannot be written to.
    """
    config.check()
    claims = find_claims(config.claims)
    _check_device(config.device)
    folder = _opened(config)
    results = []
    for done, claim in enumerate(claims):
        if progress is not None:
            progress("claims", done, len(claims))
        results.append(_result(claim, config, folder))
        write_report(stored_results(folder), folder / REPORT)
    if progress is not None:
        progress("claims", len(claims), len(claims))
    if config.report is not None:
        write_report(stored_results(folder), config.report)
    return results


def find_claims(names: Sequence[str]) -> list[Claim]:
    """Claims by id or number, in the order of the report; all of them for no names.

    Raises:
        ValueError: there is no such claim; the message lists those there are.
    """
    by_name = {name: claim for claim in CLAIMS.values() for name in (claim.id, str(claim.number))}
    for name in names:
        if name not in by_name:
            known = ", ".join(f"{claim.number} {claim.id}" for claim in CLAIMS.values())
            raise ValueError(f"claims: there is no claim {name!r}; there are {known}")
    chosen = {by_name[name].id for name in names} or set(CLAIMS)
    return [claim for claim in CLAIMS.values() if claim.id in chosen]


def stored_results(folder: Path) -> list[Result]:
    """All results of this code and these criteria in a run folder, in the order of the report."""
    paths = [folder / claim.id / RESULT for claim in CLAIMS.values()]
    results = [_read(path) for path in paths if path.exists()]
    return [result for result in results if _marks(result.claim) == (result.sources, result.criterion)]


def judged(claim: Claim, outcome: Outcome, num_seeds: int) -> Outcome:
    """The outcome, but never a verdict from fewer seeds than the criterion needs."""
    if num_seeds >= claim.least_seeds:
        return outcome
    few = f"with {num_seeds} of the {claim.least_seeds} seeds that the criterion needs"
    undecided = tuple(replace(one, verdict="not enough evidence") for one in outcome.statements)
    return replace(outcome, statements=undecided, scope=few)


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _opened(config: ReproduceConfig) -> Path:
    """The run folder, made if it is missing; one that holds another kind of run is refused."""
    folder = Path("runs", "reproduce-quick" if config.quick else "reproduce")
    folder = config.run_dir if config.run_dir is not None else folder
    check_writable(folder, "run_dir")
    kind = {"command": "reproduce", "quick": config.quick}
    path = folder / CONFIG
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if {key: stored.get(key) for key in kind} != kind:
            raise ValueError(f"run_dir: {str(folder)!r} holds another kind of run ({stored}); name another folder")
    elif any(folder.iterdir()):
        raise ValueError(f"run_dir: {str(folder)!r} holds something else; name another folder")
    else:
        write_json(path, {**kind, "versions": versions()})
    return folder


def _result(claim: Claim, config: ReproduceConfig, run_folder: Path) -> Result:
    """Read the claim's result if it is one of this code, criterion, seeds and device, else measure."""
    folder = run_folder / claim.id
    num_seeds = config.seeds or (claim.quick_seeds if config.quick else claim.num_seeds)
    if config.rerun:
        shutil.rmtree(folder, ignore_errors=True)
    sources, criterion = _marks(claim)
    wanted = {"sources": sources, "criterion": criterion, "seeds": num_seeds, "device": config.device}
    if (folder / RESULT).exists():
        result = _read(folder / RESULT)
        made = (result.sources, result.criterion, result.num_seeds, result.device)
        if not (changed := [name for name, one in zip(wanted, made, strict=True) if one != wanted[name]]):
            return result
        _logger.warning("%s: measured again, since it was stored with other %s", claim.id, " and ".join(changed))
    store = Store(folder, claim.function.__module__)
    start = time.perf_counter()
    outcome = claim.function(config.quick, range(num_seeds), config.device, store)
    seconds = time.perf_counter() - start
    outcome = judged(claim, outcome, num_seeds)
    commit = versions()["commit"] or "unknown"
    result = Result(claim, outcome, config.quick, num_seeds, config.device, seconds, commit, sources, criterion, None)
    return _kept(result, folder, run_folder / EVENTS / claim.id if config.tensorboard else None)


def _marks(claim: Claim) -> tuple[str, str]:
    """The marks that a stored result must agree with: the hash of the claim's sources, and its criterion."""
    return fingerprint(claim.function.__module__), claim.criterion


def _kept(result: Result, folder: Path, events: Path | None) -> Result:
    """Write figure, events and, last, the result, whose presence says that the claim is done."""
    outcome = result.outcome
    if outcome.figure is not None:
        with replacing(folder / FIGURE) as unfinished:
            FigureCanvasAgg(outcome.figure).print_png(unfinished)
        result = replace(result, figure=folder / FIGURE)
    if events is not None:
        _log(outcome, events)
    content = asdict(replace(outcome, figure=None))
    stamps = {name: getattr(result, name) for name in STAMPS}
    write_json(folder / RESULT, {"claim": result.claim.id, **stamps, "outcome": content})
    return result


def _log(outcome: Outcome, events: Path) -> None:
    shutil.rmtree(events, ignore_errors=True)
    with open_writer(events) as writer:
        for finding in outcome.findings:
            if math.isfinite(finding.value):
                writer.add_scalar(finding.name, finding.value, 0)
        if isinstance(outcome.figure, Figure):
            writer.add_figure("figure", outcome.figure, 0)


def _read(path: Path) -> Result:
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        outcome = stored["outcome"]
        findings = tuple(
            Finding(**{**finding, "value": math.nan if finding["value"] is None else finding["value"]})
            for finding in outcome["findings"]
        )
        figure = path.with_name(FIGURE)
        return Result(
            claim=CLAIMS[stored["claim"]],
            outcome=Outcome(
                tuple(Statement(**one) for one in outcome["statements"]),
                findings,
                outcome["scope"],
                outcome["remarks"],
                caption=outcome["caption"],
                tables=tuple(map(_read_table, outcome["tables"])),
            ),
            figure=figure if figure.exists() else None,
            **{name: stored[name] for name in STAMPS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"run_dir: {path} is not a result of this version; use --rerun ({error!r})") from error


def _read_table(table: dict[str, Any]) -> Table:
    rows = tuple(tuple(Field(**field) for field in row) for row in table["rows"])
    return Table(table["title"], tuple(table["columns"]), rows, table["note"])
