"""Which states of a context are keys: every source, or landmarks that cover it.

Half of the landmarks lie evenly along the context, so that there are many where the policy is often; the other half are
added one by one, each the state farthest from all landmarks so far, so that what is visited seldom has one as well
(the greedy k-centre rule of Gonzalez 1985, over a pool of at most `POOL` states).

Shape legend: N sources, K keys, P states in the pool, D features.
"""

from __future__ import annotations

import math

import numpy as np

from icrl_gym.context.prompt import Prompt

POOL = 8192
EVEN_SHARE = 0.5


def keys(prompt: Prompt, num_landmarks: int, log_weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the sources that are keys and their log weights, both (K,).

    Args:
        prompt: the context.
        num_landmarks: at most so many distinct states are keys, each with the weight of N / K sources; 0: all sources.
        log_weights_N: log weights of the sources; those with -inf are never landmarks.
    """
    if not num_landmarks:
        return np.arange(len(prompt)), log_weights_N
    distinct = prompt.first_visits
    if not np.isfinite(log_weights_N).all():
        distinct = _first_visits_among(prompt, np.flatnonzero(np.isfinite(log_weights_N)))
    rows_K = _covering(prompt.source_features, distinct, num_landmarks)
    return rows_K, np.full(len(rows_K), math.log(len(prompt) / len(rows_K)))


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def _first_visits_among(prompt: Prompt, rows: np.ndarray) -> np.ndarray:
    _, first = np.unique(prompt.source_features[rows], axis=0, return_index=True)
    return rows[np.sort(first)]


def _covering(features_ND: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the rows: evenly spaced ones, then the farthest from all before, in rising order."""
    if len(rows) <= count:
        return rows
    even = evenly(rows, max(1, round(EVEN_SHARE * count)))
    pool_P = np.setdiff1d(evenly(rows, POOL), even)
    x_PD = features_ND[pool_P]
    half_squares_P = np.square(x_PD).sum(axis=1) / 2
    nearest_P = np.full(len(pool_P), np.inf)
    for state_D in features_ND[even]:
        nearest_P = np.minimum(nearest_P, half_squares_P - x_PD @ state_D + np.square(state_D).sum() / 2)
    added = []
    for _ in range(min(count - len(even), len(pool_P))):
        farthest = int(nearest_P.argmax())
        added.append(farthest)
        nearest_P = np.minimum(nearest_P, half_squares_P - x_PD @ x_PD[farthest] + half_squares_P[farthest])
        nearest_P[farthest] = -np.inf
    return np.sort(np.concatenate([even, pool_P[added]]))
