"""The main job: collect, evaluate in context, measure the truth, ask the critic, score, and leave a run folder.

`evaluate` is what ``icrl-gym evaluate`` calls; nothing here prints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.environments import environment_spec, make_environment
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.acting.policy_source import PolicySource, find_policy
from icrl_gym.configuration import DEFAULT_GAMMA, EvaluateConfig
from icrl_gym.context.collection import collect
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.ground_truth.transitions import TransitionTable
from icrl_gym.ground_truth.values import exact_values, monte_carlo_values, query_histories
from icrl_gym.main_job.result import Evaluation, save_tables
from icrl_gym.observations import Observations, batch_size, take
from icrl_gym.registry import Estimator, make_estimator
from icrl_gym.rivals.critics import recurrent_critic_states, sb3_critic_values
from icrl_gym.runs import run_folder, versions, write_json
from icrl_gym.scoring import figures
from icrl_gym.scoring.score import Score, score
from icrl_gym.tracking import EventWriter, open_writer
from icrl_gym.values import ValueEstimates

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, how much there is
FIGURE_TRANSITIONS = 600  # columns of the attention map; a longer context is shown by evenly spaced transitions
FIGURE_LAYERS = 24  # depth of the network whose layers are drawn where the estimator itself is an equilibrium


def evaluate(config: EvaluateConfig, progress: Progress | None = None) -> Evaluation:
    """Run the main job. Whatever can be refused is refused before any work; a failed run leaves no folder.

    Args:
        config: what to do.
        progress: called as ``progress(part, done, total)`` during the long parts.

    Raises:
        ValueError, TypeError: bad input, named in one line.
        OSError: the model or the run folder cannot be read or written (FileExistsError: the folder exists).
    """
    config.check()
    estimator = _estimator(config)
    spec = environment_spec(config.env, config.environment_arguments(), config.wrapper)
    source = find_policy(
        config.policy, spec, trust=config.trust_model, algo=config.algo, vec_normalize=config.vec_normalize
    )
    with closing(make_environment(spec)) as env:
        exact, reason = _exact_truth_applies(config, env, _acting(config, source, env))
    with run_folder(config.run_dir, config.env) as folder:
        write_json(folder.path / "config.json", dataclasses.asdict(config))
        write_json(folder.path / "versions.json", versions())
        with open_writer(folder.path if config.tensorboard else None) as writer:
            job = _Job(config, spec, source, estimator, exact, reason, progress or _silent)
            evaluation = job.run(folder.final)
            save_tables(evaluation, folder.path)
            if config.tensorboard:
                _log(evaluation, job, writer)
    return evaluation


def _silent(part: str, done: int, total: int) -> None:
    """The progress of somebody who does not watch."""


def _estimator(config: EvaluateConfig, **options: Any) -> Estimator:
    try:
        torch.empty(0, device=config.device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {config.device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    device = {} if config.device == "cpu" else {"device": config.device}
    return make_estimator(config.estimator, **device, **options)


def _acting(config: EvaluateConfig, source: PolicySource, env: Env) -> ActingPolicy:
    spaces = env.action_space, env.observation_space
    return as_policy(source.policy, *spaces, deterministic=config.deterministic, seed=config.seed)


def _exact_truth_applies(config: EvaluateConfig, env: Env, actor: ActingPolicy) -> tuple[bool, str]:
    """Whether to solve for the truth, and why not where there is a transition table all the same."""
    if config.truth == "monte_carlo" or (config.truth == "auto" and not hasattr(env.unwrapped, "P")):
        return False, ""
    try:
        actor.action_probabilities(take(TransitionTable.from_environment(env).observations, slice(1)))
    except ValueError as error:
        if config.truth == "exact":
            raise
        return False, f"the truth is simulated although {config.env} has a transition table: {error}"
    return True, ""


@dataclass(frozen=True, eq=False)
class _Job:
    """The steps of one run, in order of data flow."""

    config: EvaluateConfig
    spec: EnvSpec
    source: PolicySource
    estimator: Estimator
    exact: bool
    remark: str
    progress: Progress

    @property
    def gamma(self) -> float:
        if self.config.gamma is not None:
            return self.config.gamma
        return float(getattr(self.source.model, "gamma", DEFAULT_GAMMA))

    def run(self, run_dir: Path) -> Evaluation:
        trajectory = self.context()
        self.estimator.fit(trajectory, self.gamma)
        truth = self.truth()
        estimates = {self.config.estimator: self.estimator.predict(truth.observations)}
        steps: dict[str, int | None] = {self.config.estimator: len(trajectory)}
        notes = [self.remark]
        if self.source.model is not None:
            try:
                estimates[self.source.critic_name] = self.critic(truth)
                steps[self.source.critic_name] = self.source.training_steps
            except ValueError as error:
                notes.append(f"the critic is left out: {error}")
        scores = {name: score(estimate, truth) for name, estimate in estimates.items()}
        notes += _remarks(truth, estimates, scores, self.exact)
        unique = tuple(dict.fromkeys(note for note in notes if note))
        return Evaluation(self.config, self.gamma, trajectory, truth, estimates, scores, steps, unique, run_dir)

    def context(self) -> Trajectory:
        config = self.config
        return collect(
            self.spec, self.source.policy, config.context_length, config.seed, deterministic=config.deterministic,
            progress=lambda done, total: self.progress("collecting the context", done, total),
        )  # fmt: skip

    def truth(self) -> ValueEstimates:
        config = self.config
        if self.exact:
            with closing(make_environment(self.spec)) as env:
                return exact_values(env, _acting(config, self.source, env), self.gamma)
        return monte_carlo_values(
            self.spec, self.source.policy, num_queries=config.num_queries, num_rollouts=config.num_rollouts,
            gamma=self.gamma, seed=config.seed, deterministic=config.deterministic,
            progress=lambda done, total: self.progress("measuring the truth", done, total),
        )  # fmt: skip

    def critic(self, truth: ValueEstimates) -> ValueEstimates:
        config = self.config
        memory: tuple[Any, ...] = ()
        if self.source.recurrent:
            histories = query_histories(
                self.spec, self.source.policy, num_queries=config.num_queries, seed=config.seed,
                deterministic=config.deterministic,
            )  # fmt: skip
            memory = recurrent_critic_states(self.source.model, histories), np.zeros(len(truth), dtype=bool)
        values = sb3_critic_values(
            self.source.model, truth.observations, *memory, deterministic=config.deterministic, env=truth.estimand.env
        )
        values.estimand.check_matches(truth.estimand)
        return values

    def critic_along(self, episode: Observations) -> ValueEstimates:
        """The critic's values at the successive states of one whole episode."""
        memory: tuple[Any, ...] = ()
        if self.source.recurrent:
            starts = np.zeros(batch_size(episode), dtype=bool)
            starts[0] = True
            memory = recurrent_critic_states(self.source.model, [take(episode, slice(1))]), starts
        return sb3_critic_values(self.source.model, episode, *memory, deterministic=self.config.deterministic)


