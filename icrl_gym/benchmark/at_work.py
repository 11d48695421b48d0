"""What in-context values are worth inside a training: tables and a figure of what `scripts/measure_at_work.py` ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from icrl_gym.scoring.document import Table, interval, number, text
from icrl_gym.scoring.statistics import Aggregate, mean_interval

BUDGETS = {"CartPole-v1": 25_000, "Acrobot-v1": 40_000, "Pendulum-v1": 60_000}
SNAPSHOTS, TRUTH_EPISODES = 8, 24  # of a training; of a snapshot
ARMS = ("critic", "in_context")
CHOICES = {
    "last": "the last snapshot",
    "in_context": "in-context value at starts",
    "training": "return of the training's latest episodes",
    "evaluation": "evaluation episodes, their steps counted",
    "hindsight": "the best in hindsight",
}


@dataclass
class Snapshot:
    """The policy of one rollout, with what each rule knows of it and its mean return over fresh episodes.

    The in-context value is None where PPO's baseline was in context: no choice is made among those.
    """

    num_steps: int
    in_context: float | None
    training: float
    evaluation: float
    evaluation_steps: int
    truth: float


Runs = Mapping[tuple[str, str, int], list[Snapshot]]


def chosen(snapshots: list[Snapshot], rule: str) -> Snapshot:
    """The snapshot that a rule of `CHOICES` chooses."""
    if rule == "last":
        return snapshots[-1]
    if rule == "evaluation":
        spent = np.cumsum([one.evaluation_steps for one in snapshots])
        within = [
            one for one, steps in zip(snapshots, spent, strict=True) if one.num_steps + steps <= last_step(snapshots)
        ]
        return max(within or snapshots[:1], key=lambda one: one.evaluation)
    return max(snapshots, key=lambda one: one.truth if rule == "hindsight" else getattr(one, rule))


def last_step(snapshots: list[Snapshot]) -> int:
    """The budget that was used."""
    return snapshots[-1].num_steps


def paired(runs: Runs, env: str) -> list[int]:
    """Seeds that both arms have."""
    return [seed for name, arm, seed in runs if name == env and arm == "critic" and (env, "in_context", seed) in runs]


def of_seeds(values: Sequence[Any]) -> Aggregate:
    """Mean over seeds with a 95 % t interval."""
    return mean_interval([np.array(values)])


def baseline_table(runs: Runs) -> Table:
    """Both arms side by side."""
    rows = []
    for env in BUDGETS:
        seeds = paired(runs, env)
        if len(seeds) < 2:
            continue
        last = {arm: [runs[env, arm, seed][-1].truth for seed in seeds] for arm in ARMS}
        mean = {arm: [np.mean([one.truth for one in runs[env, arm, seed]]) for seed in seeds] for arm in ARMS}
        for what, values in (("at the end", last), ("mean over the training", mean)):
            difference = [a - b for a, b in zip(values["in_context"], values["critic"], strict=True)]
            rows.append((
                text(env), text(what), number(len(seeds), "d"), interval(of_seeds(values["critic"]), ".1f"),
                interval(of_seeds(values["in_context"]), ".1f"), interval(of_seeds(difference), ".1f"),
            ))  # fmt: skip
    return Table(
        "Return of PPO with its critic, and with in-context values in its place",
        ("environment", "return", "seeds", "critic", "in context", "difference"), tuple(rows),
        "Mean over seeds, 95 % t interval; the difference is paired by seed. "
        f"{TRUTH_EPISODES} fresh episodes per snapshot.",
    )  # fmt: skip


def choice_table(runs: Runs) -> Table:
    """The worth of each rule's choice, on the runs with PPO's own critic."""
    rows = []
    for env in BUDGETS:
        seeds = [seed for name, arm, seed in runs if name == env and arm == "critic"]
        if len(seeds) < 2:
            continue
        best = {rule: [chosen(runs[env, "critic", seed], rule).truth for seed in seeds] for rule in CHOICES}
        for rule, words in CHOICES.items():
            difference = [a - b for a, b in zip(best[rule], best["in_context"], strict=True)]
            shown = of_seeds(difference) if rule != "in_context" else None
            rows.append((
                text(env), text(words), number(len(seeds), "d"), interval(of_seeds(best[rule]), ".1f"),
                interval(shown, ".1f"),
            ))  # fmt: skip
    return Table(
        "Return of the snapshot that is chosen",
        ("environment", "chosen by", "seeds", "return", "less that of the in-context choice"), tuple(rows),
        f"Mean over seeds, 95 % t interval; differences are paired by seed. {SNAPSHOTS} snapshots of a training; all "
        "rules have the same number of environment steps. The return of a snapshot is the mean of "
        f"{TRUTH_EPISODES} episodes that no rule has seen.",
    )  # fmt: skip


def in_words(title: str, differences: Mapping[str, list[float]]) -> str:
    """Where a difference is sure, by 95 % intervals that hold for all environments together (Bonferroni)."""
    level = 1.0 - 0.05 / max(1, len(differences))
    found = {env: mean_interval([np.array(values)], level) for env, values in differences.items() if len(values) > 1}
    more = [env for env, one in found.items() if one.low > 0]
    less = [env for env, one in found.items() if one.high < 0]
    rest = [env for env in found if env not in more + less]
    parts = [f"{words} in {' and '.join(envs)}" for words, envs in (("more", more), ("less", less)) if envs]
    parts += [f"no sure difference in {' and '.join(rest)}"] if rest else []
    return f"- {title}: {'; '.join(parts)}."


def summary(runs: Runs) -> str:
    """The findings of both tables, as a list."""
    trained, rules = {}, {rule: {} for rule in ("last", "training", "evaluation")}
    for env in BUDGETS:
        seeds = paired(runs, env)
        means = {arm: [np.mean([one.truth for one in runs[env, arm, seed]]) for seed in seeds] for arm in ARMS}
        trained[env] = [float(a - b) for a, b in zip(means["in_context"], means["critic"], strict=True)]
        for rule, found in rules.items():
            found[env] = [
                chosen(runs[env, "critic", seed], "in_context").truth - chosen(runs[env, "critic", seed], rule).truth
                for seed in seeds
            ]
    lines = [in_words("Mean return over the training with in-context values as the baseline", trained)]
    for rule, found in rules.items():
        lines.append(in_words(f"The snapshot of the highest in-context value against {CHOICES[rule]}", found))
    return "\n".join(lines)


def figure(runs: Runs) -> Figure:
    """Learning curves of both arms."""
    drawn = Figure(figsize=(9.5, 2.9), layout="constrained")
    panels = drawn.subplots(1, len(BUDGETS))
    for axes, env in zip(panels, BUDGETS, strict=True):
        for arm, colour, label in (("critic", "#D55E00", "critic"), ("in_context", "#0072B2", "in context")):
            curves = np.array([[one.truth for one in runs[env, arm, seed]] for seed in paired(runs, env)])
            if not len(curves):
                continue
            steps = [one.num_steps for one in runs[env, arm, paired(runs, env)[0]]]
            bands = [of_seeds(list(column)) for column in curves.T]
            axes.plot(steps, [band.value for band in bands], color=colour, label=label)
            axes.fill_between(
                steps, [band.low for band in bands], [band.high for band in bands], color=colour, alpha=0.2, lw=0
            )
        axes.set_title(env, fontsize=10)
        axes.set_xlabel("environment steps")
    panels[0].set_ylabel("return")
    panels[0].legend(frameon=False)
    return drawn
