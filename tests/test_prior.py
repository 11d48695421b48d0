"""Batches of synthetic tasks: reproducible, well formed, with queries and truths that mean what they say."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from icrl_gym.pretraining.prior import FAMILIES, TaskBatch, continuous, sample_tasks
from icrl_gym.pretraining.prior import tasks as tasks_module
from icrl_gym.pretraining.prior.draws import Draws, make_generator
from icrl_gym.pretraining.prior.streams import NO_LIMIT, Streams
from icrl_gym.pretraining.prior.tasks import draw_gamma, draw_limits, value_spread

NUM_TASKS, NUM_TRANSITIONS, NUM_QUERIES, NUM_ROLLOUTS = 10, 80, 8, 4
TENSORS = [field.name for field in fields(TaskBatch) if field.name not in ("family", "standardise")]


def draw(family: str, seed: int = 3, **changes) -> TaskBatch:
    counts = {
        "num_tasks": NUM_TASKS,
        "num_transitions": NUM_TRANSITIONS,
        "num_queries": NUM_QUERIES,
        "num_rollouts": NUM_ROLLOUTS,
    }
    with quickly():
        return sample_tasks(family, seed=seed, **counts | changes)


@contextmanager
def quickly() -> Iterator[None]:
    """Shorter rollouts and episodes, where a test is not about them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(continuous, "NEGLIGIBLE_WEIGHT", 0.3)
        patch.setattr(tasks_module, "MAX_EPISODE", 80)
        yield


@pytest.fixture(scope="module")
def batches() -> dict[str, TaskBatch]:
    return {family: draw(family) for family in FAMILIES}


def same_bytes(first: TaskBatch, second: TaskBatch) -> bool:
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in TENSORS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_arguments_give_the_same_bytes(family, batches):
    torch.manual_seed(0)  # the global generator has no part in it
    assert same_bytes(batches[family], draw(family))


def test_another_seed_or_family_gives_other_tasks():
    small = {"num_tasks": 2, "num_transitions": 16, "num_queries": 4}
    first, second = draw("loop", **small), draw("loop", seed=4, **small)
    assert not torch.equal(first.rewards, second.rewards)
    assert not torch.equal(first.gamma, draw("queue", **small).gamma)


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_types_and_ranges(family, batches):
    batch = batches[family]
    columns = batch.queries.shape[-1]
    assert len(batch) == NUM_TASKS
    assert 1 <= columns <= 64
    assert batch.observations.shape == batch.next_observations.shape == (NUM_TASKS, NUM_TRANSITIONS, columns)
    assert batch.rewards.shape == batch.terminated.shape == batch.truncated.shape == (NUM_TASKS, NUM_TRANSITIONS)
    assert batch.queries.shape == (NUM_TASKS, NUM_QUERIES, columns)
    assert batch.values.shape == batch.values_second.shape == batch.stderr.shape == (NUM_TASKS, NUM_QUERIES)
    assert batch.gamma.dtype == torch.float64
    assert batch.terminated.dtype == batch.truncated.dtype == torch.bool
    assert all(getattr(batch, name).dtype == torch.float32 for name in ("observations", "rewards", "queries", "values"))
    assert all(bool(torch.isfinite(getattr(batch, name).double()).all()) for name in TENSORS)
    assert bool((batch.stderr >= 0).all())
    assert not bool((batch.terminated & batch.truncated).any())
    assert not any(getattr(batch, name).requires_grad for name in TENSORS)


@pytest.mark.parametrize("family", FAMILIES)
def test_episode_ends_are_those_that_a_trajectory_finds_by_itself(family, batches):
    batch = batches[family]
    for task in range(NUM_TASKS):
        expected = (batch.terminated | batch.truncated)[task].numpy().copy()
        expected[-1] = True
        np.testing.assert_array_equal(batch.trajectory(task).episode_ends, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_inside_an_episode_the_successor_is_the_next_row_and_across_a_reset_it_is_not(family, batches):
    batch = batches[family]
    ended = (batch.terminated | batch.truncated)[:, :-1]
    equal = (batch.next_observations[:, :-1] == batch.observations[:, 1:]).all(dim=-1)
    assert bool(equal[~ended].all())
    assert float(equal[ended].double().mean()) < 0.2  # a reset may lead to where the episode ended
    stayed = (batch.observations[:, 0] == batch.next_observations[:, 0]).all(dim=-1)
    assert float(stayed.double().mean()) < 0.8  # the first row is no copy of its successor


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.exact])
def test_exact_truths_are_equal_twice_and_carry_no_error(family, batches):
    batch = batches[family]
    assert torch.equal(batch.values, batch.values_second)
    assert not bool(batch.stderr.any())


