"""The policy to be evaluated beside a log: what it would do where nobody acted, or that it cannot be asked."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from icrl_gym.acting.policies import ActingPolicy, AskedPolicy, as_policy, first_outside, global_generators_kept
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, batch_size, infer_space, take

NUM_ASKED = 16  # states of the log at which a policy is tried
NUM_ALONE = 8  # of these, asked one by one as well


def asked_policy(policy: Any, trajectory: Trajectory) -> tuple[AskedPolicy | None, tuple[str, ...]]:
    """The policy to be evaluated as it can be asked, and notes in plain words.

    Args:
        policy: anything `as_policy` takes, made by it or not. None: the one that acted, known by its actions alone.
        trajectory: the log beside which it is asked. The action space is the policy's own; of a table it has as many
            actions as columns; of a callable it is inferred from the logged actions.

    Returns:
        None for a policy that can only be known by its logged actions: None, one with memory, or one whose answers
        differ when it is asked the same states twice. All others with their notes.

    Raises:
        ValueError: the log has no actions; the policy does not fit them or the log's observations; it fails at states
            of the log, or answers with NaN or another shape; the log's importance ratios are those of another policy;
            or it can only be known by its actions, and the log is another's.
        TypeError: not a policy at all.
    """
    if policy is None:
        return None, ()
    acting, notes = acting_policy(policy, trajectory), ()
    if trajectory.importance_ratios is not None and trajectory.policy not in (None, acting.identity):
        raise ValueError(f"policy is {acting.identity!r}, but the log's ratios are those of {trajectory.policy!r}")
    reason = _not_to_be_asked(acting, trajectory)
    if reason:
        _check_acted(acting.identity, trajectory, f"policy {acting.identity!r} {reason}")
        return None, (f"policy {acting.identity!r} {reason}: its actions are taken from the log instead",)
    asked = AskedPolicy(acting, _action_space(policy, trajectory))
    if isinstance(policy, str):
        notes = (f"policy 'random' is taken to choose from {asked.action_space}, the actions seen in the log",)
    states = _some(trajectory.observations)
    asked.actions(states, np.full((batch_size(states), asked.num_noise), 0.5))
    asked.probabilities(states)
    return asked, notes


def has_acted(asked: AskedPolicy | None, trajectory: Trajectory) -> bool:
    """Whether the policy to be evaluated, or None for the one that acted, is known to have acted in the log."""
    return asked is None or (trajectory.policy == asked.identity and trajectory.importance_ratios is None)


def check_acted(policy: Any, trajectory: Trajectory, name: str) -> None:
    """Refuse a policy that a method which knows it by its actions alone cannot evaluate from this log.

    Args:
        policy: anything `as_policy` takes, or None for the one that acted.
        trajectory: the log.
        name: the method's, for the message.

    Raises:
        ValueError: the log is another policy's, and holds no importance ratios of this one; or the policy does not fit
            the log's actions or observations.
        TypeError: not a policy at all.
    """
    if policy is not None and trajectory.policy is not None:
        identity = acting_policy(policy, trajectory).identity
        _check_acted(identity, trajectory, f"{name} knows a policy by its logged actions alone")


def acting_policy(policy: Any, trajectory: Trajectory) -> ActingPolicy:
    """The policy as one of the log's environment.

    Raises:
        ValueError: the log has no actions; it does not fit the log's actions or observations; or "random" is asked for
            and the log, which knows no bounds, holds actions that are not discrete.
        TypeError: not a policy at all.
    """
    logged = trajectory.actions_for("policy: evaluating a given policy")
    space = _action_space(policy, trajectory)
    acting = as_policy(policy, space, _observation_space(policy, trajectory), seed=0)
    _check_logged_actions(logged, space)
    return acting


def _check_acted(identity: str, trajectory: Trajectory, why: str) -> None:
    if trajectory.policy not in (None, identity):
        raise ValueError(
            f"{why}: from this log it would be the values of the behaviour {trajectory.policy!r}, not of the policy "
            f"{identity!r}"
        )


def _not_to_be_asked(acting: ActingPolicy, trajectory: Trajectory) -> str:
    """Why the policy has no answer to states and noise alone, in words that follow its name; "" if it has."""
    if acting.recurrent:
        return "is recurrent and answers by what it saw before"
    if acting.takes_noise:
        return ""
    states = _some(trajectory.observations)
    with global_generators_kept():
        before = _global_states()
        alike = _answers_alike(acting, states)
        drew = _global_states() != before
    if not alike:
        return "answers differently when asked the same states twice"
    return "draws from a global random generator" if drew else ""


def _answers_alike(acting: ActingPolicy, states: Observations) -> bool:
    """Whether the policy answers twice the same, and to some of the states alone as to all of them together."""
    try:
        first, second = (np.asarray(acting.act(states)) for _ in range(2))
        alone = [np.asarray(acting.act(take(states, slice(i, i + 1)))) for i in range(_num_alone(states))]
        return _same(first, second) and _same(first[: len(alone)], np.concatenate(alone))
    except Exception as error:
        raise ValueError(
            f"policy {acting.identity!r} raised {type(error).__name__} when asked for actions at observations of the "
            f"log: {error}"
        ) from error


def _global_states() -> tuple[Any, ...]:
    """The states of the global generators, to be compared."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return random.getstate(), numpy_state[1].tobytes(), numpy_state[2:], torch.get_rng_state().numpy().tobytes()


