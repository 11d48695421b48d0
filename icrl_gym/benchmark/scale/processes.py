"""Two controlled processes whose logs of a million transitions take seconds: for measurements of speed, not of error.

`Walker` has the sizes of HalfCheetah (17 features, 6 actions, time limits, no termination): a stable, smooth system
with a little noise. `Pole` is the cart-pole of Barto, Sutton and Anderson (1983) under an imperfect policy: 4 features,
2 actions, terminations. Many episodes advance side by side, each state of all of them in one array operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies import as_policy
from icrl_gym.context.trajectory import Trajectory

STREAM_LENGTH = 1_000  # transitions of one stream; an episode that is longer is truncated there
NUM_STREAMS = 1_000  # at most


class Process(Protocol):
    """A process with its policy; states are (B, features)."""

    name: str

    @property
    def action_space(self) -> spaces.Space:
        """Action space of one environment."""
        ...

    def start(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Start states (num, features)."""
        ...

    def act(self, rng: np.random.Generator, states: np.ndarray) -> np.ndarray:
        """Actions of the policy, drawn as it draws them."""
        ...

    def step(self, rng: np.random.Generator, states: np.ndarray, actions: np.ndarray) -> Steps:
        """One step of every state."""
        ...


@dataclass(frozen=True)
class Steps:
    """Rewards (B,), next states (B, features) and terminations (B,)."""

    rewards: np.ndarray
    next_states: np.ndarray
    terminated: np.ndarray


class Walker:
    """The process without endings; as a callable it is its own policy, tanh of a linear map."""

    name = identity = "walker"
    num_features, num_actions, slowness, noise = 17, 6, 0.9, 0.05

    def __init__(self) -> None:
        rng = np.random.default_rng(17)
        rotation, _ = np.linalg.qr(rng.standard_normal((self.num_features, self.num_features)))
        self._drift = 1.2 * rotation
        self._push = rng.standard_normal((self.num_actions, self.num_features)) / np.sqrt(self.num_actions)
        self._gain = rng.standard_normal((self.num_features, self.num_actions)) / np.sqrt(self.num_features)
        self.action_space: spaces.Space = spaces.Box(-1.0, 1.0, (self.num_actions,), np.float64)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Actions (B, 6)."""
        return np.tanh(np.asarray(observations, dtype=np.float64) @ self._gain)

    def start(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Start states near zero."""
        return 0.1 * rng.standard_normal((num, self.num_features))

    def act(self, rng: np.random.Generator, states: np.ndarray) -> np.ndarray:
        """Actions of the policy, which draws nothing."""
        del rng
        return self(states)

    def step(self, rng: np.random.Generator, states: np.ndarray, actions: np.ndarray) -> Steps:
        """Towards a bounded function of state and action; the reward is a speed less a price of actions."""
        towards = np.tanh(states @ self._drift + actions @ self._push) + self.noise * rng.standard_normal(states.shape)
        next_states = self.slowness * states + (1.0 - self.slowness) * 2.0 * towards
        rewards = next_states[:, 0] - 0.1 * (actions**2).sum(axis=1)
        return Steps(rewards, next_states, np.zeros(len(states), dtype=bool))


class Pole:
    """The cart-pole; its policy states the probabilities of pushing left and right."""

    name = identity = "pole"
    gain = np.array([0.3, 0.6, 8.0, 2.0])
    shock = 0.15  # standard deviation of what is added to the angular speed

    def __init__(self) -> None:
        self.action_space: spaces.Space = spaces.Discrete(2)

    def action_probabilities(self, observations: np.ndarray) -> np.ndarray:
        """Probabilities (B, 2): a soft version of a controller that balances."""
        right = 1.0 / (1.0 + np.exp(-np.asarray(observations, dtype=np.float64) @ self.gain))
        return np.stack([1.0 - right, right], axis=1)

    def start(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Start states of CartPole-v1."""
        return rng.uniform(-0.05, 0.05, (num, 4))

    def act(self, rng: np.random.Generator, states: np.ndarray) -> np.ndarray:
        """Actions drawn from the policy."""
        return (rng.random(len(states)) < self.action_probabilities(states)[:, 1]).astype(int)

    def step(self, rng: np.random.Generator, states: np.ndarray, actions: np.ndarray) -> Steps:
        """One Euler step of CartPole-v1 with small shocks, so that episodes end; every step earns 1."""
        x, speed, angle, spin = states.T
        force = np.where(actions == 1, 10.0, -10.0)
        common = (force + 0.05 * spin**2 * np.sin(angle)) / 1.1
        turn = (9.8 * np.sin(angle) - np.cos(angle) * common) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        push = common - 0.05 * turn * np.cos(angle) / 1.1
        moved = np.stack([x + 0.02 * speed, speed + 0.02 * push, angle + 0.02 * spin, spin + 0.02 * turn], axis=1)
        moved[:, 3] += self.shock * rng.standard_normal(len(states))
        ended = (np.abs(moved[:, 0]) > 2.4) | (np.abs(moved[:, 2]) > 0.2095)
        return Steps(np.ones(len(states)), moved, ended)


PROCESSES: dict[str, type[Walker] | type[Pole]] = {"walker": Walker, "pole": Pole}


def log_of(process: Process, num_transitions: int, seed: int = 0) -> Trajectory:
    """A log of the process under its own policy, episode after episode.

    Raises:
        ValueError: ``num_transitions`` is not positive.
    """
    if num_transitions < 1:
        raise ValueError(f"num_transitions must be at least 1, got {num_transitions}")
    rng = np.random.default_rng(seed)
    length = max(STREAM_LENGTH, -(-num_transitions // NUM_STREAMS))
    num_streams = -(-num_transitions // length)
    states = process.start(rng, num_streams)
    columns: tuple[list[np.ndarray], ...] = ([], [], [], [], [], [])
    age = np.zeros(num_streams, dtype=int)
    for _ in range(length):
        actions = process.act(rng, states)
        found = process.step(rng, states, actions)
        age += 1
        cut = ~found.terminated & (age >= STREAM_LENGTH)
        row = (states, actions, found.rewards, found.next_states, found.terminated, cut)
        for column, values in zip(columns, row, strict=True):
            column.append(values)
        over = found.terminated | cut
        states = np.where(over[:, None], process.start(rng, num_streams), found.next_states)
        age[over] = 0
    parts = [_stream_after_stream(np.stack(column), num_transitions) for column in columns]
    ends = parts[4] | parts[5]
    ends[length - 1 :: length] = True
    ends[-1] = True
    box = spaces.Box(-np.inf, np.inf, (parts[0].shape[1],), np.float64)
    identity = as_policy(process, process.action_space, box, seed=0).identity
    return Trajectory(*parts, episode_ends=ends, observation_space=box, env_id=process.name, policy=identity)


def _stream_after_stream(column_TE: np.ndarray, num_transitions: int) -> np.ndarray:
    """(T, E, ...) as (E T, ...), cut to the number of transitions."""
    return np.swapaxes(column_TE, 0, 1).reshape(-1, *column_TE.shape[2:])[:num_transitions]
