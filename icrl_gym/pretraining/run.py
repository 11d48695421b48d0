"""One run from an empty folder to a checkpoint: shards, gate, spread head, validation, card.

Below ``out``: ``examples.json`` (what the shards are), ``train/`` and ``validation/`` (shards), ``<key>/gate.pt`` and
``<key>/spread.pt`` (training states; ``key`` names everything that training depends on), ``tensorboard/<key>/``.
Every file is written under a temporary name and renamed, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.checkpoint import new_networks, save_checkpoint
from icrl_gym.evaluator.error_bars import SpreadHead
from icrl_gym.evaluator.gate import Gate
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.shards import Examples, as_tensors, load_shards, make_shard
from icrl_gym.pretraining.training import (
    LOSSES,
    Z_LEVEL,
    Batch,
    Objective,
    Schedule,
    TrainingState,
    gate_objective,
    spread_objective,
    train,
    with_errors,
)
from icrl_gym.runs import replacing, versions, write_json
from icrl_gym.tracking import check_writable, open_writer

Progress = Callable[[str, int, int], None]
STATE_VERSION = 1
WITHOUT_EFFECT = ("out", "checkpoint", "jobs", "device", "tensorboard")  # on the weights, up to rounding
LOOKS = 2  # of candidates at environments outside the selection set; docs/log.md lists them
LONGEST_WAIT = timedelta(days=2)  # of one process for the shards of the others


def pretrain(config: PretrainConfig, progress: Progress = lambda part, done, total: None) -> Path:
    """Do what is missing and return the checkpoint's path.

    Raises:
        ValueError: bad configuration, an unknown family, loss or device, a folder that holds other examples, or a
            damaged file in it.
        OSError: the folder or the checkpoint's cannot be written to.
    """
    _check(config)
    started = time.time()
    rank, world = _join_processes()
    _claim_folder(config)
    _make_shards(config, rank, world, progress)
    if world > 1:
        torch.distributed.barrier()
    training, validation = (_load_shards(config, part) for part in ("train", "validation"))
    model, states = fit(config, training, validation, progress, rank=rank, world=world)
    path = config.checkpoint or config.out / "generalist.safetensors"
    if rank == 0:
        report = describe(config, model, training, validation, states, time.time() - started)
        save_checkpoint(path, model, report)
    if world > 1:
        torch.distributed.destroy_process_group()
    return path


def fit(
    config: PretrainConfig,
    training: Examples,
    validation: Examples,
    progress: Progress = lambda part, done, total: None,
    *,
    rank: int = 0,
    world: int = 1,
) -> tuple[Generalist, dict[str, TrainingState]]:
    """Train both networks on solved examples; states are kept below ``config.out``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        gate, spread = new_networks(len(HEADS), config.width, config.members)
    gate.to(config.device)
    spread.to(config.device)
    kept = ~np.isin(training.family, [list(FAMILIES).index(name) for name in config.exclude])
    if not kept.any():
        raise ValueError(f"exclude: nothing to train on is left of {len(kept)} tasks without {list(config.exclude)}")
    batch, held_out = (_to(as_tensors(part), config.device) for part in (training.select(kept), validation))
    gate.standardisation.fit(batch["statistics"])
    schedule = Schedule(
        steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate, bf16=config.bf16
    )
    seed = config.seed * world + rank
    states = {}
    folder = config.out / _key(config)
    writer = open_writer(config.out / "tensorboard" / folder.name if config.tensorboard and rank == 0 else None)
    averaging = _average_gradients if world > 1 else (lambda network: None)
    with writer:

        def step(network: Gate | SpreadHead, name: str, objective: Any, examples: Batch, others: Batch) -> None:
            path = folder / f"{name}.pt"

            def on_validation(state: TrainingState) -> None:
                if rank == 0:
                    _save_state(path, state)
                    for tag, value in zip(("train", "validation"), state.history[-1][1:], strict=True):
                        writer.add_scalar(f"{name}/{tag}", value, state.step)
                    if isinstance(network, Gate):
                        for tag, value in mean_gates(network, others).items():
                            writer.add_scalar(f"{name}/{tag}", value, state.step)
                    for family, value in losses_by_family(network, objective, others, validation.family).items():
                        writer.add_scalar(f"{name}_loss/{family}", value, state.step)
                progress(f"training the {name}", state.step, schedule.steps)

            states[name] = train(
                network, objective, examples, others, schedule, seed=seed, state=_load_state(path),
                on_validation=on_validation, average_gradients=averaging,
            )  # fmt: skip
            progress(f"training the {name}", schedule.steps, schedule.steps)

        step(gate, "gate", gate_objective(config.loss, config.pull), batch, held_out)
        gate.cpu()
        batch, held_out = (_to(with_errors(_to(part, "cpu"), gate), config.device) for part in (batch, held_out))
        inputs = torch.cat([_repeated(batch), batch["query_statistics"]], dim=-1)
        spread.standardisation.fit(inputs.flatten(0, 1))
        step(spread, "spread", spread_objective, batch, held_out)
        model = Generalist(HEADS, gate.cpu().eval(), spread.cpu().eval())
        for family, row in by_family(model, validation).items():
            for name, value in row.items():
                if value is not None:
                    writer.add_scalar(f"{name}/{family}", value, states["gate"].step)
    return model, states


