"""Calls in processes of their own: results, failures, time limits and deaths."""

import math
import os
import sys
import time
from multiprocessing import Pipe

import pytest

from icrl_gym.benchmark import isolation
from icrl_gym.benchmark.isolation import LONGEST_REASON, Outcome, answer, isolated, reason_of


def test_a_result_comes_back():
    assert isolated(math.sqrt, 9.0, seconds=60) == Outcome(3.0)


def test_a_failure_is_sent_as_a_reason(monkeypatch):
    monkeypatch.setattr(isolation, "_limit_memory", lambda: None)  # of this very process
    here, there = Pipe(duplex=False)
    answer(there, math.sqrt, (-1.0,))
    failed = here.recv()
    here.close()
    there.close()
    assert failed.result is None
    assert failed.reason.startswith("ValueError: ")


def test_what_hangs_is_a_reason_and_not_the_end():
    start = time.perf_counter()
    assert isolated(time.sleep, 60.0, seconds=0.2).reason == "over the limit of 0.2 seconds"
    assert time.perf_counter() - start < 30


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_more_memory_than_the_machine_has_is_a_reason():
    assert "MemoryError" in isolated(bytearray, 2**42, seconds=120).reason


@pytest.mark.slow
def test_a_process_that_dies_is_a_reason_and_not_the_end():
    assert "exit code 7" in isolated(os._exit, 7, seconds=120).reason


def test_reasons_are_one_line_of_bounded_length():
    assert reason_of(MemoryError()) == "MemoryError"
    assert reason_of(ValueError("one\ntwo")) == "ValueError: one"
    assert len(reason_of(ValueError("x" * 1000))) == LONGEST_REASON
