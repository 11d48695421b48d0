"""Advice for the reader of an evaluation: why an estimate says little and what to do, and when to trust which."""

from __future__ import annotations

import numpy as np

from icrl_gym.main_job.result import Evaluation
from icrl_gym.scoring.document import Table, markdown_table, number, text
from icrl_gym.scoring.score import INTERVAL_LEVEL

HOPELESS = 0.8  # RMSE over the truth's standard deviation; the best constant has 1
MOSTLY_CHANCE = 1.5  # spread of outcomes from one state over the spread of values between states


def advice(evaluation: Evaluation) -> tuple[str, ...]:
    """Why the in-context estimate tells states hardly apart, and what to do; nothing where it does tell them apart."""
    found, values = evaluation.scores[evaluation.ours], evaluation.estimates[evaluation.ours].values
    constant = np.ptp(values) <= 1e-9 * max(np.max(np.abs(values)), 1e-300) and found.n > 1
    if not constant and found.rmse_over_std < HOPELESS:
        return ()
    if constant:
        said = f"{evaluation.ours} gives every state the same value, {values[0]:.4g}."
    elif found.truth_std == 0:
        said = (
            f"There is nothing to tell apart: the truth is the same, {evaluation.truth.values[0]:.4g}, at every state."
        )
    else:
        near = "hardly nearer than the best constant" if found.rmse_over_std <= 1 else "worse than the best constant"
        ranks = "its order of states is better than its level" if found.spearman > 0.4 else "do not rank states by it"
        said = f"{evaluation.ours} is {near}: {ranks} (Spearman {found.spearman:.2f})."
    reasons = _reasons(evaluation)
    why = f"Why: {'; '.join(reasons)}." if reasons else "Why: too little is known about these states from this context."
    return said, why, f"What to do: {_remedy(evaluation)}"


def _reasons(evaluation: Evaluation) -> list[str]:
    log, reasons = evaluation.trajectory, []
    num_ended = int(log.terminated.sum())
    if np.ptp(log.rewards) == 0:
        reasons.append(f"every reward of the context is {log.rewards[0]:g}")
    if num_ended == 0:
        reasons.append(
            "no episode of the context ended in a terminal state, so how soon episodes end, and with it the level of "
            "the values, is not known"
        )
    elif num_ended <= 2:
        reasons.append(f"only {num_ended} of the context's episodes ended in a terminal state")
    chance = _spread_of_outcomes(evaluation)
    spread = evaluation.scores[evaluation.ours].truth_std
    if 0 < spread < chance / MOSTLY_CHANCE:
        reasons.append(
            f"chance outweighs what there is to tell apart: returns from one same state spread by {chance:.2g}, "
            f"the values of states by {spread:.2g}"
        )
    return reasons


def _spread_of_outcomes(evaluation: Evaluation) -> float:
    """Standard deviation of single returns from one state, NaN where the truth does not know."""
    stderr = evaluation.truth.stderr
    if stderr is None or not np.any(stderr):
        return float("nan")
    return float(np.sqrt(np.mean(stderr**2) * evaluation.config.num_rollouts))


def _remedy(evaluation: Evaluation) -> str:
    config = evaluation.config
    longer = f"more context (--context-length {8 * config.context_length})"
    if not evaluation.trajectory.terminated.any():
        return f"{longer}, until episodes end; or a policy that gets to an end."
    return f"{longer}; or ask about averages over states rather than single ones."


def when_to_trust(evaluation: Evaluation) -> str:
    """Where the critic leaves the in-context interval, who is nearer; "" without a critic or an interval."""
    ours, *others = evaluation.scores
    estimate = evaluation.estimates[ours]
    if not others or estimate.stderr is None:
        return ""
    critic, truth = evaluation.estimates[others[0]].values, evaluation.truth.values
    low, high = estimate.interval(INTERVAL_LEVEL)
    outside = (critic < low) | (critic > high)
    nearer = np.abs(estimate.values - truth) < np.abs(critic - truth)
    where = f"{ours}'s {INTERVAL_LEVEL:.0%} interval"
    if not outside.any():
        return f"When to trust which: {others[0]} lies inside {where} at all {len(truth)} states; they do not disagree."
    return (
        f"When to trust which: {others[0]} leaves {where} at {outside.sum()} of {len(truth)} states; {ours} is nearer "
        f"to the truth at {nearer[outside].sum()} of these, and at {nearer[~outside].sum()} of the "
        f"{(~outside).sum()} others."
    )


def summary_text(evaluation: Evaluation) -> str:
    """Verdict, advice, every figure of every estimator and the notes, as Markdown."""
    figures = {name: {**found.as_dict(), "environment steps": evaluation.steps[name]} for name, found in
               evaluation.scores.items()}  # fmt: skip
    names = [name for name in next(iter(figures.values())) if name != "notes"]
    rows = [(text(name), *(number(found[name], ".4g") for found in figures.values())) for name in names]
    table = Table("Scores", ("figure", *figures), tuple(rows))
    said = [evaluation.verdict, *advice(evaluation), when_to_trust(evaluation)]
    notes = [f"- {note}" for note in evaluation.notes]
    return "\n\n".join([line for line in said if line] + [markdown_table(table), "\n".join(notes)])
