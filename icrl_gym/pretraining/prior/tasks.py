"""Batches of tasks: a context, on-policy queries from independent episodes, and their true values.

Shapes: B tasks, N context rows, M independent query streams of T steps, D columns, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.trajectory import Trajectory
from icrl_gym.pretraining.prior.draws import Draws, gather_rows, make_generator
from icrl_gym.pretraining.prior.families import FAMILIES, Layout
from icrl_gym.pretraining.prior.processes import Process, Truth
from icrl_gym.pretraining.prior.sensors import NUM_CHANNELS, Sensors, draw_sensors, plain_sensors
from icrl_gym.pretraining.prior.streams import NO_LIMIT, Streams, drift_along, run_streams

QUERY_STREAMS = 8
MAX_EPISODE = 1000  # longest time limit, and how far into an episode queries reach
MIN_EPISODE = 8
MAX_ROUND, MAX_ROUNDS = 64, 60  # tasks simulated together; attempts to fill a batch
FLAT_KEPT = 0.12  # share of the tasks without spread that are kept all the same: 1 to 5 % of a batch
LEAST_SPREAD = 0.005  # of mean |V|
LEAST_SIGNAL = 1.5  # in standard errors of the truth


@dataclass(frozen=True)
class TaskBatch:
    """B tasks of one family with equal N, D and Q; float32 unless said.

    Attributes:
        family: name of the family.
        observations: (B, N, D) what the evaluator sees at S_k.
        next_observations: (B, N, D) TRUE successors (the final observation at an end).
        rewards: (B, N).
        terminated, truncated: (B, N) bool, never both.
        gamma: (B,) float64.
        queries: (B, Q, D) observations of on-policy steps of independent episodes.
        values: (B, Q) truth.
        values_second: (B, Q) an independent second estimate of the truth, equal to ``values`` where that is exact:
            (v - values) * (v - values_second) is an unbiased squared error.
        stderr: (B, Q) standard error of (values + values_second) / 2; 0 where exact.
        standardise: False for one-hot columns, which are already scaled as the library's features are.
    """

    family: str
    observations: Tensor
    next_observations: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    gamma: Tensor
    queries: Tensor
    values: Tensor
    values_second: Tensor
    stderr: Tensor
    standardise: bool

    def __len__(self) -> int:
        return len(self.gamma)

    def trajectory(self, task: int) -> Trajectory:
        """The context of one task as a `Trajectory` (actions are zeros: the policy is folded into the process)."""
        rows = {name: getattr(self, name)[task].cpu().numpy() for name in _LOGGED}
        return Trajectory(actions=np.zeros(len(rows["rewards"])), env_id=f"prior/{self.family}", **rows)


_LOGGED = ("observations", "rewards", "next_observations", "terminated", "truncated")


def sample_tasks(
    family: str,
    *,
    num_tasks: int,
    num_transitions: int,
    num_queries: int,
    seed: int | Sequence[int],
    num_rollouts: int = 16,
    device: str | torch.device = "cpu",
) -> TaskBatch:
    """Draw a batch of tasks; the same arguments give the same bytes.

    Tasks whose values hardly vary over the queries (less than 0.5 % of their magnitude, or than 1.5 standard errors of
    the truth) are drawn again, except for a small share.

    Args:
        family: a name of `FAMILIES`.
        num_tasks: B.
        num_transitions: N, rows of each context.
        num_queries: Q.
        seed: one integer >= 0, or several.
        num_rollouts: copies per query where the truth is not exact; even.
        device: torch device of the simulation.

    Raises:
        ValueError: an unknown family, a count below its least value, or a negative seed.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    _check_counts(num_tasks=num_tasks, num_transitions=num_transitions, num_queries=num_queries)
    if num_rollouts < 2 or num_rollouts % 2:
        raise ValueError(f"num_rollouts must be even and at least 2, got {num_rollouts}")
    words = (*_seed_words(seed), list(FAMILIES).index(family))
    layout = FAMILIES[family].draw_layout(np.random.default_rng(words))
    parts, missing = [], num_tasks
    for attempt in range(MAX_ROUNDS + num_tasks // 8):
        draws = Draws(make_generator(device, *words, attempt), min(MAX_ROUND, missing + missing // 4 + 1))
        with torch.no_grad():
            batch = _simulate(family, layout, draws, num_transitions, num_queries, num_rollouts)
            kept = _worth_learning(batch, draws).nonzero().squeeze(-1)[:missing]
        parts.append(_select(batch, kept))
        missing -= len(kept)
        if not missing:
            return _join(parts)
    raise RuntimeError(f"sample_tasks: no {num_tasks} tasks of {family!r} with values that vary (seed {seed})")


def _seed_words(seed: int | Sequence[int]) -> tuple[int, ...]:
    words = (seed,) if isinstance(seed, (int, np.integer)) else tuple(seed)
    if not words or any(not isinstance(word, (int, np.integer)) or word < 0 for word in words):
        raise ValueError(f"seed must be an integer >= 0, or several, got {seed!r}")
    return tuple(int(word) for word in words)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {count!r}")


def draw_gamma(draws: Draws) -> Tensor:
    """Discounts in .8 to .999, (B,) float64: half of them .99, most others between .95 and .995."""
    kind_B = draws.choice((0.45, 0.33, 0.14, 0.08))
    table_KB = torch.stack(
        [
            draws.uniform(0.01, 0.01),
            draws.log_uniform(0.005, 0.05),
            draws.log_uniform(0.05, 0.2),
            draws.log_uniform(0.001, 0.005),
        ]
    )
    return 1.0 - (table_KB.gather(0, kind_B.unsqueeze(0)).squeeze(0).double() * 1e6).round() / 1e6


def draw_limits(draws: Draws, gamma: Tensor) -> Tensor:
    """Time limits: none, much shorter than 1 / (1 - gamma), or longer, (B,) int64."""
    horizon_B = 1 / (1 - gamma).float()
    kind_B = draws.choice((0.25, 0.25, 0.5))
    short_B, long_B = horizon_B * draws.uniform(0.1, 0.6), horizon_B * draws.log_uniform(1.0, 12.0)
    limits_B = torch.where(kind_B == 1, short_B, long_B).round().long().clamp(MIN_EPISODE, MAX_EPISODE)
    return torch.where(kind_B == 0, NO_LIMIT, limits_B)


def _simulate(
    family: str, layout: Layout, draws: Draws, num_transitions: int, num_queries: int, num_rollouts: int
) -> TaskBatch:
    gamma = draw_gamma(draws)
    limits = draw_limits(draws, gamma)
    process = FAMILIES[family].draw_process(draws, layout, gamma)
    context, others, windows = _run(process, draws, limits, num_transitions, num_queries)
    query_states = _draw_query_states(draws, others, windows, num_queries)
    truth = process.true_values(query_states, gamma, num_rollouts, draws.generator)
    sensors = _draw_sensors(draws, process, layout, context, others)
    observations, following = _observe_context(sensors, process, draws, context)
    return TaskBatch(
        family=family,
        observations=observations,
        next_observations=following,
        rewards=context.rewards.squeeze(1),
        terminated=context.terminated.squeeze(1),
        truncated=context.truncated.squeeze(1),
        gamma=gamma,
        queries=_observe_queries(sensors, process, draws, query_states),
        **{field.name: getattr(truth, field.name) for field in fields(Truth)},
        standardise=layout.standardise,
    )


def _run(
    process: Process, draws: Draws, limits: Tensor, num_transitions: int, num_queries: int
) -> tuple[Streams, Streams, Tensor]:
    """The context (one stream of N steps), the query streams, and how many steps of these count per task."""
    context = run_streams(process, limits, 1, num_transitions, draws.generator)
    windows_B = torch.where(limits == NO_LIMIT, num_transitions, limits.clamp(min=num_transitions))
    windows_B = torch.where(windows_B > MAX_EPISODE, num_transitions, windows_B)
    num_streams = max(QUERY_STREAMS, -(-num_queries // num_transitions))
    others = run_streams(process, limits, num_streams, int(windows_B.max()), draws.generator)
    return context, others, windows_B


def _draw_query_states(draws: Draws, streams: Streams, windows_B: Tensor, num_queries: int) -> Tensor:
    """Distinct steps of the query streams, each as likely, (B, Q, S)."""
    _, num_streams, num_steps, _ = streams.states.shape
    keys_BMT = draws.uniform(0.0, 1.0, num_streams, num_steps)
    counts_T = torch.arange(num_steps, device=keys_BMT.device)
    keys_BMT = keys_BMT.masked_fill(counts_T >= windows_B[:, None, None], -1.0)
    index_BQ = keys_BMT.flatten(1).topk(num_queries, dim=-1).indices
    return gather_rows(streams.states.flatten(1, 2), index_BQ)


def _draw_sensors(draws: Draws, process: Process, layout: Layout, context: Streams, others: Streams) -> Sensors:
    visited = torch.cat([context.states.flatten(1, 2), others.states.flatten(1, 2)], dim=1)
    visited_BPF = process.features(visited)
    if not layout.standardise:
        return plain_sensors(draws.num_tasks, visited_BPF.shape[-1], visited_BPF.device)
    return draw_sensors(draws, visited_BPF, layout.num_extra, layout.num_bins)


def _observe_context(sensors: Sensors, process: Process, draws: Draws, context: Streams) -> tuple[Tensor, Tensor]:
    """Observations of the states and at the successors of the context; inside an episode they are the same rows."""
    ended_BN = context.ended.squeeze(1)
    memory_BK = 1 - draws.log_uniform(0.01, 0.5, NUM_CHANNELS)
    before, after = drift_along(ended_BN, NUM_CHANNELS, memory_BK, draws.generator)
    num_columns = sensors.scale_B1D.shape[-1]
    noise_after, noise_fresh = (
        draws.normal(ended_BN.shape[1], num_columns),
        draws.normal(ended_BN.shape[1], num_columns),
    )
    following = sensors(process.features(context.next_states.squeeze(1)), after, noise_after)
    first = sensors(process.features(context.states.squeeze(1)), before, noise_fresh)
    continues_BN1 = torch.nn.functional.pad(~ended_BN[:, :-1], (1, 0)).unsqueeze(-1)
    previous = torch.cat([following[:, :1], following[:, :-1]], dim=1)
    return torch.where(continues_BN1, previous, first), following


def _observe_queries(sensors: Sensors, process: Process, draws: Draws, states: Tensor) -> Tensor:
    num_queries = states.shape[1]
    channels = draws.normal(num_queries, NUM_CHANNELS)
    return sensors(process.features(states), channels, draws.normal(num_queries, sensors.scale_B1D.shape[-1]))


def value_spread(batch: TaskBatch) -> Tensor:
    """Standard deviation of the true values over the queries with the noise of the truth removed, (B,)."""
    centred = [values - values.mean(dim=1, keepdim=True) for values in (batch.values, batch.values_second)]
    return (centred[0] * centred[1]).mean(dim=1).clamp(min=0).sqrt()


def _worth_learning(batch: TaskBatch, draws: Draws) -> Tensor:
    """Which tasks are kept, (B,) bool."""
    spread_B = value_spread(batch)
    noise_B, size_B = batch.stderr.square().mean(dim=1).sqrt(), batch.values.abs().mean(dim=1)
    varies_B = (spread_B > LEAST_SPREAD * size_B) & (spread_B > LEAST_SIGNAL * noise_B)
    finite_B = torch.isfinite(batch.values).all(dim=1) & torch.isfinite(batch.observations).flatten(1).all(dim=1)
    return finite_B & (size_B > 0) & (varies_B | draws.chance(FLAT_KEPT))


_TENSORS = tuple(field.name for field in fields(TaskBatch) if field.type == "Tensor")


def _select(batch: TaskBatch, index: Tensor) -> TaskBatch:
    return replace(batch, **{name: getattr(batch, name)[index] for name in _TENSORS})


def _join(parts: list[TaskBatch]) -> TaskBatch:
    return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in _TENSORS})
