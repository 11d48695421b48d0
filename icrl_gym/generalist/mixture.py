"""Running a prompt through the gated heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.attention import Readout
from icrl_gym.generalist.gate import Gate, SpreadHead
from icrl_gym.generalist.statistics import QueryFacts, prompt_statistics, query_statistics
from icrl_gym.model import CompiledPrompt, Setting, compile_prompt, with_free_level
from icrl_gym.prompt import Prompt

LEAST_SHARE = 0.01  # heads that matter less are not run
OUTSIDE_PRIOR = 0.5  # trust below which a prompt counts as outside the prior


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

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through the first head, the gate, and the heads that the gate opened."""
        first = compile_prompt(prompt, self.heads[0], device=device, dtype=dtype)
        statistics_S = torch.as_tensor(prompt_statistics(prompt, first), dtype=torch.float32)
        with torch.no_grad():
            gates = self.gate(statistics_S[None])
        level, pseudo = float(gates.free_level_B[0]), float(gates.pseudo_terminations_B[0])
        # Products of ratios along a trace have no bound: a weighted log is read by the heads without traces, if any.
        weighted = prompt.importance_ratios is not None and any(head.trace_decay == 0 for head in self.heads)
        compiled, shares = [], []
        for head, share in zip(self.heads, gates.shares_BH[0].tolist(), strict=True):
            if abs(share) >= LEAST_SHARE and not (weighted and head.trace_decay > 0):
                setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
                known = setting == self.heads[0]
                run = first if known else compile_prompt(prompt, setting, device=device, dtype=dtype)
                compiled.append(_slim(with_free_level(run, level)))
                shares.append(share)
        if not compiled:
            compiled, shares = [_slim(with_free_level(first, level))], [1.0]
        total = sum(shares)
        return CompiledMixture(
            self,
            first,
            tuple(compiled),
            tuple(share / total for share in shares),
            statistics_S,
            float(gates.trust_B[0]),
        )


def _slim(compiled: CompiledPrompt) -> CompiledPrompt:
    """What queries need of a head, without its N x N matrices."""
    readout = Readout(compiled.readout.constants_LR, compiled.readout.memories_LNR)
    return replace(compiled, readout=readout, attention_CN=compiled.attention_CN[:0])


def _reward_matrix(head: CompiledPrompt, features_QD: np.ndarray) -> np.ndarray:
    """W (Q, N) of one head, solved again."""
    context, setting = head.context.rewards_NR, head.setting
    solved = compile_prompt(head.prompt, setting, device=context.device, dtype=context.dtype, fall_back=False)
    return solved.attribution(solved.attend(features_QD)).double().cpu().numpy()


@dataclass(frozen=True, eq=False)
class CompiledMixture:
    """A prompt run through the mixture, ready for queries.

    Attributes:
        model: the mixture.
        first: the context under the first head as it is; support and certificates are its.
        heads: the context under each open head, without its matrices.
        shares: of the open heads; they sum to 1.
        statistics_S: of the prompt.
        trust: in [0, 1]; below 0.5 the prompt counts as outside the prior.
    """

    model: Generalist
    first: CompiledPrompt
    heads: tuple[CompiledPrompt, ...]
    shares: tuple[float, ...]
    statistics_S: Tensor
    trust: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about this context, in plain words."""
        found = []
        if any(head.fell_back for head in self.heads):
            found.append("the recursion grows on this context: the safe averager took over")
        if self.trust < OUTSIDE_PRIOR:
            found.append(
                f"this context is unlike what the model was pretrained on (trust {self.trust:.2f}): it is evaluated "
                "nearly as by the construction, with wider intervals"
            )
        return tuple(found)

    @property
    def fell_back(self) -> bool:
        return any(head.fell_back for head in self.heads)

    def evaluate(self, features_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values after each layer (L, Q), and standard errors (Q,): a 90 % interval is the value +- 1.645 of them."""
        by_head_HLQ = np.stack([head.values(head.attend(features_QD)).double().cpu().numpy() for head in self.heads])
        shares_H = np.array(self.shares)
        facts = QueryFacts.of(self.first, features_QD)
        statistics_QT = query_statistics(facts, by_head_HLQ[:, -1], shares_H)
        with torch.no_grad():
            log_Q = self.model.spread(self.statistics_S[None], torch.as_tensor(statistics_QT[None]).float())[0]
        return np.tensordot(shares_H, by_head_HLQ, axes=1), facts.scale * log_Q.double().exp().numpy()

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """W (Q, N) with values = W @ rewards."""
        parts = zip(self.shares, self.heads, strict=True)
        return np.sum([share * _reward_matrix(head, features_QD) for share, head in parts], axis=0)
