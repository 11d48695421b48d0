"""Training the spread head on solved examples, by a proper score of the 90 % interval.

Step i draws its batch from a generator seeded by (seed, i), so a run that resumes from a checkpoint goes on bit by bit
(on CPU).
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel

from icrl_gym.evaluator.spread_head import SpreadHead

Batch = dict[str, Tensor]
LEVEL = 0.9  # coverage of the interval that the spread head learns
WARM_UP = 0.05  # share of the steps
LAST_RATE = 0.02  # share of the largest learning rate that is left at the end
Z_LEVEL = 1.6448536269514722  # standard normal quantile at (1 + LEVEL) / 2


@dataclass(frozen=True)
class Schedule:
    """Numbers that say how the network is trained.

    Attributes:
        steps: largest number of steps.
        batch_size: tasks per step.
        learning_rate: AdamW's largest, after a linear warm-up over `WARM_UP` of the steps; a cosine brings it down.
        weight_decay: AdamW's.
        clip: largest gradient norm.
        ema: decay of the exponential moving average whose weights are validated and shipped.
        validate_every: steps from one validation to the next.
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
        network, optimizer, schedule, average: states of the weights, of AdamW, of its learning rate, and of the moving
            average of the weights.
        best: averaged weights with the lowest validation loss; best_loss, best_step: that loss and its step.
        stale: validations since then.
        history: (step, training loss, validation loss).
        seconds: wall time of the steps so far.
        commits: commits of the code that took them, in order.
    """

    step: int
    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    average: dict[str, Tensor]
    best: dict[str, Tensor]
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    history: list[tuple[int, float, float]] = field(default_factory=list)
    seconds: float = 0.0
    commits: list[str] = field(default_factory=list)


Objective = Callable[[nn.Module, Batch], Tensor]


def spread_objective(spread: nn.Module, batch: Batch) -> Tensor:
    """Pinball loss of |error| at `LEVEL`, in log units, with the truth's own noise added in quadrature."""
    log_BQ = spread(batch["statistics"], batch["query_statistics"])
    half_BQ = Z_LEVEL * torch.sqrt(torch.exp(2 * log_BQ) + batch["truth_stderr"].square())
    excess_BQ = torch.log(batch["error"].abs() + 1e-3) - torch.log(half_BQ + 1e-3)
    return torch.maximum(LEVEL * excess_BQ, (LEVEL - 1) * excess_BQ).mean()


def train(
    network: SpreadHead,
    objective: Objective,
    examples: Batch,
    validation: Batch,
    schedule: Schedule,
    *,
    seed: int,
    state: TrainingState | None = None,
    on_validation: Callable[[TrainingState], None] = lambda state: None,
    commit: str = "unknown",
) -> TrainingState:
    """Train to the end of the schedule or until validation stops improving; ``network`` ends with the best weights.

    Where torch.distributed has processes, each takes batches of its own and gradients are averaged over them.

    Args:
        network: what is trained, in place.
        objective: its loss on a batch.
        examples, validation: tensors by name, equal length along the first axis.
        schedule: step sizes and numbers.
        seed: seed of the batches.
        state: state to go on from; None to start.
        on_validation: called after each validation, to log and to checkpoint.
        commit: commit of this code, for the state.
    """
    trainer = _Trainer(network, objective, schedule)
    state = trainer.start(validation) if state is None else trainer.resume(state)
    while state.step < schedule.steps and state.stale < schedule.patience:
        started = time.perf_counter()
        last = min(state.step + schedule.validate_every - state.step % schedule.validate_every, schedule.steps)
        losses = [
            trainer.step(draw_batch(examples, schedule, network, seed * 1_000_003 + step))
            for step in range(state.step, last)
        ]
        trainer.validate(state, last, float(np.mean(losses)), validation)
        state.seconds += time.perf_counter() - started
        state.commits += [commit] if commit not in state.commits else []
        on_validation(state)
    network.load_state_dict(state.best)
    return state


