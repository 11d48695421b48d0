"""What a prompt becomes under a network: a mixture of members, read at any states.

There is one form for all networks; the construction is a mixture of one. Whatever is reported (support, attention,
settings, certificates) is that of the members that answered.

Shape legend: H members, Q queries, N sources, K keys, D features, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.blocks import is_stored
from icrl_gym.evaluator.certificates import Certificates, certificates
from icrl_gym.evaluator.error_bars import ErrorBars
from icrl_gym.evaluator.kernel import Kernel, Rows
from icrl_gym.evaluator.mixing import consensus
from icrl_gym.evaluator.network import CompiledPrompt
from icrl_gym.evaluator.setting import Setting

OUTSIDE_PRIOR = 0.5  # trust below which a warning says that the error bars were trained on other contexts
QUERY_BLOCK = 4096  # rows of attention held at once


@dataclass(frozen=True, eq=False)
class Member:
    """One head that answered.

    Attributes:
        share: its weight in the answer, in (0, 1], wherever the members agree; shares sum to 1.
        head: the prompt under this head.
    """

    share: float
    head: CompiledPrompt = field(repr=False)

    @property
    def setting(self) -> Setting:
        """The setting that was used: the fallback's, where it took over."""
        return self.head.setting

    @property
    def fell_back(self) -> bool:
        """Whether the safe averager took over."""
        return self.head.fell_back

    @cached_property
    def certificates(self) -> Certificates | None:
        """Computed when first asked for, in O(N^2) time per power iteration; None for landmarks, which have none, and
        for contexts whose attention is too large to be held.
        """
        if self.setting.landmarks or not is_stored(self.head.kernel):
            return None
        found = certificates(self.head)
        self.head.kernel.release()
        return found


@dataclass(frozen=True, eq=False)
class Reading:
    """What a compiled mixture answers at Q queries.

    Attributes:
        by_layer_LQ: values after each layer, in units of reward.
        stderr_Q: standard errors in units of reward, or None.
        support_Q: effective number of sources, share-weighted over the members.
    """

    by_layer_LQ: np.ndarray
    stderr_Q: np.ndarray | None
    support_Q: np.ndarray


