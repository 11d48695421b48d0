"""A point that is pushed to a goal, with observations as goal-reaching robots have them."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium import Env
from gymnasium.spaces import Box, Dict

FRICTION = 0.9  # of a step's velocity that is kept
PUSH = 0.01  # velocity that a full action adds
REACHED = 0.15  # distance from the goal that counts as there


class PointGoal(Env):
    """A point with inertia in a square room, which is paid while it is at a goal that is drawn for each episode.

    ## Description
    The smallest task of the kind of Gymnasium-Robotics' `GoalEnv`: what is achieved, what is desired, and a reward of
    two values that a distance decides.

    ## Action Space
    `Box(-1, 1, (2,), float32)`: the push.

    ## Observation Space
    `Dict` of `observation`, position and velocity (4 numbers), `achieved_goal`, the position, and `desired_goal`.

    ## Rewards
    1 where the point comes to within 0.15 of the goal, else 0.

    ## Starting State
    Position and goal uniform in [-1, 1]^2, at rest.

    ## Episode End
    None of its own; the registered id truncates after 150 steps.

    ## Version History
    * v0: first version.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self) -> None:
        numbers = {"achieved_goal": 2, "desired_goal": 2, "observation": 4}
        self.observation_space = Dict({key: Box(-np.inf, np.inf, (count,)) for key, count in numbers.items()})
        self.action_space = Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._position, self._goal = self.np_random.uniform(-1.0, 1.0, (2, 2))
        self._velocity = np.zeros(2)
        return self._observation(), {}

    def compute_reward(self, achieved_goal: np.ndarray, desired_goal: np.ndarray, info: Any) -> np.ndarray:
        """Rewards (...) of what is achieved (..., 2) where something is desired, as SB3's `HerReplayBuffer` asks."""
        distance = np.linalg.norm(np.asarray(achieved_goal) - np.asarray(desired_goal), axis=-1)
        return (distance < REACHED).astype(float)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._velocity = FRICTION * self._velocity + PUSH * np.clip(action, -1.0, 1.0)
        moved = self._position + self._velocity
        self._velocity[np.abs(moved) > 1.0] = 0.0  # the room's walls
        self._position = np.clip(moved, -1.0, 1.0)
        return self._observation(), float(self.compute_reward(self._position, self._goal, {})), False, False, {}

    def _observation(self) -> dict[str, np.ndarray]:
        parts = {"achieved_goal": self._position, "desired_goal": self._goal}
        parts["observation"] = np.concatenate([self._position, self._velocity])
        return {key: part.astype(np.float32) for key, part in parts.items()}
