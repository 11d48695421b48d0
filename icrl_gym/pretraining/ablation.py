"""Ablations of the pretraining: gates trained with one thing changed, on the examples of one run.

    ablations, left_out -> measure (one JSON file per finished gate) -> ablation_tables

The measure of a gate is log(RMSE / RMSE of the constructed evaluator) on each validation task whose values vary.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from icrl_gym.configuration import PretrainConfig
from icrl_gym.evaluator.gate import Gate, Gates, Weighing, consensus, gated, safe_gates
from icrl_gym.evaluator.heads import HEADS
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import STATISTICS
from icrl_gym.pretraining.prior import FAMILIES
from icrl_gym.pretraining.run import WITHOUT_EFFECT, one_thread
from icrl_gym.pretraining.shards import Examples, as_tensors
from icrl_gym.pretraining.training import Batch, Schedule, gate_objective, train
from icrl_gym.pretraining.validation import log_errors, values_vary
from icrl_gym.runs import Progress, versions, write_json

CONSTANT_REWARD = STATISTICS.index("constant_reward")
SHIPPED_RECIPE = PretrainConfig()
RECIPE = replace(SHIPPED_RECIPE, members=1, steps=1000)  # a quarter of the work; what that costs is a row of the table


@dataclass(frozen=True)
class Ablation:
    """The pretraining with one thing changed.

    Attributes:
        label: its name in the table.
        config: settings of the training; seed and folders have no effect.
        heads: those that are kept, by number, () for all. The first of them is what the gate starts from.
        blind: no statistic is seen, so that one mixture is learned for all contexts; the rule that allows
            pseudo-terminations only at equal rewards stays.
        free_level, pseudo_terminations: False holds them at 0.
        robust: False takes the shares as weights, wherever a head stands apart.
        share_of_tasks: share of the training tasks that is used, drawn by the seed.
        trained: False takes the safe mixture as it is: nothing is learned, nothing read but the rule above.
    """

    label: str
    config: PretrainConfig = RECIPE
    heads: tuple[int, ...] = ()
    blind: bool = False
    free_level: bool = True
    pseudo_terminations: bool = True
    robust: bool = True
    share_of_tasks: float = 1.0
    trained: bool = True

    @property
    def weigh(self) -> Weighing:
        return consensus if self.robust else plain_shares


REFERENCE = Ablation("small recipe")
GROUPS: dict[str, Callable[[Setting], bool]] = {
    "landmarks": lambda head: head.landmarks > 0,
    "every source as a key, but for the first": lambda head: not head.landmarks and head != Setting(),
    "traces": lambda head: head.trace_decay > 0,
    "relevance": lambda head: head.relevance != "uniform",
}


def ablations(heads: Sequence[Setting] = HEADS) -> tuple[Ablation, ...]:
    """All but those that leave a family out; the first is what the others change one thing of."""
    numbers = range(len(heads))
    return (
        REFERENCE,
        Ablation(f"members {SHIPPED_RECIPE.members}, {SHIPPED_RECIPE.steps:,} steps: as shipped", SHIPPED_RECIPE),
        Ablation("safe mixture, untrained", trained=False),
        Ablation("gate blind: one mixture for all", blind=True),
        Ablation("pull 0: adaptation free", replace(RECIPE, pull=0.0)),
        Ablation("pull 0, gate blind", replace(RECIPE, pull=0.0), blind=True),
        Ablation("no free level", free_level=False),
        Ablation("no pseudo-terminations", pseudo_terminations=False),
        Ablation("plain mean of the heads", robust=False),
        *(
            Ablation(f"heads: only those without {what}", heads=tuple(n for n in numbers if not has(heads[n])))
            for what, has in GROUPS.items()
        ),
        *(Ablation(f"head {one} alone: {describe_head(heads[one])}", heads=(one,)) for one in numbers),
        Ablation("width 8", replace(RECIPE, width=8)),
        Ablation("width 64", replace(RECIPE, width=64)),
        Ablation("loss relative_rmse", replace(RECIPE, loss="relative_rmse")),
        Ablation("loss huber", replace(RECIPE, loss="huber")),
        Ablation("half of the tasks", share_of_tasks=0.5),
        Ablation("a quarter of the tasks", share_of_tasks=0.25),
        Ablation("200 steps", replace(RECIPE, steps=200)),
    )


def left_out(families: Iterable[str]) -> tuple[Ablation, ...]:
    """One for each family, which is kept out of training and of early stopping."""
    return tuple(Ablation(f"without {name}", replace(RECIPE, exclude=(name,))) for name in families)


def describe_head(head: Setting) -> str:
    """The settings that are not the constructed evaluator's."""
    plain = Setting()
    changed = [
        f"{f.name} {getattr(head, f.name)}" for f in fields(head) if getattr(head, f.name) != getattr(plain, f.name)
    ]
    return ", ".join(changed) or "constructed"


