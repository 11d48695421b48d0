"""What a policy would do in the states of a table, as probabilities of a few actions.

Shape legend: N transitions, S states, A actions, K actions asked for, C numbers of an action.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.observations import Observations, batch_size

NUM_ASKED = 16  # actions per state of a policy that does not state its probabilities


def choices_of(
    asked: AskedPolicy, states: Observations, sources: np.ndarray, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (S, A) of actions, and the columns (N,) of the logged ones, or None (see `TableWorld.fit`)."""
    space = asked.action_space
    probability_SA = asked.probabilities(states)
    if probability_SA is not None:
        assert isinstance(space, spaces.Discrete)
        return probability_SA, actions.astype(np.int64) - int(space.start)
    num_states = batch_size(states)
    drawn = np.stack([asked.actions(states, np.tile(noise_U, (num_states, 1))) for noise_U in _noises(asked.num_noise)])
    drawn_KSC = drawn.reshape(NUM_ASKED, num_states, -1)
    logged_NC = actions.reshape(len(actions), -1)
    if isinstance(space, spaces.Box):
        return _its_own_or_another(drawn_KSC, sources, logged_NC)
    everything = np.concatenate([drawn_KSC.reshape(NUM_ASKED * num_states, -1), logged_NC])
    distinct, columns = np.unique(everything, axis=0, return_inverse=True)
    columns = columns.reshape(-1)
    probability_SA = np.zeros((num_states, len(distinct)))
    np.add.at(probability_SA, (np.tile(np.arange(num_states), NUM_ASKED), columns[: -len(actions)]), 1.0 / NUM_ASKED)
    return probability_SA, columns[-len(actions) :]


def _its_own_or_another(
    drawn_KSC: np.ndarray, sources: np.ndarray, logged_NC: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Two columns for real actions: the policy's own, which has probability 1, and all others; None if it has several.

    Networks round differently in different batches, so equal is what is as near as rounding.
    """
    own_SC = drawn_KSC[0]
    if not np.allclose(drawn_KSC, own_SC, rtol=1e-4, atol=1e-5):
        return None
    same_N = np.isclose(logged_NC, own_SC[sources], rtol=1e-4, atol=1e-5).all(axis=1)
    return np.tile([1.0, 0.0], (len(own_SC), 1)), np.where(same_N, 0, 1)


def _noises(num_noise: int) -> np.ndarray:
    """Fixed noise (NUM_ASKED, num_noise): each number takes the same equally spaced values, in orders of its own."""
    spaced_K = (np.arange(NUM_ASKED) + 0.5) / NUM_ASKED
    generator = np.random.default_rng(0)
    return np.stack([spaced_K[generator.permutation(NUM_ASKED)] for _ in range(num_noise)], axis=1)
