"""Training the gate and the spread head on solved examples.

Two stages with one loop: first the gate on the error of the mixed values, then the spread head on the frozen mixture,
by a proper score of the 90 % interval. Step i draws its batch from a generator seeded by (seed, i), so a run that
resumes from a checkpoint goes on bit by bit (on CPU).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icrl_gym.evaluator.error_bars import SpreadHead
from icrl_gym.evaluator.gate import Gate, Gates, Weighing, consensus, distance_from_safe, gated
from icrl_gym.evaluator.statistics import QueryFacts, query_statistics

Batch = dict[str, Tensor]
LEVEL = 0.9  # of the interval that the spread head learns
Z_LEVEL = 1.6448536269514722  # standard normal quantile at (1 + LEVEL) / 2


def log_rmse(error_BQ: Tensor, truth_BQ: Tensor, floor: float = 0.05) -> Tensor:
    """Mean over tasks of log(RMSE / std of the truth), floored softly: the figure that is reported."""
    spread_B = truth_BQ.var(dim=1, unbiased=False) + 1e-6
    return 0.5 * torch.log(error_BQ.square().mean(dim=1) / spread_B + floor**2).mean()


def relative_rmse(error_BQ: Tensor, truth_BQ: Tensor, floor: float = 0.05) -> Tensor:
    """Mean over tasks of RMSE / std of the truth, cut at 10."""
    spread_B = truth_BQ.var(dim=1, unbiased=False) + 1e-6
    return torch.sqrt(error_BQ.square().mean(dim=1) / spread_B + floor**2).clamp(max=10.0).mean()


def huber(error_BQ: Tensor, truth_BQ: Tensor, floor: float = 0.05) -> Tensor:
    """Huber loss per query, errors in standard deviations of the truth."""
    scale_B1 = truth_BQ.std(dim=1, unbiased=False, keepdim=True) + floor
    return nn.functional.smooth_l1_loss(error_BQ / scale_B1, torch.zeros_like(error_BQ))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "log_rmse": log_rmse,
    "relative_rmse": relative_rmse,
    "huber": huber,
}


@dataclass(frozen=True)
class Schedule:
    """How one network is trained.

    Attributes:
        steps: at most.
        batch_size: tasks per step.
        learning_rate: AdamW's, after a linear warm-up of 5 % and with a cosine decay to 2 %.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        ema: decay of the exponential moving average whose weights are validated and shipped.
        validate_every: steps.
        patience: validations without a better one before training stops.
        dropout: share of the statistics that are hidden (set to their mean) in training, so that no single one decides.
        bf16: whether matrix products are taken in bfloat16.
    """

    steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    ema: float = 0.99
    validate_every: int = 100
    patience: int = 10
    dropout: float = 0.1
    bf16: bool = False


@dataclass
class TrainingState:
    """All that a run needs to go on.

    Attributes:
        step: steps taken.
        network, optimizer, average: weights, AdamW's state, moving average of the weights.
        best: average with the lowest validation loss; best_loss, best_step: that loss and its step.
        stale: validations since then.
        history: (step, training loss, validation loss).
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)


Objective = Callable[[nn.Module, Batch], Tensor]


