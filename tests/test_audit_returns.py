"""What returns say of a critic: identities by a second route, and intervals that hold under overlap."""

import numpy as np
import pytest

from icrl_gym.audit.critic import CriticReading
from icrl_gym.audit.returns import ReturnEvidence
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.values import Estimand, ValueEstimates

GAMMA = 0.9


def evidence(values, successors, rewards, terminated, ends, known=None, may_end=False):
    n = len(values)
    known = np.ones(n, dtype=bool) if known is None else known
    residuals = np.where(known, rewards + GAMMA * (1.0 - terminated) * successors - values, 0.0)
    estimates = ValueEstimates(values, np.zeros(n, int), Estimand(None, None, GAMMA))
    reading = CriticReading(estimates, values, successors, residuals, known)
    numbers = np.zeros(n, int)
    log = Trajectory(numbers, numbers, rewards, numbers, terminated, np.zeros(n, bool), episode_ends=ends)
    return ReturnEvidence.of(reading, log, GAMMA, may_end)


def random_log(rng, n=60):
    ends = rng.random(n) < 0.15
    ends[-1] = True
    terminated = ends & (rng.random(n) < 0.5)
    values, successors, rewards = rng.normal(size=(3, n))
    successors[~ends] = np.append(values[1:], 0.0)[~ends]
    return values, successors, rewards, terminated, ends


def walk(rng, n=400, num_states=5):
    """A stretch of a random process without end, its exact values, and the indices of its states."""
    transitions = rng.dirichlet(np.ones(num_states), num_states)
    rewards_of = rng.normal(size=num_states)
    exact = np.linalg.solve(np.eye(num_states) - GAMMA * transitions, rewards_of)
    states = [0]
    for _ in range(n):
        states.append(rng.choice(num_states, p=transitions[states[-1]]))
    states = np.array(states)
    return states, exact, rewards_of


def evidence_of(states, critic, rewards_of):
    n = len(states) - 1
    ends = np.arange(n) == n - 1
    return evidence(critic[states[:-1]], critic[states[1:]], rewards_of[states[:-1]], np.zeros(n, dtype=bool), ends)


def test_returns_are_the_discounted_rewards_and_the_critics_value_at_a_cut():
    values, successors, rewards, terminated, ends = random_log(np.random.default_rng(0))
    found = evidence(values, successors, rewards, terminated, ends)
    for k in range(len(values)):
        last = k + int(np.argmax(ends[k:]))
        tail = 0.0 if terminated[last] else GAMMA ** (last + 1 - k) * successors[last]
        expected = sum(GAMMA ** (t - k) * rewards[t] for t in range(k, last + 1)) + tail
        assert found.returns_N[k] == pytest.approx(expected)
        seen = 1.0 if terminated[last] else 1.0 - GAMMA ** (last + 1 - k)
        assert found.seen_N[k] == pytest.approx(seen)


def test_an_error_that_is_the_same_everywhere_is_found_exactly_whatever_the_cuts():
    rng = np.random.default_rng(1)
    ends = np.arange(50) % 7 == 6
    ends[-1] = True
    terminated, rewards = ends & (np.arange(50) % 2 == 0), rng.normal(size=50)
    values, tails = np.zeros(50), np.zeros(50)
    for k in reversed(range(50)):
        tails[k] = 0.0 if terminated[k] else (3.0 if ends[k] else values[k + 1])
        values[k] = rewards[k] + GAMMA * tails[k]
    found = evidence(values + 2.5, tails + 2.5, rewards, terminated, ends).bias(0.95)
    assert found.value == pytest.approx(2.5)


