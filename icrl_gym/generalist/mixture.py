"""Running a prompt through the gated heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

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
        compiled, shares = [], []
        for head, share in zip(self.heads, gates.shares_BH[0].tolist(), strict=True):
            if abs(share) >= LEAST_SHARE:
                setting = replace(head, pseudo_terminations=head.pseudo_terminations + pseudo)
                known = setting == self.heads[0]
                run = first if known else compile_prompt(prompt, setting, device=device, dtype=dtype)
                compiled.append(with_free_level(run, level))
                shares.append(share)
        total = sum(shares)
        return CompiledMixture(
            self,
            first,
            tuple(compiled),
            tuple(share / total for share in shares),
            statistics_S,
            float(gates.trust_B[0]),
        )


@dataclass(frozen=True, eq=False)
class CompiledMixture:
    """A prompt run through the mixture, ready for queries.

    Attributes:
        model: the mixture.
        first: the context under the first head as it is; support and certificates are its.
        heads: the context under each open head.
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
    def fell_back(self) -> bool:
        return any(head.fell_back for head in self.heads)

    def values(self, features_QD: np.ndarray) -> np.ndarray:
        """Values of queries (Q,), float64."""
        return sum(
            share * head.values(head.attend(features_QD))[-1].double().cpu().numpy()
            for share, head in zip(self.shares, self.heads, strict=True)
        )  # pyright: ignore[reportReturnType]

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """W (Q, N) with values = W @ rewards."""
        return sum(
            share * head.attribution(head.attend(features_QD)).double().cpu().numpy()
            for share, head in zip(self.shares, self.heads, strict=True)
        )  # pyright: ignore[reportReturnType]

    def stderr(self, features_QD: np.ndarray) -> np.ndarray:
        """Standard errors (Q,): a 90 % interval is the value +- 1.645 of them."""
        by_head_HQ = np.stack([head.values(head.attend(features_QD))[-1].double().cpu().numpy() for head in self.heads])
        facts = QueryFacts.of(self.first, features_QD)
        statistics_QT = query_statistics(facts, by_head_HQ, np.array(self.shares))
        with torch.no_grad():
            log_Q = self.model.spread(self.statistics_S[None], torch.as_tensor(statistics_QT[None]).float())[0]
        return facts.scale * log_Q.double().exp().numpy()
