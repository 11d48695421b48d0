"""`AskedPolicy`: a policy as a function of states and noise, for states that nobody acted in."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from gymnasium import spaces

from icrl_gym.acting.policies.acting import ActingPolicy
from icrl_gym.acting.policies.inversion import numbers_in_action
from icrl_gym.observations import Observations, batch_size, take

_Question = Callable[[Observations, np.ndarray], np.ndarray]
BLOCK = 512  # rows per question; networks round differently in batches of different length


class AskedPolicy:
    """A policy as it is asked at imagined states: same state and noise, same action.

    It is asked in blocks of one length, the last of which repeats its last row, so that an answer does not depend on
    how many states are asked at once. The global generators of random, NumPy and torch are left as they were.

    Args:
        acting: a policy without memory whose `ActingPolicy.act_with_noise` depends on observations and noise alone.
        action_space: that of one environment; needed where ``acting`` does not know it.

    Attributes:
        identity: name for the estimand.
        action_space: of one environment.
        num_noise: uniform numbers per action that it needs, at least 1.

    Raises:
        ValueError: the policy has memory, its action space is not known, or its actions are no arrays.
    """

    identity: str
    action_space: spaces.Space
    num_noise: int

    def __init__(self, acting: ActingPolicy, action_space: spaces.Space | None = None) -> None:
        action_space = acting.action_space if action_space is None else action_space
        if acting.recurrent:
            raise ValueError(f"policy {acting.identity!r} is recurrent: its actions depend on more than the state")
        if action_space is None:
            raise ValueError(f"action_space is needed: policy {acting.identity!r} does not state one")
        numbers_in_action(action_space)
        self._acting = acting
        self.identity, self.action_space, self.num_noise = acting.identity, action_space, acting.num_noise

    def actions(self, observations: Observations, noise_BU: np.ndarray) -> np.ndarray:
        """Actions (B,) + action shape; row b depends on observation b and noise row b alone.

        Args:
            observations: B raw observations.
            noise_BU: (B, num_noise), uniform in (0, 1).

        Raises:
            ValueError: the noise does not fit, or the policy raises, or its answer is no B actions of its space.
        """
        noise_BU, batch = np.asarray(noise_BU, dtype=np.float64), batch_size(observations)
        if noise_BU.shape != (batch, self.num_noise):
            raise ValueError(f"noise_BU must have shape {(batch, self.num_noise)}, got {noise_BU.shape}")
        if not ((noise_BU > 0) & (noise_BU < 1)).all():
            raise ValueError("noise_BU must lie in (0, 1)")
        shape = (batch, *(self.action_space.shape or ()))
        if not batch:
            return np.zeros(shape, self.action_space.dtype)
        answers = self._in_blocks(observations, lambda block, rows: self._acting.act_with_noise(block, noise_BU[rows]))
        self._check(answers, shape, "actions")
        if isinstance(self.action_space, spaces.Discrete):
            row = first_outside(answers, self.action_space)
            if row is not None:
                raise ValueError(
                    f"policy {self.identity!r} must return actions in {self.action_space}, got {answers[row]}"
                )
        return answers

    def probabilities(self, observations: Observations) -> np.ndarray | None:
        """Probabilities of the discrete actions (B, A), or None where the policy does not state them.

        Raises:
            ValueError: the policy raises, or its answer does not have that shape.
        """
        if not self._acting.states_probabilities or not isinstance(self.action_space, spaces.Discrete):
            return None
        shape = (batch_size(observations), int(self.action_space.n))
        if not shape[0]:
            return np.zeros(shape)
        answers = self._in_blocks(observations, lambda block, _: self._acting.action_probabilities(block))
        self._check(answers, shape, "action probabilities")
        return answers

    def _in_blocks(self, observations: Observations, ask: _Question) -> np.ndarray:
        """Answers (B, ...) to ``ask(observations of a block, their rows)``."""
        batch = batch_size(observations)
        parts = []
        with global_generators_kept():
            for start in range(0, batch, BLOCK):
                rows = np.minimum(np.arange(start, start + BLOCK), batch - 1)
                try:
                    answer = np.asarray(ask(take(observations, rows), rows))
                except Exception as error:
                    raise ValueError(
                        f"policy {self.identity!r} raised {type(error).__name__} when asked for actions at "
                        f"{len(rows)} observations: {error}"
                    ) from error
                if answer.shape[:1] != (len(rows),):
                    raise ValueError(
                        f"policy {self.identity!r} must answer {len(rows)} observations with as many rows, got shape "
                        f"{answer.shape}"
                    )
                parts.append(answer[: batch - start])
        return np.concatenate(parts)

    def _check(self, answers: np.ndarray, shape: tuple[int, ...], what: str) -> None:
        if answers.shape != shape:
            raise ValueError(f"policy {self.identity!r} must return {what} of shape {shape}, got {answers.shape}")
        if answers.dtype.kind not in "biuf":
            raise ValueError(f"policy {self.identity!r} must return numbers as {what}, got dtype {answers.dtype}")
        bad = np.argwhere(~np.isfinite(answers))
        if len(bad):
            index = tuple(int(part) for part in bad[0])
            raise ValueError(
                f"policy {self.identity!r} must return finite {what}, got {answers[index]} at index {list(index)}"
            )


def first_outside(actions: np.ndarray, space: spaces.Space) -> int | None:
    """The first of the actions (N,) + shape that the space does not hold, up to rounding, or None.

    Raises:
        ValueError: the actions have another shape than those of the space.
    """
    if actions.shape[1:] != (space.shape or ()):
        raise ValueError(f"actions must have shape {('N', *(space.shape or ()))}, got {actions.shape}")
    low, high = _limits(space)
    slack = 1e-5 * np.maximum(1.0, np.abs(actions)) if isinstance(space, spaces.Box) else 0.0
    bad = (actions < low - slack) | (actions > high + slack)
    if not isinstance(space, spaces.Box):
        bad |= actions != np.floor(actions)
    rows = np.flatnonzero(bad.reshape(len(actions), -1).any(axis=1))
    return int(rows[0]) if len(rows) else None


def _limits(space: spaces.Space) -> tuple[np.ndarray | int, np.ndarray | int]:
    """Least and largest action of a space of arrays."""
    if isinstance(space, spaces.Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    assert isinstance(space, spaces.Box)
    return space.low, space.high


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Put the global generators of random, NumPy and torch back on leaving."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