def by_family(model: Generalist, examples: Examples) -> dict[str, dict[str, float | None]]:
    """Per family, and over "all": tasks, error of the mixture and of its first head, their ratio, coverage.

    Errors are geometric means over tasks of RMSE / std; tasks whose values do not vary are left out.
    """
    batch = with_errors(as_tensors(examples), model.gate)
    truth_BQ = batch["truth"]
    with torch.no_grad():
        log_BQ = model.spread(batch["statistics"], batch["query_statistics"])
    half_BQ = Z_LEVEL * torch.sqrt(torch.exp(2 * log_BQ) + batch["truth_stderr"].square())
    covered_B = (batch["error"].abs() <= half_BQ).float().mean(dim=1).numpy()
    first_BQ = batch["values"][:, 0, 0, 0] - truth_BQ
    varies_B = values_vary(batch)
    mixed, constructed = (log_errors(error, truth_BQ) for error in (batch["error"], first_BQ))
    names = [*FAMILIES, "all"]
    rows = {}
    for number, name in enumerate(names):
        own = np.ones(len(examples), bool) if name == "all" else examples.family == number
        used = own & varies_B
        ours, theirs = (float(np.exp(log[used].mean())) if used.any() else None for log in (mixed, constructed))
        rows[name] = {
            "tasks": float(own.sum()),
            "error": ours,
            "constructed": theirs,
            "ratio": float(np.exp((mixed - constructed)[used].mean())) if used.any() else None,
            "worst_ratio": float(np.exp((mixed - constructed)[used].max())) if used.any() else None,
            "coverage": float(covered_B[own].mean()) if own.any() else None,
        }
    return rows


def log_errors(error_BQ: Tensor, truth_BQ: Tensor) -> np.ndarray:
    """log(RMSE / std of the truth) by task, (B,)."""
    std_B = truth_BQ.std(dim=1, unbiased=False).clamp(min=1e-9)
    return torch.log(error_BQ.square().mean(dim=1).sqrt() / std_B).numpy()


def values_vary(batch: Batch) -> np.ndarray:
    """Whether the true values spread by more than their noise, by task, (B,); if not, relative errors say nothing."""
    std_B = batch["truth"].std(dim=1, unbiased=False)
    noise_B = batch["truth_stderr"].square().mean(dim=1).sqrt()
    return ((std_B > 2 * noise_B) & (std_B > 1e-4)).numpy()


def mean_gates(gate: Gate, batch: Batch) -> dict[str, float]:
    """What the gate decides, on average over tasks: shares of the heads, level, pseudo-terminations, trust."""
    with torch.no_grad():
        gates = gate(batch["statistics"])
    shares = {f"share{head}": float(share) for head, share in enumerate(gates.shares_BH.mean(dim=0))}
    others = {
        "free_level": gates.free_level_B,
        "pseudo_terminations": gates.pseudo_terminations_B,
        "imagination": gates.imagination_B,
        "trust": gates.trust_B,
    }
    return shares | {name: float(tensor.mean()) for name, tensor in others.items()}


def losses_by_family(
    network: Gate | SpreadHead, objective: Objective, batch: Batch, family_B: np.ndarray
) -> dict[str, float]:
    """The validation loss of each family that has a task, by name."""
    losses = {}
    for number in np.unique(family_B):
        own = torch.as_tensor(np.flatnonzero(family_B == number), device=batch["truth"].device)
        with torch.no_grad():
            losses[list(FAMILIES)[number]] = float(objective(network, {name: x[own] for name, x in batch.items()}))
    return losses


