"""What an evaluation says where it says little, and when to trust which."""

from pathlib import Path

import numpy as np
import pytest

from icrl_gym.configuration import EvaluateConfig
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.main_job.advice import advice, summary_text, when_to_trust
from icrl_gym.main_job.result import Evaluation
from icrl_gym.scoring.score import score
from icrl_gym.values import Estimand, ValueEstimates

TRUTH = np.linspace(1.0, 4.0, 8)


def an_evaluation(values, critic=None, stderr=None, truth=TRUTH, truth_stderr=None, rewards=(1.0, 2.0), ends=3):
    """An Evaluation of given numbers; ``ends`` of the context's transitions terminate."""
    estimand, queries = Estimand("Toy-v0", "random", 0.9), np.arange(len(truth))

    def record(numbers, spread):
        spread = None if spread is None else np.full(len(numbers), spread)
        return ValueEstimates(np.array(numbers, dtype=np.float64), queries, estimand, stderr=spread)

    true = record(truth, truth_stderr)
    estimates = {"ours": record(values, stderr), **({} if critic is None else {"PPO critic": record(critic, None)})}
    scores = {name: score(estimate, true) for name, estimate in estimates.items()}
    n = 8
    flags = np.arange(n) < ends
    log = Trajectory(np.arange(n), np.zeros(n, int), np.resize(rewards, n), np.arange(n) + 1, flags, np.zeros(n, bool))
    config = EvaluateConfig(context_length=n, num_rollouts=16)
    steps = {"ours": n, "PPO critic": 99}
    return Evaluation(config, 0.9, log, true, estimates, scores, steps, ("a note",), Path("run"))


def test_a_good_estimate_needs_no_advice():
    assert advice(an_evaluation(TRUTH + 0.1)) == ()


def test_a_constant_estimate_says_why_and_what_to_do():
    said, why, remedy = advice(an_evaluation(np.full(8, -10.0), rewards=(-1.0,), ends=0))
    assert said == "ours gives every state the same value, -10."
    assert why.startswith("Why: every reward of the context is -1; no episode of the context ended in a terminal state")
    assert "--context-length 64" in remedy
    assert "until episodes end" in remedy


def test_an_estimate_worse_than_a_constant_is_said_to_be():
    said, why, _ = advice(an_evaluation(TRUTH[::-1], ends=2))
    assert said == "ours is worse than the best constant: do not rank states by it (Spearman -1.00)."
    assert "only 2 of the context's episodes ended" in why


def test_a_wrong_level_with_a_right_order_is_said_to_be():
    said, *_ = advice(an_evaluation(TRUTH + 0.9))
    assert (
        said
        == "ours is hardly nearer than the best constant: its order of states is better than its level (Spearman 1.00)."
    )


def test_chance_is_named_where_it_outweighs_what_there_is_to_tell():
    noisy = advice(an_evaluation(TRUTH[::-1], truth_stderr=0.6))  # single returns spread by 2.4, values by 1.0
    assert "chance outweighs what there is to tell apart: returns from one same state spread by 2.4" in noisy[1]
    assert "chance" not in advice(an_evaluation(TRUTH[::-1], truth_stderr=0.1))[1]


def test_a_truth_without_spread_is_nothing_to_tell_apart():
    said, *_ = advice(an_evaluation(TRUTH, truth=np.full(8, -100.0)))
    assert said == "There is nothing to tell apart: the truth is the same, -100, at every state."


@pytest.mark.parametrize(
    ("critic", "said"),
    [
        (TRUTH + 0.1, "PPO critic lies inside ours's 90% interval at all 8 states; they do not disagree."),
        (
            TRUTH + np.array([9, 9, 9, 0, 0, 0, 0, 0]),
            "PPO critic leaves ours's 90% interval at 3 of 8 states; ours is nearer to the truth at 3 of these, and "
            "at 0 of the 5 others.",
        ),
    ],
)
def test_who_is_nearer_is_told_by_whether_the_critic_leaves_the_interval(critic, said):
    assert when_to_trust(an_evaluation(TRUTH + 0.2, critic, stderr=1.0)) == f"When to trust which: {said}"


def test_without_an_interval_or_a_critic_nothing_is_said_of_trust():
    assert when_to_trust(an_evaluation(TRUTH, TRUTH)) == ""
    assert when_to_trust(an_evaluation(TRUTH, stderr=1.0)) == ""


def test_the_summary_holds_every_figure_and_the_notes():
    text = summary_text(an_evaluation(TRUTH + 0.1, TRUTH + 0.5))
    assert "| rmse | 0.1 | 0.5 |" in text
    assert "| environment steps | 8 | 99 |" in text
    assert "| coverage | - | - |" in text
    assert text.endswith("- a note")