def _remarks(
    truth: ValueEstimates, estimates: Mapping[str, ValueEstimates], scores: Mapping[str, Score], exact: bool
) -> list[str]:
    notes = [f"the truth is exact; its {len(truth)} non-terminal states weigh alike in every score"] if exact else []
    notes += [f"truth: {note}" for note in truth.notes]
    for name, estimate in estimates.items():
        warnings = estimate.diagnostics.warnings if estimate.diagnostics is not None else ()
        notes += [f"{name}: {note}" for note in (*estimate.notes, *warnings)]
    return notes + [note for result in scores.values() for note in result.notes if "standard error" not in note]


def _log(evaluation: Evaluation, job: _Job, writer: EventWriter) -> None:
    """Scalars by estimator, hyperparameters with the main figures, and the pictures."""
    step = evaluation.config.context_length
    for name, result in evaluation.scores.items():
        result.log(writer, step, prefix=name)
    metrics = {
        f"hparam/{name}/{figure}": getattr(result, figure)
        for name, result in evaluation.scores.items()
        for figure in ("rmse", "rmse_over_std", "bias")
        if math.isfinite(getattr(result, figure))
    }
    writer.add_hparams({**dataclasses.asdict(evaluation.config), "gamma": evaluation.gamma}, metrics)
    for tag, figure in _figures(evaluation, job).items():
        writer.add_figure(tag, figure, step)


