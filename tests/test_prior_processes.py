"""Synthetic processes: true values by a second route, termination at the wanted rate, geometry kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path

from icrl_gym.pretraining.prior import FAMILIES, continuous, grids, outcomes, tabular
from icrl_gym.pretraining.prior.continuous import ContinuousProcess
from icrl_gym.pretraining.prior.draws import Draws, make_generator
from icrl_gym.pretraining.prior.dynamics import Seeker
from icrl_gym.pretraining.prior.mechanics import Contact, Rotor, Stabilised
from icrl_gym.pretraining.prior.sensors import COLUMN_FIELDS, INDICATOR, NUM_CHANNELS, draw_sensors
from icrl_gym.pretraining.prior.streams import NO_LIMIT, drift_along, run_streams

NUM_TASKS = 6


def process_of(family: str, gamma: float = 0.9, seed: int = 11, num_tasks: int = NUM_TASKS):
    draws = Draws(make_generator("cpu", seed), num_tasks)
    layout = FAMILIES[family].draw_layout(np.random.default_rng(seed))
    discounts = torch.full((num_tasks,), gamma, dtype=torch.float64)
    return FAMILIES[family].draw_process(draws, layout, discounts), discounts, draws


def first_episode_returns(process, gamma: float, copies: int, steps: int, generator) -> np.ndarray:
    """Discounted logged rewards up to the first termination, (B, copies), by plain loops over time."""
    limits = torch.full((NUM_TASKS,), NO_LIMIT)
    streams = run_streams(process, limits, copies, steps, generator)
    rewards, stops = streams.rewards.double().numpy(), streams.terminated.numpy()
    returns, alive = np.zeros(rewards.shape[:2]), np.ones(rewards.shape[:2], dtype=bool)
    for t in range(steps):
        returns += alive * gamma**t * rewards[:, :, t]
        alive &= ~stops[:, :, t]
    return returns


@pytest.mark.parametrize("family", FAMILIES)
def test_true_values_are_the_mean_of_logged_returns(family, monkeypatch):
    """Mean value of starting states against returns of independent logs: |z| < 4.5 in 84 tests, false alarm 6e-4."""
    gamma, copies, steps = 0.9, 300, 90
    monkeypatch.setattr(continuous, "NEGLIGIBLE_WEIGHT", 1e-4)  # .9^90 < 1e-4
    process, discounts, draws = process_of(family, gamma)
    starts = process.start(copies, draws.generator)
    truth = process.true_values(starts, discounts, 2, draws.generator)
    values = ((truth.values + truth.values_second) / 2).double().numpy()
    returns = first_episode_returns(process, gamma, copies, steps, draws.generator)
    error = np.sqrt((values.var(axis=1) + returns.var(axis=1)) / copies)
    slack = 1e-3 * np.abs(values).max(axis=1) + 1e-6  # tails and float32
    assert np.all(np.abs(values.mean(axis=1) - returns.mean(axis=1)) < 4.5 * error + slack)


def test_the_tail_of_copies_that_are_still_alive_is_the_mean_value():
    """Reward 1 and a hazard of 1 % in every state: V = 1 / (1 - .99 * .99), whatever the horizon."""
    process, _, draws = process_of("oscillator", 0.99)
    same = {
        "weight_B1C": torch.tensor([1.0, 0, 0, 0, 0, 0]).expand(NUM_TASKS, 1, -1),
        "constant_BU1": torch.full_like(process.outcomes.constant_BU1, outcomes.NEVER),
        "hazard_B1": torch.full((NUM_TASKS, 1), 0.01),
        "steepness_B1": torch.zeros(NUM_TASKS, 1),
        "terminal_B1": torch.zeros(NUM_TASKS, 1),
    }
    process = replace(process, outcomes=replace(process.outcomes, **same))
    discounts = torch.full((NUM_TASKS,), 0.99, dtype=torch.float64)
    truth = process.true_values(process.start(3, draws.generator), discounts, 2, draws.generator)
    torch.testing.assert_close(truth.values, torch.full((NUM_TASKS, 3), 1 / (1 - 0.99 * 0.99)), rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.exact])
def test_exact_values_solve_the_bellman_equation_state_by_state(family):
    process, discounts, _ = process_of(family, 0.97)
    values = process.all_values(discounts).numpy()
    for task in range(NUM_TASKS):
        transition = process.transition_Bnn[task].double().numpy()
        reward, stop = process.reward_Bn[task].double().numpy(), process.stop_Bn[task].double().numpy()
        terminal = float(process.terminal_B1[task])
        for state in range(0, len(reward), 3):
            expected = sum(
                transition[state, to] * (reward[to] + stop[to] * terminal + 0.97 * (1 - stop[to]) * values[task, to])
                for to in range(len(reward))
            )
            assert values[task, state] == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.exact])
def test_rows_of_tables_are_distributions_and_sampling_follows_them(family):
    process, _, draws = process_of(family, num_tasks=2)
    np.testing.assert_allclose(process.transition_Bnn.sum(dim=-1), 1.0, atol=1e-5)
    state = process.start(1, draws.generator)
    arrived = process.step(state.expand(-1, 4000, -1), draws.generator).states.squeeze(-1)
    for task in range(2):
        expected = process.transition_Bnn[task, state[task, 0, 0]].double().numpy()
        share = np.bincount(arrived[task].numpy(), minlength=len(expected)) / 4000
        assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-6)


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if not family.exact])
def test_without_noise_one_rollout_is_the_truth_and_tasks_do_not_touch_each_other(family):
    process, discounts, draws = process_of(family, num_tasks=16)
    states = process.start(4, draws.generator)
    truth = process.true_values(states, discounts, 4, draws.generator)
    quiet = ~process.dynamics.is_random_B
    assert 0 < int(quiet.sum()) < 16
    assert torch.equal(truth.values[quiet], truth.values_second[quiet])
    assert bool((truth.stderr[quiet] == 0).all())
    chosen = quiet.nonzero().squeeze(-1)[:1]
    alone = process.select(chosen).true_values(states[chosen], discounts[chosen], 4, draws.generator)
    torch.testing.assert_close(alone.values, truth.values[chosen], rtol=1e-4, atol=1e-4)


def test_borders_are_crossed_as_often_as_wanted():
    """White-noise scores on fresh draws: the rate of first crossings is within a factor 1.6 of the one wanted."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([1 / 20, 1 / 60, 1 / 200, 1 / 600])
    threshold = outcomes._border(torch.randn(4, 24, 200, generator=generator), wanted)
    rate = (torch.randn(4, 200_000, generator=generator) > threshold.unsqueeze(-1)).double().mean(dim=1)
    assert bool(((rate / wanted).log().abs() < np.log(1.6)).all())


