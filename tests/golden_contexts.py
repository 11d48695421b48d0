"""Ten contexts, and what the evaluators say of them: `tests/golden/values.npz`.

    python tests/golden_contexts.py     # writes the file anew; only where a change of values is meant, and said why

The contexts cover every kind of observation and end: boxes, ids and tuples, terminations, truncations, logs that stop,
recurring states, constant rewards, a predictable closed loop, and a log of another policy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

import icrl_gym as icrl

GOLDEN = Path(__file__).parent / "golden" / "values.npz"
EVALUATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "constructed": ("constructed", {}),
    "generalist": ("generalist", {}),
    "generalist_without_imagination": ("generalist", {"imagination": False}),
}
NUM_QUERIES = 12


def _always_left(observations: np.ndarray) -> np.ndarray:
    return np.zeros(len(observations), dtype=np.int64)


def _steady(observations: np.ndarray) -> np.ndarray:
    """A smooth feedback law, so that Pendulum's closed loop can be predicted."""
    return -np.sign(observations[:, 2:]) * np.abs(observations[:, 1:2])


def _weighted() -> icrl.Trajectory:
    table = np.tile([0.7, 0.1, 0.1, 0.1], (16, 1))
    env = gymnasium.make("FrozenLake-v1")
    log = icrl.collect(env, "random", num_transitions=300, seed=5)
    return icrl.reweight(log, table, "random", env.action_space)


CONTEXTS: dict[str, tuple[Callable[[], icrl.Trajectory], float]] = {
    "cartpole_demo": (lambda: icrl.collect("CartPole-v1", icrl.load_demo_policy(), 400, seed=0), 0.99),
    "cartpole_random": (lambda: icrl.collect("CartPole-v1", "random", 128, seed=1), 0.95),
    "cartpole_left": (lambda: icrl.collect("CartPole-v1", _always_left, 100, seed=2), 0.9),
    "pendulum_random": (lambda: icrl.collect("Pendulum-v1", "random", 450, seed=3), 0.99),
    "pendulum_steady": (lambda: icrl.collect("Pendulum-v1", _steady, 300, seed=4), 0.97),
    "acrobot_random": (lambda: icrl.collect("Acrobot-v1", "random", 256, seed=5), 0.99),
    "frozen_lake": (lambda: icrl.collect("FrozenLake-v1", "random", 300, seed=6), 0.95),
    "boyan_chain": (lambda: icrl.collect("icrl_envs:icrl/BoyanChain-v0", "random", 200, seed=7), 0.9),
    "blackjack": (lambda: icrl.collect("Blackjack-v1", "random", 150, seed=8), 0.99),
    "frozen_lake_weighted": (_weighted, 0.95),
}


def golden_values(evaluator: str, context: str) -> dict[str, np.ndarray]:
    """Values and standard errors at evenly spaced states of the context and, for boxes, beside them."""
    make, gamma = CONTEXTS[context]
    log = make()
    name, options = EVALUATORS[evaluator]
    model = icrl.InContextEvaluator.from_pretrained(name, **options).fit(log, gamma)
    estimate = model.predict(queries(log))
    return {"values": estimate.values, "stderr": estimate.stderr}  # type: ignore[dict-item]


def queries(log: icrl.Trajectory) -> Any:
    """The states to ask for, in the structure of the observation space."""
    rows = np.linspace(0, len(log) - 1, NUM_QUERIES).round().astype(int)
    if isinstance(log.observations, tuple):
        return tuple(part[rows] for part in log.observations)
    picked = log.observations[rows]
    return picked if picked.dtype.kind in "iu" else picked + 0.05 * picked.std(axis=0)


def main() -> None:
    """Write the golden file."""
    torch.set_num_threads(1)
    arrays = {
        f"{evaluator}/{context}/{name}": array
        for evaluator in EVALUATORS
        for context in CONTEXTS
        for name, array in golden_values(evaluator, context).items()
    }
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **arrays)


if __name__ == "__main__":
    main()
