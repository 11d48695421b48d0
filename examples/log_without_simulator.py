"""How good is the policy of a log, and from which states? No simulator, no training.

    python examples/log_without_simulator.py [FOLDER]

The log is a CSV as somebody might have it: one row per step, without the states that steps led to. It is written here
first, by a policy that ships with the package, so that the example runs anywhere. Hence the answer can be held against
the truth at the end, which you could not do with a log alone.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import icrl_gym as icrl

GAMMA = 0.99
COLUMNS = ["position", "velocity", "angle", "angular_velocity"]


def write_log(path: Path) -> None:
    """Stands for your own log: 1,500 steps of CartPole-v1."""
    log = icrl.collect("CartPole-v1", icrl.load_demo_policy(), num_transitions=1_500, seed=0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "action", "reward", "terminated", "truncated"])
        for row in zip(log.observations.tolist(), log.actions, log.rewards, log.terminated, log.truncated, strict=True):
            writer.writerow([*row[0], *row[1:]])


def draw(log: icrl.Trajectory, estimate: icrl.ValueEstimates, path: Path) -> None:
    """Where in the log's states the policy is well off: colour is value."""
    figure = Figure(figsize=(9.6, 4.0), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    points = left.scatter(*log.observations[::8, [0, 2]].T, c=estimate.values, s=10, cmap="cividis")
    figure.colorbar(points, ax=left, label="value")
    left.set(xlabel="position of the cart", ylabel="angle of the pole (rad)", title="Value of the states in the log")
    low, high = estimate.interval(0.9)
    order = np.argsort(estimate.values)
    right.plot(estimate.values[order], color="#0072B2", label="value in context")
    right.fill_between(range(len(order)), low[order], high[order], color="#0072B2", alpha=0.2, label="90% interval")
    right.set(
        xlabel="state of the log, lowest value first", ylabel="value of the state", title="How sure the values are"
    )
    right.legend(fontsize="small")
    figure.savefig(path)


def main(folder: Path) -> None:
    write_log(folder / "log.csv")

    # From here on: what you would do with your own file.
    log = icrl.read_log(folder / "log.csv", {"observations": COLUMNS})
    for assumption in log.assumptions:
        print(f"assumed: {assumption}")
    evaluator = icrl.InContextEvaluator.from_pretrained().fit(log.trajectory, gamma=GAMMA)
    starts = np.flatnonzero(np.append(True, log.trajectory.episode_ends[:-1]))
    at_starts = evaluator.predict(log.trajectory.observations[starts])
    low, high = at_starts.interval(0.9)
    print(f"value at {len(starts)} starts: {at_starts.values.mean():.1f}, from {low.mean():.1f} to {high.mean():.1f}")
    draw(log.trajectory, evaluator.predict(log.trajectory.observations[::8]), folder / "log_without_simulator.png")

    # Only because this log was written here: the truth, from copies of the simulator.
    model = icrl.load_demo_policy()
    truth = icrl.monte_carlo_values("CartPole-v1", model, num_queries=32, num_rollouts=16, gamma=GAMMA, states="start")
    print(f"the truth at starts: {truth.values.mean():.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
