"""An environment and a policy of your own: values from one log, checked against the truth, drawn as a map.

    python examples/own_environment.py

A boat crosses a river from the left bank to the right. The current is fastest in the middle and carries it down, at the
bottom is a weir. Reaching the right bank pays 1, the weir costs 1, and every step costs a little. Nothing about the
river is told to the evaluator but 1,000 logged steps and the policy itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import tyro
from gymnasium import spaces
from matplotlib.figure import Figure

import icrl_gym as icrl


class River(gymnasium.Env):
    """A boat at (x, y) in the unit square steers by an angle; x = 1 is the other bank, y = 0 the weir."""

    observation_space = spaces.Box(0.0, 1.0, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)  # up or down, in quarter turns

    def reset(self, *, seed=None, options=None):
        """Somewhere along the left bank."""
        super().reset(seed=seed)
        self._place = np.array([0.05, self.np_random.uniform(0.3, 1.0)])
        return self._place.copy(), {}

    def step(self, action):
        """Row a bit, drift a bit; all randomness is the environment's own generator."""
        angle = 0.5 * np.pi * float(np.clip(action[0], -1.0, 1.0))
        current = 0.06 * np.sin(np.pi * self._place[0])
        drift = np.array([0.0, -current]) + 0.015 * self.np_random.standard_normal(2)
        self._place = np.clip(self._place + 0.05 * np.array([np.cos(angle), np.sin(angle)]) + drift, 0.0, 1.0)
        across, wrecked = self._place[0] >= 1.0, self._place[1] <= 0.0
        reward = 1.0 if across else -1.0 if wrecked else -0.01
        return self._place.copy(), reward, bool(across or wrecked), False, {}


def ferryman(observations: np.ndarray) -> np.ndarray:
    """A batch of places (B, 2) to a batch of actions (B, 1): row across, and up only where the weir is near."""
    return np.clip(1.2 * (0.45 - observations[:, 1:]), 0.0, 0.6).astype(np.float32)


gymnasium.register("examples/River-v0", River, max_episode_steps=200)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Config:
    """Sizes and the place for the picture."""

    num_transitions: int = 1_000
    """Logged steps that the evaluator gets to see."""
    num_queries: int = 48
    """States whose true value is measured by 32 copies of the simulator each."""
    gamma: float = 0.98
    """Discount."""
    picture: Path = Path("own_environment.png")
    """The picture to write."""


def main(config: Config) -> None:
    """Collect, evaluate, compare, draw."""
    log = icrl.collect("examples/River-v0", ferryman, config.num_transitions, seed=0)
    evaluator = icrl.InContextEvaluator.from_pretrained().fit(log, config.gamma, policy=ferryman)
    truth = icrl.monte_carlo_values(
        "examples/River-v0", ferryman, num_queries=config.num_queries, num_rollouts=32, gamma=config.gamma, seed=1
    )
    estimate = evaluator.predict(truth.observations)
    found = icrl.score(estimate, truth)
    print(f"{log.terminated.sum()} crossings or wrecks in {len(log)} logged steps")
    print(f"RMSE {found.rmse:.3f} where true values spread by {found.truth_std:.3f} (ratio {found.rmse_over_std:.2f})")
    print(f"{found.coverage:.0%} of the true values lie inside the 90% intervals")
    draw(evaluator, log, truth, estimate).savefig(config.picture)
    print(config.picture.name)


def draw(
    evaluator: icrl.InContextEvaluator, log: icrl.Trajectory, truth: icrl.ValueEstimates, estimate: icrl.ValueEstimates
) -> Figure:
    """The river as a map of values with the logged places, and the estimates against the truth."""
    figure = Figure(figsize=(10, 4.4), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    ticks = np.linspace(0.02, 0.98, 21)
    grid = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    values = evaluator.predict(grid.reshape(-1, 2)).values.reshape(grid.shape[:2])
    image = left.imshow(values, origin="lower", extent=(0, 1, 0, 1), cmap="cividis", interpolation="bilinear")
    left.scatter(*np.asarray(log.observations).T, s=2, color="white", alpha=0.5, linewidths=0)
    figure.colorbar(image, ax=left, label="value in context")
    left.set(title="The river: banks left and right, weir below", xlabel="across", ylabel="up the river")
    low, high = estimate.interval(0.9)
    right.errorbar(
        truth.values, estimate.values, yerr=[estimate.values - low, high - estimate.values], fmt="o", markersize=4,
        elinewidth=0.8, color="#0072B2", label="in context, 90% interval",
    )  # fmt: skip
    right.axline((0, 0), slope=1, color="#777777", linewidth=1, label="estimate = truth")
    right.set(title="At places the boat gets to", xlabel="true value", ylabel="estimated value")
    right.legend()
    return figure


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
