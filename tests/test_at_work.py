"""Choice of snapshots, and what is said of runs with and without in-context values."""

import numpy as np
import pytest

from icrl_gym.benchmark.at_work import (
    BUDGETS,
    Snapshot,
    baseline_table,
    choice_table,
    chosen,
    figure,
    in_words,
    summary,
)


def snapshots(truths, in_context=None, evaluation_steps=0):
    count = len(truths)
    told = [None] * count if in_context is None else in_context
    return [Snapshot(1000 * (i + 1), told[i], float(i), float(-i), evaluation_steps, truths[i]) for i in range(count)]


def runs(seeds=4, shift=0.0):
    noise = np.random.default_rng(0)
    found = {}
    for env in BUDGETS:
        for seed in range(seeds):
            truths = [1.0 + noise.normal(), 5.0 + noise.normal(), 3.0 + noise.normal()]
            found[env, "critic", seed] = snapshots(truths, in_context=[0.0, 2.0, 1.0])
            found[env, "in_context", seed] = snapshots([truth + shift for truth in truths])
    return found


def test_each_rule_chooses_by_what_it_knows():
    found = snapshots([1.0, 9.0, 4.0], in_context=[3.0, 2.0, 1.0])
    steps = {rule: chosen(found, rule).num_steps for rule in ("last", "in_context", "training", "hindsight")}
    assert steps == {"last": 3000, "in_context": 1000, "training": 3000, "hindsight": 2000}


@pytest.mark.parametrize(("spent", "expected"), [(0, 1000), (600, 1000), (2500, 1000)])
def test_evaluation_chooses_its_best_snapshot(spent, expected):
    assert chosen(snapshots([1.0, 2.0, 3.0], evaluation_steps=spent), "evaluation").num_steps == expected


def test_steps_of_evaluation_are_taken_from_the_training():
    found = snapshots([1.0, 2.0, 3.0], evaluation_steps=600)
    found[2].evaluation = 99.0  # the best by far, but 3,000 steps of training and 1,800 of evaluation are too many
    assert chosen(found, "evaluation").num_steps < 3000
    for one in found:
        one.evaluation_steps = 0
    assert chosen(found, "evaluation").num_steps == 3000


def test_a_sure_difference_is_said_and_an_unsure_one_is_not():
    words = in_words("Return", {"A-v0": [5.0, 5.1, 4.9], "B-v0": [-5.0, -5.1, -4.9], "C-v0": [-1.0, 1.0, 0.1]})
    assert words == "- Return: more in A-v0; less in B-v0; no sure difference in C-v0."


def test_the_summary_tells_a_better_baseline():
    assert "more in CartPole-v1 and Acrobot-v1 and Pendulum-v1" in summary(runs(shift=50.0)).splitlines()[0]
    assert "no sure difference" in summary(runs(shift=0.0)).splitlines()[0]


def test_tables_and_figure_hold_every_environment():
    found = runs()
    assert {row[0].text for row in baseline_table(found).rows} == set(BUDGETS)
    assert {row[0].text for row in choice_table(found).rows} == set(BUDGETS)
    assert [axes.get_title() for axes in figure(found).axes] == list(BUDGETS)
