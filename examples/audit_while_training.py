"""Audit the critic of a training: one line in ``learn``, then look at what it said.

    python examples/audit_while_training.py [--steps 60000] [--out runs/audit_while_training]

PPO learns CartPole-v1 with the settings of Stable-Baselines3. Every 10,000 steps the audit compares its critic with
in-context values and with the returns that came in since; figures, verdicts and pictures go to TensorBoard
(``tensorboard --logdir`` the folder), the table to ``audits.csv`` and the whole training's story to ``audits.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from stable_baselines3 import PPO

import icrl_gym as icrl


def train(steps: int, out: Path) -> icrl.CriticAuditCallback:
    """A training with the audit in it; returns the audit, which holds its records."""
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu", tensorboard_log=str(out))
    audit = icrl.CriticAuditCallback(every=10_000)
    model.learn(steps, callback=audit)
    return audit


def drawn(audit: icrl.CriticAuditCallback) -> Figure:
    """How far the critic was too high or too low in the course of the training, by both witnesses."""
    figure = Figure(figsize=(7.2, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    steps = [one.step for one in audit.audits]
    low = [one.returns_bias - one.returns_bias_low for one in audit.audits]
    high = [one.returns_bias_high - one.returns_bias for one in audit.audits]
    axes.axhline(0.0, color="#777777", linewidth=1)
    axes.errorbar(
        steps, [one.returns_bias for one in audit.audits], yerr=[low, high], fmt="s", color="black", capsize=3,
        label="critic minus the returns that came in, 95 % interval",
    )  # fmt: skip
    axes.plot(steps, [one.bias for one in audit.audits], "o--", color="#0072B2", label="critic minus in-context values")
    for one in audit.audits:
        axes.annotate(
            str(one.verdict.call), (one.step, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top"
        )
    axes.set(xlabel="environment steps", ylabel="bias of the critic (units of reward)", title="PPO on CartPole-v1")
    axes.margins(x=0.1, y=0.15)
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.25)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, print the verdicts, save the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps of the training")
    parser.add_argument("--out", type=Path, default=Path("runs/audit_while_training"), help="folder of what it leaves")
    options = parser.parse_args(arguments)
    audit = train(options.steps, options.out)
    for one in audit.audits:
        print(f"step {one.step:,}: {one.verdict.sentence}")
    audit.save(options.out / "audits.csv")
    drawn(audit).savefig(options.out / "audits.png")


if __name__ == "__main__":
    main()