def test_weighted_sums_of_errors_come_out_the_same_forwards_and_backwards():
    rng = np.random.default_rng(2)
    found = evidence(*random_log(rng))
    rows = np.array([3, 8, 9, 40])
    corrections = rng.normal(size=4)
    centred = corrections - corrections.mean()
    assert found.support(rows, corrections, 1.0, 0.9).value == pytest.approx(np.mean(centred * found.errors_N[rows]))
    assert found.support(rows, corrections, 0.0, 0.9).value == pytest.approx(np.mean(centred * found.residuals_N[rows]))
    predictions = rng.normal(size=4)
    returns, x = found.returns_N[rows], predictions - predictions.mean()
    assert found.explained(rows, predictions, 0.9).value == pytest.approx(np.mean(2 * x * returns) - np.mean(x**2))


def test_intervals_of_an_exact_critic_hold_although_the_returns_overlap():
    """400 walks: a 95 % interval should hold 380 of them; 360 to 396 lets through 1 in 2,000 right ones."""
    rng, covered, naive = np.random.default_rng(3), 0, 0
    for _ in range(400):
        found = evidence_of(*walk(rng, n=300))
        bias = found.bias(0.95)
        covered += bias.low <= 0 <= bias.high
        half = 1.96 * found.errors_N.std() / np.sqrt(len(found.errors_N))
        naive += abs(found.errors_N.mean()) <= half
    assert 360 <= covered <= 396
    assert naive < 300  # what overlap does to the plain standard error: the partner that must fail


def test_the_exact_critic_explains_the_variance_of_the_values_and_a_constant_nothing():
    rng = np.random.default_rng(4)
    states, exact, rewards_of = walk(rng, n=20_000)
    found, rows = evidence_of(states, exact, rewards_of), np.arange(20_000)
    explained = found.explained(rows, exact[states[:-1]], 0.99)
    assert explained.low <= np.var(exact[states[:-1]]) <= explained.high
    assert explained.low > 0
    constant = found.explained(rows, np.full(20_000, 7.0), 0.99)
    assert (constant.value, constant.low, constant.high) == (0.0, 0.0, 0.0)


def test_returns_support_right_corrections_and_not_their_opposite():
    rng = np.random.default_rng(5)
    states, exact, rewards_of = walk(rng, n=2_000)
    found, rows = evidence_of(states, rng.permutation(exact), rewards_of), np.arange(2_000)
    corrections = exact[states[:-1]] - found.taken_N
    for trace_decay in (0.0, 1.0):
        assert found.support(rows, corrections, trace_decay, 0.98).low > 0
        assert found.support(rows, -corrections, trace_decay, 0.98).high < 0


def test_residuals_that_are_not_known_count_neither_way():
    values, successors, rewards, terminated, ends = random_log(np.random.default_rng(6))
    known = np.ones(len(values), dtype=bool)
    cut = int(np.flatnonzero(ends & ~terminated)[0])
    known[cut] = False
    found = evidence(values, successors, rewards, terminated, ends, known)
    assert found.residuals_N[cut] == found.errors_N[cut] == found.seen_N[cut] == 0.0
    assert np.isfinite(found.bias(0.9).value)


def test_endings_that_may_come_but_were_not_seen_widen_the_interval():
    """No ending in 1,000 steps of reward 1: the critic's 10 is exact if there are none, and too high if there are."""
    n, ends = 1_000, np.arange(1_000) == 999
    never, may = (
        evidence(np.full(n, 10.0), np.full(n, 10.0), np.ones(n), np.zeros(n, bool), ends, may_end=may_end).bias(0.95)
        for may_end in (False, True)
    )
    assert never.low == pytest.approx(0.0, abs=1e-9)
    assert never.high == pytest.approx(0.0, abs=1e-9)
    weight = 1 / (1 - GAMMA) * GAMMA * 10.0 / n  # of one ending in the mean
    assert may.high == pytest.approx(1.96 * np.sqrt(0.5) * weight, rel=0.03)


def test_no_discount_seen_is_no_statement_about_bias():
    found = evidence(np.ones(3), np.ones(3), np.ones(3), np.zeros(3, bool), np.ones(3, bool), np.zeros(3, dtype=bool))
    assert not found.bias(0.9).has_interval
