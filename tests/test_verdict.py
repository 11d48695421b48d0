"""One rule calls winners: on common cells, by intervals that know how many rivals were looked at."""

import numpy as np
import pytest

from icrl_gym.scoring.verdict import Call, Verdict, error_ratio, judge

NUM_CONTEXTS = 5


def errors(log_errors_PC):
    """Errors by (policy, context) from a matrix of their logarithms."""
    return {(f"policy {p}", c): float(np.exp(x)) for p, row in enumerate(log_errors_PC) for c, x in enumerate(row)}


def scattered(mean, spread=0.05, policies=1, seed=0):
    return errors(mean + spread * np.random.default_rng(seed).standard_normal((policies, NUM_CONTEXTS)))


def test_a_clear_difference_is_called_for_the_right_side():
    ours, good, bad = scattered(0.0, seed=1), scattered(-1.0, seed=2), scattered(1.0, seed=3)
    won = judge(ours, {"bad": bad})
    assert (won.call, won.rival) == (Call.AHEAD, "bad")
    assert won.in_words("subject") == "subject"
    assert won.ratio is not None
    assert won.ratio.low < won.ratio.value < won.ratio.high < 1
    lost = judge(ours, {"bad": bad, "good": good})
    assert (lost.call, lost.rival) == (Call.BEHIND, "good")
    assert lost.in_words("subject") == "good"
    assert lost.ratio is not None
    assert lost.ratio.low > 1


def test_the_interval_decides_and_not_the_point():
    rng = np.random.default_rng(0)
    noisy = errors(0.3 + rng.standard_normal((1, NUM_CONTEXTS)))
    found = judge(noisy, {"rival": errors(np.zeros((1, NUM_CONTEXTS)))})
    assert found.ratio is not None
    assert found.ratio.value > 1.1
    assert found.call is Call.OPEN
    assert found.in_words("subject") == "too close to call"


def test_fewer_than_three_cells_are_no_verdict_however_clear():
    ours, theirs = errors(np.array([[0.0, 0.01]])), errors(np.array([[2.0, 2.02]]))
    found = judge(ours, {"rival": theirs})
    assert found.call is Call.NONE
    assert found.in_words("subject") == "no verdict (2 cells)"
    one_each = judge(errors(np.array([[0.0]] * 3)), {"rival": errors(np.array([[2.0], [2.1], [2.05]]))})
    assert one_each.call is Call.AHEAD  # three policies of one context each are three cells


def test_only_common_cells_are_compared_and_who_lacks_some_is_named():
    ours = scattered(0.0, policies=2)
    lucky = dict.fromkeys(list(ours)[:3], 0.001)  # ran on the easy cells alone
    found = judge(ours, {"lucky": lucky, "rival": scattered(1.0, policies=2, seed=5)})
    assert (found.call, found.rival, found.left_out, found.num_rivals) == (Call.AHEAD, "rival", ("lucky",), 1)
    assert judge(ours, {"lucky": lucky}) == Verdict(Call.NONE, None, None, 10, 0, ("lucky",))
    with pytest.raises(ValueError, match="a cell in common"):
        error_ratio(ours, {("elsewhere", 0): 1.0})


@pytest.mark.parametrize(("num_policies", "num_rivals"), [(1, 17), (3, 17), (1, 1)])
def test_among_equals_a_winner_is_rarely_called(num_policies, num_rivals):
    # Subject and rivals are equally good; cells have difficulties in common. At most 5 % false calls are promised for
    # one side; 10 % of 400 simulations is four standard errors above 5 %.
    rng, false = np.random.default_rng(0), 0
    for _ in range(400):
        difficulty = rng.standard_normal((num_policies, NUM_CONTEXTS))
        draw = lambda level=difficulty: errors(level + 0.3 * rng.standard_normal(level.shape))  # noqa: E731 - a shorthand
        found = judge(draw(), {f"rival {i}": draw() for i in range(num_rivals)})
        false += found.call in (Call.AHEAD, Call.BEHIND)
    assert false <= 40


def test_without_the_correction_too_many_of_such_calls_would_be_false():
    rng, false = np.random.default_rng(0), 0
    for _ in range(300):
        ours, *rivals = (errors(0.3 * rng.standard_normal((3, NUM_CONTEXTS))) for _ in range(18))
        best = min(rivals, key=lambda rival: np.mean(np.log(list(rival.values()))))
        ratio = error_ratio(ours, best)
        false += ratio.low > 1 or ratio.high < 1
    assert false > 30
