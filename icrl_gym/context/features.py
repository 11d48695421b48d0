"""Feature vectors, which attention compares, of raw observations.

| observation space | features |
|---|---|
| Box, up to 64 numbers | the numbers, standardised by the context |
| Box, more | images pooled to at most 16 x 16; standardised; projected to 64 by a seeded orthogonal matrix |
| Discrete, up to 256 values | one-hot; above that a seeded random unit vector per value |
| MultiDiscrete | one-hot per component up to 256 in all, else the numbers, standardised |
| MultiBinary | the bits |
| Dict, Tuple | the parts side by side |
| Dict with a goal (`GoalEnv`) | also what is achieved less what is desired, and how far that is |
| Text, Graph, Sequence, OneOf | refused |

Everything learned from data is learned from the context alone. A categorical component that differs adds 2 to the
squared distance, which is what two independent draws of a standardised coordinate differ by on average; a lone
Discrete space has no geometry, so there distinct values are put far apart. The *effective dimension* counts each
varying coordinate and each varying categorical component once; kernel widths scale with its square root.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from icrl_gym.acting.policies import normalised
from icrl_gym.observations import Observations, as_batch, batch_size, check_finite, named_leaves

MAX_FEATURES = 64  # of one Box leaf
MAX_ONE_HOT = 256  # values
MAX_POOLED_SIDE = 16  # pixels
LONE_DISCRETE_SCALE = 4.0  # distinct values of a lone Discrete space: squared distance 2 * 4^2
CONSTANT_TOLERANCE = 1e-7  # a coordinate whose spread is below this fraction of its magnitude is constant
PROJECTION_SEED = 0
GOAL_KEYS = ("achieved_goal", "desired_goal")  # of Gymnasium-Robotics' `GoalEnv`

FeatureFunction = Callable[[Observations], Any]  # raw observations (B,) + shape -> (B, D)


@dataclass(frozen=True)
class Standardiser:
    """Column-wise (x - mean) / spread; constant columns become 0."""

    mean_D: np.ndarray
    inverse_spread_D: np.ndarray

    @classmethod
    def fit(cls, columns_ND: np.ndarray) -> Standardiser:
        spread_D = columns_ND.std(axis=0)
        magnitude_D = np.abs(columns_ND).max(axis=0)
        varies_D = spread_D > CONSTANT_TOLERANCE * np.maximum(magnitude_D, np.finfo(float).tiny)
        inverse_D = np.divide(1.0, spread_D, out=np.zeros_like(spread_D), where=varies_D)
        return cls(columns_ND.mean(axis=0), inverse_D)

    def __call__(self, columns_BD: np.ndarray) -> np.ndarray:
        return (columns_BD - self.mean_D) * self.inverse_spread_D

    def inverse(self, standardised_BD: np.ndarray) -> np.ndarray:
        varies_D = self.inverse_spread_D > 0
        spread_D = np.divide(1.0, self.inverse_spread_D, out=np.zeros_like(self.mean_D), where=varies_D)
        return standardised_BD * spread_D + self.mean_D

    @property
    def num_varying(self) -> int:
        return int((self.inverse_spread_D > 0).sum())


class LeafEncoder(Protocol):
    """Features of one array-valued part of the observation; `fit` sees the context's sources only."""

    def fit(self, leaf: np.ndarray) -> None: ...

    def __call__(self, leaf: np.ndarray) -> np.ndarray: ...

    @property
    def effective_dimension(self) -> int: ...


class NumericEncoder:
    """Numbers: pooled if they form a large image, standardised, projected if there are more than 64."""

    def __init__(self) -> None:
        self._second: Standardiser | None = None
        self._projection_DP: np.ndarray | None = None

    def fit(self, leaf: np.ndarray) -> None:
        flat_ND = _flatten(leaf)
        self._first = Standardiser.fit(flat_ND)
        num_columns = flat_ND.shape[1]
        if num_columns > MAX_FEATURES:
            normal = np.random.default_rng(PROJECTION_SEED).standard_normal((num_columns, MAX_FEATURES))
            self._projection_DP = np.linalg.qr(normal)[0]
            self._second = Standardiser.fit(self._first(flat_ND) @ self._projection_DP)

    def __call__(self, leaf: np.ndarray) -> np.ndarray:
        features = self._first(_flatten(leaf))
        if self._second is not None:
            features = self._second(features @ self._projection_DP)
        return features

    def inverse(self, features_BD: np.ndarray) -> np.ndarray:
        """The numbers (B, columns) that these features stand for; those that are constant in the context as they are
        there.
        """
        return self._first.inverse(features_BD)

    @property
    def projected_columns(self) -> int:
        """Numbers before the projection, 0 where there is none."""
        return 0 if self._projection_DP is None else len(self._projection_DP)

    @property
    def effective_dimension(self) -> int:
        varying = self._first.num_varying
        return varying if self._second is None else min(varying, self._second.num_varying)


