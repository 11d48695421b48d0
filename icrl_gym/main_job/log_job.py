"""The job without an environment: read a log, evaluate its policy or another one in context, and leave a run folder.

`evaluate_log` is what ``icrl-gym evaluate --log`` calls; nothing here prints.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from icrl_gym.acting.policies import as_policy
from icrl_gym.acting.policy_source import PolicySource, find_policy
from icrl_gym.configuration import DEFAULT_GAMMA, LogConfig
from icrl_gym.context.log_files import Log, read_log
from icrl_gym.context.logs.columns import column_mapping
from icrl_gym.context.returns import decayed_sums
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.main_job.job import estimator_on
from icrl_gym.main_job.log_figures import values_along_episodes, values_at_starts
from icrl_gym.main_job.log_result import EpisodeValues, LogEvaluation, save_log_tables
from icrl_gym.observations import named_leaves, take
from icrl_gym.registry import Estimator
from icrl_gym.runs import Progress, run_folder, versions, write_json
from icrl_gym.tracking import EventWriter, open_writer
from icrl_gym.values import ValueEstimates

CONTEXT_LENGTH = 100_000  # transitions seen at most, unless told
CONTEXT_NUMBERS = 2**25  # numbers in the observations of these: of large ones fewer are seen
MOST_EPISODES = 3  # whose values are drawn
MOST_STEPS = 50  # of each
NEGLIGIBLE = 0.01  # weight of what lies beyond an episode that did not terminate, so that its return counts as known


def evaluate_log(config: LogConfig, progress: Progress | None = None) -> LogEvaluation:
    """Run the job. Whatever can be refused is refused before any work; a failed run leaves no folder.

    Args:
        config: the flags of the run.
        progress: called as ``progress(part, done, total)`` before and after each part.

    Raises:
        ValueError, TypeError: bad input, named in one line.
        OSError: the log, the model or the run folder cannot be read or written.
        ImportError: the log's format needs a package of an extra.
    """
    config.check()
    estimator = estimator_on(config.estimator, config.device)
    mapping = column_mapping(config.columns)
    source = _source(config)
    log = read_log(config.log, mapping)
    gamma = float(getattr(source.model, "gamma", DEFAULT_GAMMA)) if config.gamma is None else config.gamma
    name = Path(config.log.replace(":", "-")).stem
    with run_folder(config.run_dir, name) as folder:
        write_json(folder.path / "config.json", dataclasses.asdict(config))
        write_json(folder.path / "versions.json", versions())
        with open_writer(folder.path if config.tensorboard else None) as writer:
            advance = progress or (lambda *_: None)
            evaluation = _evaluation(config, log, source, estimator, gamma, folder.final, advance)
            advance("tables and figures", 0, 1)
            save_log_tables(evaluation, folder.path)
            _draw(evaluation, folder.path, writer)
            advance("tables and figures", 1, 1)
    return evaluation


def _source(config: LogConfig) -> PolicySource:
    if config.policy is None:
        return PolicySource(None)
    return find_policy(
        config.policy, None, trust=config.trust_model, algo=config.algo, vec_normalize=config.vec_normalize
    )


def _evaluation(
    config: LogConfig, log: Log, source: PolicySource, estimator: Estimator, gamma: float, run_dir: Path,
    progress: Progress,
) -> LogEvaluation:  # fmt: skip
    whole = log.trajectory
    context = whole_episodes(whole, config.context_length or default_length(whole))
    start_rows = _spread(_starts(whole), config.num_queries)
    shown = _spread(np.arange(int(context.episode_ends.sum())), MOST_EPISODES)
    progress("fitting", 0, 1)
    estimator.fit(context, gamma, policy=_policy(config, source, context))
    progress("fitting", 1, 1)
    starts = estimator.predict(take(whole.observations, start_rows))
    progress("values", 1, 1 + len(shown))
    own = source.policy is None and whole.importance_ratios is None
    episodes = []
    for episode in shown:
        episodes.append(_along(context, int(episode), estimator, gamma, own))
        progress("values", 1 + len(episodes), 1 + len(shown))
    returns = _known_returns(whole, gamma) if own else np.empty(0)
    log = dataclasses.replace(log, assumptions=(*log.assumptions, *_assumed(config, source, gamma, own)))
    notes = (*source.notes, *_remarks(starts, [one.estimates for one in episodes]))
    found = LogEvaluation(
        config, log, context, start_rows, starts, returns, int(whole.episode_ends.sum()), tuple(episodes), notes,
        gamma, run_dir,
    )  # fmt: skip
    return dataclasses.replace(found, notes=(*notes, *_disagreement(found)))


def default_length(trajectory: Trajectory) -> int:
    """Transitions of a log that are seen unless told: so many that a common machine holds their features."""
    numbers = sum(leaf.size for _, leaf in named_leaves(trajectory.observations, "observations"))
    return max(1, min(CONTEXT_LENGTH, CONTEXT_NUMBERS * len(trajectory) // max(1, numbers)))


def whole_episodes(trajectory: Trajectory, most: int) -> Trajectory:
    """Whole episodes, spread evenly over a log, with at most ``most`` transitions; of a single longer one its start.

    There are as many of them as bisection finds to fit.
    """
    if len(trajectory) <= most:
        return trajectory
    ends = np.flatnonzero(trajectory.episode_ends)
    lengths = np.diff(np.concatenate([[-1], ends]))
    fits, too_many = 0, len(ends)
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        if lengths[_spread(np.arange(len(ends)), count)].sum() <= most:
            fits = count
        else:
            too_many = count
    if fits:
        return trajectory.episodes(_spread(np.arange(len(ends)), fits))
    return trajectory.episodes([0])[:most]


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spread, the first among them."""
    if len(values) <= most:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, most).astype(int))]


