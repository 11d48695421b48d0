"""`prompt_budget` against processes whose error is known, and its refusals."""

import numpy as np
import pytest

import icrl_gym as icrl
from icrl_gym.evaluator.budget import PowerLaw
from icrl_gym.reproduction.mrps import boyan_chains

GAMMA = 0.9


@pytest.fixture(scope="module")
def chain():
    return boyan_chains(np.random.default_rng(3), 1)


def walk(chain, length, seed):
    states = chain.walk(np.random.default_rng(seed), length)
    flags = np.zeros(length, dtype=bool)
    return icrl.Trajectory(
        states[0, :-1], np.zeros(length), chain.rewards_of(states)[0], states[0, 1:], flags, flags.copy()
    )


def rmse(chain, trajectory):
    values = icrl.InContextEvaluator().fit(trajectory, GAMMA).predict(np.arange(10)).values
    return float(np.sqrt(np.mean((values - chain.values(GAMMA)[0]) ** 2)))


@pytest.mark.filterwarnings("ignore:.*never")
def test_a_context_of_the_budgets_length_has_the_wanted_error(chain):
    ratios = []
    for seed in range(8):
        pilot = walk(chain, 256, seed)
        wanted = 0.6 * icrl.prompt_budget(pilot, GAMMA, 1.0, observations=np.arange(10)).error_now
        budget = icrl.prompt_budget(pilot, GAMMA, wanted, observations=np.arange(10))
        assert budget.low < budget.num_transitions < budget.high
        fresh = [rmse(chain, walk(chain, budget.num_transitions, 100 + 10 * seed + k)) for k in range(2)]
        ratios.append(np.sqrt(np.mean(np.square(fresh))) / wanted)
    assert 0.5 < np.median(ratios) < 1.6


def test_a_smaller_error_costs_more_and_the_law_is_its_own_inverse(chain):
    pilot = walk(chain, 256, 0)
    coarse, fine = (icrl.prompt_budget(pilot, GAMMA, accuracy) for accuracy in (0.3, 0.1))
    assert fine.num_transitions > coarse.num_transitions
    for budget in (coarse, fine):
        assert budget.error_at(budget.num_transitions) == pytest.approx(budget.accuracy, rel=0.02)
        assert budget.error_at(budget.num_given) == budget.error_now


def test_the_budget_scales_with_the_rewards(chain):
    pilot = walk(chain, 128, 1)
    larger = icrl.Trajectory(
        pilot.observations, pilot.actions, 7 * pilot.rewards, pilot.next_observations, pilot.terminated, pilot.truncated
    )
    one, seven = icrl.prompt_budget(pilot, GAMMA, 0.2), icrl.prompt_budget(larger, GAMMA, 1.4)
    assert abs(one.num_transitions - seven.num_transitions) <= 1
    assert seven.error_now == pytest.approx(7 * one.error_now)


def test_power_law_recovers_an_exact_one_with_the_rate_of_theory():
    lengths = np.array([16.0, 32, 64, 128])
    law = PowerLaw.fit(lengths, 5.0 / lengths, np.array([15.0, 7, 3, 1]))
    assert law.rate == pytest.approx(1.0)
    assert law.error(64) == pytest.approx(np.sqrt(5 / 64))
    assert np.exp(law.length(0.1)[0]) == pytest.approx(500)


def test_a_rate_that_many_blocks_show_overrules_the_theory():
    lengths = np.array([16.0, 64, 256, 1024])
    law = PowerLaw.fit(lengths, lengths**-0.5, np.full(4, 400.0))
    assert law.rate == pytest.approx(0.5, abs=0.03)


def test_block_errors_are_spread_and_shift_of_the_blocks_answers(chain):
    pilot, queries = walk(chain, 128, 2), np.arange(10)

    def answer(part):
        return icrl.InContextEvaluator().fit(part, GAMMA).predict(queries).values

    expected = []
    for length in (16, 32, 64):
        answers = np.array([answer(pilot[start : start + length]) for start in range(0, 128, length)])
        spread = [np.sum((column - column.mean()) ** 2) / (len(column) - 1) for column in answers.T]
        shift = answers.mean(axis=0) - answer(pilot)
        expected.append(np.sqrt(np.mean(spread) + np.mean(shift**2)))
    budget = icrl.prompt_budget(pilot, GAMMA, 0.1, observations=queries)
    assert budget.block_lengths == (16, 32, 64)
    np.testing.assert_allclose(budget.block_errors, expected)


def test_the_given_evaluator_keeps_its_own_context(chain):
    evaluator = icrl.InContextEvaluator().fit(walk(chain, 70, 5), GAMMA)
    before = evaluator.predict(np.arange(10)).values
    icrl.prompt_budget(walk(chain, 128, 6), GAMMA, 0.1, evaluator=evaluator)
    np.testing.assert_array_equal(evaluator.predict(np.arange(10)).values, before)


def test_refusals_name_the_argument(chain):
    pilot = walk(chain, 128, 0)
    with pytest.raises(ValueError, match="accuracy must be a positive"):
        icrl.prompt_budget(pilot, GAMMA, 0.0)
    with pytest.raises(ValueError, match="at least 64 transitions"):
        icrl.prompt_budget(pilot[:63], GAMMA, 0.1)
    with pytest.raises(TypeError, match="trajectory must be a Trajectory"):
        icrl.prompt_budget([1, 2], GAMMA, 0.1)
    silent = icrl.Trajectory(
        pilot.observations, pilot.actions, 0 * pilot.rewards, pilot.next_observations, pilot.terminated, pilot.truncated
    )
    with pytest.raises(ValueError, match="agree exactly"):
        icrl.prompt_budget(silent, GAMMA, 0.1)