class CategoricalEncoder:
    """Integer components, of which those that vary in the context count as one dimension each."""

    def fit(self, leaf: np.ndarray) -> None:
        components = _rows(leaf)
        self._num_varying = int((components != components[:1]).any(axis=0).sum())

    @property
    def effective_dimension(self) -> int:
        return self._num_varying


class OneHotEncoder(CategoricalEncoder):
    """Integer components, each one-hot (``num_values`` of them, counted from ``start``), scaled."""

    def __init__(self, num_values: np.ndarray, start: np.ndarray, scale: float) -> None:
        self._num_values, self._start, self._scale = num_values, start, scale
        self._offsets = np.concatenate([[0], np.cumsum(num_values)[:-1]])

    def __call__(self, leaf: np.ndarray) -> np.ndarray:
        components = _rows(leaf) - self._start
        inside = (components >= 0) & (components < self._num_values)
        features = np.zeros((len(leaf), int(self._num_values.sum())))
        rows, columns = np.nonzero(inside)
        features[rows, (components + self._offsets)[rows, columns].astype(int)] = self._scale
        return features


class EmbeddingEncoder(CategoricalEncoder):
    """Integers of a large Discrete space: a seeded random unit vector of 64 numbers per value, scaled."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def __call__(self, leaf: np.ndarray) -> np.ndarray:
        values, inverse = np.unique(leaf, return_inverse=True)
        vectors = np.array([self._vector(int(value)) for value in values]).reshape(len(values), MAX_FEATURES)
        return vectors[inverse]

    def _vector(self, value: int) -> np.ndarray:
        sign = int(value < 0)
        normal = np.random.default_rng([PROJECTION_SEED, sign, abs(value)]).standard_normal(MAX_FEATURES)
        return self._scale * normal / np.linalg.norm(normal)


class BitEncoder(CategoricalEncoder):
    """Bits, scaled so that one that differs adds 2 to the squared distance."""

    def __call__(self, leaf: np.ndarray) -> np.ndarray:
        return np.sqrt(2.0) * _rows(leaf).astype(np.float64)


def _box(space: spaces.Box, alone: bool) -> LeafEncoder:
    return NumericEncoder()


def _discrete(space: spaces.Discrete, alone: bool) -> LeafEncoder:
    scale = LONE_DISCRETE_SCALE if alone else 1.0
    if space.n > MAX_ONE_HOT:
        return EmbeddingEncoder(scale)
    return OneHotEncoder(np.array([space.n]), np.array([space.start]), scale)


def _multi_discrete(space: spaces.MultiDiscrete, alone: bool) -> LeafEncoder:
    if space.nvec.sum() > MAX_ONE_HOT:
        return NumericEncoder()
    return OneHotEncoder(space.nvec.reshape(-1), space.start.reshape(-1), 1.0)


def _multi_binary(space: spaces.MultiBinary, alone: bool) -> LeafEncoder:
    return BitEncoder()


ENCODERS: dict[type[spaces.Space], Callable[[Any, bool], LeafEncoder]] = {
    spaces.Box: _box,
    spaces.Discrete: _discrete,
    spaces.MultiDiscrete: _multi_discrete,
    spaces.MultiBinary: _multi_binary,
}


class FeatureMap:
    """Features of observations of one space: `fit` on a context once, then call on any observations.

    Args:
        space: the observation space.
        function: the user's own features instead, ``(B,) + shape -> (B, D)``; they are standardised by the context.

    Raises:
        TypeError: the space (or a part of it) has no features; the part is named.
    """

    def __init__(self, space: spaces.Space, function: FeatureFunction | None = None) -> None:
        self.space = space
        self._function = function
        self.has_goal = function is None and _has_goal(space)
        if function is not None:
            self._encoders: list[LeafEncoder] = [NumericEncoder()]
        else:
            alone = not isinstance(space, (spaces.Dict, spaces.Tuple))
            self._encoders = [_encoder(part, path, alone) for path, part in _leaf_spaces(space, "observations")]
            self._encoders += [NumericEncoder()] if self.has_goal else []

    def fit(self, observations: Observations) -> FeatureMap:
        """Learn standardisation from the context's source observations, (N,) + shape. Returns self."""
        for encoder, leaf in zip(self._encoders, self._leaves(observations), strict=True):
            encoder.fit(leaf)
        return self

    def __call__(self, observations: Observations) -> np.ndarray:
        """Features (B, D) float64 of raw observations (B,) + shape.

        Raises:
            TypeError, ValueError: the observations do not fit the space, or are not finite.
        """
        leaves = self._leaves(observations)
        return np.concatenate([encoder(leaf) for encoder, leaf in zip(self._encoders, leaves, strict=True)], axis=1)

    @property
    def invertible(self) -> bool:
        """Whether `inverse` can tell observations from their features: real numbers, neither pooled nor projected."""
        leaves = _leaf_spaces(self.space, "observations")
        return self._function is None and all(
            isinstance(space, spaces.Box) and space.dtype.kind == "f" and np.prod(space.shape) <= MAX_FEATURES
            for _, space in leaves
        )

    def inverse(self, features_BD: np.ndarray) -> Observations:
        """Raw observations (B,) + shape of features (B, D), if the map is `invertible`."""
        leaves, start = [], 0
        for (_, space), encoder in zip(_leaf_spaces(self.space, "observations"), self._encoders, strict=False):
            assert isinstance(encoder, NumericEncoder)
            count = int(np.prod(space.shape or ()))
            numbers = encoder.inverse(features_BD[:, start : start + count])
            leaves.append(numbers.reshape(len(features_BD), *(space.shape or ())).astype(space.dtype))
            start += count
        return _structured(self.space, leaves)

    def completed(self, features: np.ndarray) -> np.ndarray:
        """Features (..., D) whose goal part is that of their other parts, if the map is `invertible`."""
        if not self.has_goal:
            return features
        features_BD = features.reshape(-1, features.shape[-1])
        goal_BG = self._encoders[-1](_from_goal(self.inverse(features_BD)))
        told_BT = features_BD[:, : features_BD.shape[1] - goal_BG.shape[1]]
        return np.concatenate([told_BT, goal_BG], axis=1).reshape(features.shape)

    def zero(self) -> Observations:
        """One observation, all of whose numbers are 0, if the map is `invertible`."""
        boxes = [space for _, space in _leaf_spaces(self.space, "observations")]
        return _structured(self.space, [np.zeros((1, *(box.shape or ())), box.dtype) for box in boxes])

    @property
    def effective_dimension(self) -> int:
        """Varying coordinates and categorical components in the context, at least 1."""
        return max(1, sum(encoder.effective_dimension for encoder in self._encoders))

    @property
    def notes(self) -> tuple[str, ...]:
        """Losses on the way from observations to features, in plain words."""
        columns = [encoder.projected_columns for encoder in self._encoders if isinstance(encoder, NumericEncoder)]
        return tuple(
            f"{count} numbers of an observation were projected at random to {MAX_FEATURES} features"
            for count in columns
            if count
        )

    def _leaves(self, observations: Any) -> list[np.ndarray]:
        batch = as_batch(observations, self.space, "observations")
        if self._function is not None:
            return [_checked_features(self._function(batch), batch_size(batch))]
        leaves = dict(named_leaves(batch, "observations"))
        for path, leaf in leaves.items():
            check_finite(leaf, path)
        return [*leaves.values(), *([_from_goal(batch)] if self.has_goal else [])]


