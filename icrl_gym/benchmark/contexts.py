"""What a task's estimators see: the log that they get as context, and observations as they are given them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.acting.sb3_models import load_sb3_model
from icrl_gym.benchmark.cells import POLICY_FEATURES, Task
from icrl_gym.benchmark.truths import Truths
from icrl_gym.context.collection import collect
from icrl_gym.context.features import sb3_features
from icrl_gym.context.off_policy import UniformMixture, reweight
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations
from icrl_gym.values import ValueEstimates

EPSILON = "epsilon:"


def task_policy(name: str, critics: Path) -> Any:
    """The policy "random", or the snapshot of this path below ``critics``."""
    return "random" if name == "random" else load_sb3_model(critics / name, trust=True)


def task_context(task: Task, policy: Any, length: int, seed: int, critics: Path) -> Trajectory:
    """The log of a task: of its policy or of its behaviour, encoded where the task says so.

    A behaviour's log holds importance ratios where both policies state the probabilities of their actions.

    Args:
        task: the policy in its environment.
        policy: the task's policy, loaded.
        length: number of transitions.
        seed: seed of environment and actions.
        critics: folder of the snapshots.

    Raises:
        ValueError: the behaviour cannot be made.
    """
    with closing(make_environment(task.spec)) as env:
        if task.behaviour is None:
            log = collect(env, policy, length, seed)
        else:
            behaviour = _behaviour(task.behaviour, policy, env, critics)
            log = collect(env, behaviour, length, seed)
            both = (as_policy(each, env.action_space, env.observation_space) for each in (policy, behaviour))
            if all(acting.states_probabilities for acting in both):
                log = reweight(log, policy, behaviour, env.action_space)
    return log if task.features is None else _encoded_log(log, task, policy)


def evaluated_policy(task: Task, policy: Any) -> ActingPolicy | None:
    """The policy to be evaluated as the task's estimators are given it.

    None where they see features of its own: it cannot be asked at those.
    """
    if task.features is not None:
        return None
    with closing(make_environment(task.spec)) as env:
        return as_policy(policy, env.action_space, env.observation_space, seed=0)


def truths_as_seen(task: Task, policy: Any, truths: Truths) -> Truths:
    """The same values at observations as the task's estimators are given them."""
    if task.features is None:
        return truths
    return Truths(_encoded_values(truths.visited, task, policy), _encoded_values(truths.start, task, policy))


def _behaviour(name: str, policy: Any, env: gymnasium.Env, critics: Path) -> Any:
    if not name.startswith(EPSILON):
        return task_policy(name, critics)
    try:
        epsilon = float(name.removeprefix(EPSILON))
    except ValueError:
        raise ValueError(f'behaviour must be like "epsilon:0.3", "random" or a snapshot, got {name!r}') from None
    return UniformMixture(as_policy(policy, env.action_space, env.observation_space), epsilon)


def _encoded_log(log: Trajectory, task: Task, policy: Any) -> Trajectory:
    return Trajectory(
        _encode(log.observations, task, policy),
        log.actions,
        log.rewards,
        _encode(log.next_observations, task, policy),
        log.terminated,
        log.truncated,
        log.episode_ends,
        env_id=log.env_id,
        policy=log.policy,
        importance_ratios=log.importance_ratios,
    )


def _encoded_values(values: ValueEstimates, task: Task, policy: Any) -> ValueEstimates:
    return replace(values, observations=_encode(values.observations, task, policy))


def _encode(observations: Observations, task: Task, policy: Any) -> np.ndarray:
    """(B, D) float64."""
    if task.features != POLICY_FEATURES:
        raise ValueError(f"features must be None or {POLICY_FEATURES!r}, got {task.features!r}")
    if not hasattr(policy, "policy"):
        raise ValueError(f"features {POLICY_FEATURES!r} are those of a trained policy, but the task's is {policy!r}")
    return np.asarray(sb3_features(policy)(observations), np.float64)
