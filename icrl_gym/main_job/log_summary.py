"""The print-out of ``icrl-gym evaluate --log``: a small table, what was assumed, and where the rest lies."""

from __future__ import annotations

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from icrl_gym.main_job.log_result import Interval, LogEvaluation


def log_summary(evaluation: LogEvaluation) -> dict[str, Any]:
    """The findings as one JSON object."""
    return {
        "config": dataclasses.asdict(evaluation.config),
        "run_dir": evaluation.run_dir,
        "estimand": dataclasses.asdict(evaluation.starts.estimand),
        "contents": evaluation.contents,
        "value_at_starts": dataclasses.asdict(evaluation.start_value),
        "num_starts": len(evaluation.starts),
        "mean_return": None if evaluation.mean_return is None else dataclasses.asdict(evaluation.mean_return),
        "num_returns": len(evaluation.returns),
        "support": _support(evaluation),
        "reading": evaluation.log.reading,
        "assumptions": list(evaluation.log.assumptions),
        "notes": list(evaluation.notes),
    }


def print_log_evaluation(evaluation: LogEvaluation, console: Console) -> None:
    """Print the findings for a reader."""

    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    estimand = evaluation.starts.estimand
    policy = estimand.policy or "the policy that acted"
    say(f"\n{evaluation.config.log}, {policy}, gamma {evaluation.gamma:g}")
    say(f"Log: {evaluation.contents}.")
    if evaluation.log.reading:
        say(f"Read: {evaluation.log.reading}.")
    console.print(_table(evaluation))
    support = _support(evaluation)
    if support is not None:
        say(f"Support of the starts: {support:.3g} transitions like them (median); below 0.5 a value is a guess.")
    for assumption in evaluation.log.assumptions:
        say(f"Assumed: {assumption}.")
    for note in evaluation.notes:
        say(f"Note: {note}.")
    value = evaluation.start_value
    within = "" if value.low is None else f", between {value.low:.4g} and {value.high:.4g} with 90 % confidence"
    say(f"\nValue at starts: {value.mean:.4g}{within}.", style="bold")
    shown = Path(os.path.relpath(evaluation.run_dir)) if evaluation.run_dir.is_relative_to(Path.cwd()) else None
    shown = evaluation.run_dir if shown is None else shown
    say(f"\nWritten to {shown}: starts.csv, episodes.csv, value_at_starts.png, value_along_episodes.png")
    if evaluation.config.tensorboard:
        say(f"Look at it: tensorboard --logdir {shlex.quote(str(shown.parent))}")


def _table(evaluation: LogEvaluation) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("90 % interval", justify="right", no_wrap=True)
    values = evaluation.starts.values
    lowest, highest = int(np.argmin(values)), int(np.argmax(values))
    rows: list[tuple[str, Interval | None]] = [
        (f"mean over {len(values)} starts", evaluation.start_value),
        (f"lowest start (row {evaluation.start_rows[lowest]:,})", evaluation.start(lowest)),
        (f"highest start (row {evaluation.start_rows[highest]:,})", evaluation.start(highest)),
        (f"mean return of {len(evaluation.returns)} of its episodes", evaluation.mean_return),
    ]
    for name, figure in rows:
        if figure is not None:
            within = "-" if figure.low is None else f"{figure.low:.4g} to {figure.high:.4g}"
            table.add_row(name, f"{figure.mean:.4g}", within)
    return table


def _support(evaluation: LogEvaluation) -> float | None:
    """Median effective number of sources at the starts, where the estimator says."""
    diagnostics = evaluation.starts.diagnostics
    return None if diagnostics is None else float(np.median(diagnostics.support))