def test_the_two_truths_differ_by_what_the_standard_error_says(batches):
    """Difference of the halves over its standard error, pooled over all tasks."""
    squares = []
    for batch in batches.values():
        noisy = batch.stderr > 1e-4 * batch.values.abs().clamp(min=1e-3)
        squares.append(((batch.values - batch.values_second) / (2 * batch.stderr.clamp(min=1e-12)))[noisy].square())
    pooled = torch.cat(squares)
    assert len(pooled) > 200
    # Means of two of four equal draws: given the spread of the four, the square is 1 on average whatever their law.
    assert 0.75 < float(pooled.mean()) < 1.3


def nearest_distance(points_BQS: Tensor, context_BNS: Tensor) -> Tensor:
    """Median over the points of the distance to the nearest row, in spreads of the context, (B,)."""
    spread_B1S = context_BNS.std(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cdist(points_BQS / spread_B1S, context_BNS / spread_B1S).amin(dim=-1).median(dim=-1).values


@pytest.mark.parametrize("family", ["vector_field", "stabilised", "rotor", "contact"])
def test_queries_lie_as_near_the_context_as_an_independent_stream_of_the_same_process(family):
    draws = Draws(make_generator("cpu", 5), 24)
    gamma = draw_gamma(draws)
    limits = torch.full((24,), 60)
    process = FAMILIES[family].draw_process(draws, FAMILIES[family].draw_layout(np.random.default_rng(5)), gamma)
    context, others, windows = tasks_module._run(process, draws, limits, 180, 48)
    queries = tasks_module._draw_query_states(draws, others, windows, 48)
    independent = tasks_module._run(process, draws, limits, 180, 48)[0].states.squeeze(1)
    visited = context.states.squeeze(1)
    ratio = nearest_distance(queries, visited).clamp(min=1e-3) / nearest_distance(independent, visited).clamp(min=1e-3)
    assert 0.75 < float(ratio.log().mean().exp()) < 1.33
    wider = queries + visited.std(dim=1, keepdim=True) * draws.normal(*queries.shape[1:])
    too_far = nearest_distance(wider, visited) / nearest_distance(independent, visited).clamp(min=1e-3)
    assert float(too_far.log().mean().exp()) > 1.5


def test_queries_reach_to_the_end_of_long_episodes_and_no_further_than_the_context_without_limit():
    draws = Draws(make_generator("cpu", 5), 4)
    gamma = torch.full((4,), 0.99, dtype=torch.float64)
    process = FAMILIES["loop"].draw_process(draws, FAMILIES["loop"].draw_layout(np.random.default_rng(5)), gamma)
    limits = torch.tensor([NO_LIMIT, 30, 100, 250])
    context, others, windows = tasks_module._run(process, draws, limits, 100, 16)
    assert windows.tolist() == [100, 100, 100, 250]
    assert context.rewards.shape == (4, 1, 100)
    assert others.rewards.shape == (4, 8, 250)


def test_query_steps_are_distinct_uniform_and_inside_the_window():
    num_tasks, num_streams, num_steps = 400, 2, 10
    steps = torch.arange(num_streams * num_steps).view(1, num_streams, num_steps, 1).expand(num_tasks, -1, -1, -1)
    nothing = torch.empty(0)
    streams = Streams(steps, nothing, nothing, nothing, nothing)
    windows = torch.full((num_tasks,), 5)
    drawn = tasks_module._draw_query_states(Draws(make_generator("cpu", 0), num_tasks), streams, windows, 4).squeeze(-1)
    assert all(len(set(row.tolist())) == 4 for row in drawn)
    counts = torch.bincount(drawn.flatten(), minlength=20).double()
    inside = torch.tensor([0, 1, 2, 3, 4, 10, 11, 12, 13, 14])
    assert int(counts.sum()) == int(counts[inside].sum()) == num_tasks * 4
    assert bool(((counts[inside] - 160).abs() < 5 * 160**0.5).all())  # 5 standard errors, ten counts


def test_discounts_have_the_stated_shares():
    gamma = draw_gamma(Draws(make_generator("cpu", 1), 20_000))
    assert float(gamma.min()) >= 0.8
    assert float(gamma.max()) <= 0.999
    assert float((gamma == 0.99).double().mean()) == pytest.approx(0.45, abs=0.02)
    assert float(((gamma >= 0.95) & (gamma <= 0.995)).double().mean()) == pytest.approx(0.78, abs=0.02)
    assert float((gamma > 0.995).double().mean()) == pytest.approx(0.08, abs=0.01)


def test_time_limits_are_absent_short_or_long():
    draws = Draws(make_generator("cpu", 2), 20_000)
    gamma = draw_gamma(draws)
    limits, horizon = draw_limits(draws, gamma), 1 / (1 - gamma)
    assert float((limits == NO_LIMIT).double().mean()) == pytest.approx(0.25, abs=0.02)
    finite = limits < NO_LIMIT
    assert int(limits[finite].min()) == 8
    assert int(limits[finite].max()) == 1000
    assert 0.15 < float((limits < 0.6 * horizon).double().mean()) < 0.35
    assert 0.3 < float((finite & (limits > 1.2 * horizon)).double().mean()) < 0.6


def test_over_the_table_terminations_run_from_none_to_frequent(batches):
    per_task = torch.cat([batch.terminated.double().mean(dim=1) for batch in batches.values()])
    assert 0.2 < float((per_task == 0).double().mean()) < 0.6
    assert float((per_task > 1 / 20).double().mean()) > 0.05
    assert float((per_task > 1 / 3).double().mean()) < 0.05
    lone = torch.cat([batch.terminated.sum(dim=1) == 1 for batch in batches.values()])
    assert float(lone.double().mean()) > 0.04


def test_over_the_table_prompts_hold_one_or_many_episodes(batches):
    ends = torch.cat([(batch.terminated | batch.truncated).sum(dim=1) for batch in batches.values()])
    assert float((ends == 0).double().mean()) > 0.05
    assert float((ends >= 5).double().mean()) > 0.1


def test_hardly_any_task_has_values_without_spread(batches):
    flat = []
    for batch in batches.values():
        spread, size = value_spread(batch), batch.values.abs().mean(dim=1)
        flat.append((spread <= 0.005 * size) | (spread <= 1.5 * batch.stderr.square().mean(dim=1).sqrt()))
    share = float(torch.cat(flat).double().mean())
    assert 0.0 < share < 0.08  # 140 tasks with about 3 %


def test_tasks_without_spread_are_dropped_but_for_a_share(batches):
    batch = batches["loop"]
    flat = TaskBatch(**{**vars(batch), "values": torch.ones(10, 8), "values_second": torch.ones(10, 8)})
    draws = Draws(make_generator("cpu", 0), 10)
    kept = torch.stack([tasks_module._worth_learning(flat, draws) for _ in range(200)]).double().mean()
    assert float(kept) == pytest.approx(0.12, abs=0.03)
    assert bool(tasks_module._worth_learning(batch, draws).double().mean() > 0.8)
    nothing = TaskBatch(**{**vars(flat), "values": torch.zeros(10, 8), "values_second": torch.zeros(10, 8)})
    assert not any(bool(tasks_module._worth_learning(nothing, draws).any()) for _ in range(20))


def test_the_spread_of_values_is_free_of_the_noise_of_the_truth():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, 20_000, generator=generator)
    noise = 3.0 * torch.randn(2, 1, 20_000, generator=generator)
    batch = draw("loop", num_tasks=1, num_transitions=8, num_queries=2)
    batch = TaskBatch(**{**vars(batch), "values": values + noise[0], "values_second": values + noise[1]})
    assert float(value_spread(batch)) == pytest.approx(1.0, abs=0.12)  # four standard errors


