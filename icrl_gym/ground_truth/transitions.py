"""The transition table of a tabular environment, and what can be computed from it exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from scipy import sparse
from scipy.sparse.linalg import spsolve

from icrl_gym.acting.environments import TRANSPARENT_WRAPPERS
from icrl_gym.observations import Observations, stack

_OUTSIDE_THE_TABLE = ("fickle_passenger",)  # options of toy text whose effect on the dynamics is not in ``P``


@dataclass(frozen=True, eq=False)
class TransitionTable:
    """One row per possible transition; E rows in all.

    Attributes:
        num_states: S.
        num_actions: A.
        states: (E,) where from.
        actions: (E,) by which action.
        probabilities: (E,) how likely, given state and action.
        next_states: (E,) where to.
        rewards: (E,).
        terminated: (E,) bool.
        starts: ids of the states an episode can start in, or None if the environment does not say.
        observations: the observations of the S states.
    """

    num_states: int
    num_actions: int
    states: np.ndarray
    actions: np.ndarray
    probabilities: np.ndarray
    next_states: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    starts: np.ndarray | None
    observations: Observations

    @staticmethod
    def from_environment(env: gymnasium.Env) -> TransitionTable:
        """Read ``env.unwrapped.P``.

        Raises:
            ValueError: there is none, or something changes the dynamics that it does not hold.
        """
        base: Any = env.unwrapped
        if not isinstance(getattr(base, "P", None), dict):
            raise ValueError(
                f"env: exact values need a transition table P, which {type(base).__name__} does not expose"
            )
        for name in _OUTSIDE_THE_TABLE:
            if getattr(base, name, False):
                raise ValueError(f"env: with {name} the transition table P does not hold the whole dynamics")
        rows = [
            (state, action, *transition)
            for state, of_state in base.P.items()
            for action, transitions in of_state.items()
            for transition in transitions
            if transition[0] > 0.0
        ]
        states, actions, probabilities, next_states, rewards, terminated = zip(*rows, strict=True)
        distribution = getattr(base, "initial_state_distrib", None)
        return TransitionTable(
            len(base.P),
            max(len(of_state) for of_state in base.P.values()),
            np.array(states),
            np.array(actions),
            np.array(probabilities, dtype=np.float64),
            np.array(next_states),
            np.array(rewards, dtype=np.float64),
            np.array(terminated, dtype=bool),
            None if distribution is None else np.flatnonzero(np.asarray(distribution) > 0),
            _state_observations(env, len(base.P)),
        )

    def terminal_states(self) -> np.ndarray:
        """Which states are terminal, (S,) bool: an episode can enter them, but only by terminating.

        A state is *live* if an episode can be in it and go on: it can start there, or come there from a live state
        without terminating. A state is terminal if a live state can terminate into it and it is not live: FrozenLake's
        holes and goal, CliffWalking's goal, the four states of Taxi in which the passenger has just been delivered.
        A state that no episode reaches (Taxi with the passenger waiting at the destination) is not terminal; it has a
        row in the table, so it has a value. Where the environment does not say where episodes start, they can start in
        every state that no transition terminates into.
        """
        live = np.zeros(self.num_states, dtype=bool)
        if self.starts is not None:
            live[self.starts] = True
        else:
            live[:] = True
            live[self.next_states[self.terminated]] = False
        while True:
            entered = self.next_states[live[self.states] & ~self.terminated]
            if live[entered].all():
                break
            live[entered] = True
        terminal = np.zeros(self.num_states, dtype=bool)
        terminal[self.next_states[live[self.states] & self.terminated]] = True
        return terminal & ~live

    def solve(self, action_probabilities: np.ndarray, gamma: float) -> np.ndarray:
        """Values of all S states under a policy's (S, A) probabilities: (I - gamma P_pi) v = r_pi.

        Raises:
            ValueError: the probabilities have another shape.
        """
        shape = (self.num_states, self.num_actions)
        if action_probabilities.shape != shape:
            raise ValueError(f"policy: action probabilities must have shape {shape}, got {action_probabilities.shape}")
        weights = action_probabilities[self.states, self.actions] * self.probabilities
        rewards = np.bincount(self.states, weights * self.rewards, minlength=self.num_states)
        going_on = sparse.coo_array(
            (gamma * weights * ~self.terminated, (self.states, self.next_states)), shape=(self.num_states,) * 2
        )
        return np.asarray(spsolve(sparse.csc_array(sparse.eye_array(self.num_states) - going_on), rewards))


def _state_observations(env: gymnasium.Env, num_states: int) -> Observations:
    """Observations of all states: their ids or rows of ``features``, passed through the observation wrappers."""
    wrappers = []
    while isinstance(env, gymnasium.Wrapper):
        wrappers.append(env)
        env = env.env
    base: Any = env
    if isinstance(base.observation_space, spaces.Discrete):
        seen = list(np.arange(num_states) + base.observation_space.start)
    elif len(getattr(base, "features", ())) == num_states:
        seen = list(np.asarray(base.features, dtype=base.observation_space.dtype))
    else:
        raise ValueError(f"env: exact values need Discrete observations or features, got {base.observation_space}")
    for wrapper in reversed(wrappers):
        if isinstance(wrapper, gymnasium.ObservationWrapper):
            seen = [wrapper.observation(observation) for observation in seen]
        elif type(wrapper).__name__ not in TRANSPARENT_WRAPPERS:
            raise ValueError(
                f"env: exact values do not know what the wrapper {type(wrapper).__name__} does to the table"
            )
    return stack(seen)
