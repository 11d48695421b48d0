"""The benchmark: suites of cells, a resumable runner, aggregates with intervals.

A cell is one estimator under one setting on one context of one policy in one environment, scored at shared query
states.
"""

from icrl_gym.benchmark.cells import Cell, Conditions, Task, Variant
from icrl_gym.benchmark.records import Record, load_records
from icrl_gym.benchmark.runner import run_benchmark
from icrl_gym.benchmark.suites import SUITES, Suite

__all__ = [
    "SUITES",
    "Cell",
    "Conditions",
    "Record",
    "Suite",
    "Task",
    "Variant",
    "load_records",
    "run_benchmark",
]
