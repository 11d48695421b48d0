"""The verdict of an audit, on evidence written by hand."""

import math
from dataclasses import replace

import pytest

from icrl_gym.audit.verdict import Call, Evidence, judge
from icrl_gym.scoring.statistics import Aggregate

UNKNOWN = Aggregate(math.nan, math.nan, math.nan)


def around(value, half):
    return Aggregate(value, value - half, value + half)


GOOD = Evidence(  # tolerances on this scale: 5 for a bias to be called, 25 for agreement, 5 for differences to matter
    scale=100.0,
    spread=20.0,
    bias_in_context=around(2.0, 15.0),
    bias_returns=around(-1.0, 10.0),
    shape_error=5.0,
    critic_explains=around(380.0, 50.0),
    evaluator_explains=around(390.0, 50.0),
    support=(around(0.0, 5.0), around(1.0, 5.0)),
)


def test_a_critic_near_both_witnesses_agrees():
    verdict = judge(GOOD)
    assert (verdict.call, verdict.alarm) == (Call.AGREES, False)
    assert verdict.sentence == "agrees (bias -11 to +9)"


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bias_that_is_surely_beyond_the_tolerance_is_called_with_its_size(sign):
    verdict = judge(replace(GOOD, bias_in_context=around(sign * 30.0, 40.0), bias_returns=around(sign * 25.0, 10.0)))
    assert (verdict.call, verdict.alarm, verdict.bias) == (Call.BIASED, True, sign * 25.0)
    assert verdict.sentence.startswith(f"biased by {sign * 25:+d}")


def test_a_bias_that_may_be_within_the_tolerance_is_not_called():
    assert judge(replace(GOOD, bias_returns=around(19.0, 15.0), bias_in_context=around(19, 40.0))).call is Call.OPEN
    assert judge(replace(GOOD, bias_returns=around(12.0, 8.0), bias_in_context=around(12, 40.0))).call is Call.AGREES


def test_two_intervals_together_allow_what_both_allow():
    evidence = replace(GOOD, bias_in_context=Aggregate(23.0, 8.0, 38.0), bias_returns=Aggregate(15.0, -5.0, 35.0))
    verdict = judge(evidence)
    assert (verdict.call, verdict.bias) == (Call.BIASED, 21.5)


@pytest.mark.parametrize("ours", [around(80.0, 10.0), Aggregate(30.0, 8.0, 52.0)])
def test_the_returns_decide_where_the_other_interval_leaves_out_their_estimate(ours):
    assert judge(replace(GOOD, bias_in_context=ours, bias_returns=around(0.0, 10.0))).call is Call.AGREES


def test_in_context_values_alone_decide_where_no_return_came_in_and_the_other_way_round():
    biased = replace(GOOD, bias_in_context=around(50.0, 10.0), bias_returns=UNKNOWN)
    assert judge(biased).bias == 50.0
    assert judge(replace(GOOD, bias_in_context=UNKNOWN, bias_returns=around(50.0, 10.0))).bias == 50.0
    assert judge(replace(GOOD, bias_in_context=UNKNOWN, bias_returns=UNKNOWN)).call is Call.OPEN


FLAT = replace(GOOD, shape_error=20.0, critic_explains=around(0.0, 1.0))


@pytest.mark.parametrize("support", [(around(9.0, 5.0), around(0.0, 9.0)), (around(0.0, 9.0), around(9.0, 5.0))])
def test_a_flat_critic_is_uninformative_where_the_returns_support_the_in_context_values(support):
    verdict = judge(replace(FLAT, support=support))
    assert (verdict.call, verdict.alarm) == (Call.UNINFORMATIVE, True)


def test_a_flat_critic_is_not_judged_without_the_returns_support():
    assert judge(FLAT).call is Call.OPEN


def test_differences_between_states_that_do_not_matter_are_not_judged():
    support = (around(9.0, 5.0), around(9.0, 5.0))
    small = replace(FLAT, spread=3.0, shape_error=3.0, critic_explains=around(0.0, 1.0), support=support)
    assert judge(small).call is Call.AGREES


def test_a_critic_that_the_returns_find_informative_is_not_called_uninformative():
    support = (around(9.0, 5.0), around(9.0, 5.0))
    informative = replace(GOOD, shape_error=30.0, evaluator_explains=around(100.0, 90.0), support=support)
    assert judge(informative).call is Call.AGREES


def test_an_uninformative_critic_is_also_told_its_bias():
    evidence = replace(FLAT, support=(around(9.0, 5.0), around(9.0, 5.0)), bias_returns=around(-40.0, 10.0))
    verdict = judge(replace(evidence, bias_in_context=around(-40.0, 30.0)))
    assert verdict.call is Call.UNINFORMATIVE
    assert verdict.sentence.endswith("and biased by -40")


def test_wide_intervals_say_nothing():
    assert judge(replace(GOOD, bias_in_context=around(0, 90.0), bias_returns=around(0.0, 80.0))).call is Call.OPEN


def test_nothing_is_said_where_no_reward_was_seen():
    verdict = judge(replace(GOOD, scale=0.0, spread=0.0, bias_returns=around(0.1, 0.01)))
    assert (verdict.call, verdict.alarm) == (Call.OPEN, False)
