"""One audit: the evaluator reads the older part of the window, and is examined with the critic on the newer part.

So the in-context values never saw the returns that they and the critic are held against.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from icrl_gym.acting.policies import global_generators_kept
from icrl_gym.audit.critic import AuditedCritic
from icrl_gym.audit.returns import ReturnEvidence
from icrl_gym.audit.stream import Stretch
from icrl_gym.audit.verdict import LEVEL, SUPPORT_LEVEL, Evidence
from icrl_gym.observations import take
from icrl_gym.registry import Estimator
from icrl_gym.scoring.statistics import Aggregate
from icrl_gym.values import ValueEstimates

NUM_QUERIES = 512  # states at which values are compared, evenly spread over the newer part
SEED = 0  # of all chance inside an audit


@dataclass(frozen=True, eq=False)
class Examination:
    """The critic and the in-context values at Q states of the newer part, in order.

    Attributes:
        critic: the critic's values.
        in_context: the evaluator's.
        rows_Q: their rows among the N transitions of the newer part.
        returns: what the N transitions say about either.
        policy_notes: remarks on which policy the data and the values are of.
    """

    critic: ValueEstimates
    in_context: ValueEstimates
    rows_Q: np.ndarray
    returns: ReturnEvidence
    policy_notes: tuple[str, ...]

    @property
    def evidence(self) -> Evidence:
        """The evidence that a verdict is made from."""
        critic_Q, in_context_Q, rows_Q = self.critic.values, self.in_context.values, self.rows_Q
        bias, half = float(np.mean(critic_Q - in_context_Q)), float("nan")
        if self.in_context.stderr is not None:
            low_Q, high_Q = self.in_context.interval(LEVEL)
            half = float((high_Q - low_Q).mean()) / 2
        corrections_Q = in_context_Q - critic_Q
        return Evidence(
            scale=float(np.sqrt(np.mean(in_context_Q**2))),
            spread=float(np.std(in_context_Q)),
            bias_in_context=Aggregate(bias, bias - half, bias + half),
            bias_returns=self.returns.bias(LEVEL),
            shape_error=float(np.std(corrections_Q)),
            critic_explains=self.returns.explained(rows_Q, critic_Q, LEVEL),
            evaluator_explains=self.returns.explained(rows_Q, in_context_Q, LEVEL),
            support=(
                self.returns.support(rows_Q, corrections_Q, 0.0, SUPPORT_LEVEL),
                self.returns.support(rows_Q, corrections_Q, 1.0, SUPPORT_LEVEL),
            ),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks that belong beside the numbers, each once."""
        warnings = getattr(self.in_context.diagnostics, "warnings", ())
        said = (
            *self.policy_notes,
            *(f"critic: {note}" for note in self.critic.notes),
            *(f"in context: {note}" for note in (*self.in_context.notes, *warnings)),
        )
        return tuple(dict.fromkeys(said))

    def share_explained(self, predictions_Q: np.ndarray) -> float:
        """Share of the variance of the returns that predictions account for, at most 1; NaN for equal returns."""
        returns_Q = self.returns.returns_N[self.rows_Q]
        spread = float(np.var(returns_Q))
        return 1.0 - float(np.var(returns_Q - predictions_Q)) / spread if spread > 0 else float("nan")


def examine(model: Any, older: Stretch, newer: Stretch, evaluator: Estimator) -> Examination:
    """Fit the evaluator on the older stretch and hold it and the critic against the newer one.

    The model and the global generators are left as they were.

    Raises:
        ValueError, TypeError: the model has no critic, its gamma is 1, or the evaluator refuses the context.
    """
    with undisturbed(model):
        critic = AuditedCritic(model)
        context, exam = critic.counted(older), critic.counted(newer)
        reading = critic.read(newer, exam)
        rows_Q = np.unique(np.linspace(0, len(exam) - 1, NUM_QUERIES).round().astype(int))
        evaluator.fit(context, float(model.gamma), policy=critic.askable)
        in_context = evaluator.predict(take(exam.observations, rows_Q))
    values = replace(reading.values, values=reading.values.values[rows_Q], observations=take(exam.observations, rows_Q))
    notes = _policy_notes(critic, older, newer)
    if in_context.estimand.policy is None:
        in_context = replace(in_context, estimand=replace(in_context.estimand, policy=critic.policy.identity))
        notes = (*notes, "the evaluator knows the policy by the actions of the context alone")
    may_end = bool(context.terminated.any() or exam.terminated.any())
    returns = ReturnEvidence.of(reading, exam, float(model.gamma), may_end)
    return Examination(values, in_context, rows_Q, returns, notes)


def _policy_notes(critic: AuditedCritic, older: Stretch, newer: Stretch) -> tuple[str, ...]:
    of = f"values are of the policy {critic.policy.identity}"
    if critic.askable is None:
        of += ", known by its actions alone, as its masks are not known at other states"
    if not critic.on_policy:
        return (f"{of}; the steps are those of the training, with its exploration",)
    if older.num_policies == newer.num_policies == 1:
        return (f"{of}, which made all the steps",)
    return (f"{of}; the steps examined were made by {newer.num_policies} successive policies, the newest its last",)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Leave the model's modules in their mode, torch's threads as many, and all global generators as they are."""
    modes = [(module, module.training) for module in model.policy.modules()]
    threads, device = torch.get_num_threads(), torch.device(model.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), global_generators_kept():
        random.seed(SEED)
        np.random.seed(SEED)  # noqa: NPY002 - for what draws from it; put back on leaving
        torch.manual_seed(SEED)
        torch.set_num_threads(1)  # systems are small: two threads take nearly twice as long as one
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            for module, training in modes:
                module.training = training
