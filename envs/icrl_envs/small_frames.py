"""A wrapper for Atari games: small grey frames, two at a time."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium import spaces

gymnasium.register_envs(ale_py)  # so that naming the wrapper is enough to make "ALE/..." environments


class SmallFrames(gymnasium.ObservationWrapper[np.ndarray, Any, np.ndarray]):
    """Grey frames at half the height and width, the previous one beside the present one so that motion is seen.

    ## Observation Space
    Box(0, 255, (2, height // 2, width // 2), uint8), the present frame last; after a reset both are the same.

    Args:
        env: with grey frames, Box(0, 255, (height, width), uint8): ``obs_type="grayscale"``.

    Raises:
        ValueError: the frames are not grey.

    Example:
        >>> env = gymnasium.make("ALE/Pong-v5", obs_type="grayscale")
        >>> SmallFrames(env).observation_space.shape
        (2, 105, 80)
    """

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        if shape is None or len(shape) != 2:
            raise ValueError(
                f'env must have grey frames of shape (height, width), as by obs_type="grayscale", got {shape}'
            )
        self._last: np.ndarray | None = None
        self.observation_space = spaces.Box(0, 255, (2, shape[0] // 2, shape[1] // 2), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """First frame, twice."""
        self._last = None
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The last two frames, (2, height // 2, width // 2)."""
        present = _halved(observation)
        previous, self._last = present if self._last is None else self._last, present
        return np.stack([previous, present])


def _halved(frame: np.ndarray) -> np.ndarray:
    """Means of blocks of 2 x 2 pixels, rounded."""
    height, width = (side // 2 for side in frame.shape)
    blocks = frame[: 2 * height, : 2 * width].reshape(height, 2, width, 2)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
