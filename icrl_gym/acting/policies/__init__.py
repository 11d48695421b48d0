"""Every policy the library accepts, behind one face: `as_policy` turns it into an `ActingPolicy`.

Accepted: the string "random"; an (S, A) table of probabilities; an object with ``action_probabilities(observations)``;
a Stable-Baselines3 model (recognised by ``predict`` and ``policy``, never imported); any callable from (B,) +
observation shape to (B,) + action shape.

Randomness belongs to the adapter: "random", tables, probability objects and epsilon-greedy exploration draw from a
NumPy generator made from ``seed``. SB3 models draw from torch's global generator, so each call runs in a fork of it
that holds the adapter's own state, at first that of ``torch.manual_seed(seed)``; the global state is left as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies.acting import ActingPolicy
from icrl_gym.acting.policies.asked import AskedPolicy, first_outside, global_generators_kept
from icrl_gym.acting.policies.functions import CallablePolicy, PolicyTable, ProbabilityPolicy, RandomPolicy
from icrl_gym.acting.policies.models import (
    ModelPolicy,
    RecurrentModelPolicy,
    lacks_normalisation,
    model_digest,
    normalised,
)

__all__ = [
    "ActingPolicy",
    "AskedPolicy",
    "as_policy",
    "first_outside",
    "global_generators_kept",
    "lacks_normalisation",
    "model_digest",
    "normalised",
]


def as_policy(
    policy: Any,
    action_space: spaces.Space,
    observation_space: spaces.Space | None = None,
    *,
    deterministic: bool = False,
    seed: int | np.random.Generator | None = None,
) -> ActingPolicy:
    """Make any accepted policy an `ActingPolicy`.

    Args:
        policy: see the module's docstring; an `ActingPolicy` is returned as it is.
        action_space: action space of one environment, not of a vector.
        observation_space: observation space of one environment; needed to check tables and SB3 models.
        deterministic: SB3 models, tables and probability objects take their most likely action. A callable decides for
            itself, whatever this says.
        seed: seed of the adapter's own randomness; None draws fresh entropy.

    Raises:
        ValueError: the policy does not fit the spaces, a table's rows are no distributions, or "random" is to be
            deterministic.
        TypeError: not a policy at all.
    """
    if isinstance(policy, ActingPolicy):
        return policy
    if isinstance(policy, str):
        return RandomPolicy(policy, action_space, deterministic=deterministic, seed=seed)
    if hasattr(policy, "predict") and hasattr(policy, "policy"):
        model_class = RecurrentModelPolicy if hasattr(policy.policy, "lstm_actor") else ModelPolicy
        return model_class(policy, action_space, observation_space, deterministic=deterministic, seed=seed)
    if hasattr(policy, "action_probabilities"):
        return ProbabilityPolicy(policy, action_space, deterministic=deterministic, seed=seed)
    if isinstance(policy, (np.ndarray, list)):
        table = PolicyTable(np.asarray(policy), observation_space)
        return ProbabilityPolicy(table, action_space, deterministic=deterministic, seed=seed)
    if callable(policy):
        return CallablePolicy(policy, action_space)
    raise TypeError(
        "policy must be 'random', an (S, A) table, an SB3 model, an object with action_probabilities or a callable, "
        f"got {type(policy).__name__}"
    )
