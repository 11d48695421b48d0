"""Walks against sums made by hand: what is earned, where they stop, and that nothing else has a part in them."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from linear_system import ACTIONS, GAMMA, MOVES, PRICE, PUSH, Asked, Deterministic, Noisy, law, linear_log

import icrl_gym as icrl
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.world import walks
from icrl_gym.evaluator.world.actors import ActionFeatures
from icrl_gym.evaluator.world.model import Step, World
from icrl_gym.evaluator.world.walks import Walker, walk_noise

MEMBERS = 4


@dataclass
class Linear:
    """The system by its equations, with an ending beyond a wall, or by chance, and its reward."""

    wall: float = np.inf
    ending: float = 0.0
    chance: float = 0.0
    edge: float = np.inf
    price: float = np.inf
    calls: list = field(default_factory=list)
    rows_KM = np.zeros((MEMBERS, 1), int)
    low_KD = torch.zeros(MEMBERS, 2)

    def seen(self, states_KBD):
        return (states_KBD.abs() <= self.edge).all(dim=-1)

    def pays_as_seen(self, rewards_KB):
        return rewards_KB.abs() <= self.price

    def limits(self, alive_KBD):
        return None

    def advance(self, states_KBD, actions_KBX, limits=None):
        self.calls.append(states_KBD.shape[1])
        next_KBD = states_KBD @ torch.as_tensor(MOVES) + actions_KBX * torch.as_tensor(PUSH)
        rewards_KB = torch.cat([states_KBD, actions_KBX], dim=-1) @ torch.as_tensor(PRICE)
        endings_KB = torch.full_like(rewards_KB, self.chance).masked_fill(next_KBD[..., 0] > self.wall, 1.0)
        return Step(next_KBD, rewards_KB, endings_KB, torch.full_like(rewards_KB, self.ending), (), None)


class Raw:
    """Actions as they are."""

    def __call__(self, actions):
        return actions


def walker(world, actor=None, gamma=GAMMA):
    return Walker(world, (actor or Deterministic(),), Raw(), gamma)


def by_hand(x, steps, wall=np.inf, ending=0.0, chance=0.0, edge=np.inf, price=np.inf, gamma=GAMMA, noise=None):
    """State, discount and earnings of one walk, step by step."""
    earned, discount = 0.0, 1.0
    for step in range(steps):
        if np.abs(x).max() > edge or discount <= 1e-4:
            break
        action = law(x[None])[0] + (0.0 if noise is None else noise[step] - 0.5)
        reward = PRICE @ np.concatenate([x, action])
        if abs(reward) > price:
            break
        x = x @ MOVES + action * PUSH
        ends = 1.0 if x[0] > wall else chance
        earned += discount * ((1.0 - ends) * reward + ends * ending)
        discount *= gamma * (1.0 - ends)
    return x, discount, earned


STARTS = np.random.default_rng(0).uniform(-1.0, 1.0, (9, 2))


def check_against_hand(horizons=(0, 1, 2, 17, 50), gamma=GAMMA, starts=STARTS, **world):
    stops = walker(Linear(**world), gamma=gamma).follow(starts, horizons, num_particles=2)
    assert len(stops) == len(horizons)
    for steps, stop in zip(horizons, stops, strict=True):
        expected = [by_hand(x, steps, gamma=gamma, **world) for x in starts]
        for found, wanted in zip((stop.states_KBD, stop.discounts_KB, stop.earned_KB), zip(*expected, strict=True),
                                 strict=True):  # fmt: skip
            wanted = np.repeat(np.stack(wanted), 2, axis=0)
            np.testing.assert_allclose(found.numpy(), np.broadcast_to(wanted, found.shape), rtol=1e-8, atol=1e-8)
    return stops


def test_walks_earn_what_the_sum_says():
    check_against_hand()


def test_an_ending_stops_the_sum_with_its_own_reward():
    stops = check_against_hand(wall=0.4, ending=-7.0)
    over = stops[-1].discounts_KB == 0
    assert over.any()
    assert not over.all()


def test_an_ending_by_chance_is_weighed_by_its_chance():
    check_against_hand(chance=0.2, ending=3.0)


def test_walks_that_leave_what_was_seen_stop_there():
    starts = np.concatenate([STARTS, [[1.5, 0.0]]])  # the last is outside from the beginning
    stops = check_against_hand(edge=1.0, starts=starts)
    assert not stops[0].going_KB[:, -2:].any()
    assert stops[0].going_KB[:, :-2].all()
    left = ~stops[-1].going_KB
    assert left[:, :-2].any()
    assert not left.all()
    torch.testing.assert_close(stops[-1].states_KBD[:, -1], torch.tensor([1.5, 0.0]).double().expand(MEMBERS, 2))
    assert (stops[-1].discounts_KB[left] > 0).all(), "the leaf takes over where a walk left"


def test_walks_stop_before_a_reward_beyond_those_that_were_seen():
    stops = check_against_hand(price=0.6)
    assert (~stops[0].going_KB).any(), "some start where the reward is too large"
    left = ~stops[-1].going_KB
    assert (stops[-1].earned_KB[left] != 0).any(), "some on the way"
    assert not left.all()


def test_walks_whose_discount_is_spent_stop():
    stops = check_against_hand(gamma=0.5)
    assert not stops[-1].going_KB.any()


def test_spent_walks_are_not_moved():
    world = Linear()
    walker(world, gamma=0.5).follow(STARTS, (50,), 1)
    assert len(world.calls) == 14


def never_gathered(going_KB):
    return torch.arange(going_KB.shape[1]).expand(len(going_KB), -1)


def test_gathering_changes_nothing_but_the_work(monkeypatch):
    world = {"wall": 0.3, "edge": 1.2, "chance": 0.02, "ending": 2.0}
    starts = np.random.default_rng(1).uniform(-1.2, 1.2, (40, 2))

    def run():
        linear = Linear(**world)
        return walker(linear, Noisy()).follow(starts, (1, 3, 20, 60), 4), linear.calls

    gathered, fewer = run()
    monkeypatch.setattr(walks, "_going_first", never_gathered)
    everything, calls = run()
    assert sum(fewer) < 0.8 * sum(calls)
    for one, other in zip(gathered, everything, strict=True):
        torch.testing.assert_close(one.states_KBD, other.states_KBD, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.discounts_KB, other.discounts_KB, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.earned_KB, other.earned_KB, rtol=1e-12, atol=1e-12)
        assert torch.equal(one.going_KB, other.going_KB)


def test_a_walk_depends_on_its_query_and_its_noise_alone():
    starts = np.random.default_rng(1).uniform(-1.2, 1.2, (12, 2))
    together = walker(Linear(edge=1.0), Noisy()).follow(starts, (2, 30), 3)
    for query, start in enumerate(starts):
        alone = walker(Linear(edge=1.0), Noisy()).follow(start[None], (2, 30), 3)
        for one, many in zip(alone, together, strict=True):
            rows = slice(3 * query, 3 * query + 3)
            torch.testing.assert_close(one.states_KBD, many.states_KBD[:, rows], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(one.earned_KB, many.earned_KB[:, rows], rtol=1e-12, atol=1e-12)


def test_the_noise_is_that_of_the_particle_at_the_step():
    noise_TKPU = walk_noise(20, MEMBERS, 3, 1)
    (stop,) = walker(Linear(), Noisy()).follow(STARTS[:2], (20,), 3)
    for member in range(MEMBERS):
        for index in range(6):
            query, particle = divmod(index, 3)
            state, _, earned = by_hand(STARTS[query], 20, noise=noise_TKPU[:, member, particle])
            np.testing.assert_allclose(stop.states_KBD[member, index], state, atol=1e-10)
            np.testing.assert_allclose(stop.earned_KB[member, index], earned, atol=1e-10)


def test_the_noise_of_a_shorter_walk_begins_that_of_a_longer_one():
    np.testing.assert_array_equal(walk_noise(5, 4, 3, 2), walk_noise(9, 4, 3, 2)[:5])


def test_the_noise_of_a_step_covers_the_unit_interval():
    noise_TKPU = walk_noise(6, 4, 4, 3)
    strata = np.sort(np.floor(noise_TKPU.reshape(6, 16, 3) * 16), axis=1)
    np.testing.assert_array_equal(strata, np.broadcast_to(np.arange(16)[:, None], (6, 16, 3)))


def test_shorter_walks_are_the_beginning_of_longer_ones():
    short, long = (walker(Linear(), Noisy()).follow(STARTS, (3, most), 2)[0] for most in (3, 25))
    torch.testing.assert_close(short.states_KBD, long.states_KBD, rtol=0, atol=0)


def test_actors_of_their_own_act_in_their_members():
    class Still(Deterministic):
        def actions(self, features_BD, noise_BU):
            return np.zeros((len(features_BD), 1))

    mixed = Walker(Linear(), (Deterministic(), Still(), Still(), Deterministic()), Raw(), GAMMA)
    (stop,) = mixed.follow(STARTS, (10,), 1)
    (own,) = walker(Linear()).follow(STARTS, (10,), 1)
    (still,) = walker(Linear(), Still()).follow(STARTS, (10,), 1)
    for member, expected in enumerate((own, still, still, own)):
        torch.testing.assert_close(stop.earned_KB[member], expected.earned_KB[member])
    assert (own.earned_KB - still.earned_KB).abs().max() > 0.01


# The world of a log


def world_of(log, gamma=GAMMA):
    prompt = Prompt.from_trajectory(log, gamma)
    features = ActionFeatures(log.actions, ACTIONS)
    successors = prompt.feature_map(log.next_observations)
    world = World.fit(prompt, successors, features(log.actions), np.zeros(2), "cpu")
    assert world is not None
    return prompt, world, features


def test_a_world_read_off_a_linear_systems_log_is_that_system():
    prompt, world, features = world_of(linear_log())
    found = Walker(world, (Asked(prompt),), features, GAMMA).follow(prompt.queries(0.5 * STARTS), (10,), 1)[0]
    noise_TKPU = walk_noise(10, MEMBERS, 1, 1)
    for member in range(MEMBERS):
        for query, start in enumerate(0.5 * STARTS):
            state, discount, earned = by_hand(start, 10, noise=noise_TKPU[:, member, 0])
            here = prompt.feature_map.inverse(found.states_KBD[member, query : query + 1].numpy())[0]
            np.testing.assert_allclose(here, state, atol=1e-5)
            assert float(found.earned_KB[member, query]) == pytest.approx(earned, abs=1e-4)
            assert float(found.discounts_KB[member, query]) == pytest.approx(discount)


@pytest.mark.parametrize("reward_noise", [0.0, 0.5])
@pytest.mark.parametrize("wall", [np.inf, 0.8])
def test_earnings_are_weights_times_the_logs_rewards(wall, reward_noise):
    log = linear_log(wall=wall, reward_noise=reward_noise)
    assert log.terminated.any() == np.isfinite(wall)
    prompt, world, features = world_of(log)
    walking = Walker(world, (Asked(prompt),), features, GAMMA)
    queries, steps = prompt.queries(STARTS), 12
    (stop,) = walking.follow(queries, (steps,), 3)
    weights = walking.reward_weights(queries, np.ones((steps, len(queries))), 3)
    assert weights.shape == (len(queries), len(log))
    earned = stop.earned_KB.numpy().reshape(MEMBERS, len(queries), 3).mean(axis=(0, 2))
    np.testing.assert_allclose(weights @ log.rewards, earned, rtol=1e-9, atol=1e-9)
    half = walking.reward_weights(queries, np.full((steps, len(queries)), 0.5), 3)
    np.testing.assert_allclose(half, weights / 2)


@pytest.mark.parametrize("gather_again", [walks.GATHER_AGAIN, 2.0])
def test_walks_go_on_from_where_an_episode_goes_on(gather_again, monkeypatch):
    """The log ends beyond a wall at 0.3; who asks for a state behind it says that it does not end there."""
    monkeypatch.setattr(walks, "GATHER_AGAIN", gather_again)  # above 1: particles change places at every step
    prompt, world, features = world_of(linear_log(wall=0.3))
    assert world.endings is not None
    assert world.endings.by_rules_K.all()
    walking = Walker(world, (Asked(prompt),), features, GAMMA)
    queries = prompt.queries(np.array([[0.28, -0.4], [0.45, 0.0], [-0.2, 0.0]]))
    assert [float(world.endings(np.tile(x, (MEMBERS, 1, 1))).max()) for x in queries] == [0.0, 1.0, 0.0]
    first, later = walking.follow(queries, (1, 12), 2)
    discounts_QB, later_QB = (
        stop.discounts_KB.numpy().reshape(MEMBERS, 3, 2).transpose(1, 0, 2) for stop in (first, later)
    )
    assert (discounts_QB[0] == 0.0).all()  # it crosses the wall
    np.testing.assert_allclose(discounts_QB[1:], GAMMA)
    np.testing.assert_allclose(later_QB[1], GAMMA**12)
    (alone,) = walking.follow(queries[1:2], (12,), 2)
    np.testing.assert_array_equal(alone.states_KBD, later.states_KBD[:, 2:4])


def test_too_few_transitions_are_no_world():
    log = linear_log(60)
    prompt = Prompt.from_trajectory(log, GAMMA)
    successors = prompt.feature_map(log.next_observations)
    assert World.fit(prompt, successors, log.actions, np.zeros(2), "cpu") is None


def test_every_member_is_kept_from_a_quarter_of_the_log():
    _, world, _ = world_of(linear_log())
    for held_out, rows_M in zip(world.held_out, world.rows_KM, strict=True):
        assert not np.intersect1d(held_out, rows_M).size
    np.testing.assert_array_equal(np.sort(np.concatenate(world.held_out)), np.arange(400))


def test_numbers_that_never_move_stay():
    log = linear_log()
    still = np.full((len(log), 1), 3.0)
    wide = icrl.Trajectory(
        np.concatenate([log.observations, still], axis=1), log.actions, log.rewards,
        np.concatenate([log.next_observations, still], axis=1), log.terminated, log.truncated,
    )  # fmt: skip
    prompt = Prompt.from_trajectory(wide, GAMMA)
    features = ActionFeatures(wide.actions, ACTIONS)
    world = World.fit(prompt, prompt.feature_map(wide.next_observations), features(wide.actions), np.zeros(3), "cpu")
    assert world is not None
    step = world.advance(torch.zeros(MEMBERS, 2, 3).double(), torch.zeros(MEMBERS, 2, 1).double())
    assert not step.next_KBD[..., 2].any()
