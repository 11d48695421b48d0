"""A compiled mixture that goes on with its context: transitions are added to its sums, old ones taken out of them.

Landmark systems are sums over transitions (landmarks.py), so that a context that goes on costs what its new transitions
cost. Everything that is read off a whole context stays as it was when the context was last compiled: relevance, keys
and their weights, the share of pseudo-terminations, and the statistics that the error bars are read from. When as many
transitions have come as `STALE` of the context had, it is time to compile it anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.compiled import CompiledMixture, Member
from icrl_gym.evaluator.error_bars import PretrainedError
from icrl_gym.evaluator.kernel import Kernel
from icrl_gym.evaluator.landmarks import LandmarkSystem
from icrl_gym.evaluator.network import CompiledPrompt, Compiler
from icrl_gym.evaluator.recursion import Equations

STALE = 0.5


@dataclass(frozen=True, eq=False)
class Stream:
    """A mixture and how far its context has gone on since it was compiled from the whole.

    Attributes:
        mixture: the compiled context.
        num_compiled: transitions that it was compiled from.
        num_added: transitions that came since.
    """

    mixture: CompiledMixture
    num_compiled: int
    num_added: int = 0

    @classmethod
    def of(cls, mixture: CompiledMixture) -> Stream:
        """A context that was just compiled."""
        return cls(mixture, len(mixture.prompt))

    @property
    def goes_on(self) -> bool:
        """Whether the context is made of sums, so that it can go on."""
        return _streams(self.mixture)

    def extended(self, prompt: Prompt, dropped: int, decay: float) -> Stream | None:
        """The same context gone on, or None where it has to be compiled anew.

        Args:
            prompt: the context without its first ``dropped`` transitions, followed by new ones.
            dropped: how many were dropped.
            decay: what the weights of the transitions that were there are multiplied by.
        """
        kept = len(self.mixture.prompt) - dropped
        num_added = self.num_added + len(prompt) - kept
        if kept <= 0 or num_added > STALE * self.num_compiled or not _streams(self.mixture):
            return None
        step = _Step(prompt, Compiler(prompt, device=_device(self.mixture)), dropped, decay, {})
        members = tuple(Member(member.share, step.extended(member.head)) for member in self.mixture.members)
        if any(member.head.exceeds for member in members):
            return None
        bars = self.mixture.error_bars
        if isinstance(bars, PretrainedError):
            bars = replace(bars, first=step.extended(bars.first))
        mixture = replace(self.mixture, prompt=prompt, members=members, error_bars=bars)
        return Stream(mixture, self.num_compiled, num_added)


def _streams(mixture: CompiledMixture) -> bool:
    """Whether every head is made of sums, and the statistics' as well."""
    heads = [member.head for member in mixture.members]
    if isinstance(mixture.error_bars, PretrainedError):
        heads.append(mixture.error_bars.first)
    elif mixture.error_bars is not None:
        return False
    return mixture.prompt.end_mixtures is None and all(head.system is not None for head in heads)


def _device(mixture: CompiledMixture) -> torch.device:
    return mixture.members[0].head.equations.rewards_NR.device


@dataclass(frozen=True, eq=False)
class _Step:
    """How a context goes on, and the sums that were already extended by it."""

    prompt: Prompt
    compiler: Compiler
    dropped: int
    decay: float
    systems: dict[int, LandmarkSystem]

    def extended(self, head: CompiledPrompt) -> CompiledPrompt:
        """One head on the context gone on; its share of pseudo-terminations stays."""
        hazard = head.setting.pseudo_terminations / len(head.prompt)
        setting = replace(head.setting, pseudo_terminations=hazard * len(self.prompt))
        kernel = head.kernel.moved_on(self.prompt, self.dropped)
        equations = self.compiler.equations(setting, self.prompt.rewards[:, None], torch.float64)
        if id(head.system) not in self.systems:
            self.systems[id(head.system)] = self._extended(head, equations, kernel)
        system = self.systems[id(head.system)]
        parts = {"prompt": self.prompt, "setting": setting, "equations": equations, "kernel": kernel, "system": system}
        return replace(head, **parts).solved_again()

    def _extended(self, head: CompiledPrompt, equations: Equations, kernel: Kernel) -> LandmarkSystem:
        system = head.system
        assert system is not None
        if self.dropped:
            old = Compiler(head.prompt, device=head.equations.rewards_NR.device).with_probe(head.equations)
            system = system.without_first(old, head.kernel, self.dropped)
        first = len(head.prompt) - self.dropped
        return system.scaled(self.decay).extended(self.compiler.with_probe(equations), kernel, first)


def gone_on(prompt: Prompt, joined: Prompt, dropped: int, decay: float) -> Prompt:
    """The joined prompt with the weights of what was there before multiplied, and without its first transitions."""
    if prompt.log_weights is None and decay == 1.0:
        return joined
    old_N = np.zeros(len(prompt)) if prompt.log_weights is None else prompt.log_weights
    new_N = np.zeros(len(joined) - len(prompt) + dropped)
    return replace(joined, log_weights=np.concatenate([old_N[dropped:] + np.log(decay), new_N]))


def check_going_on(window: int | None, decay: float) -> None:
    """Raise ValueError for a window or a decay out of range."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, (int, np.integer)) or window < 1):
        raise ValueError(f"window must be an int of at least 1 or None, got {window!r}")
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be in (0, 1], got {decay!r}")
