"""Joining the records of runs: an archive that a new run brings up to date, and an earlier version's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from icrl_gym.benchmark.cells import Conditions
from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report.comparisons import BEFORE, SUBJECT


def brought_up_to_date(older: Sequence[Record], newer: Sequence[Record]) -> list[Record]:
    """The newer records, and of the older ones those that can stand beside them.

    An older record stays unless its question is answered anew, or its task was run anew with other agents or another
    truth, so that no table compares values of two policies.
    """
    answered = {record.cell.question for record in newer}
    measured = {(record.cell.task, _measured_with(record)) for record in newer}
    tasks = {task for task, _ in measured}
    kept = [
        record
        for record in older
        if record.cell.question not in answered
        and (record.cell.task not in tasks or (record.cell.task, _measured_with(record)) in measured)
    ]
    return [*kept, *newer]


def as_before(records: Sequence[Record]) -> list[Record]:
    """Answers of `generalist` in another run, as those of the version before."""
    return [
        replace(record, cell=replace(record.cell, variant=replace(record.cell.variant, estimator=BEFORE)))
        for record in records
        if record.cell.variant.estimator == SUBJECT and record.cell.variant.is_default
    ]


def _measured_with(record: Record) -> Conditions:
    """Conditions of the truth and the contexts; an estimator's weights are none of them."""
    return replace(record.cell.conditions, weights_sha256=None)