def sb3_features(model: Any) -> FeatureFunction:
    """The feature extractor of a Stable-Baselines3 policy (its CNN, say) as a feature function.

    Args:
        model: an SB3 algorithm, or anything with ``policy.obs_to_tensor`` and ``policy.extract_features``.
    """
    import torch

    policy = model.policy
    extractor = getattr(policy, "features_extractor", None) or policy.critic.features_extractor

    def features(observations: Observations) -> np.ndarray:
        tensor, _ = policy.obs_to_tensor(normalised(model, observations))
        with torch.no_grad():
            return policy.extract_features(tensor, extractor).double().cpu().numpy()

    return features


def _has_goal(space: spaces.Space) -> bool:
    """Whether observations tell a goal and what is achieved of it, as numbers that can be compared."""
    if not isinstance(space, spaces.Dict):
        return False
    achieved, desired = (space.spaces.get(key) for key in GOAL_KEYS)
    if not (isinstance(achieved, spaces.Box) and isinstance(desired, spaces.Box)):
        return False
    numbers = achieved.dtype.kind == desired.dtype.kind == "f"
    return numbers and achieved.shape == desired.shape and int(np.prod(achieved.shape)) < MAX_FEATURES


def _from_goal(batch: Any) -> np.ndarray:
    """Differences (B, G + 1) of what is achieved from what is desired, the last column their length."""
    achieved, desired = (_rows(np.asarray(batch[key], dtype=np.float64)) for key in GOAL_KEYS)
    difference_BG = achieved - desired
    return np.column_stack([difference_BG, np.linalg.norm(difference_BG, axis=1)])


