"""`CriticAuditCallback`: tells, while a model of Stable-Baselines3 trains, whether its critic can be trusted.

This module imports Stable-Baselines3, since the callback is a sub-class of its; ``icrl_gym`` loads it on first use.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Image

from icrl_gym.acting.policies import global_generators_kept
from icrl_gym.audit.critic import check_has_critic
from icrl_gym.audit.examination import Examination, examine
from icrl_gym.audit.record import Audit, save_audits
from icrl_gym.audit.stream import RolloutStream, Stretch
from icrl_gym.audit.verdict import judge
from icrl_gym.registry import Estimator, make_estimator
from icrl_gym.scoring.figures import values_over_states
from icrl_gym.scoring.score import score

DEFAULT_EVALUATOR = "generalist_at_rest"
TAG = "audit"


class CriticAuditCallback(BaseCallback):
    """Audits the critic of any algorithm of Stable-Baselines3 or sb3-contrib that has one, while it trains.

    ``model.learn(1_000_000, callback=icrl.CriticAuditCallback())`` is all. The steps that the training makes anyway are
    copied. At the end of the first rollout after ``every`` further steps, when the model still is the policy that made
    the newest of them, an evaluator reads the older part of the latest ``window`` transitions in context, and its
    values, the critic's values and the discounted returns are compared on the newer part. Figures, a verdict in words
    and a picture go to the model's own logger under ``audit/``. The training is not changed: with the same seed its
    weights are the same, bit for bit, with the callback and without it. What cannot be audited is said once, as a
    warning, and the training goes on.

    Args:
        every: environment steps between audits, at least 1.
        window: latest transitions to use, over all environments, at least 64; the first audit waits for as many.
        evaluator: anything with ``fit(trajectory, gamma, policy)`` and ``predict(observations)``, or a name of
            `icrl_gym.estimators`; None: "generalist_at_rest", the mixture of heads without walks, which is fast.
        figures: whether a picture is drawn for the logger.

    Attributes:
        audits: list of `Audit`, oldest first; kept over several calls of ``learn``.

    Raises:
        ValueError: ``every`` or ``window`` is too small, or no estimator has this name.
        TypeError: ``evaluator`` cannot evaluate.
    """

    def __init__(
        self,
        every: int = 10_000,
        window: int = 2_048,
        evaluator: Estimator | str | None = None,
        figures: bool = True,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        if window < 64:
            raise ValueError(f"window must be at least 64 transitions, got {window}")
        self.every, self.window, self.figures = every, window, figures
        self.audits: list[Audit] = []
        self._evaluator = _evaluator(evaluator)
        self._stream: RolloutStream | None = None
        self._next_step = self._first_step = 0
        self._said: set[str] = set()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `audits` as a table, atomically: CSV, or JSON where the name ends in .json. Returns the path.

        Raises:
            ValueError: the name ends in neither.
            OSError: the file cannot be written.
        """
        return save_audits(self.audits, path)

    def _on_training_start(self) -> None:
        waiting = self.num_timesteps < self._next_step <= self.num_timesteps + self.every  # of an earlier call
        self._wait(self._next_step if waiting else self.num_timesteps + self.every)
        try:
            check_has_critic(self.model)
            self._stream = RolloutStream(self.model, self.window)
        except Exception as error:  # whatever it is, the training goes on
            self._give_up(error)

    def _on_rollout_start(self) -> None:
        if self._stream is not None:
            self._stream.policy_number += 1

    def _on_step(self) -> bool:
        stream = self._stream
        if stream is not None and self.num_timesteps >= self._first_step:
            try:
                stream.step(self.locals)
            except Exception as error:  # whatever it is, the training goes on
                self._give_up(error)
        return True

    def _on_rollout_end(self) -> None:
        stream = self._stream
        if stream is None or self.num_timesteps < self._next_step or not stream.full:
            return
        self._wait(self.num_timesteps + self.every)
        try:
            self._audit(stream)
        except Exception as error:  # whatever it is, the training goes on
            self._say(error)
        if self.num_timesteps < self._first_step:
            stream.clear()

    def _wait(self, step: int) -> None:
        """Audit at the first end of a rollout from this step on; copy what will be in the window by then."""
        self._next_step = step
        self._first_step = step - self.window - 2 * self.model.n_envs

    def _audit(self, stream: RolloutStream) -> None:
        start = time.perf_counter()
        older, newer = stream.split()
        examination = examine(self.model, older, newer, self._evaluator)
        audit = _audit_of(examination, self.num_timesteps, older, newer, start)
        self.audits.append(audit)
        self._log(audit, examination)

    def _log(self, audit: Audit, examination: Examination) -> None:
        for name, value in audit.scalars():
            self.logger.record(f"{TAG}/{name}", value)
        self.logger.record(f"{TAG}/verdict", audit.verdict.sentence)
        if self.figures:
            picture = Image(_drawn(audit, examination), "HWC")
            self.logger.record(f"{TAG}/values", picture, exclude=("stdout", "log", "json", "csv"))
        self.logger.dump(self.num_timesteps)

    def _say(self, error: Exception) -> None:
        """Warn of a failure, once for each reason."""
        reason = f"critic audit: {type(error).__name__}: {error}".partition("\n")[0]
        if reason not in self._said:
            self._said.add(reason)
            warnings.warn(f"{reason}; the training goes on without this audit", stacklevel=2)

    def _give_up(self, error: Exception) -> None:
        """Warn, and audit no more in this training."""
        self._stream = None
        self._say(error)


