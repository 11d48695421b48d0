"""The world in context: a model of transitions and endings read off the prompt, and walks in it under the policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.keys import evenly
from icrl_gym.evaluator.world.actors import ActionFeatures, AskedActor, imitated, logged_space
from icrl_gym.evaluator.world.checks import check_walks, checked_rows
from icrl_gym.evaluator.world.imagination import HORIZONS, ImaginedValues, Leaf
from icrl_gym.evaluator.world.model import World
from icrl_gym.evaluator.world.walks import NOISE_SEED, Walker

__all__ = ["ImaginedValues", "imagine"]

LEAST_DISTINCT = 0.5  # of the sources: below it states recur
MOST_IMITATED = 2048  # transitions of a member from which a policy is imitated, evenly spaced
SMALLEST_DISCOUNT = 0.1  # of the leaf after the longest walk, about


def imagine(
    leaf: Leaf, trajectory: Trajectory, asked: AskedPolicy | None, *, acted: bool, device: torch.device | str = "cpu"
) -> ImaginedValues | None:
    """The values of a context by walks in its world; None where there can be none, or they do not hold.

    Args:
        leaf: its values without walks.
        trajectory: the log.
        asked: the policy to be evaluated, or None: the one that acted, known by its actions alone.
        acted: whether it is the one that acted.
        device: torch device.
    """
    prompt = leaf.prompt
    feature_map, states_ND = prompt.feature_map, prompt.source_features
    if (
        trajectory.actions is None
        or not feature_map.invertible
        or (asked is None and prompt.importance_ratios is not None)
    ):
        return None
    if len(prompt.first_visits) < LEAST_DISTINCT * len(prompt):
        return None
    space = logged_space(trajectory.actions) if asked is None else asked.action_space
    action_features = ActionFeatures(trajectory.actions, space)
    actions_NX, successors_ND = action_features(trajectory.actions), feature_map(trajectory.next_observations)
    world = World.fit(prompt, successors_ND, actions_NX, feature_map(feature_map.zero())[0], device)
    if world is None:
        return None
    if asked is None:
        seen = [evenly(rows, MOST_IMITATED) for rows in world.held_in]
        actors = tuple(imitated(states_ND[rows], trajectory.actions[rows], space) for rows in seen)
    else:
        actors = (AskedActor(asked, feature_map),)
    walker = Walker(world, actors, action_features, prompt.gamma)
    horizons = [steps for steps in HORIZONS if steps == 1 or prompt.gamma**steps >= SMALLEST_DISCOUNT]
    noise_NU = None
    if acted:
        noise_NU = np.random.default_rng(NOISE_SEED).uniform(1e-6, 1 - 1e-6, (len(prompt), walker.num_noise))
        if asked is not None:
            rows = checked_rows(world, max(horizons))
            noise_NU[rows] = actors[0].noise_behind(states_ND[rows], trajectory.actions[rows], noise_NU[rows])
    check = check_walks(
        walker, prompt, successors_ND, actions_NX, noise_NU, horizons,
        lambda features_BD: leaf.read(features_BD).by_layer_LQ[-1],
    )  # fmt: skip
    if asked is None:  # with other actions than the logged ones even a perfect first step differs
        check = replace(check, squares_H=check.errors_H)
    return ImaginedValues.of(leaf, walker, check)
