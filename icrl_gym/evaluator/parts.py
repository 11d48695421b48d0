"""Values of a log in parts: landmark systems summed part by part under the kernels of a held context.

Landmark systems are sums over transitions (landmarks.py). Kernels, settings and features are read off the held context
(held.py) and frozen; with them every part is summed wherever it lies, the sums are added up, and each head is solved
from the total. Numbers that a whole context would give are those of the whole log: a key has the weight of N / K
sources and p pseudo-terminations are spread over N transitions, with N the transitions of all parts.

Parts end like logs that stop: the successor of a part's last transition is a column of its own, and no trace passes on.
A head whose recursion grows on the whole log is replaced by the safe averager over the held context alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, reduce

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.compiled import CompiledMixture, Member
from icrl_gym.evaluator.error_bars import PretrainedError
from icrl_gym.evaluator.held import (
    DISTRIBUTED,
    LogInParts,
    Outline,
    Part,
    Where,
    Workers,
    check_alike,
    check_finished,
    here,
    loaded,
)
from icrl_gym.evaluator.kernel import Kernel
from icrl_gym.evaluator.landmarks import LandmarkSystem
from icrl_gym.evaluator.network import CompiledPrompt, Compiler
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import QueryFacts
from icrl_gym.evaluator.streaming import STALE
from icrl_gym.runs import Progress

MOST_JOBS = 1024  # that the parts are shared out in; each returns one system for every head
SUMMING = "summing the parts"  # what progress is told

Systems = tuple[LandmarkSystem, ...]


@dataclass(frozen=True, eq=False)
class FrozenHead:
    """What the sums of one head need beside the transitions.

    Attributes:
        setting: the head's.
        relevance_D, key_features_KD, log_weights_K: those of its kernel, with the weight of the whole log.
        hazard: pseudo-terminations per transition.
    """

    setting: Setting
    relevance_D: np.ndarray
    key_features_KD: np.ndarray
    log_weights_K: Tensor
    hazard: float

    @classmethod
    def of(cls, head: CompiledPrompt, num_transitions: int) -> FrozenHead:
        """A head of the held context, for a log of so many transitions."""
        kernel, setting = of_length(head.kernel, num_transitions), head.tried or head.setting
        return cls(
            setting, kernel.relevance_D, kernel.key_features_KD, kernel.log_weights_K,
            setting.pseudo_terminations / num_transitions,
        )  # fmt: skip

    def summed(self, prompt: Prompt, compiler: Compiler) -> LandmarkSystem:
        """The sums of a part's transitions."""
        setting = replace(self.setting, pseudo_terminations=self.hazard * len(prompt))
        equations = compiler.equations(setting, prompt.rewards[:, None], torch.float64)
        return LandmarkSystem.of(compiler.with_probe(equations), self._kernel(prompt))

    def empty(self) -> LandmarkSystem:
        """The sums of no transitions; the rewards are those of the log and of the probe."""
        return LandmarkSystem.empty(len(self.log_weights_K), 2, self.log_weights_K.device)

    def _kernel(self, prompt: Prompt) -> Kernel:
        elsewhere_K = np.full(len(self.key_features_KD), -1)
        return Kernel(prompt, self.setting, self.relevance_D, elsewhere_K, self.log_weights_K, self.key_features_KD)


@dataclass(frozen=True, eq=False)
class Reader:
    """All that a worker needs in order to sum a part.

    Attributes:
        feature_map: fitted on the held context.
        gamma: discount.
        heads: one for every system.
        device: torch device.
    """

    feature_map: FeatureMap
    gamma: float
    heads: tuple[FrozenHead, ...]
    device: torch.device

    def summed(self, part: Trajectory) -> Systems:
        """The systems of one part."""
        if part.importance_ratios is not None and not part.importance_ratios.any():
            return self.empty()
        prompt = Prompt.from_trajectory(part, self.gamma, self.feature_map)
        compiler = Compiler(prompt, device=self.device)
        return tuple(head.summed(prompt, compiler) for head in self.heads)

    def empty(self) -> Systems:
        """The systems of no transitions."""
        return tuple(head.empty() for head in self.heads)