def gate_objective(loss: str, pull: float = 0.0, weigh: Weighing = consensus) -> Objective:
    """Error of the mixed values: every member's own while it learns, that of their mean when validated.

    Args:
        loss: a name of `LOSSES`.
        pull: weight of the squared distance from the safe mixture, which holds the adaptation near what is known to
            carry over to real systems.
        weigh: how shares become weights.
    """

    def objective(gate: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(gate, Gate)
        statistics = batch["statistics"]
        found = gate.by_member(statistics) if torch.is_grad_enabled() else [gate(statistics)]
        limits = gate.limits(statistics)
        return torch.stack([
            LOSSES[loss](gated(batch["values"], batch["imagined"], gates, weigh) - batch["truth"], batch["truth"])
            + pull * distance_from_safe(gates, limits)
            for gates in found
        ]).mean()  # fmt: skip

    return objective


def spread_objective(spread: nn.Module, batch: Batch) -> Tensor:
    """Pinball loss of |error| at `LEVEL`, in log units, with the truth's own noise added in quadrature."""
    log_BQ = spread(batch["statistics"], batch["query_statistics"])
    half_BQ = Z_LEVEL * torch.sqrt(torch.exp(2 * log_BQ) + batch["truth_stderr"].square())
    excess_BQ = torch.log(batch["error"].abs() + 1e-3) - torch.log(half_BQ + 1e-3)
    return torch.maximum(LEVEL * excess_BQ, (LEVEL - 1) * excess_BQ).mean()


def with_errors(batch: Batch, gate: Gate) -> Batch:
    """The batch with the frozen mixture's errors and the query statistics that go with it; all on the CPU."""
    with torch.no_grad():
        gates = gate(batch["statistics"])
        final_BQ = gated(batch["values"], batch["imagined"], gates)
    statistics = torch.as_tensor(_query_statistics(batch, gates, final_BQ))
    return {**batch, "error": final_BQ - batch["truth"], "query_statistics": statistics}


def _query_statistics(batch: Batch, gates: Gates, final_BQ: Tensor) -> np.ndarray:
    """(B, Q, T): `icrl_gym.evaluator.statistics.query_statistics` for a batch in units of the value scale."""
    num_heads = batch["values"].shape[1]
    rows = []
    for task in range(len(batch["truth"])):
        one = Gates(
            torch.eye(num_heads),
            gates.free_level_B[task].expand(num_heads),
            gates.pseudo_terminations_B[task].expand(num_heads),
            gates.trust_B[task].expand(num_heads),
            torch.zeros(num_heads),
        )
        repeated = batch["values"][task].expand(num_heads, *batch["values"][task].shape)
        by_head_HQ = gated(repeated, repeated, one).double().numpy()
        facts = QueryFacts(
            values_Q=batch["values"][task, 0, 0, 0].double().numpy(),
            mass_Q=batch["mass"][task].double().numpy(),
            constant=0.0,
            level_shift=float(batch["level_shift"][task]),
            scale=1.0,
        )
        rows.append(
            query_statistics(facts, by_head_HQ, gates.shares_BH[task].double().numpy(), final_BQ[task].double().numpy())
        )
    return np.stack(rows).astype(np.float32)


def train(
    network: Gate | SpreadHead,
    objective: Objective,
    examples: Batch,
    validation: Batch,
    schedule: Schedule,
    *,
    seed: int,
    state: TrainingState | None = None,
    on_validation: Callable[[TrainingState], None] = lambda state: None,
    average_gradients: Callable[[nn.Module], None] = lambda network: None,
) -> TrainingState:
    """Train to the end of the schedule or until validation stops improving; ``network`` ends with the best weights.

    Args:
        network: changed in place.
        objective: its loss on a batch.
        examples, validation: tensors by name, equal length along the first axis.
        schedule: how.
        seed: of the batches.
        state: where to go on; None to start.
        on_validation: called after each validation, to log and to checkpoint.
        average_gradients: called after each backward pass, to average over processes.
    """
    optimizer = torch.optim.AdamW(network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay)
    average = copy.deepcopy(network)
    if state is None:
        start = _copy(network)
        with torch.no_grad():  # the untrained network is a candidate as well
            state = TrainingState(0, start, optimizer.state_dict(), start, start, float(objective(network, validation)))
    else:
        network.load_state_dict(state.network)
        optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        average.load_state_dict(state.average)
    size = len(examples["truth"])
    losses: list[float] = []
    while state.step < schedule.steps and state.stale < schedule.patience:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
        index = torch.randint(size, (min(schedule.batch_size, size),), generator=generator)
        batch = {name: tensor[index] for name, tensor in examples.items()}
        if schedule.dropout:
            statistics = batch["statistics"]
            hidden = (torch.rand(statistics.shape, generator=generator) < schedule.dropout).to(statistics.device)
            batch["statistics"] = torch.where(hidden, _means(network, statistics), statistics)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _rate(state.step / schedule.steps)
        with torch.autocast(batch["truth"].device.type, torch.bfloat16, enabled=schedule.bf16):
            loss = objective(network, batch)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(network)
        nn.utils.clip_grad_norm_(network.parameters(), schedule.clip)
        optimizer.step()
        state.step += 1
        losses.append(float(loss.detach()))
        _move_average(average, network, min(schedule.ema, state.step / (state.step + 10)))
        if state.step % schedule.validate_every == 0 or state.step == schedule.steps:
            with torch.no_grad():
                validation_loss = float(objective(average, validation))
            state.history.append((state.step, float(np.mean(losses)), validation_loss))
            losses.clear()
            state.network, state.average = _copy(network), _copy(average)
            state.optimizer = copy.deepcopy(optimizer.state_dict())
            state.stale += 1
            if validation_loss < state.best_loss:
                state.best_loss, state.best_step, state.stale = validation_loss, state.step, 0
                state.best = state.average
            on_validation(state)
    network.load_state_dict(state.best)
    return state


def _means(network: Gate | SpreadHead, statistics: Tensor) -> Tensor:
    return network.standardisation.get_buffer("mean_S")[: statistics.shape[-1]]


def _rate(progress: float) -> float:
    return min(1.0, progress / 0.05 + 0.01) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def _move_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for old, new in zip(average.parameters(), network.parameters(), strict=True):
            old.lerp_(new, 1 - decay)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
