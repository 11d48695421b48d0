"""Policies that are given by what they do: uniform, a table, probabilities, a function."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from icrl_gym.acting.policies.acting import (
    ActingPolicy,
    determinism_suffix,
    discrete_actions,
    one_hot,
    policy_generator,
)
from icrl_gym.acting.policies.inversion import action_by_inversion, index_by_inversion, numbers_in_action
from icrl_gym.observations import Observations, batch_size


def _qualified_name(thing: Any) -> str:
    """The identity an object gives itself, else "module.qualname" of it or of its type."""
    identity = getattr(thing, "identity", None)
    if isinstance(identity, str):
        return identity
    if isinstance(thing, functools.partial):
        arguments = repr((thing.args, thing.keywords))
        return _qualified_name(thing.func) + ("" if " at 0x" in arguments else arguments)
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _check_distributions(probabilities: np.ndarray, shape: tuple[int, int], name: str) -> np.ndarray:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {probabilities.shape}")
    bad = ~(np.isfinite(probabilities) & (probabilities >= 0)).all(axis=1) | (np.abs(probabilities.sum(1) - 1) > 1e-6)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(f"{name} must hold probabilities that sum to 1 in each row; row {row} is {probabilities[row]}")
    return probabilities


class RandomPolicy(ActingPolicy):
    """Uniform over the action space, as ``space.sample`` is."""

    identity = "random"

    def __init__(self, name: str, action_space: spaces.Space, *, deterministic: bool, seed: Any) -> None:
        if name != "random":
            raise ValueError(f"policy: the only policy known by name is 'random', got {name!r}")
        if deterministic:
            raise ValueError("deterministic: the policy 'random' has no deterministic form")
        self._action_space = self.action_space = action_space
        self._generator = policy_generator(seed)
        self._batched = batch_space(action_space, 1)
        self._seed_batched()

    def _seed_batched(self) -> None:
        self._batched.seed(int(self._generator.integers(2**31)))

    def act(self, observations: Observations) -> np.ndarray:
        batch = batch_size(observations)
        if isinstance(self._action_space, spaces.Discrete):
            return self._action_space.start + self._generator.integers(self._action_space.n, size=batch)
        if not self._batched.shape or self._batched.shape[0] != batch:
            self._batched = batch_space(self._action_space, batch)
            self._seed_batched()
        return self._batched.sample()

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        num_actions = int(discrete_actions(self._action_space, "action_probabilities").n)
        return np.full((batch_size(observations), num_actions), 1.0 / num_actions)

    @property
    def states_probabilities(self) -> bool:
        """Whether the actions are discrete."""
        return isinstance(self._action_space, spaces.Discrete)

    @property
    def takes_noise(self) -> bool:
        """Always."""
        return True

    @property
    def num_noise(self) -> int:
        """One for each number of an action."""
        return numbers_in_action(self._action_space)

    def act_with_noise(self, observations: Observations, noise_BU: np.ndarray) -> np.ndarray:
        """Actions distributed as those of ``space.sample``."""
        del observations
        return action_by_inversion(self._action_space, noise_BU)


class PolicyTable:
    """An (S, A) table of probabilities; row s belongs to the s-th id of a Discrete observation space."""

    def __init__(self, table: np.ndarray, observation_space: spaces.Space | None) -> None:
        if table.ndim != 2:
            raise ValueError(f"policy: a table must have shape (S, A), got {table.shape}")
        if observation_space is not None and not isinstance(observation_space, spaces.Discrete):
            raise ValueError(f"policy: a table needs Discrete observations, got {observation_space}")
        num_states = len(table) if observation_space is None else int(observation_space.n)
        self._start = 0 if observation_space is None else int(observation_space.start)
        self._table = _check_distributions(table, (num_states, table.shape[1]), "policy table")
        self.identity = f"table:{hashlib.sha256(np.ascontiguousarray(self._table).tobytes()).hexdigest()[:8]}"

    def action_probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Rows of the table, (B, A)."""
        return self._table[np.asarray(observations) - self._start]


class ProbabilityPolicy(ActingPolicy):
    """Samples (or takes the most likely of) the actions of an object with ``action_probabilities``."""

    def __init__(self, source: Any, action_space: spaces.Space, *, deterministic: bool, seed: Any) -> None:
        self._source = source
        self._action_space = self.action_space = discrete_actions(action_space, "a policy given by probabilities")
        self._deterministic = deterministic
        self._generator = policy_generator(seed)
        self.identity = _qualified_name(source) + determinism_suffix(deterministic)
        if isinstance(source, PolicyTable) and source._table.shape[1] != self._action_space.n:
            raise ValueError(f"policy: the table has {source._table.shape[1]} actions, the environment {action_space}")

    def act(self, observations: Observations) -> np.ndarray:
        probabilities = self._stated(observations)
        if self._deterministic:
            return self._action_space.start + probabilities.argmax(axis=1)
        return self._action_space.start + index_by_inversion(probabilities, self._generator.random(len(probabilities)))

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        probabilities = self._stated(observations)
        if self._deterministic:
            return one_hot(probabilities.argmax(axis=1), int(self._action_space.n))
        return probabilities

    def _stated(self, observations: Observations) -> np.ndarray:
        shape = (batch_size(observations), int(self._action_space.n))
        return _check_distributions(self._source.action_probabilities(observations), shape, "action_probabilities")


class CallablePolicy(ActingPolicy):
    """A function of the observations; its own randomness is its own business."""

    def __init__(self, function: Callable[[Observations], Any], action_space: spaces.Space) -> None:
        self._function = function
        self._action_space = self.action_space = action_space
        self.identity = _qualified_name(function)

    def act(self, observations: Observations) -> np.ndarray:
        actions = np.asarray(self._function(observations))
        shape = (batch_size(observations), *(self._action_space.shape or ()))
        if actions.shape != shape:
            raise ValueError(f"policy {self.identity!r} must return actions of shape {shape}, got {actions.shape}")
        if isinstance(self._action_space, spaces.Discrete):
            self._check_discrete(actions, self._action_space)
        return actions

    def _check_discrete(self, actions: np.ndarray, space: spaces.Discrete) -> None:
        inside = np.issubdtype(actions.dtype, np.integer) or actions.dtype == bool
        if not inside or ((actions < space.start) | (actions >= space.start + space.n)).any():
            raise ValueError(f"policy {self.identity!r} must return actions in {space}, got {actions.dtype} {actions}")
