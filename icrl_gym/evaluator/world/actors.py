"""Who acts in imagined states: the policy itself where it can be asked, else what the log shows of it.

Either is a function of states and noise. Noise that a logged action could have come from couples an imagined walk to
the log: it then differs from what happened by the model's errors alone, with the policy's own corrections in it.

Shape legend: N transitions, B states, D features, U noise numbers, A actions, P terms, C components of an action.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.features import FeatureMap, Standardiser
from icrl_gym.evaluator.world.basis import Basis

ACTION_SCALE = 1.5  # of one-hot actions: two of them are as far apart as three standard deviations, squared 4.5
BISECTIONS = 16
IMITATION_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # per transition
SMALLEST_NOISE = 1e-6
MOST_CHOICES = 64  # of a component; integers with more are numbers


class Actor(Protocol):
    """Actions as a function of features and noise."""

    @property
    def num_noise(self) -> int:
        """Uniform numbers per action."""
        ...

    def actions(self, features_BD: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        """Actions (B,) + action shape."""
        ...

    def noise_behind(self, features_BD: np.ndarray, actions: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        """Noise (B, U) with which these actions would be chosen, as far as it is determined; else that given."""
        ...


class ActionFeatures:
    """Actions as inputs of the model: one-hot, bits, or standardised numbers.

    Args:
        actions: (N,) + action shape, the context's.
        space: the action space.
    """

    def __init__(self, actions: np.ndarray, space: spaces.Space) -> None:
        self._space = space
        if isinstance(space, spaces.Box):
            self._standardiser = Standardiser.fit(_flat(actions))

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """Features (B, X)."""
        flat_BC, space = _flat(actions), self._space
        if isinstance(space, spaces.Box):
            return self._standardiser(flat_BC)
        if isinstance(space, spaces.MultiBinary):
            return ACTION_SCALE * flat_BC
        starts, counts = discrete_components(space)
        hot = [flat_BC[:, [c]] == start + np.arange(count) for c, (start, count) in enumerate(zip(starts, counts))]  # noqa: B905
        return ACTION_SCALE * np.concatenate(hot, axis=1).astype(np.float64)


@dataclass(frozen=True, eq=False)
class AskedActor:
    """The policy, asked at the observations that features stand for.

    Attributes:
        asked: the policy.
        feature_map: an invertible one.
    """

    asked: AskedPolicy
    feature_map: FeatureMap

    @property
    def num_noise(self) -> int:
        return self.asked.num_noise

    def actions(self, features_BD: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        return self.asked.actions(self.feature_map.inverse(features_BD), noise_BU)

    def noise_behind(self, features_BD: np.ndarray, actions: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        observations = self.feature_map.inverse(features_BD)
        probability_BA = self.asked.probabilities(observations)
        if probability_BA is not None:
            space = self.asked.action_space
            assert isinstance(space, spaces.Discrete)
            columns_B = np.asarray(actions).astype(int) - int(space.start)
            first_B = _within(probability_BA, columns_B, noise_BU[:, 0])
            return np.concatenate([first_B[:, None], noise_BU[:, 1:]], axis=1)
        if not isinstance(self.asked.action_space, spaces.Box):
            return noise_BU
        # Every number of an action rises with its own noise.
        low_BU, high_BU = np.full_like(noise_BU, SMALLEST_NOISE), np.full_like(noise_BU, 1.0 - SMALLEST_NOISE)
        if _flat(actions).shape[1] != noise_BU.shape[1]:
            return noise_BU
        for _ in range(BISECTIONS):
            middle_BU = (low_BU + high_BU) / 2
            above = _flat(self.asked.actions(observations, middle_BU)) > _flat(actions)
            low_BU, high_BU = np.where(above, low_BU, middle_BU), np.where(above, middle_BU, high_BU)
        return (low_BU + high_BU) / 2


@dataclass(frozen=True, eq=False)
class ImitatedChoices:
    """Discrete actions as logistic functions of the features, one for each component, fitted to the log.

    Attributes:
        starts, counts: first value and number of values of each component.
        bases: functions that each component is read from.
        weights: their coefficients (P, A).
        shape, dtype: those of an action.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    bases: tuple[Basis, ...]
    weights: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def fit(cls, features_ND: np.ndarray, actions: np.ndarray, space: spaces.Space) -> ImitatedChoices:
        """Ridge-regularised maximum likelihood; basis and ridge are those with which one half of the log foretells the
        other best."""
        starts, counts = discrete_components(space)
        columns_NC = _flat(actions).astype(int) - np.array(starts)
        candidates = Basis.candidates(features_ND)
        bases, weights = zip(
            *(_choice(features_ND, candidates, columns_NC[:, c], count) for c, count in enumerate(counts)), strict=True
        )
        return cls(starts, counts, bases, weights, np.shape(actions)[1:], np.asarray(actions).dtype)

    @property
    def num_noise(self) -> int:
        return len(self.counts)

    def actions(self, features_BD: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        columns = []
        for component, (start, probability_BA) in enumerate(zip(self.starts, self._probabilities(features_BD))):  # noqa: B905
            below_BA = np.cumsum(probability_BA, axis=1) <= noise_BU[:, [component]]
            columns.append(start + np.minimum(below_BA.sum(axis=1), probability_BA.shape[1] - 1))
        return np.stack(columns, axis=1).reshape(len(features_BD), *self.shape).astype(self.dtype)

    def noise_behind(self, features_BD: np.ndarray, actions: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        columns_BC = _flat(actions).astype(int) - np.array(self.starts)
        probabilities = self._probabilities(features_BD)
        found = [_within(p, columns_BC[:, c], noise_BU[:, c]) for c, p in enumerate(probabilities)]
        return np.stack(found, axis=1)

    def _probabilities(self, features_BD: np.ndarray) -> list[np.ndarray]:
        return [
            softmax(basis(features_BD) @ weights_PA, axis=1)
            for basis, weights_PA in zip(self.bases, self.weights, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class ImitatedNumbers:
    """Continuous actions as a ridge regression on the features plus what the log's actions differed from it by.

    Attributes:
        basis: functions of the state.
        weights_PC: their coefficients.
        residuals_NC: differences, one of which is drawn.
        low_C, high_C: smallest and largest logged action.
        shape, dtype: those of an action.
    """

    basis: Basis
    weights_PC: np.ndarray
    residuals_NC: np.ndarray
    low_C: np.ndarray
    high_C: np.ndarray
    shape: tuple[int, ...]
    dtype: Any

    @property
    def num_noise(self) -> int:
        return 1

    @classmethod
    def fit(cls, features_ND: np.ndarray, actions: np.ndarray) -> ImitatedNumbers:
        """Basis and ridge are what leaving each transition out finds best."""
        flat_NC = _flat(actions)
        best: tuple[float, Basis, np.ndarray, np.ndarray] | None = None
        for basis in Basis.candidates(features_ND):
            terms_NP = basis(features_ND)
            values_P, vectors_PP = np.linalg.eigh(terms_NP.T @ terms_NP)  # once for all ridges
            rotated_NP = terms_NP @ vectors_PP
            target_PC, squares_NP = rotated_NP.T @ flat_NC, np.square(rotated_NP)
            for ridge in IMITATION_RIDGES:
                inverse_P = 1.0 / (values_P.clip(min=0.0) + ridge * len(terms_NP) * 0.1)
                found_PC = inverse_P[:, None] * target_PC
                leverage_N = (squares_NP @ inverse_P).clip(max=0.99)
                left_NC = (flat_NC - rotated_NP @ found_PC) / (1.0 - leverage_N)[:, None]
                error = float(np.square(left_NC).sum()) / basis.least_gain
                if best is None or error < best[0]:
                    best = error, basis, vectors_PP @ found_PC, left_NC
        assert best is not None
        return cls(
            *best[1:], flat_NC.min(axis=0), flat_NC.max(axis=0), np.shape(actions)[1:], np.asarray(actions).dtype
        )  # fmt: skip

    def actions(self, features_BD: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        drawn_B = np.minimum((noise_BU[:, 0] * len(self.residuals_NC)).astype(int), len(self.residuals_NC) - 1)
        flat_BC = self.basis(features_BD) @ self.weights_PC + self.residuals_NC[drawn_B]
        flat_BC = flat_BC.clip(self.low_C, self.high_C)
        if not np.issubdtype(self.dtype, np.floating):
            flat_BC = flat_BC.round()
        return flat_BC.reshape(len(features_BD), *self.shape).astype(self.dtype)

    def noise_behind(self, features_BD: np.ndarray, actions: np.ndarray, noise_BU: np.ndarray) -> np.ndarray:
        difference_BC = _flat(actions) - self.basis(features_BD) @ self.weights_PC
        distance_BN = np.abs(difference_BC[:, None, :] - self.residuals_NC[None]).sum(axis=2)
        return ((distance_BN.argmin(axis=1) + 0.5) / len(self.residuals_NC))[:, None]


def imitated(features_ND: np.ndarray, actions: np.ndarray, space: spaces.Space) -> Actor:
    """The policy that acted, as the log shows it."""
    if isinstance(space, spaces.Box):
        return ImitatedNumbers.fit(features_ND, actions)
    return ImitatedChoices.fit(features_ND, actions, space)


def logged_space(actions: np.ndarray) -> spaces.Space:
    """The space of actions (N,) + shape that a log shows: choices where they are few integers, else numbers."""
    low, high = actions.min(axis=0, initial=0), actions.max(axis=0, initial=0)
    if not np.issubdtype(actions.dtype, np.integer) or (high.astype(float) - low >= MOST_CHOICES).any():
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], np.float64)
    counts = high.astype(np.int64) - low.astype(np.int64) + 1
    if actions.ndim == 1:
        return spaces.Discrete(int(counts), start=int(low))
    return spaces.MultiDiscrete(counts, start=low.astype(np.int64))


def discrete_components(space: spaces.Space) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First value and number of values of every component of a discrete action."""
    if isinstance(space, spaces.Discrete):
        return (int(space.start),), (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(space.start.reshape(-1).tolist()), tuple(space.nvec.reshape(-1).tolist())
    assert isinstance(space, spaces.MultiBinary)
    count = int(np.prod(space.shape))
    return (0,) * count, (2,) * count


def _choice(
    features_ND: np.ndarray, candidates: tuple[Basis, ...], columns_N: np.ndarray, count: int
) -> tuple[Basis, np.ndarray]:
    """The basis and its coefficients."""
    first_N = np.arange(len(columns_N)) % 2 == 0

    def loss(terms_NP: np.ndarray, columns_N: np.ndarray, weights_PA: np.ndarray) -> float:
        log_NA = log_softmax(terms_NP @ weights_PA, axis=1)
        return -float(log_NA[np.arange(len(log_NA)), columns_N].mean())

    best: tuple[float, Basis, np.ndarray, float] | None = None
    for basis in candidates:
        terms_NP = basis(features_ND)
        for ridge in IMITATION_RIDGES:
            held_out = sum(
                loss(
                    terms_NP[~half_N], columns_N[~half_N],
                    _softmax_regression(terms_NP[half_N], columns_N[half_N], count, ridge),
                )
                for half_N in (first_N, ~first_N)
            )  # fmt: skip
            if best is None or held_out / basis.least_gain < best[0]:
                best = held_out / basis.least_gain, basis, terms_NP, ridge
    assert best is not None
    return best[1], _softmax_regression(best[2], columns_N, count, best[3])


def _softmax_regression(terms_NP: np.ndarray, columns_N: np.ndarray, count: int, ridge: float) -> np.ndarray:
    """Coefficients (P, A)."""
    num_rows, num_terms = terms_NP.shape
    hot_NA = np.eye(count)[columns_N]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights_PA = flat.reshape(num_terms, count)
        log_NA = log_softmax(terms_NP @ weights_PA, axis=1)
        gradient_PA = terms_NP.T @ (np.exp(log_NA) - hot_NA) / num_rows + ridge * weights_PA * 0.1
        return -float((hot_NA * log_NA).sum()) / num_rows + 0.05 * ridge * float((weights_PA**2).sum()), (
            gradient_PA.reshape(-1)
        )

    start = np.zeros(num_terms * count)
    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 100}).x.reshape(num_terms, count)


def _within(probability_BA: np.ndarray, columns_B: np.ndarray, noise_B: np.ndarray) -> np.ndarray:
    """Noise within the interval of the cumulative probabilities that belongs to each action."""
    rows = np.arange(len(columns_B))
    high_B = np.cumsum(probability_BA, axis=1)[rows, columns_B]
    low_B = high_B - probability_BA[rows, columns_B]
    return (low_B + noise_B * (high_B - low_B)).clip(SMALLEST_NOISE, 1.0 - SMALLEST_NOISE)


def _flat(actions: np.ndarray) -> np.ndarray:
    """(B,) + shape -> (B, C) float64."""
    actions = np.asarray(actions, dtype=np.float64)
    return actions.reshape(len(actions), -1)
