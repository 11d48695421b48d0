"""Random contexts that tests have in common."""

from dataclasses import replace

import numpy as np

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt


def make_log(seed, num_rows, num_states=None, scale=1.0, weighted=False):
    """Random states in a plane, or some of a few; episodes terminate, or are cut."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(num_states or num_rows + 1, 2))
    states = table[rng.integers(num_states, size=num_rows + 1) if num_states else np.arange(num_rows + 1)]
    terminated, truncated = rng.random(num_rows) < 0.1, rng.random(num_rows) < 0.1
    following = np.where(truncated[:, None], states[1:] + 0.5, states[1:])
    rewards = scale * (1.0 + states[:-1, 0] + rng.normal(size=num_rows))
    ratios = rng.exponential(size=num_rows) * (rng.random(num_rows) > 0.2) + 1e-3 * (np.arange(num_rows) == 0)
    log = icrl.Trajectory(states[:-1], np.zeros(num_rows), rewards, following, terminated, truncated)
    return replace(log, importance_ratios=ratios) if weighted else log


def make_prompt(seed, num_rows, num_states=None, scale=1.0, weighted=False):
    """The prompt of such a log, discounted by 0.9."""
    return Prompt.from_trajectory(make_log(seed, num_rows, num_states, scale, weighted), 0.9)
