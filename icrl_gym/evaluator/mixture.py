"""Networks that an evaluator can be: the construction, a mixture of one head, and the generalist, one of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.compiled import CompiledMixture, Member
from icrl_gym.evaluator.error_bars import PretrainedError, SamplingError
from icrl_gym.evaluator.heads import at_length
from icrl_gym.evaluator.memory import by_length_note, heads_that_fit
from icrl_gym.evaluator.mixing import FREE_LEVEL, PSEUDO_TERMINATIONS
from icrl_gym.evaluator.network import CompiledPrompt, Compiler, with_free_level
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QueryFacts, has_equal_rewards, prompt_statistics

MOST_SOURCES_ALONE = 8192  # that are all keys of a single head


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
        """Run a context through the head; the error bars are those of its sampling error.

        Raises:
            ValueError: the context does not fit into memory.
        """
        setting = at_length(self.setting, len(prompt), MOST_SOURCES_ALONE)
        fitting = heads_that_fit(prompt, (setting,), device, dtype)
        notes = fitting.notes
        if setting.landmarks and not self.setting.landmarks:
            notes = (by_length_note(prompt, setting, MOST_SOURCES_ALONE), *notes)
        compiler = Compiler(prompt, device=device, dtype=dtype)
        head = compiler.compile(fitting.heads[0])
        members = (Member(1.0, head.without_matrices()),)
        mixture = CompiledMixture(prompt, members, SamplingError.of(head), notes=notes)
        compiler.release()
        return mixture


@dataclass(frozen=True, eq=False)
class Generalist:
    """A mixture of heads with equal shares and fixed dials, and pretrained error bars.

    Attributes:
        heads: settings; the first one as it stands gives the statistics.
        spread: standard errors from the statistics and those of the queries.
    """

    heads: tuple[Setting, ...]
    spread: SpreadHead

    def __post_init__(self) -> None:
        """Raise ValueError for a first head that the statistics cannot be read from."""
        if not self.heads or self.heads[0].landmarks:
            raise ValueError(f"heads: the first one must have every source as a key, got {self.heads[:1]}")

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through the first head as it stands, and through all heads at the dials.

        Raises:
            ValueError: the context does not fit into memory.
        """
        heads = tuple(at_length(head, len(prompt)) for head in self.heads)
        heads = heads_that_fit(prompt, heads, device, dtype).heads
        compiler = Compiler(prompt, device=device, dtype=dtype)
        first = compiler.compile(heads[0])
        statistics_S = torch.as_tensor(prompt_statistics(prompt, first), dtype=torch.float32)
        facts = QueryFacts.of(first, prompt.source_features[:0])
        answering = at_dials(compiler, _readable(heads, prompt), first)
        bars = PretrainedError(self.spread, statistics_S, first.without_matrices(), facts)
        _ = bars.sampling  # now, while the attention of the context is held
        members = tuple(Member(1.0 / len(answering), head) for head in answering)
        mixture = CompiledMixture(prompt, members, bars, float(self.spread.trust_in(statistics_S[None])))
        compiler.release()
        return mixture


def at_dials(compiler: Compiler, heads: Sequence[Setting], first: CompiledPrompt) -> list[CompiledPrompt]:
    """A prompt under every head at the mixture's free level and pseudo-terminations, without matrices.

    Args:
        compiler: that of the prompt.
        heads: what to solve.
        first: the prompt under a head as it stands, which is not solved again.
    """
    pseudo, solved = expected_terminations(first.prompt), []
    for head in heads:
        setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
        compiled = first if setting == first.setting else compiler.compile(setting)
        solved.append(with_free_level(compiled, FREE_LEVEL).without_matrices())
    return solved


def expected_terminations(prompt: Prompt) -> float:
    """Pseudo-terminations of a context: the fewer, the more terminations it holds; 0 where rewards differ."""
    return PSEUDO_TERMINATIONS / (1 + prompt.num_terminations) if has_equal_rewards(prompt) else 0.0


def _readable(heads: tuple[Setting, ...], prompt: Prompt) -> tuple[Setting, ...]:
    """The heads that read a prompt: of a weighted log those without traces, if any.

    Products of ratios along a trace have no bound.
    """
    without_traces = tuple(head for head in heads if head.trace_decay == 0)
    return without_traces if without_traces and prompt.importance_ratios is not None else heads
