"""Numbers that a simulator cuts off: found where transitions come to one extreme, kept out of the fit, and held."""

import gymnasium
import numpy as np
import pytest
import torch

import icrl_gym as icrl
from icrl_gym.evaluator.world.bounds import FEWEST_ARRIVALS, MOST_TOUCHING, Bounds

MOST_OFF = 1e-3  # standard deviations: of one step, contacts among them


def bouncing(count=600, wall=1.0, push=0.0, seed=0):
    """A position that noise pushes about and a wall cuts off, where its velocity becomes 0; states and successors."""
    generator, rows = np.random.default_rng(seed), []
    position, velocity = 0.0, 0.0
    for _ in range(count):
        before = (position, velocity)
        velocity = 0.9 * velocity + 0.05 * generator.normal() + push
        position += velocity
        if position > wall:
            position, velocity = wall, 0.0
        rows.append((before, (position, velocity)))
    states, successors = np.moveaxis(np.array(rows), 1, 0)
    return states, successors


def found(states, successors):
    return Bounds.of(states, successors, np.ones(len(states), bool))


def test_a_wall_and_what_it_does_to_the_velocity_are_found():
    states, successors = bouncing()
    bounds = found(states, successors)
    (wall,) = bounds.bounds
    assert (wall.feature, wall.sign, wall.value, wall.also) == (0, 1, 1.0, ((1, 0.0),))
    np.testing.assert_array_equal(bounds.touched_N, successors[:, 0] == 1.0)
    assert FEWEST_ARRIVALS <= bounds.touched_N.sum() < MOST_TOUCHING * len(states)
    (floor,) = found(-states, -successors).bounds
    assert (floor.feature, floor.sign, floor.value) == (0, -1, -1.0)


def test_successors_beyond_a_bound_are_held_there():
    held = found(*bouncing()).held(torch.tensor([[[0.5, 0.2], [1.0, 0.1], [1.3, 0.4], [-9.0, 0.3]]], dtype=float))
    np.testing.assert_array_equal(held[0], [[0.5, 0.2], [1.0, 0.0], [1.0, 0.0], [-9.0, 0.3]])


def test_what_is_no_bound():
    states, successors = bouncing(wall=np.inf)
    assert not found(states, successors).bounds  # nothing comes to the extreme twice
    angles = np.linspace(0.0, 40.0 * np.pi, 2001)
    turning = np.cos(angles)[:, None]
    assert (turning[1:] == 1.0).sum() > FEWEST_ARRIVALS
    assert not found(turning[:-1], turning[1:]).bounds  # it slows down before it turns round
    goals = np.repeat(np.random.default_rng(0).uniform(size=(4, 1)), 50, axis=0)
    assert not found(goals[:-1], goals[1:]).bounds  # few values: no real number
    bounds = found(*bouncing(push=0.01))
    assert not bounds.bounds  # it is at the wall most of the time
    assert not bounds.touched_N.any()


def rocking(observation):
    """A policy of MountainCar that swings up by pushing where the car goes."""
    return np.where(np.asarray(observation)[..., 1] >= 0.0, 2, 0)


@pytest.mark.filterwarnings("ignore")
def test_a_car_that_hits_its_wall_is_followed_as_if_there_were_none():
    """One contact in the log had spoilt the function that is exact elsewhere, and with it every walk."""
    log = icrl.collect("MountainCar-v0", rocking, num_transitions=1200, seed=0)
    evaluator = icrl.InContextEvaluator.from_pretrained().fit(log, 0.99, policy=rocking)
    world = evaluator.compiled_.walker.world
    assert [bound.feature for bound in world.bounds.bounds] == [0]
    assert world.bounds.bounds[0].also[0][0] == 1
    states = torch.as_tensor(evaluator.prompt_.source_features).expand(4, -1, -1)
    actions = evaluator.compiled_.walker.action_features(log.actions)
    step = world.advance(states, torch.as_tensor(actions, dtype=torch.float64).expand(4, -1, -1))
    successors = evaluator.prompt_.feature_map(log.next_observations)
    went_on = evaluator.prompt_.discounts > 0
    assert np.abs(step.next_KBD.numpy() - successors)[:, went_on].max() < MOST_OFF
    truth = icrl.monte_carlo_values(
        gymnasium.make("MountainCar-v0"), rocking, num_queries=40, num_rollouts=2, gamma=0.99, seed=5
    )
    assert icrl.score(evaluator.predict(truth.observations), truth).rmse_over_std < 0.1
