"""`ImaginedValues`: a context's values by walks in its world, which softmax TD takes over from where they end.

How much the walks of each length count is an estimate of their squared errors at every query, from three sources: what
walks of that length cost where the log can be compared with them; how far the members disagree at the query; and the
error of softmax TD's value, the *leaf*, where they end. The last is its standard error, or, where trusted walks change
the leaf by more than that, what they change it by. Weights are inverse squares of these estimates (stochastic ensemble
value expansion, Buckman et al. 2018, weighs by the members' variance alone). Where the first step costs more than the
leaf's error, there are no walks, and the answer is softmax TD's, to the bit.

Given the weights the values are linear in the rewards.

Shape legend: H horizons (the first is 0), K members, Q queries, P particles, D features, N transitions, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.compiled import Member, Reading
from icrl_gym.evaluator.world.checks import Check
from icrl_gym.evaluator.world.walks import Stop, Walker

HORIZONS = (1, 2, 3, 6, 12, 25, 50, 100, 200)
PARTICLES = 16  # of each member
LEAF_PARTICLES = 4  # of them whose ends the leaf is read at
STARTS = 48  # of the context, for what walks change
START_PARTICLES = 4
STDERR_SHARE = 0.5  # of the leaf's standard error that counts where walks of different length are weighed
STATED_SHARE = 1.0  # and in the standard error of the answer, chosen for coverage
CHANGE_MARGIN = 2.0  # times its cost by which a walk must change the leaf for the change to count
SHARPNESS = 3.0  # power of the estimated squared errors
FIRST_STEP = 0.2  # of the spread of the leaf's values that single first steps may be wrong by, root mean square
LEAST_WEIGHT = 0.01  # mean weight of a horizon that is still walked to
NO_ERROR = 1e-24  # of the squared scale of values


class CompiledContext(Protocol):
    """A context, ready for queries; see `CompiledMixture`."""

    @property
    def prompt(self) -> Prompt: ...

    @property
    def members(self) -> tuple[Member, ...]: ...

    @property
    def fell_back(self) -> bool: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def read(self, features_QD: np.ndarray) -> Reading: ...

    def attention(self, features_QD: np.ndarray) -> np.ndarray: ...

    def attribution(self, features_QD: np.ndarray) -> np.ndarray: ...


class Leaf(CompiledContext, Protocol):
    """Values without walks."""

    def pooled_attribution(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Expansion:
    """Value expansions of Q queries at H horizons.

    Attributes:
        by_member_HKLQ: values after each layer of the leaf.
        discounts_HQ: mean discount of the leaf.
        leaf_variance_HQ: squared standard errors of the leaf where the walks end, discounted; 0 where it has none.
    """

    by_member_HKLQ: np.ndarray
    discounts_HQ: np.ndarray
    leaf_variance_HQ: np.ndarray

    @property
    def values_HQ(self) -> np.ndarray:
        """The members' mean at the last layer."""
        return self.by_member_HKLQ[:, :, -1].mean(axis=1)

    @property
    def disagreement_HQ(self) -> np.ndarray:
        """Squared standard error of the members' mean: half the query's own, half the mean over the queries."""
        return self.by_member_HKLQ[:, :, -1].var(axis=1, ddof=1) / self.by_member_HKLQ.shape[1]


