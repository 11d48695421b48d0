"""Running a prompt through the gated heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.gate import Gate, SpreadHead, consensus
from icrl_gym.evaluator.network import CompiledPrompt, Setting, compile_prompt, with_free_level
from icrl_gym.evaluator.recursion import Readout
from icrl_gym.evaluator.statistics import QueryFacts, prompt_statistics, query_statistics
from icrl_gym.evaluator.walks import TransitionModel, Walks, imagination_steps

LEAST_SHARE = 1e-6  # heads below it are not run; training has them all in its medians
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

    def __post_init__(self) -> None:
        """Raise ValueError for a first head that the statistics cannot be read from."""
        if self.heads[0].landmarks:
            raise ValueError(f"heads: the first one must have every source as a key, got {self.heads[0].landmarks=}")

    def compile(self, prompt: Prompt, device: str | torch.device, dtype: torch.dtype) -> CompiledMixture:
        """Run a context through the first head, the gate, and the heads that the gate opened."""
        first = compile_prompt(prompt, self.heads[0], device=device, dtype=dtype)
        transitions = TransitionModel.fit(prompt)
        statistics_S = torch.as_tensor(prompt_statistics(prompt, first, transitions), dtype=torch.float32)
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
            transitions,
            float(gates.imagination_B[0]),
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
        transitions: model of the context's closed loop, or None.
        imagination: share of imagined returns in the values, in [0, 1]; 0 without a model.
    """

    model: Generalist
    first: CompiledPrompt
    heads: tuple[CompiledPrompt, ...]
    shares: tuple[float, ...]
    statistics_S: Tensor
    trust: float
    transitions: TransitionModel | None = None
    imagination: float = 0.0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know about this context, in plain words."""
        found = []
        if self.fell_back:
            count = f"{sum(head.fell_back for head in self.heads)} of {len(self.heads)} heads"
            found.append(f"the recursion grows on this context in {count}: there the safe averager took over")
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
        by_head_HLQ = self._by_head(features_QD)
        values_LQ = self._mixed(by_head_HLQ)
        if (walks := self._walks(features_QD)) is not None:
            imagined_LQ = walks.returns(self.first.prompt.rewards, self._mixed(self._by_head(walks.ends_QD)))
            values_LQ = (1.0 - self.imagination) * values_LQ + self.imagination * imagined_LQ
        facts = QueryFacts.of(self.first, features_QD)
        statistics_QT = query_statistics(facts, by_head_HLQ[:, -1], np.array(self.shares), values_LQ[-1])
        with torch.no_grad():
            log_Q = self.model.spread(self.statistics_S[None], torch.as_tensor(statistics_QT[None]).float())[0]
        return values_LQ, self._widening * facts.scale * log_Q.double().exp().numpy()

    @property
    def _widening(self) -> float:
        """sqrt(N / effective sample size) of a weighted log (Kish), 1 without weights: training never saw any."""
        ratios_N = self.first.prompt.importance_ratios
        return 1.0 if ratios_N is None else float(np.sqrt(np.square(ratios_N).mean()) / ratios_N.mean())

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """W (Q, N) with values = W @ rewards."""
        walks = self._walks(features_QD)
        if walks is None:
            return self._mixed_rewards(features_QD)
        rewards_QN = self._mixed_rewards(np.concatenate([features_QD, walks.ends_QD]))
        direct_QN, ends_QN = rewards_QN[: len(features_QD)], rewards_QN[len(features_QD) :]
        imagined_QN = walks.reward_weights_QN + walks.discounts_Q[:, None] * ends_QN
        return (1.0 - self.imagination) * direct_QN + self.imagination * imagined_QN

    def _by_head(self, features_QD: np.ndarray) -> np.ndarray:
        """Values (H, L, Q)."""
        return np.stack([head.values(head.attend(features_QD)).double().cpu().numpy() for head in self.heads])

    def _walks(self, features_QD: np.ndarray) -> Walks | None:
        if self.transitions is None or not self.imagination > 0:
            return None
        return self.transitions.walk(features_QD, imagination_steps(self.first.prompt.gamma))

    def _mixed(self, by_head_HLQ: np.ndarray) -> np.ndarray:
        """Values (L, Q); the weights of the last layer hold in all."""
        return np.einsum("hq,hlq->lq", self._weights(by_head_HLQ[:, -1]), by_head_HLQ)

    def _weights(self, by_head_HQ: np.ndarray) -> np.ndarray:
        shares_BH = torch.tensor([self.shares], dtype=torch.float64)
        return consensus(torch.as_tensor(by_head_HQ)[None], shares_BH)[0].numpy()

    def _mixed_rewards(self, features_QD: np.ndarray) -> np.ndarray:
        """W (Q, N) without imagination."""
        weights_HQ = self._weights(self._by_head(features_QD)[:, -1])
        parts = zip(weights_HQ, self.heads, strict=True)
        return np.sum([weight_Q[:, None] * _reward_matrix(head, features_QD) for weight_Q, head in parts], axis=0)
