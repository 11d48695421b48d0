"""`TabularMRP`: a finite Markov reward process as an environment, with everything about it exposed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

Transitions = dict[int, dict[int, list[tuple[float, int, float, bool]]]]


class TabularMRP(gymnasium.Env):
    """A Markov reward process with S states that is drawn once from ``mrp_seed``; the base of the tabular environments.

    The process (transitions, rewards, features) depends on the constructor's arguments alone. What happens while
    stepping comes from ``self.np_random``, seeded by ``reset(seed=...)``. The reward of a step is a fixed number of the
    state that it leaves. With a ``termination_probability`` every step may end the episode in a terminal state, whose
    id is S and whose features are zero.

    Args:
        num_states: S, without the terminal state.
        num_features: d.
        observation: "id" (the number of the state) or "features" (its row of ``features``).
        termination_probability: probability that a step terminates, in [0, 1).
        mrp_seed: seed of the process.

    Attributes:
        num_states: S.
        transition_matrix: (S, S); row s sums to 1 - termination_probability.
        expected_rewards: (S,), in [-1, 1].
        features: (S, d), in [-1, 1]; one more row, of zeros, where there is a terminal state.
        initial_state_distrib: (S,), uniform.
        P: ``{state: {action: [(probability, next state, reward, terminated), ...]}}``, as in Gymnasium's toy text.

    Raises:
        ValueError: an argument is out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    minimum_states: ClassVar[int] = 1

    def __init__(
        self,
        num_states: int = 10,
        num_features: int = 4,
        observation: str = "id",
        termination_probability: float = 0.0,
        mrp_seed: int = 0,
    ) -> None:
        if num_states < self.minimum_states:
            raise ValueError(f"num_states must be at least {self.minimum_states}, got {num_states}")
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if observation not in ("id", "features"):
            raise ValueError(f"observation must be 'id' or 'features', got {observation!r}")
        if not 0.0 <= termination_probability < 1.0:
            raise ValueError(f"termination_probability must be in [0, 1), got {termination_probability}")
        generator = np.random.default_rng(mrp_seed)
        self.num_states = num_states
        self.transition_matrix = (1 - termination_probability) * self._draw_transitions(generator)
        self.expected_rewards = generator.uniform(-1.0, 1.0, num_states)
        self.features = generator.uniform(-1.0, 1.0, (num_states, num_features))
        if termination_probability:
            self.features = np.concatenate([self.features, np.zeros((1, num_features))])
        self.initial_state_distrib = np.full(num_states, 1.0 / num_states)
        self.P = self._table(termination_probability)
        self._cumulative = np.cumsum(self.transition_matrix, axis=1)
        if not termination_probability:
            self._cumulative /= self._cumulative[:, -1:]  # rounding must not leave room for an outcome S
        self._shows_features = observation == "features"
        self._state = 0
        self.action_space = spaces.Discrete(1)
        self.observation_space = (
            spaces.Box(-1.0, 1.0, (num_features,), np.float64)
            if self._shows_features
            else spaces.Discrete(num_states + (termination_probability > 0))
        )

    @abstractmethod
    def _draw_transitions(self, generator: np.random.Generator) -> np.ndarray:
        """The (S, S) matrix of transition probabilities, given that the episode goes on; rows sum to 1."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start in a uniformly random state; ``info["state"]`` is its id."""
        super().reset(seed=seed)
        self._state = int(self.np_random.integers(self.num_states))
        return self._observation(), {"state": self._state}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move on; the one action changes nothing. ``info["state"]`` is the id of the state reached."""
        reward = float(self.expected_rewards[self._state])
        self._state = int(np.searchsorted(self._cumulative[self._state], self.np_random.random(), side="right"))
        terminated = self._state == self.num_states
        return self._observation(), reward, terminated, False, {"state": self._state}

    def exact_values(self, gamma: float) -> np.ndarray:
        """The values of the S states, (S,): the solution of v = r + gamma P v.

        Raises:
            ValueError: gamma is not in [0, 1).
        """
        if not 0.0 <= gamma < 1.0:
            raise ValueError(f"gamma must be in [0, 1), got {gamma}")
        return np.linalg.solve(np.eye(self.num_states) - gamma * self.transition_matrix, self.expected_rewards)

    def _observation(self) -> Any:
        return self.features[self._state].copy() if self._shows_features else self._state

    def _table(self, termination_probability: float) -> Transitions:
        def outcomes(state: int) -> list[tuple[float, int, float, bool]]:
            reward = float(self.expected_rewards[state])
            row = self.transition_matrix[state]
            listed = [(float(row[successor]), int(successor), reward, False) for successor in np.flatnonzero(row)]
            if termination_probability:
                listed.append((termination_probability, self.num_states, reward, True))
            return listed

        table: Transitions = {state: {0: outcomes(state)} for state in range(self.num_states)}
        if termination_probability:
            table[self.num_states] = {0: [(1.0, self.num_states, 0.0, True)]}
        return table