def describe(
    config: PretrainConfig,
    model: Generalist,
    training: Examples,
    validation: Examples,
    states: Mapping[str, TrainingState],
    seconds: float,
) -> dict[str, Any]:
    """What the card says of the training; wall time is this call's, all of it only where it started from nothing."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "checkpoint", "jobs")}
    return {
        "settings": settings,
        "families": {name: family.weight for name, family in FAMILIES.items() if name not in config.exclude},
        "tasks": len(training),
        "validation_tasks": len(validation),
        "steps": {name: state.step for name, state in states.items()},
        "best_steps": {name: state.best_step for name, state in states.items()},
        "validation_loss": {name: state.best_loss for name, state in states.items()},
        "validation": by_family(model, validation),
        "seconds": round(seconds),
        "commit": versions()["commit"],
        "looks_outside_the_selection_set": LOOKS,
        "known_limits": [
            "An error bar stands for what the prior held; on an environment unlike it, coverage is not assured.",
            "With no or one termination in the context the level of the values is a guess.",
            "Contexts above 2,048 transitions were never trained on.",
        ],
    }


def _check(config: PretrainConfig) -> None:
    config.check()
    if config.loss not in LOSSES:
        raise ValueError(f"loss must be one of {sorted(LOSSES)}, got {config.loss!r}")
    unknown = sorted(set(config.exclude) - set(FAMILIES))
    if unknown or set(config.exclude) == set(FAMILIES):
        raise ValueError(f"exclude must name some, not all, of {', '.join(FAMILIES)}; got {list(config.exclude)}")
    try:
        torch.zeros(1, device=config.device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(f"device must be a torch device of this machine, got {config.device!r}: {reason}") from error
    check_writable(config.out, "out")
    if config.checkpoint is not None:
        check_writable(config.checkpoint.parent, "checkpoint")


def _claim_folder(config: PretrainConfig) -> None:
    """Shards are of these heads and this seed, or the folder is refused."""
    path = config.out / "examples.json"
    content = json.loads(json.dumps({"seed": config.seed, "heads": [asdict(head) for head in HEADS]}))
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else content
    except ValueError as error:
        raise ValueError(f"out: {path} is damaged ({error}); take another folder") from error
    if stored != content:
        raise ValueError(f"out: {config.out} holds examples of another seed or of other heads; take another folder")
    write_json(path, content)


def _paths(config: PretrainConfig, part: str) -> list[Path]:
    number = config.shards if part == "train" else config.validation_shards
    return [config.out / part / f"shard{index:05d}.npz" for index in range(number)]


def _load_shards(config: PretrainConfig, part: str) -> Examples:
    examples = load_shards(_paths(config, part))
    num_heads = examples.values.shape[1]
    if num_heads != len(HEADS):
        raise ValueError(f"out: {config.out / part} holds shards of {num_heads} heads, not {len(HEADS)}; take another")
    return examples


def _make_shards(config: PretrainConfig, rank: int, world: int, progress: Progress) -> None:
    """This process's share of the shards that are not there yet. Streams of a seed: 2 s trains, 2 s + 1 validates."""
    from joblib import Parallel, delayed

    parts = [(part, 2 * config.seed + (part == "validation")) for part in ("validation", "train")]
    calls = [
        delayed(_make_on_one_thread)(path, seed, index)
        for part, seed in parts
        for index, path in enumerate(_paths(config, part))
        if index % world == rank and not path.exists()
    ]
    for count, _ in enumerate(Parallel(n_jobs=config.jobs, return_as="generator_unordered")(calls), 1):
        progress("drawing and solving tasks", count, len(calls))


def _make_on_one_thread(path: Path, seed: int, index: int) -> None:
    with one_thread():
        make_shard(path, seed, index, HEADS)


@contextmanager
def one_thread():
    """Many small systems: threads only get in each other's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _key(config: PretrainConfig) -> str:
    settings = {name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT}
    content = json.dumps(settings, sort_keys=True)
    return f"training-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _save_state(path: Path, state: TrainingState) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        torch.save({"version": STATE_VERSION, **vars(state)}, unfinished)


def _load_state(path: Path) -> TrainingState | None:
    """The state of a run that was interrupted; tensors and numbers only, no code is unpickled."""
    if not path.exists():
        return None
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"out: the training state {path} is damaged; remove it to train again") from error
    if stored.pop("version", None) != STATE_VERSION:
        raise ValueError(f"out: {path} was written by another version; take another folder")
    return TrainingState(**stored)


def _repeated(batch: Batch) -> Tensor:
    return batch["statistics"][:, None, :].expand(-1, batch["truth"].shape[1], -1)


def _to(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _join_processes() -> tuple[int, int]:
    """Rank and number of processes, as torchrun sets them; (0, 1) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return int(os.environ.get("RANK", "0")), world


def _average_gradients(network: nn.Module) -> None:
    for parameter in network.parameters():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= torch.distributed.get_world_size()