@pytest.mark.parametrize("family", ["vector_field", "oscillator", "stabilised", "rotor"])
def test_hazards_and_boxes_end_episodes_at_rates_between_rare_and_frequent(family):
    process, _, draws = process_of(family, 0.99, num_tasks=60)
    streams = run_streams(process, torch.full((60,), NO_LIMIT), 16, 250, draws.generator)
    rate = streams.terminated.double().mean(dim=(1, 2))
    end = process.outcomes.end_B
    assert not bool(rate[end == outcomes.NO_END].any())
    hazardous = rate[end == outcomes.HAZARDOUS]
    boxed = rate[(end == outcomes.BOX) | (end == outcomes.GOAL)]
    assert 1 / 3000 < float(hazardous.median()) < 1 / 20
    assert 1 / 3000 < float(boxed.median()) < 1 / 15


def test_outcomes_by_hand():
    """One feature z = 2: forms z^2, z^2, z - 1, z, 0, z - 5, never, 0; weights 1, -1, .5, 3, 2, 7."""
    linear, square = torch.zeros(1, 8, 1), torch.zeros(1, 8, 1)
    square[0, [outcomes.QUADRATIC, outcomes.DISTANCE], 0] = 1.0
    linear[0, [outcomes.REGION, outcomes.LINEAR, outcomes.BORDER], 0] = 1.0
    constant = torch.tensor([0.0, 0.0, -1.0, 0.0, 0.0, -5.0, outcomes.NEVER, 0.0]).view(1, 8, 1)
    one = torch.ones(1, 1)
    weight = torch.tensor([1.0, -1.0, 0.5, 3.0, 2.0, 7.0]).view(1, 1, 6)
    kind = torch.zeros(1, dtype=torch.int64)
    outcome = outcomes.Outcomes(linear, square, constant, weight, 0.1 * one, one, one, one, one > 2, kind, kind)
    rewards, stop = outcome(torch.tensor([[[2.0], [6.0]]]))
    torch.testing.assert_close(rewards, torch.tensor([[1.0 - 4 + 1 + 3 + 4, 1.0 - 36 + 3 + 3 + 12]]))
    torch.testing.assert_close(stop, torch.tensor([[0.1, 1.0]]))


