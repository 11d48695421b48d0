"""How each topic of docs/performance.md is measured, through the library's public names alone.

Every function here runs in a process of its own and returns one `Row`. What is compared is timed in turn within that
process, since a machine's speed drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import icrl_gym as icrl
from icrl_gym.benchmark.resources import measured
from icrl_gym.benchmark.scale.machine import GIGA, measured_machine
from icrl_gym.benchmark.scale.processes import PROCESSES, Process, log_of
from icrl_gym.benchmark.scale.rivals import rival_row
from icrl_gym.benchmark.scale.rows import CONSTRUCTED, TOLD, Measurement, Row
from icrl_gym.runs import source_commit

GAMMA = 0.99
NUM_QUERIES, MANY_QUERIES = 64, 1_000
NEW_TRANSITIONS = 256
NUM_REWARDS = 100
NUM_PROMPTS, PROMPTS_ONE_BY_ONE = 1_000, 50
WARM_UP = 128  # transitions of a first call that loads what is loaded on first use
COUNTED_AT_MOST = 100_000  # transitions: products are counted in a second call
LARGEST_PLAIN_PASS = 16_384  # its attention matrix has the square of that many numbers
PRODUCT_SIZE, COPY_BYTES = 1_024, 2**24  # of the machine's speed beside each row


@dataclass(frozen=True)
class Subject:
    """A log of a synthetic process, and states of it to ask about."""

    process: Process
    log: icrl.Trajectory

    @classmethod
    def of(cls, name: str, num_transitions: int) -> Subject:
        """The subject of this process and size."""
        process = PROCESSES[name]()
        return cls(process, log_of(process, num_transitions))

    def queries(self, number: int) -> np.ndarray:
        """States spread over the log, (number, features)."""
        return np.asarray(self.log.observations)[np.linspace(0, len(self.log) - 1, number).astype(int)]

    def policy(self, method: str) -> Process | None:
        """The policy as the method is told it, or None."""
        return self.process if method == TOLD else None

    def first(self, num_transitions: int) -> Subject:
        """The beginning of the log."""
        return replace(self, log=self.log[:num_transitions])


def evaluator(method: str, **options: Any) -> icrl.InContextEvaluator:
    """The evaluator of this method."""
    name = CONSTRUCTED if method == CONSTRUCTED else "generalist"
    return icrl.InContextEvaluator.from_pretrained(name, **options)


def fit_and_predict(subject: Subject, method: str, num_queries: int = NUM_QUERIES) -> icrl.ValueEstimates:
    """Values of as many states from the whole log."""
    fitted = evaluator(method).fit(subject.log, GAMMA, policy=subject.policy(method))
    return fitted.predict(subject.queries(num_queries))


def _added_in_place(
    total: torch.Size, left: torch.Size, right: torch.Size, out_shape: torch.Size | None = None, **more: object
) -> int:
    """Floating-point operations of `Tensor.addmm_`, which torch's counter does not know."""
    del total, out_shape, more
    return 2 * left[0] * left[1] * right[1]


def product_counter() -> FlopCounterMode:
    """Counts the floating-point operations of the matrix products within it."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _added_in_place})


def cost(measurement: Measurement) -> Row:
    """Fit and 64 queries; the reference is the time of the same matrix products alone, in float64."""
    subject, method = Subject.of(measurement.log, measurement.size), measurement.method
    fit_and_predict(subject.first(WARM_UP), method)
    _, spent = measured(lambda: fit_and_predict(subject, method))
    row = Row(measurement, spent.seconds, spent.peak_memory)
    if measurement.size > COUNTED_AT_MOST:
        return row
    with product_counter() as counter:
        fit_and_predict(subject, method)
    machine, products = measured_machine(torch.get_num_threads(), PRODUCT_SIZE, COPY_BYTES), counter.get_total_flops()
    alone = products / GIGA / machine.gflops_float64
    return replace(
        row, products=float(products), products_float32=products / GIGA / machine.gflops_float32,
        products_float64=alone, reference_seconds=alone,
    )  # fmt: skip


def streaming(measurement: Measurement) -> Row:
    """`update` with 256 new transitions; the reference is a fit of all of them."""
    subject = Subject.of(measurement.log, measurement.size + NEW_TRANSITIONS)
    method, told = measurement.method, subject.policy(measurement.method)
    fit_and_predict(subject.first(WARM_UP), method)
    updated = evaluator(method).fit(subject.log[: measurement.size], GAMMA, policy=told)
    new = subject.log[measurement.size :]
    _, spent = measured(lambda: updated.update(new))
    fresh, whole = measured(lambda: evaluator(method).fit(subject.log, GAMMA, policy=told))
    queries = subject.queries(NUM_QUERIES)
    apart = difference(updated.predict(queries).values, fresh.predict(queries).values)
    return Row(measurement, spent.seconds, spent.peak_memory, whole.seconds, error=apart)


def depth(measurement: Measurement) -> Row:
    """Finite depth: fit and 64 queries; the reference is one plain attention pass at the context's length."""
    words = measurement.method.split()
    options: dict[str, Any] = {"num_layers": int(words[0]), "dtype": getattr(torch, words[-1])}
    subject = Subject.of(measurement.log, measurement.size)

    def run(of: Subject) -> object:
        return icrl.InContextEvaluator(**options).fit(of.log, GAMMA).predict(of.queries(NUM_QUERIES))

    run(subject.first(WARM_UP))
    _, spent = measured(lambda: run(subject))
    if measurement.size > LARGEST_PLAIN_PASS:
        return Row(measurement, spent.seconds, spent.peak_memory)
    plain = plain_pass(subject.queries(measurement.size), options["dtype"])
    seconds, reference = in_turn(lambda: run(subject), plain, repeats=3)
    return Row(measurement, seconds, spent.peak_memory, reference)


