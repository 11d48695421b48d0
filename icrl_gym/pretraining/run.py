"""One run from an empty folder to a checkpoint: shards, spread head, validation, card.

Below ``out``: ``examples.json`` (what the shards are), ``train/`` and ``validation/`` (shards), ``<key>/spread.pt``
(training state; ``key`` names everything that training depends on), ``tensorboard/<key>/``.
Every file is written under a temporary name and renamed, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.checkpoint import save_checkpoint
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead, joined
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.shards import Examples, ShardPlan, as_tensors, load_shards, make_shard
from icrl_gym.pretraining.training import Batch, Schedule, TrainingState, spread_objective, train
from icrl_gym.pretraining.validation import by_family, losses_by_family
from icrl_gym.runs import Progress, replacing, versions, write_json
from icrl_gym.tracking import ScalarWriter, check_writable, open_writer

STATE_VERSION = 4  # version of the training states
SHARDS_VERSION = 5  # version of the shards and of what says what they are
WITHOUT_EFFECT = ("out", "checkpoint", "jobs", "device", "tensorboard")  # on the weights, but for rounding
LOOKS = 14  # looks of candidates at environments outside the selection set; docs/log.md lists them
STATE = "spread.pt"
TRAINING = "training the error bars"  # what progress is told
LONGEST_WAIT = timedelta(days=2)  # how long a process waits for the shards of the others


def pretrain(config: PretrainConfig, progress: Progress = lambda part, done, total: None) -> Path:
    """Do what is missing and return the checkpoint's path.

    Raises:
        ValueError: bad configuration, an unknown family or device, a folder that holds other examples, or a
            damaged file in it.
        OSError: the folder or the checkpoint's cannot be written to.
    """
    _check(config)
    rank, world = _join_processes()
    plan = _plan_of(config)
    _claim_folder(config.out, config.seed, plan)
    _make_shards(config, plan, rank, world, progress)
    if world > 1:
        torch.distributed.barrier()
    training, validation = (_load_shards(_paths(config, part), plan) for part in ("train", "validation"))
    spread, state = fit(config, training, validation, progress, rank=rank, world=world)
    path = config.checkpoint or config.out / "generalist.safetensors"
    if rank == 0:
        report = describe(config, spread, training, validation, state)
        save_checkpoint(path, Generalist(plan.heads, spread), report)
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
) -> tuple[SpreadHead, TrainingState]:
    """Train the spread head on solved examples; its state is kept below ``config.out``."""
    kept = ~np.isin(training.family, [list(FAMILIES).index(name) for name in config.exclude])
    if not kept.any():
        raise ValueError(f"exclude: nothing to train on is left of {len(kept)} tasks without {list(config.exclude)}")
    examples, held_out = (_to(as_tensors(part), config.device) for part in (training.select(kept), validation))
    spread = _untrained(config)
    spread.standardisation.fit(joined(examples["statistics"], examples["query_statistics"]).flatten(0, 1))
    schedule = Schedule(
        steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate, bf16=config.bf16
    )
    folder = config.out / _key(config)
    with open_writer(config.out / "tensorboard" / folder.name if config.tensorboard and rank == 0 else None) as writer:

        def on_validation(state: TrainingState) -> None:
            if rank == 0:
                _save_state(folder / STATE, state)
                _show(writer, spread, held_out, validation.family, state)
            progress(TRAINING, state.step, schedule.steps)

        state = train(
            spread, spread_objective, examples, held_out, schedule, seed=config.seed * world + rank,
            state=_load_state(folder / STATE), on_validation=on_validation, commit=versions()["commit"] or "unknown",
        )  # fmt: skip
        progress(TRAINING, schedule.steps, schedule.steps)
        spread = spread.cpu().eval()
        _write_rows(writer, by_family(spread, validation), state.step)
    return spread, state


def _untrained(config: PretrainConfig) -> SpreadHead:
    """The network with the initial weights of the seed, on the configured device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return SpreadHead(config.width).to(config.device)


def _show(
    writer: ScalarWriter, spread: SpreadHead, validation: Batch, family_B: np.ndarray, state: TrainingState
) -> None:
    """Losses, by family too, as scalars."""
    _, training_loss, validation_loss = state.history[-1]
    losses = losses_by_family(spread, spread_objective, validation, family_B)
    scalars = {"spread/train": training_loss, "spread/validation": validation_loss}
    for tag, value in (scalars | {f"spread_loss/{family}": loss for family, loss in losses.items()}).items():
        writer.add_scalar(tag, value, state.step)


