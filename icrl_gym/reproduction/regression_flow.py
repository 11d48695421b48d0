"""In-context linear regression by one softmax head: the infinite-prompt gradient flow and finite-prompt training.

[BB25]: tasks w ~ N(0, I), inputs x ~ N(0, S), y = <w, x>; prediction b sum_i p_i y_i with p = softmax(x_i^T A x_query).
Infinite prompts give b w^T S A x, whose risk has the gradient flow

    A' = b S^2 - b^2 S^2 A S,        b' = tr(A^T S^2) - b tr(A^T S^2 A S).

Shape legend: G seeds, P prompts, n keys, d features, T steps, N prompt lengths.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from icrl_gym.reproduction.claim import Finding, Statement
from icrl_gym.reproduction.judgement import above, together
from icrl_gym.reproduction.store import Store

COVARIANCE = np.diag([0.7, 0.5, 0.35])
START = 0.3  # |A| = b, balanced
STEP_SIZE = 0.2
SHRINKING = 0.25  # share of the distance that four times as many keys should at least take away; n^-1/2 takes a half
CONTINUOUS_STEP = 0.02  # of the fourth-order Runge-Kutta rule


def flow(A: np.ndarray, b: np.ndarray | float, S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(A', b') at A (..., d, d), b (...)."""
    b = np.asarray(b)
    moved = S @ S @ A @ S
    slope_A = b[..., None, None] * (S @ S) - b[..., None, None] ** 2 * moved
    slope_b = np.einsum("...ij,ij->...", A, S @ S) - b * np.einsum("...ij,...ij->...", A, moved)
    return slope_A, slope_b


def limit(S: np.ndarray) -> tuple[np.ndarray, float]:
    """(S^{-1} / c, c) with c = tr(S^{-2})^{1/4}."""
    inverse = np.linalg.inv(S)
    c = float(np.trace(inverse @ inverse) ** 0.25)
    return inverse / c, c


def balanced_start(rng: np.random.Generator, size: float = START) -> tuple[np.ndarray, float]:
    """A positive multiple of the identity with a perturbation, |A|_F = b = ``size``."""
    dimension = len(COVARIANCE)
    A = np.eye(dimension) + 0.3 * rng.standard_normal((dimension, dimension))
    return size * A / np.linalg.norm(A), size