def test_noise_on_rewards_has_the_stated_spread_and_side_and_no_mean():
    process, _, draws = process_of("loop", num_tasks=2)
    nothing = {"reward_Bn": torch.zeros_like(process.reward_Bn), "terminal_B1": torch.zeros(2, 1)}
    noise = {"noise_B1": torch.full((2, 1), 2.0), "effort_B1": torch.tensor([[False], [True]])}
    process = replace(process, **nothing, **noise)
    rewards = run_streams(process, torch.full((2,), NO_LIMIT), 100, 100, draws.generator).rewards.double().flatten(1)
    assert bool((rewards.mean(dim=1).abs() < 0.1).all())  # five standard errors
    assert bool(((rewards.std(dim=1) - 2).abs() < 0.2).all())
    assert float(rewards[0].max()) > 4
    assert float(rewards[1].max()) <= 2**0.5 + 1e-6


def test_time_limits_cut_and_resets_start_anew():
    process, _, draws = process_of("loop", num_tasks=2)
    process = type(process)(**{**vars(process), "stop_Bn": torch.zeros_like(process.stop_Bn)})
    streams = run_streams(process, torch.tensor([7, NO_LIMIT]), 3, 30, draws.generator)
    assert not bool(streams.terminated.any())
    expected = torch.zeros(30, dtype=torch.bool)
    expected[6::7] = True
    assert torch.equal(streams.truncated[0], expected.expand(3, -1))
    assert not bool(streams.truncated[1].any())
    starts = process.cumulative_start_B1n[0, 0].diff(prepend=torch.zeros(1)) > 1e-6
    assert bool(starts[streams.states[0, :, 7::7].flatten()].all())


def test_irrelevant_channels_run_on_inside_episodes_and_start_anew_after_them():
    ended = torch.zeros(1, 400, dtype=torch.bool)
    ended[0, 9::10] = True
    memory = torch.full((1, 3), 0.9)
    before, after = drift_along(ended, 3, memory, make_generator("cpu", 0))
    continues = ~ended[0, :-1]
    assert torch.equal(before[0, 1:][continues], after[0, :-1][continues])
    correlation = np.corrcoef(before[0].flatten(), after[0].flatten())[0, 1]
    assert correlation == pytest.approx(0.9, abs=0.05)
    resets = np.corrcoef(after[0, :-1][~continues].flatten(), before[0, 1:][~continues].flatten())[0, 1]
    assert abs(resets) < 0.45  # 117 pairs, 4.8 standard errors


def run_dynamics(kind, size: int, steps: int = 150, num_tasks: int = 30):
    draws = Draws(make_generator("cpu", 3), num_tasks)
    dynamics = kind.draw(draws, size)
    states = [dynamics.start(4, draws.generator)]
    for _ in range(steps):
        states.append(dynamics.advance(states[-1], draws.generator))
    return dynamics, torch.stack(states[1:], dim=2)


def test_angles_are_seen_on_the_circle():
    dynamics, states = run_dynamics(Rotor, 2)
    features = dynamics.features(states.flatten(1, 2))
    torch.testing.assert_close(
        features[..., :2].square() + features[..., 2:4].square(), torch.ones_like(features[..., :2])
    )
    assert float(states[..., :2].abs().max()) > 2 * np.pi  # some go round


def test_bodies_stay_between_their_walls_and_some_touch_them():
    dynamics, states = run_dynamics(Contact, 2)
    position = states[..., :2]
    ceiling = dynamics.ceiling_B1P.unsqueeze(1)
    assert bool(((position >= 0) & (position <= ceiling)).all())
    assert float((position == 0).double().mean()) > 0.02


def test_a_seekers_target_is_kept_and_shown_relative_to_its_position():
    dynamics, states = run_dynamics(Seeker, 2)
    assert bool((states[..., 4:] == states[:, :, :1, 4:]).all())
    features = dynamics.features(states.flatten(1, 2))
    torch.testing.assert_close(features[..., 4:] + features[..., :2], states.flatten(1, 2)[..., 4:])
    remaining = (states[..., 4:] - states[..., :2]).norm(dim=-1)
    assert float(remaining[:, :, -1].mean() / remaining[:, :, 0].mean()) < 0.5


