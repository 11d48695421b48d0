"""Joining the records of runs: an archive that a new run brings up to date, and an earlier version's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from icrl_gym.benchmark.records import Record
from icrl_gym.benchmark.report.comparisons import BEFORE, SUBJECT


def brought_up_to_date(older: Sequence[Record], newer: Sequence[Record]) -> list[Record]:
    """The newer records, and of the older ones those that can stand beside them.

    An older record stays unless its question is answered anew, or its task was run anew with other agents or another
    truth, so that no table compares values of two policies.
    """
    answered = {record.cell.question for record in newer}
    measured = {(record.cell.task, _policies(record)) for record in newer}
    tasks = {task for task, _ in measured}
    kept = [
        record
        for record in older
        if record.cell.question not in answered
        and (record.cell.task not in tasks or (record.cell.task, _policies(record)) in measured)
    ]
    return [*kept, *newer]


def as_before(records: Sequence[Record]) -> list[Record]:
    """What `generalist` answered in another run, as the answers of the version before."""
    return [
        replace(record, cell=replace(record.cell, variant=replace(record.cell.variant, estimator=BEFORE)))
        for record in records
        if record.cell.variant.estimator == SUBJECT and record.cell.variant.is_default
    ]


def _policies(record: Record) -> tuple[object, ...]:
    """What decides the truth and the contexts, beside the task."""
    conditions = record.cell.conditions
    return (
        conditions.num_queries, conditions.num_rollouts, conditions.policy_sha256, conditions.behaviour_sha256,
    )  # fmt: skip