def _figures(evaluation: Evaluation, job: _Job) -> dict[str, Any]:
    """The four figures; those that this estimator has nothing to show for are left out."""
    truth, estimates, ours = evaluation.truth, evaluation.estimates, evaluation.config.estimator
    drawn = {"estimates_against_truth": figures.estimates_against_truth(truth, estimates)}
    layers = _layers(evaluation, job)
    if layers:
        references = {name: result.rmse for name, result in evaluation.scores.items() if name != ours}
        floor = evaluation.scores[ours].noise_floor
        drawn["error_by_layer"] = figures.error_by_layer(layers, truth, references, floor)
    if hasattr(job.estimator, "attention"):
        shown = np.unique(np.linspace(0, len(evaluation.trajectory) - 1, FIGURE_TRANSITIONS).astype(int))
        weights = job.estimator.attention(truth.observations)[:, shown]  # type: ignore[attr-defined]
        sources = job.estimator.predict(take(evaluation.trajectory.observations, shown)).values
        drawn["attention"] = figures.attention_map(weights, estimates[ours].values, sources)
    drawn["value_along_episode"] = _episode_figure(evaluation, job)
    return drawn


def _layers(evaluation: Evaluation, job: _Job) -> dict[str, np.ndarray]:
    """Values by layer; an equilibrium has none, so a network of finite depth with the same name joins it."""
    ours = evaluation.config.estimator
    by_layer = evaluation.estimates[ours].by_layer
    if by_layer is None:
        return {}
    if len(by_layer) > 1:
        return {ours: by_layer}
    finite = _estimator(evaluation.config, num_layers=FIGURE_LAYERS).fit(evaluation.trajectory, evaluation.gamma)
    rows = finite.predict(evaluation.truth.observations).by_layer
    return (
        {ours: by_layer}
        if rows is None
        else {f"{ours}, {FIGURE_LAYERS} layers": rows, f"{ours}, equilibrium": by_layer}
    )


def _episode_figure(evaluation: Evaluation, job: _Job) -> Any:
    """The longest episode of the context."""
    trajectory = evaluation.trajectory
    ends = np.flatnonzero(trajectory.episode_ends)
    starts = np.concatenate([[0], ends[:-1] + 1])
    longest = int(np.argmax(ends - starts))
    rows = slice(int(starts[longest]), int(ends[longest]) + 1)
    observations, last = take(trajectory.observations, rows), ends[longest]
    values = {evaluation.config.estimator: job.estimator.predict(observations)}
    if job.source.critic_name in evaluation.estimates:
        values[job.source.critic_name] = job.critic_along(observations)
    if not trajectory.terminated[last]:
        ending = "cut by the time limit" if trajectory.truncated[last] else "still going when the context ended"
        return figures.value_along_episode(values, ending=ending)
    realised = discounted_returns(trajectory.rewards[rows], evaluation.gamma)
    return figures.value_along_episode(values, realised, ending="ended in a terminal state")


def discounted_returns(rewards: np.ndarray, gamma: float) -> np.ndarray:
    """Return from each step of a terminated episode, (T,): G_t = R_{t+1} + gamma G_{t+1}."""
    returns = np.zeros(len(rewards))
    following = 0.0
    for step in reversed(range(len(rewards))):
        following = returns[step] = rewards[step] + gamma * following
    return returns