def _write_rows(writer: ScalarWriter, rows: Mapping[str, Mapping[str, float | None]], step: int) -> None:
    """The validation table as scalars, a tag for each figure and family."""
    for family, row in rows.items():
        for name, value in row.items():
            if value is not None:
                writer.add_scalar(f"{name}/{family}", value, step)


def describe(
    config: PretrainConfig,
    spread: SpreadHead,
    training: Examples,
    validation: Examples,
    state: TrainingState,
) -> dict[str, Any]:
    """The training as the card tells it: commit and wall time are those of the steps, not of this call."""
    settings = {name: value for name, value in asdict(config).items() if name not in ("out", "checkpoint", "jobs")}
    return {
        "settings": settings,
        "families": {name: family.weight for name, family in FAMILIES.items() if name not in config.exclude},
        "tasks": len(training),
        "validation_tasks": len(validation),
        "steps": state.step,
        "best_step": state.best_step,
        "validation_loss": state.best_loss,
        "validation": by_family(spread, validation),
        "seconds": round(state.seconds),
        "commit": " then ".join(state.commits),
        "looks_outside_the_selection_set": LOOKS,
        "known_limits": [
            "An error bar stands for what the prior held; on an environment unlike it, coverage is not assured.",
            "With no or one termination in the context the level of the values is a guess.",
            "Contexts above 8,192 transitions were never trained on.",
        ],
    }


def _check(config: PretrainConfig) -> None:
    config.check()
    unknown = sorted(set(config.exclude) - set(FAMILIES))
    if max(config.heads, default=0) >= len(HEADS):
        raise ValueError(f"heads must be numbers below {len(HEADS)}, got {config.heads!r}")
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


def heads_of(config: PretrainConfig) -> tuple[Setting, ...]:
    """The settings of the mixture's heads."""
    return tuple(HEADS[number] for number in config.heads) or HEADS


def _plan_of(config: PretrainConfig) -> ShardPlan:
    return ShardPlan(heads_of(config), config.lengths, config.num_queries, config.tasks_per_shard)


def _claim_folder(folder: Path, seed: int, plan: ShardPlan) -> None:
    """Shards are of this seed and plan, or the folder is refused."""
    path = folder / "examples.json"
    content = json.loads(json.dumps({"version": SHARDS_VERSION, "seed": seed, **asdict(plan)}))
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else content
    except (TypeError, ValueError) as error:
        raise ValueError(f"out: {path} is damaged ({error}); take another folder") from error
    if stored.get("version") != SHARDS_VERSION:
        version = stored.get("version", 1)
        raise ValueError(f"out: {folder} holds shards of version {version}, not {SHARDS_VERSION}; take another folder")
    if changed := sorted(name for name in content if stored.get(name) != content[name]):
        raise ValueError(f"out: {folder} holds examples of another choice of {', '.join(changed)}; take another folder")
    write_json(path, content)


def _paths(config: PretrainConfig, part: str) -> list[Path]:
    number = config.shards if part == "train" else config.validation_shards
    return [config.out / part / f"shard{index:05d}.npz" for index in range(number)]


def _load_shards(paths: Sequence[Path], plan: ShardPlan) -> Examples:
    examples = load_shards(paths)
    num_heads = examples.values.shape[1]
    if num_heads != len(plan.heads):
        raise ValueError(
            f"out: {paths[0].parent} holds shards of {num_heads} heads, not {len(plan.heads)}; take another folder"
        )
    return examples


def _make_shards(config: PretrainConfig, plan: ShardPlan, rank: int, world: int, progress: Progress) -> None:
    """This process's share of the shards that are not there yet. Streams of a seed: 2 s trains, 2 s + 1 validates."""
    from joblib import Parallel, delayed

    parts = [(part, 2 * config.seed + (part == "validation")) for part in ("validation", "train")]
    calls = [
        delayed(_make_on_one_thread)(path, seed, index, plan)
        for part, seed in parts
        for index, path in enumerate(_paths(config, part))
        if index % world == rank and not path.exists()
    ]
    for count, _ in enumerate(Parallel(n_jobs=config.jobs, return_as="generator_unordered")(calls), 1):
        progress("drawing and solving tasks", count, len(calls))


def _make_on_one_thread(path: Path, seed: int, index: int, plan: ShardPlan) -> None:
    with one_thread():
        make_shard(path, seed, index, plan)


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
        raise ValueError(f"out: {path} was written by another version than {STATE_VERSION}; remove it to train again")
    return TrainingState(**stored)


def _to(batch: Batch, device: str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _join_processes() -> tuple[int, int]:
    """Rank and number of processes, as torchrun sets them; (0, 1) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return int(os.environ.get("RANK", "0")), world