def _evaluator(evaluator: Estimator | str | None) -> Estimator:
    with global_generators_kept():  # making a network draws from torch's
        if evaluator is None:
            return make_estimator(DEFAULT_EVALUATOR, dtype=torch.float32)
        if isinstance(evaluator, str):
            return make_estimator(evaluator)
    if not isinstance(evaluator, Estimator):
        known = "a name of icrl_gym.estimators() or an object with fit and predict"
        raise TypeError(f"evaluator must be {known}, got {type(evaluator).__name__}")
    return evaluator


def _audit_of(examination: Examination, step: int, older: Stretch, newer: Stretch, start: float) -> Audit:
    """The record of an examination that began at ``start`` (of ``time.perf_counter``)."""
    critic, in_context = examination.critic, examination.in_context
    against, evidence = score(critic, in_context), examination.evidence
    width = float("nan")
    if in_context.stderr is not None:
        low, high = in_context.interval(0.9)
        width = float(np.mean(high - low))
    return Audit(
        step=step,
        num_context=len(older.trajectory),
        num_examined=len(newer.trajectory),
        num_policies=newer.num_policies,
        gamma=in_context.estimand.gamma,
        policy=str(critic.estimand.policy),
        rmse=against.rmse,
        bias=against.bias,
        spearman=against.spearman,
        explained_variance=against.explained_variance,
        interval_width=width,
        returns_bias=evidence.bias_returns.value,
        returns_bias_low=evidence.bias_returns.low,
        returns_bias_high=evidence.bias_returns.high,
        returns_explained_variance=examination.share_explained(critic.values),
        in_context_explained_variance=examination.share_explained(in_context.values),
        seconds=time.perf_counter() - start,
        verdict=judge(evidence),
        notes=examination.notes,
    )


def _drawn(audit: Audit, examination: Examination) -> np.ndarray:
    """The picture of an audit as pixels (height, width, 3), without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    title = f"step {audit.step:,}: {audit.verdict.sentence}"
    rows_P, returns_P = examination.returns.corrected_returns(examination.rows_Q)
    shown_P = np.searchsorted(examination.rows_Q, rows_P)
    figure = values_over_states(examination.in_context, examination.critic, shown_P, returns_P, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]