class OverLeaf:
    """The part of a compiled context that is its leaf's."""

    leaf: Leaf

    @property
    def prompt(self) -> Prompt:
        """The context."""
        return self.leaf.prompt

    @property
    def members(self) -> tuple[Member, ...]:
        """The heads that answer at the leaves."""
        return self.leaf.members

    @property
    def fell_back(self) -> bool:
        """Whether the safe averager took over in any head."""
        return self.leaf.fell_back

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the leaf."""
        return self.leaf.warnings


@dataclass(frozen=True, eq=False)
class ImaginedValues(OverLeaf):
    """A compiled context with a world.

    Attributes:
        leaf: values without walks.
        walker: the world, and who acts in it.
        horizons: numbers of steps after which the leaf may take over, the first of which is 0.
        costs_H: mean squared error of walks of so many steps, by the check.
        typical_H: mean over the context's states of the members' disagreement.
        change: mean square of what trusted walks change the leaf by, less what they cost.
    """

    leaf: Leaf
    walker: Walker
    horizons: tuple[int, ...]
    costs_H: np.ndarray
    typical_H: np.ndarray
    change: float
    queries_at_once: int = field(default=64, repr=False)

    @classmethod
    def of(cls, leaf: Leaf, walker: Walker, check: Check) -> ImaginedValues | None:
        """Values by walks as far as they hold; None where the first step does not."""
        horizons, costs_H = (0, *check.horizons), np.concatenate([[0.0], _without_gaps(check.errors_H)])
        held = np.isfinite(costs_H)
        horizons, costs_H = tuple(np.array(horizons)[held].tolist()), costs_H[held]
        if len(horizons) < 2:
            return None
        rows = np.unique(np.linspace(0, len(leaf.prompt) - 1, STARTS).round().astype(int))
        expansion = expand(leaf, walker, leaf.prompt.source_features[rows], horizons, START_PARTICLES)
        values_HQ = expansion.values_HQ
        changes_H = np.square(values_HQ - values_HQ[0]).mean(axis=1)
        change = max(0.0, float((changes_H - CHANGE_MARGIN * costs_H).max()))
        found = cls(leaf, walker, horizons, costs_H, expansion.disagreement_HQ.mean(axis=1), change)
        errors_HQ = found.squared_errors(expansion)
        rough = np.sqrt(check.squares_H[0]) > FIRST_STEP * values_HQ[0].std()
        if rough or costs_H[1] >= errors_HQ[0].mean():
            return None
        used_H = found.weights(expansion).mean(axis=1) >= LEAST_WEIGHT
        used_H[0] = True
        if used_H.sum() < 2:
            return None
        kept = np.flatnonzero(used_H)
        return cls(
            leaf, walker, tuple(horizons[index] for index in kept), costs_H[kept], found.typical_H[kept], change
        )  # fmt: skip

    def squared_errors(self, expansion: Expansion, share: float = STDERR_SHARE) -> np.ndarray:
        """Estimates (H, Q) of the squared error at every horizon.

        Args:
            expansion: the walks.
            share: of the leaf's standard error that counts.
        """
        disagreement_HQ = (expansion.disagreement_HQ + self.typical_H[:, None]) / 2
        leaf_HQ = np.maximum(share**2 * expansion.leaf_variance_HQ, self.change * np.square(expansion.discounts_HQ))
        return self.costs_H[:, None] + disagreement_HQ + leaf_HQ

    def weights(self, expansion: Expansion) -> np.ndarray:
        """Weights (H, Q) of the horizons; each query's sum to 1."""
        errors_HQ = self.squared_errors(expansion)
        scale = max(float(errors_HQ.max()), np.finfo(float).tiny)
        inverse_HQ = (errors_HQ / scale + NO_ERROR) ** -SHARPNESS
        return inverse_HQ / inverse_HQ.sum(axis=0)

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of queries."""
        direct = self.leaf.read(features_QD)
        blocks = []
        for start in range(0, len(features_QD), self.queries_at_once):
            expansion = expand(
                self.leaf, self.walker, features_QD[start : start + self.queries_at_once], self.horizons, PARTICLES
            )
            weights_HQ = self.weights(expansion)
            by_layer_LQ = np.einsum("hq,hklq->lq", weights_HQ, expansion.by_member_HKLQ) / self.num_members
            stderr_Q = np.sqrt((weights_HQ * self.squared_errors(expansion, STATED_SHARE)).sum(axis=0))
            blocks.append((by_layer_LQ, stderr_Q))
        if not blocks:
            return direct
        by_layer_LQ = np.concatenate([block[0] for block in blocks], axis=1)
        return Reading(by_layer_LQ, np.concatenate([block[1] for block in blocks]), direct.support_Q)

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of the leaf at the queries themselves, (Q, N)."""
        return self.leaf.attention(features_QD)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards: rewards on the way, at endings, and of the leaf."""
        if not len(features_QD):
            return self.leaf.attribution(features_QD)
        parts = [
            self._attribution(features_QD[start : start + self.queries_at_once])
            for start in range(0, len(features_QD), self.queries_at_once)
        ]
        on_the_way_QN, ends_QMD, shares_QM = (np.concatenate(part) for part in zip(*parts, strict=True))
        return on_the_way_QN + self.leaf.pooled_attribution(ends_QMD, shares_QM)

    @property
    def num_members(self) -> int:
        """K."""
        return len(self.walker.world.rows_KM)

    def _attribution(self, features_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (Q, N) of the rewards on the way; features (Q, M, D) and shares (Q, M) of the states at which the
        leaf takes over.
        """
        num_queries, walker = len(features_QD), self.walker
        stops = walker.follow(features_QD, self.horizons, PARTICLES)
        weights_HQ = self.weights(_expansion(self.leaf, features_QD, stops, PARTICLES))
        steps_TH = np.arange(max(self.horizons))[:, None] < np.array(self.horizons)
        on_the_way_QN = walker.reward_weights(features_QD, steps_TH @ weights_HQ, PARTICLES)
        ends, shares = [], []
        for weights_Q, stop in zip(weights_HQ, stops, strict=True):
            discounts_KQP = _by_query(stop.discounts_KB, num_queries)
            read_KQR = discounts_KQP[:, :, :: PARTICLES // LEAF_PARTICLES]
            ends_KQRD = _by_query(stop.states_KBD, num_queries)[:, :, :: PARTICLES // LEAF_PARTICLES]
            share_KQR = read_KQR * _corrected(discounts_KQP, read_KQR)[..., None]
            share_KQR = share_KQR * weights_Q[:, None] / (self.num_members * LEAF_PARTICLES)
            ends.append(np.moveaxis(ends_KQRD, 1, 0).reshape(num_queries, -1, features_QD.shape[1]))
            shares.append(np.moveaxis(share_KQR, 1, 0).reshape(num_queries, -1))
        return on_the_way_QN, np.concatenate(ends, axis=1), np.concatenate(shares, axis=1)


def expand(
    leaf: Leaf, walker: Walker, features_QD: np.ndarray, horizons: tuple[int, ...], num_particles: int
) -> Expansion:
    """Walk from queries and read the leaf where the walks are after each horizon."""
    return _expansion(leaf, features_QD, walker.follow(features_QD, horizons, num_particles), num_particles)


def _expansion(leaf: Leaf, features_QD: np.ndarray, stops: list[Stop], num_particles: int) -> Expansion:
    """Read the leaf where the walks from queries are."""
    num_queries, step = len(features_QD), max(1, num_particles // LEAF_PARTICLES)
    discounts_HKQP = np.stack([_by_query(stop.discounts_KB, num_queries) for stop in stops])
    earned_HKQ = np.stack([_by_query(stop.earned_KB, num_queries).mean(axis=-1) for stop in stops])
    ends_HKQRD = np.stack([_by_query(stop.states_KBD, num_queries)[:, :, ::step] for stop in stops[1:]])
    # The walk of no steps is the query itself, once.
    read = leaf.read(np.concatenate([features_QD, ends_HKQRD.reshape(-1, features_QD.shape[1])]))
    num_layers, shape = len(read.by_layer_LQ), ends_HKQRD.shape[:-1]
    ends_LHKQR = read.by_layer_LQ[:, num_queries:].reshape(num_layers, *shape)
    read_HKQR = discounts_HKQP[1:, ..., ::step]
    leaves_LHKQ = (read_HKQR * ends_LHKQR).mean(axis=-1) * _corrected(discounts_HKQP[1:], read_HKQR)
    direct_LKQ = np.repeat(read.by_layer_LQ[:, None, :num_queries], len(discounts_HKQP[0]), axis=1)
    by_member_HKLQ = np.concatenate([direct_LKQ[:, None], earned_HKQ[1:] + leaves_LHKQ], axis=1).transpose(1, 2, 0, 3)
    variance_HQ = np.zeros((len(stops), num_queries))
    if read.stderr_Q is not None:
        variance_HQ[0] = np.square(read.stderr_Q[:num_queries])
        stderr_HKQR = read.stderr_Q[num_queries:].reshape(shape)
        variance_HQ[1:] = np.square((read_HKQR * stderr_HKQR).mean(axis=(1, 3)))
    return Expansion(by_member_HKLQ, discounts_HKQP.mean(axis=(1, 3)), variance_HQ)


def _corrected(discounts_KQP: np.ndarray, read_KQR: np.ndarray) -> np.ndarray:
    """The factor from the mean discount where the leaf is read to that of all particles."""
    mean_KQ = read_KQR.mean(axis=-1)
    return np.divide(discounts_KQP.mean(axis=-1), mean_KQ, out=np.ones_like(mean_KQ), where=mean_KQ > 1e-6)


def _by_query(tensor_KB: Tensor, num_queries: int) -> np.ndarray:
    """(K, Q * P, ...) -> (K, Q, P, ...) as an array."""
    array = tensor_KB.cpu().numpy()
    return array.reshape(len(array), num_queries, -1, *array.shape[2:])


def _without_gaps(errors_H: np.ndarray) -> np.ndarray:
    """Costs that never fall as walks get longer; infinite from the first that could not be measured at all.

    A horizon that could not be compared costs twice what the one before it costs.
    """
    found = errors_H.copy()
    for index in range(len(found)):
        before = found[index - 1] if index else np.nan
        if not np.isfinite(found[index]):
            found[index] = 2.0 * before if index else np.inf
        found[index] = np.fmax(before, found[index])
    return found