def _num_alone(states: Observations) -> int:
    return min(NUM_ALONE, batch_size(states))


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Equal up to the rounding of a network; NaN equals NaN, and is named later."""
    if first.shape != second.shape or first.dtype.kind not in "biuf":
        return first.shape == second.shape and bool((first == second).all())
    if first.dtype.kind == "f":
        return np.allclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True)
    return np.array_equal(first, second)


def _some(observations: Observations) -> Observations:
    """Observations spread over a log."""
    length = batch_size(observations)
    return take(observations, np.unique(np.linspace(0, length - 1, NUM_ASKED).astype(int)))


def _action_space(policy: Any, trajectory: Trajectory) -> spaces.Space:
    """The policy's own, else the one that its probabilities or the logged actions show."""
    stated = getattr(policy, "action_space", None)
    if isinstance(stated, spaces.Space):
        return stated
    if isinstance(policy, (np.ndarray, list)):
        return spaces.Discrete(np.shape(policy)[-1])
    if not isinstance(policy, ActingPolicy) and hasattr(policy, "action_probabilities"):
        return spaces.Discrete(np.shape(policy.action_probabilities(take(trajectory.observations, slice(1))))[-1])
    space = infer_space(trajectory.actions_for("policy: evaluating a given policy"))
    if isinstance(policy, str) and not isinstance(space, spaces.Discrete):
        raise ValueError(
            "policy 'random' needs an action space, as the logged actions are not discrete and a log knows no bounds: "
            "give icrl_gym.acting.policies.as_policy('random', action_space)"
        )
    return space


def _observation_space(policy: Any, trajectory: Trajectory) -> spaces.Space:
    """The log's; where that was only inferred from the ids seen, the policy's own if it knows of more."""
    space = trajectory.observation_space
    own = getattr(policy, "observation_space", None)
    if isinstance(policy, (np.ndarray, list)):
        own = spaces.Discrete(len(policy))
    if not (trajectory.space_inferred and isinstance(space, spaces.Discrete) and isinstance(own, spaces.Discrete)):
        return space
    return own if own.start == 0 and own.n >= space.n else space


def _check_logged_actions(actions: np.ndarray, space: spaces.Space) -> None:
    try:
        row = first_outside(actions, space)
    except ValueError as error:
        raise ValueError(f"policy: its action space {space} is not that of the log: {error}") from error
    if row is not None:
        raise ValueError(f"policy: its action space {space} does not hold the log's actions[{row}] = {actions[row]}")