@dataclass(frozen=True, eq=False)
class CompiledMixture:
    """A prompt run through a network, ready for queries.

    At a query the members' values are weighed by their shares, less where one stands apart from the others there
    (`consensus`). Support and attention are weighed by the shares alone: they depend on neither rewards nor values, and
    where the members agree they are exactly those of the answer.

    Attributes:
        prompt: the context.
        members: the heads that answer.
        error_bars: gives the standard errors, or None where there are none.
        trust: how far the context is like those that the error bars were trained on, in [0, 1]; 1 where nothing was
            trained. The values do not depend on it.
        notes: sentences on where a head is not the one that was asked for.
    """

    prompt: Prompt
    members: tuple[Member, ...]
    error_bars: ErrorBars | None = None
    trust: float = 1.0
    notes: tuple[str, ...] = ()

    @property
    def fell_back(self) -> bool:
        """Whether the safe averager took over in any member."""
        return any(member.fell_back for member in self.members)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what to be careful about in this context."""
        found = list(self.notes)
        if self.fell_back:
            count = sum(member.fell_back for member in self.members)
            where = f" in {count} of {len(self.members)} heads" if len(self.members) > 1 else ""
            found.append(f"the recursion grows on this context{where}: there the safe averager took over")
        if self.trust < OUTSIDE_PRIOR:
            found.append(
                f"this context is unlike those that the error bars were trained on (trust {self.trust:.2f}): intervals "
                "are widened, and less certain; the values are not concerned"
            )
        return tuple(found)

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of queries, from one set of attention rows."""
        blocks = [self._read(Rows(block)) for block in _blocks(features_QD)]
        stderr = [block.stderr_Q for block in blocks if block.stderr_Q is not None]
        return Reading(
            np.concatenate([block.by_layer_LQ for block in blocks], axis=1),
            np.concatenate(stderr) if stderr else None,
            np.concatenate([block.support_Q for block in blocks]),
        )

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of queries over the context's sources, (Q, N), share-weighted over the members.

        A landmark's attention falls on the source that it is. Rows sum to 1 less the sinks' shares.
        """
        rows = Rows(features_QD)
        return np.sum([share * k.over_sources(rows[k]) for k, share in self._kernel_shares.items()], axis=0)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards: one transposed solve of every member."""
        return self.pooled_attribution(features_QD[:, None], np.ones((len(features_QD), 1)))

    def pooled_attribution(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with weighted sums of values = W @ rewards: as dear as the attribution of Q queries.

        Args:
            features_QMD: M points for each query.
            weights_QM: their weights in its sum.
        """
        heads, total_QN = [member.head for member in self.members], np.zeros((len(features_QMD), len(self.prompt)))
        for head, (constants_Q, pooled_QK) in zip(heads, self._pooled(features_QMD, weights_QM), strict=True):
            if bool(constants_Q.any()):
                total_QN += head.attribution(pooled_QK, constants_Q).double().cpu().numpy()
        for head in heads:
            head.kernel.release()
        return total_QN

    def _pooled(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """The sums' weights on every member: on its constant (Q,), and on its memories (Q, K)."""
        num_queries, num_points, num_features = features_QMD.shape
        step = max(1, QUERY_BLOCK // max(1, num_points))
        pooled: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.members]
        for start in range(0, max(1, num_queries), step):
            rows = Rows(features_QMD[start : start + step].reshape(-1, num_features))
            weights_HP = self._weights(self._by_member(rows)[:, -1]) * weights_QM[start : start + step].reshape(-1)
            for member, weights_P, parts in zip(self.members, weights_HP, pooled, strict=True):
                attention_PK = rows[member.head.kernel]
                weights_Q1M = torch.as_tensor(weights_P).to(attention_PK).reshape(-1, 1, num_points)
                attention_QMK = attention_PK.reshape(-1, num_points, attention_PK.shape[-1])
                parts.append((weights_Q1M.sum(dim=(1, 2)), (weights_Q1M @ attention_QMK)[:, 0]))
        return [(torch.cat(constants), torch.cat(rows)) for constants, rows in (zip(*p, strict=True) for p in pooled)]

    def values_of_rewards(self, features_QD: np.ndarray, rewards_NR: np.ndarray) -> np.ndarray:
        """Values (Q, R) of queries under R other reward functions; the members' weights are those of the context's own.

        Solved for the queries or for the reward functions, whichever are fewer.
        """
        if len(features_QD) <= rewards_NR.shape[1]:
            return self.attribution(features_QD) @ rewards_NR
        heads, rewards = [member.head for member in self.members], torch.as_tensor(rewards_NR)
        readouts = [head.under(rewards.to(head.equations.rewards_NR)) for head in heads]
        found = []
        for rows in map(Rows, _blocks(features_QD)):
            by_head_HQR = [readout(rows[head.kernel])[-1] for head, readout in zip(heads, readouts, strict=True)]
            by_head_HQR = np.stack([values_QR.double().cpu().numpy() for values_QR in by_head_HQR])
            found.append(np.einsum("hq,hqr->qr", self._weights(self._by_member(rows)[:, -1]), by_head_HQR))
        for head in heads:
            head.kernel.release()
        return np.concatenate(found)

    def _read(self, rows: Rows) -> Reading:
        by_member_HLQ = self._by_member(rows)
        values_LQ = self._mixed(by_member_HLQ)
        stderr_Q = None if self.error_bars is None else self.error_bars(rows, by_member_HLQ[:, -1], values_LQ[-1])
        return Reading(values_LQ, stderr_Q, self._support(rows))

    def _support(self, rows: Rows) -> np.ndarray:
        shares = self._kernel_shares.items()
        return np.sum([share * kernel.support(rows.features_QD, rows[kernel]) for kernel, share in shares], axis=0)

    @cached_property
    def _kernel_shares(self) -> dict[Kernel, float]:
        """Shares of the members added up by kernel."""
        shares: dict[Kernel, float] = {}
        for member in self.members:
            shares[member.head.kernel] = shares.get(member.head.kernel, 0.0) + member.share
        return shares

    def _by_member(self, rows: Rows) -> np.ndarray:
        """Values (H, L, Q)."""
        heads = [member.head for member in self.members]
        return np.stack([head.values(rows[head.kernel]).double().cpu().numpy() for head in heads])

    def _mixed(self, by_member_HLQ: np.ndarray) -> np.ndarray:
        """Values (L, Q); the weights of the last layer hold in all."""
        return np.einsum("hq,hlq->lq", self._weights(by_member_HLQ[:, -1]), by_member_HLQ)

    def _weights(self, by_member_HQ: np.ndarray) -> np.ndarray:
        if len(self.members) == 1:
            return np.ones_like(by_member_HQ, dtype=np.float64)
        shares_BH = torch.tensor([[member.share for member in self.members]], dtype=torch.float64)
        return consensus(torch.as_tensor(by_member_HQ)[None], shares_BH)[0].numpy()


def _blocks(features_QD: np.ndarray) -> list[np.ndarray]:
    return [features_QD[i : i + QUERY_BLOCK] for i in range(0, max(1, len(features_QD)), QUERY_BLOCK)]