def test_one_hot_columns_are_scaled_already_and_others_are_not_one_hot():
    seen = set()
    for seed in range(12):
        batch = draw("loop", seed=seed, num_tasks=2, num_transitions=24, num_queries=4)
        seen.add(batch.standardise)
        if not batch.standardise:
            ordered = batch.observations.sort(dim=-1).values
            assert bool((ordered[..., -1] == 4.0).all())
            assert not bool(ordered[..., :-1].any())
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "cartpole"}, "family must be one of vector_field"),
        ({"num_tasks": 0}, "num_tasks must be an integer of at least 1, got 0"),
        ({"num_queries": 2.5}, "num_queries must be an integer of at least 1, got 2.5"),
        ({"num_rollouts": 3}, "num_rollouts must be even and at least 2, got 3"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    arguments = {"family": "loop", "seed": 0} | changes
    with pytest.raises(ValueError, match=message):
        draw(arguments.pop("family"), **arguments)


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_pictures_and_the_document_are_drawn_whole(tmp_path, monkeypatch):
    script = load_script("draw_prior")
    monkeypatch.setattr(script, "FAMILIES", {name: FAMILIES[name] for name in ("loop", "chain")})
    threads = torch.get_num_threads()
    config = script.Config(
        num_batches=2, num_tasks=3, num_transitions=20, num_queries=4, folder=tmp_path, num_threads=threads
    )
    with quickly():
        script.main(config)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert written == ["prior.md", "prior/chain.png", "prior/loop.png"]
    lines = (tmp_path / "prior.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert [line.split("]")[0] for line in table[2:]] == ["| [loop", "| [chain"]


def test_the_benchmark_prints_a_rate_per_family_and_one_of_the_mixture(capsys):
    script = load_script("benchmark_prior")
    counts = {"num_tasks": 2, "num_transitions": 16, "num_queries": 4, "num_threads": torch.get_num_threads()}
    config = script.Config(families=("loop", "queue"), **counts)
    with quickly():
        script.main(config)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["loop", "queue", "mixture"]
    assert all(float(line.split()[1]) > 0 for line in lines)
