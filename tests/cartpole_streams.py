"""Short episodes of CartPole with both kinds of end, and what makes two trajectories the same."""

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

MODES = list(AutoresetMode)
COLUMNS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated", "episode_ends")


def cartpole(**options) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", max_episode_steps=12, **options)


def lean(observations: np.ndarray) -> np.ndarray:
    """Pushes the wrong way where the cart is left of the centre: some episodes terminate, some reach the limit."""
    wrong = observations[..., 0] < 0
    return np.where(wrong, observations[..., 2] < 0, observations[..., 2] > 0).astype(int)


def same(first, second) -> bool:
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in COLUMNS)
