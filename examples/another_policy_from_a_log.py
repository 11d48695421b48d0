"""What would another policy be worth? From the log of the one that acted, without running the other.

    python examples/another_policy_from_a_log.py [FOLDER]

The log is that of a clumsy policy, which acts at random half of the time; asked for is the value of the same policy
without its clumsiness. Two ways lead there. Give the policy itself: it is asked what it would do in the log's states,
and in those that it would come to. Or, where it cannot be asked, log how likely each action was under both. The log was
made here, hence the truth is known too, which it would not be with a log alone.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from matplotlib.figure import Figure

import icrl_gym as icrl
from icrl_gym.acting.policies import ActingPolicy, as_policy

GAMMA = 0.97


def table_of(behaviour: Any, target: ActingPolicy) -> dict[str, np.ndarray]:
    """Stands for your own log: a data frame's columns, with the probability of each action that was taken."""
    log = icrl.collect("CartPole-v1", behaviour, num_transitions=1_200, seed=0)
    rows, taken = np.arange(len(log)), log.actions_for("this example")
    return {
        "obs": log.observations,
        "next_obs": log.next_observations,
        "action": taken,
        "reward": log.rewards,
        "terminated": log.terminated,
        "truncated": log.truncated,
        "behaviour_probability": behaviour.action_probabilities(log.observations)[rows, taken],
        "target_probability": target.action_probabilities(log.observations)[rows, taken],
    }


def truth_of(policy: Any) -> icrl.ValueEstimates:
    """Only because the log was made here: values from copies of the simulator."""
    return icrl.monte_carlo_values("CartPole-v1", policy, num_queries=32, num_rollouts=16, gamma=GAMMA, seed=1)


def draw(found: dict[str, tuple[icrl.ValueEstimates, icrl.ValueEstimates]], path: Path) -> None:
    """One panel for each way: estimates with their intervals against the truth."""
    figure = Figure(figsize=(11.4, 4.0), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True)
    for panel, (name, (estimate, truth)) in zip(panels, found.items(), strict=True):
        low, high = estimate.interval(0.9)
        spread = [estimate.values - low, high - estimate.values]
        panel.axline((20, 20), slope=1, color="#777777", linewidth=1)
        panel.errorbar(truth.values, estimate.values, yerr=spread, fmt="o", color="#0072B2", markersize=4, elinewidth=1)
        panel.set(xlabel="true value", ylabel="estimate, 90% interval", title=name)
        panel.label_outer()
        panel.grid(alpha=0.25)
    figure.savefig(path)


def main(folder: Path) -> None:
    model, env = icrl.load_demo_policy(), gymnasium.make("CartPole-v1")
    target = as_policy(model, env.action_space, env.observation_space, seed=0)
    behaviour = icrl.UniformMixture(target, epsilon=0.5)
    table = table_of(behaviour, target)
    acted = {name: column for name, column in table.items() if not name.endswith("probability")}

    def evaluator(columns: dict[str, np.ndarray], policy: Any = None) -> icrl.InContextEvaluator:
        return icrl.InContextEvaluator.from_pretrained().fit(icrl.Trajectory.from_frame(columns), GAMMA, policy)

    of_behaviour, of_target = truth_of(behaviour), truth_of(model)
    found = {
        "the policy that acted": (evaluator(acted).predict(of_behaviour.observations), of_behaviour),
        "the other, asked": (evaluator(acted, model).predict(of_target.observations), of_target),
        "the other, by probabilities": (evaluator(table).predict(of_target.observations), of_target),
    }
    for name, (estimate, truth) in found.items():
        print(f"{name}: {estimate.values.mean():.1f} on average, the truth is {truth.values.mean():.1f}")
    draw(found, folder / "another_policy_from_a_log.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
