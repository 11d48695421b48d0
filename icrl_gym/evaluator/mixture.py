"""Networks that an evaluator can be: the construction, a mixture of one head, and the pretrained mixture of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.compiled import CompiledMixture, Member
from icrl_gym.evaluator.error_bars import PretrainedError, SamplingError, SpreadHead
from icrl_gym.evaluator.gate import Gate
from icrl_gym.evaluator.network import CompiledPrompt, Compiler, with_free_level
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import QueryFacts, prompt_statistics

LEAST_SHARE = 1e-6  # heads below it are not run; training has them all in its medians


class Network(Protocol):
    """What an evaluator runs prompts through."""

    @property
    def heads(self) -> tuple[Setting, ...]:
        """The settings in it."""
        ...

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through it."""
        ...


@dataclass(frozen=True)
class Construction:
    """One head, in which nothing is trained: Theorem 1's network, or that with extensions.

    Attributes:
        setting: the head.
    """

    setting: Setting

    @property
    def heads(self) -> tuple[Setting, ...]:
        return (self.setting,)

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through the head; the error bars are those of its sampling error."""
        compiler = Compiler(prompt, device=device, dtype=dtype)
        head = compiler.compile(self.setting)
        mixture = CompiledMixture(prompt, (Member(1.0, head.without_matrices()),), SamplingError.of(head))
        compiler.release()
        return mixture


@dataclass(frozen=True, eq=False)
class Generalist:
    """A pretrained mixture.

    Attributes:
        heads: settings; the first one is evaluated for every prompt, and gives the statistics.
        gate: shares, free level and pseudo-terminations from the statistics.
        spread: standard errors from the statistics and those of the queries.
    """

    heads: tuple[Setting, ...]
    gate: Gate
    spread: SpreadHead

    def __post_init__(self) -> None:
        """Raise ValueError for a first head that the statistics cannot be read from."""
        if self.heads[0].landmarks:
            raise ValueError(f"heads: the first one must have every source as a key, got {self.heads[0].landmarks=}")

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through the first head, the gate, and the heads that the gate opened."""
        compiler = Compiler(prompt, device=device, dtype=dtype)
        first = compiler.compile(self.heads[0])
        statistics_S = torch.as_tensor(prompt_statistics(prompt, first), dtype=torch.float32)
        with torch.no_grad():
            gates = self.gate(statistics_S[None])
        level, pseudo = float(gates.free_level_B[0]), float(gates.pseudo_terminations_B[0])
        facts = QueryFacts.of(first, prompt.source_features[:0])
        shares = self._open(gates.shares_BH[0].tolist(), prompt)
        heads = [self._run(compiler, self.heads[index], first, level, pseudo) for index in shares]
        shares_H = np.array(list(shares.values()))
        positive_H = shares_H.clip(min=0.0)
        mixture = CompiledMixture(
            prompt,
            tuple(map(Member, (positive_H / positive_H.sum()).tolist(), heads)),
            PretrainedError(self.spread, statistics_S, shares_H / shares_H.sum(), first.without_matrices(), facts),
            float(gates.trust_B[0]),
        )
        compiler.release()
        return mixture

    def _open(self, shares: list[float], prompt: Prompt) -> dict[int, float]:
        """Index and share of the heads that are run; the first alone where there would be none.

        Products of ratios along a trace have no bound: a weighted log is read by the heads without traces, if any.
        """
        weighted = prompt.importance_ratios is not None and any(head.trace_decay == 0 for head in self.heads)
        found = {
            index: shares[index]
            for index, head in enumerate(self.heads)
            if abs(shares[index]) >= LEAST_SHARE and not (weighted and head.trace_decay > 0)
        }
        return found or {0: 1.0}

    def _run(
        self, compiler: Compiler, head: Setting, first: CompiledPrompt, level: float, pseudo: float
    ) -> CompiledPrompt:
        """One head at the gate's free level and pseudo-terminations, without its matrices."""
        setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
        solved = first if setting == self.heads[0] else compiler.compile(setting)
        return with_free_level(solved, level).without_matrices()