def draw_batch(examples: Batch, schedule: Schedule, network: SpreadHead, seed: int) -> Batch:
    """Tasks drawn with replacement, a few of their statistics hidden."""
    size = len(examples["statistics"])
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(size, (min(schedule.batch_size, size),), generator=generator)
    batch = {name: tensor[index] for name, tensor in examples.items()}
    if schedule.dropout:
        statistics = batch["statistics"]
        hidden = (torch.rand(statistics.shape, generator=generator) < schedule.dropout).to(statistics.device)
        means_S = network.standardisation.get_buffer("mean_Z")[: statistics.shape[-1]]
        batch["statistics"] = torch.where(hidden, means_S, statistics)
    return batch


class _Loss(nn.Module):
    """A network with its loss as the forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network, self.objective = network, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective(self.network, batch)


class _Trainer:
    """A network with its optimiser, learning rate and moving average, all of whose states are kept together."""

    def __init__(self, network: SpreadHead, objective: Objective, schedule: Schedule) -> None:
        self.network, self.objective, self.schedule = network, objective, schedule
        loss = _Loss(network, objective)
        self.loss = DistributedDataParallel(loss) if torch.distributed.is_initialized() else loss
        self.optimizer = torch.optim.AdamW(
            network.parameters(), schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.rate = learning_rate(self.optimizer, schedule.steps)
        self.average = AveragedModel(network, avg_fn=_moving_average(schedule.ema))

    def start(self, validation: Batch) -> TrainingState:
        """The untrained network is a candidate as well."""
        with torch.no_grad():
            loss = float(self.objective(self.network, validation))
        return TrainingState(0, **self._states(), best=_copy(self.network), best_loss=loss)

    def resume(self, state: TrainingState) -> TrainingState:
        """Go on where a state was kept."""
        self.network.load_state_dict(state.network)
        self.optimizer.load_state_dict(copy.deepcopy(state.optimizer))
        self.rate.load_state_dict(copy.deepcopy(state.schedule))
        self.average.load_state_dict(state.average)
        return state

    def step(self, batch: Batch) -> float:
        """One step of AdamW; the loss before it."""
        with torch.autocast(batch["statistics"].device.type, torch.bfloat16, enabled=self.schedule.bf16):
            loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.schedule.clip)
        self.optimizer.step()
        self.rate.step()
        self.average.update_parameters(self.network)
        return float(loss.detach())

    def validate(self, state: TrainingState, step: int, training_loss: float, validation: Batch) -> None:
        """Write into ``state`` what the steps up to ``step`` led to."""
        with torch.no_grad():
            validation_loss = float(self.objective(self.average.module, validation))
        state.step = step
        state.history.append((step, training_loss, validation_loss))
        for name, content in self._states().items():
            setattr(state, name, content)
        state.stale += 1
        if validation_loss < state.best_loss:
            state.best_loss, state.best_step, state.stale = validation_loss, step, 0
            state.best = _copy(self.average.module)

    def _states(self) -> dict[str, Any]:
        return {
            "network": _copy(self.network),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": copy.deepcopy(self.rate.state_dict()),
            "average": _copy(self.average),
        }


def learning_rate(optimizer: torch.optim.Optimizer, num_steps: int) -> SequentialLR:
    """A linear warm-up, then a cosine."""
    (largest,) = {group["lr"] for group in optimizer.param_groups}
    warm_up = max(1, round(WARM_UP * num_steps))
    rising = LinearLR(optimizer, start_factor=1.0 / (warm_up + 1), total_iters=warm_up)
    falling = CosineAnnealingLR(optimizer, max(1, num_steps - warm_up), eta_min=LAST_RATE * largest)
    return SequentialLR(optimizer, [rising, falling], milestones=[warm_up])


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The rule of an exponential moving average whose decay grows to its value over the first steps."""

    def average(old: Tensor, new: Tensor, num_averaged: Tensor | int) -> Tensor:
        return old.lerp(new, 1.0 - min(decay, (int(num_averaged) + 1) / (int(num_averaged) + 11)))

    return average


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
