"""`Scene`: a context's world and who acts in it, from which softmax TD's transitions and walks are taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.target_pairs import spread_actions
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.keys import evenly
from icrl_gym.evaluator.world.actors import ActionFeatures, AskedActor, imitated, logged_space
from icrl_gym.evaluator.world.checks import check_walks, checked_rows
from icrl_gym.evaluator.world.imagination import HORIZONS, ImaginedValues, Leaf
from icrl_gym.evaluator.world.model import World
from icrl_gym.evaluator.world.variates import Actions, ActionVariates
from icrl_gym.evaluator.world.walks import NOISE_SEED, Walker

LEAST_DISTINCT = 0.5  # of the sources: below it states recur
MOST_IMITATED = 2048  # transitions of a member from which a policy is imitated, evenly spaced
MOST_VARIED = 16_384  # transitions; in longer contexts chance in the actions averages out by itself
LEAST_DRAWS = 2  # actions in each state whose mean is taken for the policy's
SMALLEST_DISCOUNT = 0.1  # of the leaf after the longest walk, about


@dataclass(frozen=True, eq=False)
class Scene:
    """A context with a world.

    Attributes:
        prompt, trajectory: the context.
        successors_ND: features of its true successors.
        actions_NX: features of its actions.
        walker: the world and who acts.
        asked: the policy to be evaluated, or None: the one that acted, known by its actions alone.
        acted: whether it is the one that acted.
    """

    prompt: Prompt
    trajectory: Trajectory
    successors_ND: np.ndarray
    actions_NX: np.ndarray
    walker: Walker
    asked: AskedPolicy | None
    acted: bool

    @classmethod
    def of(
        cls, prompt: Prompt, trajectory: Trajectory, asked: AskedPolicy | None, *, acted: bool,
        device: torch.device | str = "cpu",
    ) -> Scene | None:  # fmt: skip
        """The scene of a context, or None where there can be none.

        Args:
            prompt, trajectory: the context.
            asked, acted: see the class.
            device: torch device.
        """
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
        return cls(prompt, trajectory, successors_ND, actions_NX, walker, asked, acted)

    def variates(self, leaf: Leaf) -> ActionVariates | None:
        """Control variates for the actions, where the policy acted and can be asked; see variates.py.

        An imitated policy has none: where it errs, the variates' mean is not zero.

        Args:
            leaf: the context's values without them.
        """
        if self.asked is None or not self.acted or len(self.prompt) > MOST_VARIED:
            return None
        drawn = spread_actions(self.asked, self.trajectory.observations, LEAST_DRAWS)
        asked_MNX = np.stack([self.walker.action_features(actions) for actions in np.moveaxis(drawn.actions, 1, 0)])
        actions = Actions(self.actions_NX, asked_MNX, drawn.weights_BM.T)
        return ActionVariates.of(self.prompt, self.walker.world, self.successors_ND, actions, _values(leaf))

    def values(self, leaf: Leaf) -> ImaginedValues | None:
        """Values by walks, or None where these do not hold.

        Args:
            leaf: the context's values without walks.
        """
        horizons = [steps for steps in HORIZONS if steps == 1 or self.prompt.gamma**steps >= SMALLEST_DISCOUNT]
        check = check_walks(
            self.walker, self.prompt, self.successors_ND, self.actions_NX, self._noise(max(horizons)), horizons,
            _values(leaf),
        )  # fmt: skip
        if self.asked is None:  # with other actions than the logged ones even a perfect first step differs
            check = replace(check, squares_H=check.errors_H)
        return ImaginedValues.of(leaf, self.walker, check)

    def _noise(self, num_steps: int) -> np.ndarray | None:
        """Noise (N, U) behind the logged actions for the check of walks of so many steps; None of another's."""
        if not self.acted:
            return None
        noise_NU = np.random.default_rng(NOISE_SEED).uniform(1e-6, 1 - 1e-6, (len(self.prompt), self.walker.num_noise))
        if self.asked is not None:
            rows, actor = checked_rows(self.walker.world, num_steps), self.walker.actors[0]
            noise_NU[rows] = actor.noise_behind(
                self.prompt.source_features[rows], self.trajectory.actions_for("policy")[rows], noise_NU[rows]
            )
        return noise_NU


def _values(leaf: Leaf) -> Callable[[np.ndarray], np.ndarray]:
    """A leaf as a function of features."""
    return lambda features_BD: leaf.read(features_BD).by_layer_LQ[-1]