def flow_path(A: np.ndarray, b: float, S: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (T,), A (T, d, d) and b (T,) of the flow by the fourth-order Runge-Kutta rule."""
    num_steps = round(duration / CONTINUOUS_STEP)
    path_A, path_b = [A], [float(b)]
    for _ in range(num_steps):
        h, A, b = CONTINUOUS_STEP, path_A[-1], path_b[-1]
        k1 = flow(A, b, S)
        k2 = flow(A + h / 2 * k1[0], b + h / 2 * k1[1], S)
        k3 = flow(A + h / 2 * k2[0], b + h / 2 * k2[1], S)
        k4 = flow(A + h * k3[0], b + h * k3[1], S)
        path_A.append(A + h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0]))
        path_b.append(float(b + h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])))
    return CONTINUOUS_STEP * np.arange(num_steps + 1), np.stack(path_A), np.array(path_b)


def keys_and_queries(
    rng: np.random.Generator, num_seeds: int, num_prompts: int, num_keys: int
) -> tuple[np.ndarray, np.ndarray]:
    """Keys (G, P, n, d) and queries (G, P, d) from N(0, S)."""
    root = np.linalg.cholesky(COVARIANCE).T
    drawn = rng.standard_normal((num_seeds, num_prompts, num_keys + 1, len(COVARIANCE))) @ root
    return drawn[:, :, 1:], drawn[:, :, 0]


def finite_gradient(
    A: np.ndarray, b: np.ndarray, keys: np.ndarray, query: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Risk and its gradients in A and b over prompts, the expectation over the task w taken exactly.

    With m and C the softmax mean and covariance of the keys the error is w^T (b m - x), so that the risk is
    |b m - x|^2 / 2, its gradients b C (b m - x) x^T and m^T (b m - x).

    Args:
        A: (G, d, d). b: (G,). keys: (G, P, n, d). query: (G, P, d).

    Returns:
        risk (G,), (G, d, d), (G,), means over prompts.
    """
    direction = np.einsum("gij,gpj->gpi", A, query)
    scores = (keys @ direction[..., None])[..., 0]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mean = (weights[:, :, None] @ keys)[:, :, 0]
    error = b[:, None, None] * mean - query
    projected = (keys @ error[..., None])[..., 0] - np.einsum("gpd,gpd->gp", mean, error)[..., None]
    by_direction = ((weights * projected)[:, :, None] @ keys)[:, :, 0]
    count = keys.shape[1]
    return (
        (error**2).sum(axis=-1).mean(axis=1) / 2,
        b[:, None, None] * np.einsum("gpi,gpj->gij", by_direction, query) / count,
        np.einsum("gpd,gpd->g", mean, error) / count,
    )


def lengths_of(quick: bool) -> tuple[int, ...]:
    """Prompt lengths of finite training."""
    return (16, 64, 256) if quick else (16, 64, 256, 1024)


def finite_path(quick: bool, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Gradient descent on fresh finite prompts, and on infinite ones with the same start and steps.

    Returns:
        "A" (N, T, G, d, d), "b" (N, T, G) per prompt length; "limit_A" (T, G, d, d), "limit_b" (T, G).
    """
    num_steps, num_prompts = (40, 16) if quick else (300, 128)
    starts = [balanced_start(np.random.default_rng([9, seed])) for seed in seeds]
    A0, b0 = np.stack([A for A, _ in starts]), np.array([b for _, b in starts])
    paths = [_descend(A0, b0, num_steps, num_prompts, n, seeds) for n in lengths_of(quick)]
    limit_A, limit_b = _descend(A0, b0, num_steps, num_prompts, None, seeds)
    return {
        "A": np.stack([A for A, _ in paths]),
        "b": np.stack([b for _, b in paths]),
        "limit_A": limit_A,
        "limit_b": limit_b,
    }


def _descend(
    A: np.ndarray, b: np.ndarray, num_steps: int, num_prompts: int, num_keys: int | None, seeds: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Explicit Euler steps; ``num_keys`` None for infinite prompts."""
    rng = np.random.default_rng([91, num_keys or 0, *seeds])
    path = [(A, b)]
    for _ in range(num_steps):
        if num_keys is None:
            slope_A, slope_b = flow(A, b, COVARIANCE)
        else:
            _, uphill_A, uphill_b = finite_gradient(A, b, *keys_and_queries(rng, len(seeds), num_prompts, num_keys))
            slope_A, slope_b = -uphill_A, -uphill_b
        A, b = A + STEP_SIZE * slope_A, b + STEP_SIZE * slope_b
        path.append((A, b))
    return np.stack([A for A, _ in path]), np.stack([b for _, b in path])


def stored_path(quick: bool, seeds: tuple[int, ...], store: Store) -> dict[str, np.ndarray]:
    """`finite_path`, from the store of the regression claim, which two claims share."""
    shared = store.beside("regression", "icrl_gym.reproduction.regression")
    return shared.arrays(f"finite-path-{'-'.join(map(str, seeds))}", lambda: finite_path(quick, seeds))


def distance(paths: dict[str, np.ndarray]) -> np.ndarray:
    """Relative distance of (A, b) between finite and infinite prompts along the path, (N, T, G)."""
    squared = ((paths["A"] - paths["limit_A"]) ** 2).sum(axis=(-2, -1)) + (paths["b"] - paths["limit_b"]) ** 2
    size = (paths["limit_A"] ** 2).sum(axis=(-2, -1)) + paths["limit_b"] ** 2
    return np.sqrt(squared / size)


APPROACH_CRITERION = (
    "with every fourfold n the largest relative distance along the training path to the infinite-prompt path shrinks by"
    f" at least {100 * SHRINKING:.0f} % (95 % intervals over seeds)"
)


def approach(paths: dict[str, np.ndarray], lengths: tuple[int, ...]) -> tuple[Statement, tuple[Finding, ...]]:
    """The statement that training on finite prompts approaches that on infinite ones, judged alike for two claims."""
    apart = distance(paths).max(axis=1)  # (N, G), the worst along the path
    distances = [
        Finding.mean(f"training path: largest relative distance, n = {n}", row)
        for n, row in zip(lengths, apart, strict=True)
    ]
    shrunk = [
        Finding.mean(f"... share of it that goes from n = {few} to n = {many}", 1.0 - after / before)
        for (few, before), (many, after) in pairwise(zip(lengths, apart, strict=True))
    ]
    verdict = together(above(step, SHRINKING) for step in shrunk)
    step = f"{100 * SHRINKING:.0f} % or more with every fourfold n"
    text = f"Finite-prompt training nears the infinite-prompt path by {step}."
    return Statement(text, verdict), (*distances, *shrunk)