def plain_pass(features_ND: np.ndarray, dtype: torch.dtype) -> Callable[[], object]:
    """softmax(x x^T) v with one value per column."""
    x_ND = torch.as_tensor(features_ND, dtype=dtype)
    v_N1 = torch.ones(len(x_ND), 1, dtype=dtype)
    return lambda: torch.softmax(x_ND @ x_ND.T, -1) @ v_N1


def queries(measurement: Measurement) -> Row:
    """1,000 queries of a fitted context; the reference is its fit."""
    subject, method = Subject.of(measurement.log, measurement.size), measurement.method
    fit_and_predict(subject.first(WARM_UP), method)
    told, states = subject.policy(method), subject.queries(MANY_QUERIES)
    fitted = evaluator(method)
    reference, seconds = in_turn(
        lambda: fitted.fit(subject.log, GAMMA, policy=told), lambda: fitted.predict(states), repeats=3
    )
    return Row(measurement, seconds, reference_seconds=reference)


def rewards(measurement: Measurement) -> Row:
    """A fit and values under 100 reward functions; the reference is a fit and values under the logged one."""
    subject, method = Subject.of(measurement.log, measurement.size), measurement.method
    told, states = subject.policy(method), subject.queries(NUM_QUERIES)
    fitted: Any = evaluator(method)
    if not hasattr(fitted, "predict_rewards"):
        return Row(measurement, reason="not available")
    drawn_NR = np.random.default_rng(0).standard_normal((len(subject.log), NUM_REWARDS))
    fit_and_predict(subject.first(WARM_UP), method)
    seconds, reference = in_turn(
        lambda: fitted.fit(subject.log, GAMMA, policy=told).predict_rewards(drawn_NR, states),
        lambda: fit_and_predict(subject, method),
        repeats=2,
    )
    return Row(measurement, seconds, reference_seconds=reference)


def attribution(measurement: Measurement) -> Row:
    """The weights of all rewards in 64 values; the reference is the fit."""
    subject, method = Subject.of(measurement.log, measurement.size), measurement.method
    fit_and_predict(subject.first(WARM_UP), method).attribution()
    told = subject.policy(method)
    fitted, fit = measured(lambda: evaluator(method).fit(subject.log, GAMMA, policy=told))
    estimates = fitted.predict(subject.queries(NUM_QUERIES))
    weights_QN, spent = measured(estimates.attribution)
    apart = difference(weights_QN @ subject.log.rewards, estimates.values)
    return Row(measurement, spent.seconds, spent.peak_memory, fit.seconds, error=apart)


def prompts(measurement: Measurement) -> Row:
    """1,000 prompts at once; the reference is one after the other, extrapolated from 50."""
    many: Any = getattr(icrl, "evaluate_many", None)
    if many is None:
        return Row(measurement, reason="not available")
    log = Subject.of(measurement.log, NUM_PROMPTS * measurement.size).log
    logs = [log[start : start + measurement.size] for start in range(0, len(log), measurement.size)]
    options = {} if measurement.method == CONSTRUCTED else {"imagination": False}

    def one_by_one() -> None:
        for each in logs[:PROMPTS_ONE_BY_ONE]:
            fitted = evaluator(measurement.method, **options).fit(each, GAMMA)
            fitted.predict(np.asarray(each.observations)[:1])

    def at_once() -> None:
        many(logs, GAMMA, evaluator=evaluator(measurement.method, **options))

    many(logs[:2], GAMMA, evaluator=evaluator(measurement.method, **options))
    seconds, reference = in_turn(at_once, one_by_one, repeats=2)
    return Row(measurement, seconds, reference_seconds=reference * NUM_PROMPTS / PROMPTS_ONE_BY_ONE)


def in_turn(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median wall times of two calls that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for call, record in zip((first, second), times, strict=True):
            start = time.perf_counter()
            call()
            record.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def difference(values: np.ndarray, others: np.ndarray) -> float:
    """The largest difference, in standard deviations of the others."""
    return float(np.abs(values - others).max() / (others.std() or 1.0))


TOPICS: dict[str, Callable[[Measurement], Row]] = {
    "cost": cost, "streaming": streaming, "depth": depth, "queries": queries, "rewards": rewards,
    "attribution": attribution, "prompts": prompts,
}  # fmt: skip


def measured_row(measurement: Measurement, rivals: Path, num_threads: int) -> Row:
    """Run one measurement here.

    Args:
        measurement: what to measure.
        rivals: folder with the log and the truth that the rivals share.
        num_threads: threads of torch.
    """
    torch.set_num_threads(num_threads)
    row = rival_row(measurement, rivals) if measurement.topic == "rivals" else TOPICS[measurement.topic](measurement)
    return replace(row, commit=source_commit(Path(icrl.__file__).parent))