@dataclass(frozen=True, eq=False)
class SummedMixture(CompiledMixture):
    """A mixture whose heads were solved from sums over a log in parts; its prompt is that of the held context.

    Attention is that over the held context, on which the landmarks lie.

    Attributes:
        grown: share of the log that came after the held context was chosen.
    """

    grown: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the mixture, and one where the log has outgrown its held context."""
        found = super().warnings
        if self.grown > STALE:
            found += (
                f"the log has grown by {self.grown:.0%} since its keys were chosen: fit_parts chooses them again",
            )
        return found

    def values_of_rewards(self, features_QD: np.ndarray, rewards_NR: np.ndarray) -> np.ndarray:
        """Not there; see `pooled_attribution`."""
        return self.attribution(features_QD) @ rewards_NR

    def pooled_attribution(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> np.ndarray:
        """Not there.

        Raises:
            RuntimeError: always, as the transitions of a log in parts are not kept.
        """
        raise RuntimeError(
            "attribution: a log in parts keeps no transitions to attribute values to; "
            "fit(trajectory) on as much of the log as fits in memory does"
        )


@dataclass(frozen=True, eq=False)
class PartsSum:
    """Where the values of a log in parts come from.

    Attributes:
        reader: how parts are summed.
        systems: the totals.
        compiled: the held context, under the network.
        num_transitions: of the log when the held context was chosen.
        num_added: that came since.
    """

    reader: Reader
    systems: Systems
    compiled: CompiledMixture
    num_transitions: int
    num_added: int = 0

    @classmethod
    def of(cls, compiled: CompiledMixture, log: LogInParts, where: Where, progress: Progress) -> PartsSum:
        """Sum all parts of a log.

        Args:
            compiled: its held context under the network.
            log: the log.
            where: None: in this process; the workers that sum the parts; or "torch.distributed": each process of the
                group sums its share.
            progress: told how many jobs are done.

        Raises:
            ValueError: a head has all transitions as keys, so that it is no sum.
        """
        count, prompt = log.num_transitions, compiled.prompt
        heads = tuple(FrozenHead.of(head, count) for head in _systems(compiled).values())
        reader = Reader(prompt.feature_map, prompt.gamma, heads, compiled.members[0].head.equations.rewards_NR.device)
        return cls(reader, _total(reader, log.parts, where, progress), compiled, count)

    def plus(self, part: Trajectory, decay: float, context: Trajectory) -> PartsSum:
        """With one more part, before which the weights of all others are multiplied by a factor.

        Args:
            part: new transitions.
            decay: the factor, in (0, 1].
            context: the held context.

        Raises:
            ValueError: the part is not of the same log.
        """
        check_alike([Outline.of(context), Outline.of(part)])
        before = tuple(system.scaled(decay) for system in self.systems)
        rewards = *self.prompt.reward_range, *Outline.of(part).rewards
        prompt = replace(self.prompt, log_rewards=(min(rewards), max(rewards)))
        return replace(
            self,
            systems=added(before, self.reader.summed(part)),
            compiled=replace(self.compiled, prompt=prompt),
            num_added=self.num_added + len(part),
        )

    @property
    def prompt(self) -> Prompt:
        """That of the held context."""
        return self.compiled.prompt

    @cached_property
    def mixture(self) -> SummedMixture:
        """The held context with every head solved from the totals."""
        compiled, bars = self.compiled, self.compiled.error_bars
        compiler = Compiler(compiled.prompt, device=self.reader.device)
        totals = dict(zip(_systems(compiled), self.systems, strict=True))
        kernels = {id(head.kernel): of_length(head.kernel, self.num_transitions) for head in _heads(compiled)}

        def solved(head: CompiledPrompt) -> CompiledPrompt:
            setting, kernel, system = head.tried or head.setting, kernels[id(head.kernel)], totals[_alike(head)]
            whole = replace(head, setting=setting, kernel=kernel, system=system, fell_back=False, tried=None)
            whole = whole.solved_again()
            if not whole.exceeds:
                return whole
            fallen = compiler.compile(setting.fallback(), fall_back=False)
            return replace(fallen, fell_back=True, tried=setting).without_matrices()

        if isinstance(bars, PretrainedError):
            first = solved(bars.first)
            facts = QueryFacts.of(first, compiled.prompt.source_features[:0])
            bars = replace(bars, first=first, facts=facts, sampled=False)
        members = tuple(Member(member.share, solved(member.head)) for member in compiled.members)
        compiler.release()
        grown = self.num_added / self.num_transitions
        return SummedMixture(compiled.prompt, members, bars, compiled.trust, compiled.notes, grown)


def of_length(kernel: Kernel, num_transitions: int) -> Kernel:
    """The same kernel, whose keys stand for a log of so many transitions."""
    log_weight = math.log(num_transitions / len(kernel.rows_K))
    return replace(kernel, log_weights_K=torch.full_like(kernel.log_weights_K, log_weight))


def added(some: Systems, others: Systems) -> Systems:
    """The sums of both, head by head."""
    return tuple(one.plus(other) for one, other in zip(some, others, strict=True))


def all_reduced(systems: Systems) -> Systems:
    """The sums over all processes of the torch.distributed group, by one all-reduce of all numbers.

    Raises:
        RuntimeError: no group was initialised.
    """
    _check_group()
    tensors = [getattr(system, field.name) for system in systems for field in fields(system)]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = iter(flat.split([tensor.numel() for tensor in tensors]))
    return tuple(
        LandmarkSystem(*(next(parts).reshape(getattr(system, field.name).shape) for field in fields(system)))
        for system in systems
    )


def _heads(compiled: CompiledMixture) -> list[CompiledPrompt]:
    """All heads, those of the error bars among them.

    Raises:
        ValueError: one of them is no sum over transitions.
    """
    bars = compiled.error_bars
    heads = [member.head for member in compiled.members]
    heads += [bars.first] if isinstance(bars, PretrainedError) else []
    for head in heads:
        if head.system is None and head.tried is None:
            raise ValueError(
                f"parts: values of a log in parts need landmarks, and this head has none: {head.setting}; hold more "
                "transitions (held), or leave out the options that do not go with landmarks"
            )
    return heads


def _systems(compiled: CompiledMixture) -> dict[tuple[int, float, float], CompiledPrompt]:
    """A head for every system."""
    return {_alike(head): head for head in _heads(compiled)}


def _alike(head: CompiledPrompt) -> tuple[int, float, float]:
    """What the heads that share a system have in common: kernel, trace and pseudo-terminations."""
    return id(head.kernel), head.setting.trace_decay, head.setting.pseudo_terminations


def _total(reader: Reader, parts: Sequence[Part], where: Where, progress: Progress) -> Systems:
    numbers = np.array_split(np.arange(len(parts)), min(MOST_JOBS, len(parts)))
    calls = [(reader, [(int(number), parts[number]) for number in group]) for group in numbers]
    if where == DISTRIBUTED:
        return all_reduced(_added_up(reader, _share(calls), here, progress))
    return _added_up(reader, calls, where or here, progress)


def _share(calls: list[tuple[Reader, list[tuple[int, Part]]]]) -> list[tuple[Reader, list[tuple[int, Part]]]]:
    """Those of the calls that this process of the group makes."""
    _check_group()
    return calls[torch.distributed.get_rank() :: torch.distributed.get_world_size()]


def _check_group() -> None:
    if not torch.distributed.is_initialized():
        raise RuntimeError(
            f"workers={DISTRIBUTED!r} needs a process group: call torch.distributed.init_process_group first"
        )


def _added_up(
    reader: Reader, calls: list[tuple[Reader, list[tuple[int, Part]]]], workers: Workers, progress: Progress
) -> Systems:
    total, done = reader.empty(), 0
    progress(SUMMING, 0, len(calls))
    for done, systems in enumerate(workers(_summed, calls), start=1):
        total = added(total, systems)
        progress(SUMMING, done, len(calls))
    check_finished(done, len(calls))
    return total


def _summed(reader: Reader, parts: Sequence[tuple[int, Part]]) -> Systems:
    """The sums of a few parts, each loaded, summed and let go of."""
    return reduce(added, (reader.summed(loaded(part, number)) for number, part in parts))