class AblatedGate(Gate):
    """A gate with parts taken out; its initial weights are those of `Gate` at the same seed."""

    def __init__(self, ablation: Ablation, num_heads: int) -> None:
        config = ablation.config
        super().__init__(len(STATISTICS), num_heads, config.width, config.members, CONSTANT_REWARD)
        self.ablation = ablation

    def by_member(self, statistics_BS: Tensor) -> list[Gates]:
        if self.ablation.blind:
            constant_B = self.constant_rewards(statistics_BS)
            unseen_BS, trust_B = torch.zeros_like(statistics_BS), torch.ones_like(constant_B)
            found = [self._gates(member(unseen_BS), trust_B, constant_B) for member in self.members]
        else:
            found = super().by_member(statistics_BS)
        level, pseudo = float(self.ablation.free_level), float(self.ablation.pseudo_terminations)
        return [
            replace(
                gates,
                free_level_B=level * gates.free_level_B,
                pseudo_terminations_B=pseudo * gates.pseudo_terminations_B,
            )
            for gates in found
        ]


def plain_shares(values_BHQ: Tensor, shares_BH: Tensor) -> Tensor:
    """The shares as weights at every query, (B, H, Q)."""
    return shares_BH[..., None].expand_as(values_BHQ)


def gates_on(ablation: Ablation, training: Examples, validation: Examples, seed: int) -> tuple[Gates, int]:
    """Train a gate and let it decide for every validation task; its gates and the step of its best weights.

    The gates are of the heads that the ablation keeps, in their order.

    Raises:
        ValueError: nothing is left to train on.
    """
    batch = as_tensors(_keep_heads(ablation, validation))
    if not ablation.trained:
        return untrained_gates(batch), 0
    config = ablation.config
    examples = as_tensors(_keep_heads(ablation, _share(ablation, _without(config.exclude, training), seed)))
    stop_by = as_tensors(_keep_heads(ablation, _without(config.exclude, validation)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = AblatedGate(ablation, batch["values"].shape[1])
    gate.standardisation.fit(examples["statistics"])
    schedule = Schedule(steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate)
    state = train(
        gate, gate_objective(config.loss, config.pull, ablation.weigh), examples, stop_by, schedule, seed=seed
    )
    with torch.no_grad():
        return gate.eval()(batch["statistics"]), state.best_step


def untrained_gates(batch: Batch) -> Gates:
    """The safe mixture for every task: equal shares, fixed dials."""
    statistics, ones_B = batch["statistics"], torch.ones(len(batch["statistics"]))
    constant_B = (statistics[:, CONSTANT_REWARD] > 0.5).float()
    return safe_gates(ones_B, constant_B, batch["values"].shape[1])


def log_ratios(gates: Gates, ablation: Ablation, validation: Examples) -> np.ndarray:
    """log(RMSE of the mixture / RMSE of the constructed evaluator) on the validation tasks whose values vary."""
    whole, kept = as_tensors(validation), as_tensors(_keep_heads(ablation, validation))
    truth_BQ = whole["truth"]
    mixed, constructed = gated(kept["values"], gates, ablation.weigh), whole["values"][:, 0, 0, 0]
    logs = log_errors(mixed - truth_BQ, truth_BQ) - log_errors(constructed - truth_BQ, truth_BQ)
    return logs[values_vary(whole)].astype(np.float64)


def hindsight(validation: Examples) -> np.ndarray:
    """Log ratios (1, tasks) of each task's best head, by its error there, at the safe dials: a bound, not a method."""
    safe = untrained_gates(as_tensors(validation))
    alone = torch.ones(len(validation), 1)
    return np.min(
        [
            log_ratios(replace(safe, shares_BH=alone), Ablation("one head", heads=(head,)), validation)
            for head in range(validation.values.shape[1])
        ],
        axis=0,
        keepdims=True,
    )


def measure(
    wanted: Sequence[Ablation],
    training: Examples,
    validation: Examples,
    seeds: Sequence[int],
    folder: Path,
    progress: Progress = lambda label, done, total: None,
) -> dict[str, np.ndarray]:
    """Log ratios by label, (seeds, tasks); what is finished is read from ``folder``, seed by seed.

    Raises:
        ValueError: nothing is left to train on, or a stored row is damaged.
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = _digest(training, validation)
    cells = [(ablation, seed) for seed in seeds for ablation in wanted if ablation.trained or seed == seeds[0]]
    rows: dict[str, list[np.ndarray]] = {ablation.label: [] for ablation in wanted}
    for count, (ablation, seed) in enumerate(cells):
        progress(ablation.label, count, len(cells))
        path = folder / f"{_key(ablation, seed, digest)}.json"
        if not path.exists():
            _measure_one(path, ablation, training, validation, seed)
        rows[ablation.label].append(_read(path))
    return {label: np.stack(found) for label, found in rows.items()}


def _measure_one(path: Path, ablation: Ablation, training: Examples, validation: Examples, seed: int) -> None:
    started = time.perf_counter()
    with one_thread():
        gates, best_step = gates_on(ablation, training, validation, seed)
        logs = log_ratios(gates, ablation, validation)
    if not np.isfinite(logs).all():
        raise ValueError(
            f"{ablation.label}, seed {seed}: {(~np.isfinite(logs)).sum()} of {len(logs)} errors are not finite"
        )
    write_json(path, {
        "label": ablation.label,
        "settings": _settings(ablation),
        "seed": seed,
        "best_step": best_step,
        "seconds": round(time.perf_counter() - started, 1),
        "commit": versions()["commit"],
        "log_ratios": logs.tolist(),
    })  # fmt: skip


def _read(path: Path) -> np.ndarray:
    try:
        return np.array(json.loads(path.read_text(encoding="utf-8"))["log_ratios"], dtype=np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the row {path} is damaged; remove it, and it is measured again") from error


def _settings(ablation: Ablation) -> dict[str, Any]:
    settings = asdict(ablation)
    of_shards = ("shards", "validation_shards", "tasks_per_shard", "lengths", "num_queries", "heads")  # see the digest
    without_effect = (*WITHOUT_EFFECT, "seed", *of_shards)
    settings["config"] = {name: value for name, value in settings["config"].items() if name not in without_effect}
    del settings["label"]
    return settings


def _key(ablation: Ablation, seed: int, digest: str) -> str:
    content = json.dumps([_settings(ablation), seed, digest], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _digest(training: Examples, validation: Examples) -> str:
    found = hashlib.sha256()
    for examples in (training, validation):
        for field in fields(examples):
            found.update(np.ascontiguousarray(getattr(examples, field.name)).tobytes())
    return found.hexdigest()


def _keep_heads(ablation: Ablation, examples: Examples) -> Examples:
    if not ablation.heads:
        return examples
    heads = list(ablation.heads)
    return replace(examples, values=examples.values[:, heads])


def _without(families: Sequence[str], examples: Examples) -> Examples:
    kept = ~np.isin(examples.family, [list(FAMILIES).index(name) for name in families])
    if not kept.any():
        raise ValueError(f"exclude: nothing is left of {len(kept)} tasks without {list(families)}")
    return examples.select(kept)


def _share(ablation: Ablation, examples: Examples, seed: int) -> Examples:
    if ablation.share_of_tasks == 1.0:
        return examples
    number = max(1, round(ablation.share_of_tasks * len(examples)))
    return examples.select(np.sort(np.random.default_rng(seed).permutation(len(examples))[:number]))