def _encoder(space: spaces.Space, path: str, alone: bool) -> LeafEncoder:
    for kind, make in ENCODERS.items():
        if isinstance(space, kind):
            return make(space, alone)
    supported = ", ".join(kind.__name__ for kind in ENCODERS)
    raise TypeError(f"{path}: {space} cannot be turned into features; supported: {supported}, Dict, Tuple of these")


def _leaf_spaces(space: spaces.Space, path: str) -> list[tuple[str, spaces.Space]]:
    if isinstance(space, spaces.Dict):
        return [leaf for key, part in space.spaces.items() for leaf in _leaf_spaces(part, f"{path}[{key!r}]")]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, part in enumerate(space.spaces) for leaf in _leaf_spaces(part, f"{path}[{i}]")]
    return [(path, space)]


def _structured(space: spaces.Space, leaves: list[np.ndarray]) -> Observations:
    """The leaves, in the order of `_leaf_spaces`, in the space's structure; they are used up."""
    if isinstance(space, spaces.Dict):
        return {key: _structured(part, leaves) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_structured(part, leaves) for part in space.spaces)
    return leaves.pop(0)


def _checked_features(features: Any, batch: int) -> np.ndarray:
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2 or len(array) != batch:
        raise ValueError(f"features: the feature function must return ({batch}, D), got {array.shape}")
    check_finite(array, "features")
    return array


def _flatten(leaf: np.ndarray) -> np.ndarray:
    """(B,) + shape -> (B, columns) float64, large images pooled first."""
    leaf = np.asarray(leaf, dtype=np.float64)
    if leaf.ndim >= 3 and np.prod(leaf.shape[1:]) > MAX_FEATURES:
        for axis in _spatial_axes(leaf.shape):
            leaf = _pool(leaf, axis)
    return _rows(leaf)


def _rows(leaf: np.ndarray) -> np.ndarray:
    """(B,) + shape -> (B, columns), also for an empty batch."""
    return leaf.reshape(len(leaf), int(np.prod(leaf.shape[1:])))


def _spatial_axes(shape: tuple[int, ...]) -> tuple[int, int]:
    """The two axes that are not the channels: channels come first or last, and are the fewest."""
    if len(shape) == 3:
        return 1, 2
    return (2, 3) if shape[1] < shape[3] else (1, 2)


def _pool(images: np.ndarray, axis: int) -> np.ndarray:
    """Mean over at most 16 nearly equal blocks along one axis."""
    length = images.shape[axis]
    if length <= MAX_POOLED_SIDE:
        return images
    edges = np.linspace(0, length, MAX_POOLED_SIDE + 1).round().astype(int)
    sums = np.add.reduceat(images, edges[:-1], axis=axis)
    widths = np.diff(edges).reshape([-1 if i == axis else 1 for i in range(images.ndim)])
    return sums / widths