def test_controllers_hold_most_unstable_tasks_but_not_all():
    _, states = run_dynamics(Stabilised, 1, steps=400)
    fallen = (states[..., 0].abs() >= Stabilised.REACH).any(dim=-1).double().mean()
    assert 0.05 < float(fallen) < 0.7


def test_grids_keep_out_of_walls_and_know_their_distances():
    draws = Draws(make_generator("cpu", 8), 5)
    width, height = 6, 5
    wall = draws.chance(0.25, 30)
    goal = torch.nn.functional.one_hot(torch.tensor([0, 7, 12, 22, 29]), 30).bool()
    wall &= ~goal
    targets = grids._targets(wall, width, height)
    distances = grids._distances(targets, goal, 30)
    for task in range(5):
        edges = [
            (a, b)
            for a in range(30)
            for b in range(30)
            if abs(a % width - b % width) + abs(a // width - b // width) == 1 and not wall[task, b]
        ]
        graph = csr_matrix((np.ones(len(edges)), tuple(zip(*edges, strict=True))), shape=(30, 30))
        expected = shortest_path(graph, unweighted=True)[:, goal[task].int().argmax()]
        np.testing.assert_array_equal(distances[task].numpy(), np.where(np.isinf(expected), grids.FAR, expected))


def test_grid_starts_reach_the_goal_and_walls_are_never_entered():
    draws = Draws(make_generator("cpu", 9), 40)
    skeleton = grids.grid(draws, 7, 6)
    torch.testing.assert_close(skeleton.start_Bn.sum(dim=-1), torch.ones(40))
    visited = tabular._occupancy(skeleton)
    assert bool((visited > 0).any(dim=0).all())  # every cell in some task
    ends = skeleton.end_Bn.sum(dim=-1) > 0
    assert 0.6 < float(ends.double().mean()) < 0.98
    integer = skeleton.coordinates_BnC
    assert torch.equal(integer, integer.round())
    assert integer.amax(dim=(0, 1)).tolist() == [6.0, 5.0]


def visited_features(num_features: int = 3):
    return torch.randn(8, 500, num_features, generator=torch.Generator().manual_seed(0))


def test_bins_of_a_feature_are_one_hot_and_about_equally_full():
    visited = visited_features()
    sensors = draw_sensors(Draws(make_generator("cpu", 0), 8), visited, num_extra=5, num_bins=5)
    zero = torch.zeros(8, 500, NUM_CHANNELS)
    seen = sensors(visited, zero, torch.zeros(8, 500, 8))
    for task in range(8):
        bins = seen[task][:, (sensors.bend_B1D[task, 0] == INDICATOR)]
        assert bins.shape[1] == 5
        assert bool((bins.sum(dim=-1) == 1).all())
        assert bool(((bins.mean(dim=0) - 0.2).abs() < 0.03).all())


def test_natural_columns_lose_nothing_in_most_tasks_and_distractors_carry_nothing():
    visited = visited_features()
    draws = Draws(make_generator("cpu", 1), 8)
    sensors = draw_sensors(draws, visited, num_extra=20, num_bins=0)
    channels = draws.normal(500, NUM_CHANNELS)
    seen = sensors(visited, channels, torch.zeros(8, 500, 23)).double()
    explained = []
    for task in range(8):
        design, wanted = np.column_stack([seen[task].numpy(), np.ones(500)]), visited[task].double().numpy()
        residual = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        explained.append(1 - residual.var() / wanted.var())
    assert sum(share > 0.95 for share in explained) >= 6
    again = sensors(visited, draws.normal(500, NUM_CHANNELS), torch.zeros(8, 500, 23)).double()
    changed = (again != seen).any(dim=1)
    assert 0.1 < float(changed.double().mean()) < 0.6  # the share of distractors
    constant = seen.std(dim=1) == 0
    assert 0.02 < float(constant.double().mean()) < 0.35
    assert len(COLUMN_FIELDS) == 9


def test_a_process_narrowed_to_some_tasks_is_the_same_process():
    process, _, draws = process_of("oscillator", num_tasks=5)
    assert isinstance(process, ContinuousProcess)
    states = process.start(3, draws.generator)
    index = torch.tensor([3, 1])
    narrowed = process.select(index)
    torch.testing.assert_close(narrowed.features(states[index]), process.features(states)[index])
    torch.testing.assert_close(narrowed.outcomes.weight_B1C, process.outcomes.weight_B1C[index])
    silent = torch.zeros_like(process.dynamics.noise.scale_B1S)
    assert process.dynamics.noise.select(index).scale_B1S.shape == silent[index].shape