def _starts(trajectory: Trajectory) -> np.ndarray:
    """Rows in which stretches begin."""
    return np.concatenate([[0], np.flatnonzero(trajectory.episode_ends)[:-1] + 1])


def _policy(config: LogConfig, source: PolicySource, context: Trajectory) -> Any:
    """The policy to be evaluated, or None for the one that acted."""
    if source.model is None:
        return source.policy
    spaces = source.model.action_space, context.observation_space
    return as_policy(source.model, *spaces, deterministic=config.deterministic, seed=0)


def _along(context: Trajectory, episode: int, estimator: Estimator, gamma: float, own: bool) -> EpisodeValues:
    """Values at steps spread over an episode of the context."""
    last = int(np.flatnonzero(context.episode_ends)[episode])
    first = int(_starts(context)[episode])
    steps = _spread(np.arange(last - first + 1), MOST_STEPS)
    estimates = estimator.predict(take(context.observations, first + steps))
    returns = None
    if own and context.terminated[last]:
        rewards = context.rewards[first : last + 1]
        returns = decayed_sums(rewards, np.full(len(rewards), gamma))[steps]
    return EpisodeValues(episode, steps, estimates, returns, "ended" if context.terminated[last] else "stopped")


def _known_returns(trajectory: Trajectory, gamma: float) -> np.ndarray:
    """Discounted returns from starts, of episodes that terminated or after which next to nothing counts."""
    starts, ends = _starts(trajectory), np.flatnonzero(trajectory.episode_ends)
    sums = decayed_sums(trajectory.rewards, np.where(trajectory.episode_ends, 0.0, gamma))[starts]
    known = trajectory.terminated[ends] | (gamma ** (ends - starts + 1.0) <= NEGLIGIBLE)
    return sums[known]


def _assumed(config: LogConfig, source: PolicySource, gamma: float, own: bool) -> list[str]:
    """The assumptions of the job itself."""
    notes = ["the first row of each episode is taken for a start of the environment's"]
    if config.gamma is None:
        of = "the model's own" if hasattr(source.model, "gamma") else "the default, as a log states none (--gamma)"
        notes.append(f"gamma {gamma:g} is {of}")
    if own:
        notes.append("one policy acted throughout; it is known by its logged actions alone")
    return notes


def _remarks(starts: ValueEstimates, others: list[ValueEstimates]) -> tuple[str, ...]:
    """The estimator's warnings at the starts, and those elsewhere that it did not give there."""
    found: list[str] = []
    for estimates in (starts, *others):
        warned = estimates.diagnostics.warnings if estimates.diagnostics is not None else ()
        found += [note for note in (*estimates.notes, *warned) if estimates is starts or " queries " not in note]
    return tuple(dict.fromkeys(found))


def _disagreement(found: LogEvaluation) -> tuple[str, ...]:
    """A remark where the log's own returns contradict the estimate; only where all of them are known."""
    own, estimate = found.mean_return, found.start_value
    if own is None or len(found.returns) < found.num_episodes - 1 or estimate.low is None or estimate.high is None:
        return ()
    assert own.low is not None
    assert own.high is not None
    if own.low <= estimate.high and own.high >= estimate.low:
        return ()
    return (
        f"the mean return of the log's own episodes, {own.mean:.3g}, lies outside of the estimate's interval: at "
        "starts, trust the returns",
    )


def _draw(evaluation: LogEvaluation, folder: Path, writer: EventWriter) -> None:
    """The pictures as files and as events, and the main figures as scalars."""
    step, value = len(evaluation.context), evaluation.start_value
    for name, number in (("value_at_starts", value.mean), ("value_low", value.low), ("value_high", value.high)):
        if number is not None:
            writer.add_scalar(f"log/{name}", number, step)
    figures = {
        "value_at_starts": values_at_starts(evaluation),
        "value_along_episodes": values_along_episodes(evaluation.episodes),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png")
        writer.add_figure(name, figure, step)
