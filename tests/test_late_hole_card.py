"""Blackjack whose dealer draws the hidden card late: the same game, and copies that know no more than the player."""

import gymnasium
import numpy as np
import pytest

import icrl_gym as icrl
from icrl_envs.late_hole_card import LateHoleCard


def returns_of_sticking(env, hidden, num_games=1500):
    """Rewards of sticking at once at 18 against a dealer who shows a 10 and hides this card."""
    rewards = []
    for seed in range(num_games):
        env.reset(seed=seed)
        env.unwrapped.player, env.unwrapped.dealer = [10, 8], [10, hidden]
        rewards.append(env.step(0)[1])
    return np.array(rewards)


def test_the_hidden_card_of_a_copy_does_not_matter():
    late, early = LateHoleCard(gymnasium.make("Blackjack-v1")), gymnasium.make("Blackjack-v1")
    strong, weak = (returns_of_sticking(late, hidden).mean() for hidden in (10, 6))
    assert abs(strong - weak) < 0.1
    strong, weak = (returns_of_sticking(early, hidden).mean() for hidden in (10, 6))
    assert weak - strong > 1.0


def test_the_game_is_the_same_to_the_player():
    first = icrl.collect("Blackjack-v1", "random", 12_000, seed=0)
    late = icrl.collect(LateHoleCard(gymnasium.make("Blackjack-v1")), "random", 12_000, seed=0)
    for one, other in ((first.rewards, late.rewards), (first.terminated, late.terminated)):
        assert one.mean() == pytest.approx(other.mean(), abs=0.03)
    np.testing.assert_allclose(
        [part.mean() for part in first.observations], [part.mean() for part in late.observations], rtol=0.03
    )


def test_true_values_at_one_observation_are_one_value():
    env = LateHoleCard(gymnasium.make("Blackjack-v1"))
    truth = icrl.monte_carlo_values(
        env, lambda seen: np.zeros(len(seen[0]), int), num_queries=60, num_rollouts=200, seed=0
    )
    shown = np.stack(truth.observations, axis=1)
    spreads = []
    for state in np.unique(shown, axis=0):
        same = (shown == state).all(axis=1)
        if same.sum() > 1:
            spreads.append(truth.values[same].std(ddof=1) / np.sqrt(np.square(truth.stderr[same]).mean()))
    assert len(spreads) >= 3
    assert np.median(spreads) < 2.5  # in standard errors


def test_another_environment_is_refused():
    with pytest.raises(TypeError, match="env must be Blackjack-v1, got"):
        LateHoleCard(gymnasium.make("CartPole-v1"))
