"""The main job: collect, evaluate in context, measure the truth, ask the critic, score, and leave a run folder.

`evaluate` is what ``icrl-gym evaluate`` calls; nothing here prints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icrl_gym.acting.environments import environment_spec
from icrl_gym.acting.policy_source import find_policy
from icrl_gym.configuration import DEFAULT_GAMMA, EvaluateConfig
from icrl_gym.context.returns import decayed_sums
from icrl_gym.main_job.advice import summary_text
from icrl_gym.main_job.finished_parts import FinishedParts, interrupted_config
from icrl_gym.main_job.result import Evaluation, save_tables
from icrl_gym.main_job.subject import Subject
from icrl_gym.observations import take
from icrl_gym.registry import Estimator, make_estimator
from icrl_gym.runs import Progress, finished_name, run_folder, versions, write_json
from icrl_gym.scoring import figures
from icrl_gym.scoring.score import Score, score
from icrl_gym.tracking import EventWriter, open_writer
from icrl_gym.values import ValueEstimates

MOST_STEPS = 1000  # of the longest episode, whose values are drawn


def evaluate(config: EvaluateConfig, progress: Progress | None = None, *, resumed: Path | None = None) -> Evaluation:
    """Run the main job. Whatever can be refused is refused before any work; a failed run leaves no folder.

    Args:
        config: the flags of the run.
        progress: called as ``progress(part, done, total)`` during the long parts.
        resumed: the interrupted run, as it was to be named, to go on with; ``config`` is then its own.

    Raises:
        ValueError, TypeError: bad input, named in one line.
        OSError: the model or the run folder cannot be read or written (FileExistsError: the folder exists).
        KeyboardInterrupt: the user's; the finished parts are kept, and its message says how to go on.
    """
    config.check()
    estimator = estimator_on(config.estimator, config.device)
    subject = _subject(config, progress or _silent)
    exact, remark = subject.exact_truth_applies(config.truth)
    directory = config.run_dir if resumed is None else resumed
    with run_folder(directory, config.env, resume=resumed is not None) as folder:
        parts = FinishedParts(folder, subject.evaluated().identity)
        if resumed is None:
            write_json(folder.path / "config.json", dataclasses.asdict(config))
        write_json(folder.path / "versions.json", versions())
        with open_writer(folder.path if config.tensorboard else None) as writer:
            evaluation = _evaluation(config, subject, estimator, exact, remark, folder.final, parts)
            save_tables(evaluation, folder.path)
            if config.tensorboard:
                subject.progress("figures", 0, 1)
                _log(evaluation, subject, estimator, writer)
                subject.progress("figures", 1, 1)
        parts.discard()
    return evaluation


def resume(run: Path, progress: Progress | None = None) -> Evaluation:
    """Go on with an interrupted run; nothing that it finished is computed again.

    Args:
        run: the folder that it was to fill.
        progress: as of `evaluate`.

    Raises:
        FileNotFoundError, FileExistsError: there is no such run, or it is finished.
        ValueError: its policy has changed since; else as `evaluate`.
    """
    config = interrupted_config(run)
    return evaluate(config, progress, resumed=finished_name(run))


def _silent(part: str, done: int, total: int) -> None:
    """The progress of somebody who does not watch."""


def estimator_on(name: str, device: str) -> Estimator:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return make_estimator(name, **({} if device == "cpu" else {"device": device}))


def _subject(config: EvaluateConfig, progress: Progress) -> Subject:
    weights = config.weights_of_rewards()
    spec = environment_spec(
        config.env, config.environment_arguments(), config.wrapper, config.wrapper_arguments(), reward_weights=weights
    )
    source = find_policy(
        config.policy, spec, trust=config.trust_model, algo=config.algo, vec_normalize=config.vec_normalize
    )
    gamma = float(getattr(source.model, "gamma", DEFAULT_GAMMA)) if config.gamma is None else config.gamma
    return Subject(spec, source, gamma, config.deterministic, config.seed, progress)


def _evaluation(
    config: EvaluateConfig,
    subject: Subject,
    estimator: Estimator,
    exact: bool,
    remark: str,
    run_dir: Path,
    parts: FinishedParts,
) -> Evaluation:
    """The work itself, in order of data flow."""
    trajectory, source = parts.context(lambda: subject.context(config.context_length)), subject.source
    subject.progress("fitting", 0, 1)
    estimator.fit(trajectory, subject.gamma, policy=subject.evaluated())
    subject.progress("fitting", 1, 1)
    simulated = partial(subject.simulated_truth, config.num_queries, config.num_rollouts)
    truth = parts.values("truth", subject.exact_truth if exact else simulated)
    subject.progress("values in context", 0, 1)
    estimates = {config.estimator: estimator.predict(truth.observations)}
    subject.progress("values in context", 1, 1)
    steps: dict[str, int | None] = {config.estimator: len(trajectory)}
    notes = [*source.notes, *subject.left_out(), remark]
    if source.model is not None:
        try:
            estimates[source.critic_name] = parts.values("critic", lambda: subject.critic(truth))
            steps[source.critic_name] = source.training_steps
        except ValueError as error:
            notes.append(f"the critic is left out: {error}")
    scores = {name: score(estimate, truth) for name, estimate in estimates.items()}
    notes += _remarks(truth, estimates, scores, exact)
    unique = tuple(dict.fromkeys(note for note in notes if note))
    return Evaluation(config, subject.gamma, trajectory, truth, estimates, scores, steps, unique, run_dir)


def _remarks(
    truth: ValueEstimates, estimates: Mapping[str, ValueEstimates], scores: Mapping[str, Score], exact: bool
) -> list[str]:
    notes = [f"the truth is exact; its {len(truth)} non-terminal states weigh alike in every score"] if exact else []
    notes += [f"truth: {note}" for note in truth.notes]
    for name, estimate in estimates.items():
        warnings = estimate.diagnostics.warnings if estimate.diagnostics is not None else ()
        notes += [f"{name}: {note}" for note in (*estimate.notes, *warnings)]
    return notes + [note for result in scores.values() for note in result.notes if "standard error" not in note]


def _log(evaluation: Evaluation, subject: Subject, estimator: Estimator, writer: EventWriter) -> None:
    """Write what TensorBoard shows, sorted by tags: headlines and the two main figures, which it opens on, and details.

    It opens two groups of tags. Every figure of every estimator stands in one table of text, not in a card each.
    """
    step = len(evaluation.trajectory)
    headlines = {f"1_headlines/rmse_over_std {name}": found.rmse_over_std for name, found in evaluation.scores.items()}
    if len(headlines) == 1:
        headlines[f"1_headlines/coverage {evaluation.ours}"] = evaluation.scores[evaluation.ours].coverage
    defined = {tag: value for tag, value in headlines.items() if math.isfinite(value)}
    settings = {**dataclasses.asdict(evaluation.config), "gamma": evaluation.gamma}
    writer.add_hparams(settings, defined, step)
    writer.add_text("summary", summary_text(evaluation), step)
    for tag, figure in _figures(evaluation, subject, estimator).items():
        writer.add_figure(tag, figure, step)


def _figures(evaluation: Evaluation, subject: Subject, estimator: Estimator) -> dict[str, Any]:
    """Figures by tag: one by layer only where one network with layers answered, one of attention where it attends."""
    truth, estimates = evaluation.truth, evaluation.estimates
    ours, own = evaluation.ours, estimates[evaluation.ours]
    drawn = {
        "2_figures/estimates_against_truth": figures.estimates_against_truth(truth, estimates),
        "2_figures/value_along_episode": _episode_figure(evaluation, subject, estimator),
    }
    one_network = len(getattr(own.diagnostics, "members", ())) == 1
    if own.by_layer is not None and len(own.by_layer) > 1 and one_network:
        floor = evaluation.scores[ours].noise_floor
        drawn["details/error_by_layer"] = figures.error_by_layer({ours: own.by_layer}, truth, floor)
    if hasattr(estimator, "attention"):
        weights = estimator.attention(truth.observations)  # type: ignore[attr-defined]
        seen = np.flatnonzero(weights.any(axis=0))  # in long contexts the landmarks
        sources = estimator.predict(take(evaluation.trajectory.observations, seen)).values
        drawn["details/attention"] = figures.attention_map(weights[:, seen], own.values, sources)
    return drawn


def _episode_figure(evaluation: Evaluation, subject: Subject, estimator: Estimator) -> Any:
    """Values along the longest episode of the context."""
    trajectory = evaluation.trajectory
    ends = np.flatnonzero(trajectory.episode_ends)
    starts = np.concatenate([[0], ends[:-1] + 1])
    longest = int(np.argmax(ends - starts))
    rows = slice(int(starts[longest]), int(ends[longest]) + 1)
    shown = slice(rows.start, min(rows.stop, rows.start + MOST_STEPS))
    observations, last = take(trajectory.observations, shown), ends[longest]
    values = {evaluation.ours: estimator.predict(observations)}
    if subject.source.critic_name in evaluation.estimates:
        values[subject.source.critic_name] = subject.critic_along(observations)
    part = "" if shown == rows else f"; its first {MOST_STEPS:,} steps"
    if not trajectory.terminated[last]:
        ending = "cut by the time limit" if trajectory.truncated[last] else "still going when the context ended"
        return figures.value_along_episode(values, ending=ending + part)
    rewards = trajectory.rewards[rows]
    realised = decayed_sums(rewards, np.full(len(rewards), evaluation.gamma))[:MOST_STEPS]
    return figures.value_along_episode(values, realised, ending="ended in a terminal state" + part)
