"""Draw imagined trajectories beside real ones, and the error of values by the length of the walk (docs/world.md).

python scripts/draw_walks.py                       # docs/world/walks.png, about a minute
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes

import icrl_gym as icrl
from icrl_gym.acting.demo_policy import load_demo_policy
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.world import ImaginedValues
from icrl_gym.evaluator.world.imagination import PARTICLES, expand

ENVIRONMENT, GAMMA, ANGLE = "CartPole-v1", 0.99, 2
STEPS, STARTS, COPIES = 40, 3, 8
LENGTHS = {512: "#92C5DE", 2048: "#0072B2"}


@dataclass(frozen=True)
class Config:
    """What to draw."""

    out: Path = Path("docs/world/walks.png")
    """The figure."""
    seed: int = 0
    """Of the contexts and the truth."""


def imagined(trajectory: Trajectory) -> ImaginedValues:
    """The context's values by walks.

    Raises:
        ValueError: its world does not hold.
    """
    evaluator = icrl.InContextEvaluator.from_pretrained("generalist").fit(trajectory, GAMMA, policy=load_demo_policy())
    if not isinstance(evaluator.compiled_, ImaginedValues):
        raise ValueError("no walks are made in this context")
    return evaluator.compiled_


def draw_trajectories(axes: Axes, trajectory: Trajectory) -> None:
    """The pole's angle from some states of the context, in the simulator and in the context's world."""
    found = imagined(trajectory)
    rows = np.linspace(20, len(trajectory) - 20, STARTS).round().astype(int)
    features_QD = found.prompt.source_features[rows]
    stops = found.walker.follow(features_QD, tuple(range(STEPS + 1)), PARTICLES)
    features = found.prompt.feature_map
    for index, row in enumerate(rows):
        for particle in range(index * PARTICLES, index * PARTICLES + COPIES):
            states_TD = np.stack([stop.states_KBD[0, particle].numpy() for stop in stops])
            axes.plot(np.degrees(features.inverse(states_TD)[:, ANGLE]), color="#0072B2", alpha=0.5, linewidth=0.8)
        for copy in range(COPIES):
            path = simulated(np.asarray(trajectory.observations[row]), seed=copy)
            axes.plot(np.degrees(path), color="#555555", alpha=0.5, linewidth=0.8)
    axes.set(xlabel="steps", ylabel="angle of the pole, degrees", title="imagined (blue), simulated (grey)")


def simulated(state: np.ndarray, seed: int) -> np.ndarray:
    """The angle after every step from a state, until the episode ends."""
    policy, env = demo_with_noise(seed), gymnasium.make(ENVIRONMENT).unwrapped
    env.reset(seed=seed)
    env.state = tuple(map(float, state))  # type: ignore[attr-defined]
    angles, observation, ended = [state[ANGLE]], state, False
    while not ended and len(angles) <= STEPS:
        observation, _, ended, *_ = env.step(int(policy.act(observation[None])[0]))
        angles.append(observation[ANGLE])
    return np.array(angles)


def demo_with_noise(seed: int) -> ActingPolicy:
    """The demo policy with its own noise."""

    return as_policy(load_demo_policy(), gymnasium.make(ENVIRONMENT).action_space, seed=seed)


def draw_errors(axes: Axes, seed: int) -> None:
    """RMSE / std by horizon, and what the check said."""
    truth = icrl.monte_carlo_values(
        ENVIRONMENT, load_demo_policy(), num_queries=64, num_rollouts=128, gamma=GAMMA, seed=seed + 1000
    )
    spread = truth.values.std()
    for length, colour in LENGTHS.items():
        found = imagined(icrl.collect(ENVIRONMENT, load_demo_policy(), length, seed=seed))
        features_QD = found.prompt.queries(truth.observations)
        values_HQ = expand(found.leaf, found.walker, features_QD, found.horizons, PARTICLES).values_HQ
        steps = np.maximum(found.horizons, 0.6)
        errors = [np.sqrt(np.square(values - truth.values).mean()) / spread for values in values_HQ]
        axes.plot(steps, errors, "o-", color=colour, label=f"{length:,} transitions", markersize=4)
        axes.plot(steps[1:], np.sqrt(found.costs_H[1:]) / spread, "--", color=colour, linewidth=1)
        answer = found.read(features_QD).by_layer_LQ[-1]
        axes.axhline(np.sqrt(np.square(answer - truth.values).mean()) / spread, color=colour, linestyle=":")
    axes.set(xscale="log", xlabel="steps before the leaf (0 at the left end)", ylabel="RMSE / std", ylim=(0, None))
    axes.set_title("error by horizon, cost by the check (dashed)")
    axes.legend(frameon=False)


def main() -> int:
    """Draw."""
    config = tyro.cli(Config)
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    draw_trajectories(left, icrl.collect(ENVIRONMENT, load_demo_policy(), 512, seed=config.seed))
    draw_errors(right, config.seed)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(config.out, dpi=130)
    print(f"wrote {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
