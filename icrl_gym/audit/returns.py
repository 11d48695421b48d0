"""What the returns of a stretch say about predictions of them, with intervals that hold although returns overlap.

Legend: N transitions in order, V the critic, γ the discount, δ its temporal-difference residuals.

    G_k = V_k + sum_{t >= k} γ^(t - k) δ_t      up to the end of the stretch that k belongs to

is the discounted return from k, plus, where the stretch did not terminate, the critic's own value at its cut; of a Q
critic (V_k its value of the pair taken), the return with every later action's chance taken out, as Q(λ) does with λ = 1
(Harutyunyan et al. 2016). Whenever the critic is right, the δ_t are martingale differences, whoever acted. So for any
weights g_k that do not look ahead

    sum_k g_k (G_k - V_k) = sum_t z_t δ_t,    z_t = g_t + γ z_{t-1}    (the trace starts anew with each stretch)

has mean 0 and, in the limit of many steps, variance sum_t z_t² δ_t², overlaps and cuts included. Weights may depend on
the critic, and on an evaluator that was fitted on older transitions.

Endings are rare, and each weighs much: an estimate from no ending at all would seem exact. So where episodes are known
to terminate, half an ending more than was seen is counted (as Jeffreys' prior does for a Poisson rate), at a random
step: the variance grows by half the mean of (z_t γ V_{t+1})².
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from icrl_gym.audit.critic import CriticReading
from icrl_gym.context.returns import decayed_sums
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.scoring.statistics import Aggregate

MOSTLY_SEEN = 0.5  # share of the discount
UNSEEN_ENDINGS = 0.5


@dataclass(frozen=True, eq=False)
class ReturnEvidence:
    """Returns of N transitions against what a critic said.

    Attributes:
        taken_N: V_k.
        errors_N: G_k - V_k.
        residuals_N: δ_k.
        decays_N: γ where row k + 1 continues row k, else 0.
        stakes_N: what an ending after step k would have taken away, γ V of the successor; 0 where none can come.
        seen_N: share of an error of the critic that is the same everywhere which G_k - V_k shows: 1 - γ^m where m steps
            were seen before a cut, 1 where the episode terminated.
    """

    taken_N: np.ndarray
    errors_N: np.ndarray
    residuals_N: np.ndarray
    decays_N: np.ndarray
    stakes_N: np.ndarray
    seen_N: np.ndarray

    @classmethod
    def of(cls, reading: CriticReading, exam: Trajectory, gamma: float, may_end: bool) -> ReturnEvidence:
        """The evidence of what a critic said along a trajectory.

        Args:
            reading: the critic along the trajectory.
            exam: the trajectory.
            gamma: discount in [0, 1).
            may_end: whether episodes are known to terminate.
        """
        decays_N = gamma * (1.0 - exam.episode_ends)
        errors_N = decayed_sums(reading.residuals_N, decays_N)
        seen_N = decayed_sums(reading.known_N * (1.0 - gamma * (1.0 - exam.terminated)), decays_N)
        stakes_N = gamma * reading.successors_N * (reading.known_N & ~exam.terminated) * may_end
        return cls(reading.taken_N, errors_N, reading.residuals_N, decays_N, stakes_N, seen_N)

    @property
    def returns_N(self) -> np.ndarray:
        """G_k."""
        return self.taken_N + self.errors_N

    def bias(self, level: float) -> Aggregate:
        """How far the critic is too high in the mean, in units of reward; NaN where no discount was seen."""
        seen = float(self.seen_N.sum())
        if seen <= 0:
            return Aggregate(math.nan, math.nan, math.nan)
        return self._sum(np.full(len(self.seen_N), -1.0 / seen), level)

    def explained(self, rows_Q: np.ndarray, predictions_Q: np.ndarray, level: float) -> Aggregate:
        """var(T) - var(T - X) for predictions X of the true values T at some rows, in squared units of reward.

        It is 2 cov(X, G) - var(X): the noise of the returns has no part in it but in its interval. 0 is what a
        constant explains, and the largest possible is var(T); predictions that vary for no reason come out below 0.
        """
        x_Q = predictions_Q - predictions_Q.mean()
        known = float(np.mean(2.0 * x_Q * self.taken_N[rows_Q] - x_Q**2))
        return _shifted(self._sum(self._placed(rows_Q, 2.0 * x_Q / len(rows_Q)), level), known)

    def support(self, rows_Q: np.ndarray, corrections_Q: np.ndarray, trace_decay: float, level: float) -> Aggregate:
        """How far the residuals go the way that proposed corrections of the critic say.

        It is the mean of correction times G - V, with returns of decay ``trace_decay``: 0 in the mean if the critic is
        right, positive if the corrections are (or any that point the same way); squared units of reward. Corrections
        that are the same everywhere count for nothing.
        """
        x_Q = corrections_Q - corrections_Q.mean()
        return self._sum(self._placed(rows_Q, x_Q / len(rows_Q)), level, trace_decay)

    def corrected_returns(self, rows_Q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows among these with most of the discount seen, and their returns without the critic's share at the cut."""
        kept_P = rows_Q[self.seen_N[rows_Q] > MOSTLY_SEEN]
        return kept_P, self.taken_N[kept_P] + self.errors_N[kept_P] / self.seen_N[kept_P]

    def _placed(self, rows_Q: np.ndarray, weights_Q: np.ndarray) -> np.ndarray:
        weights_N = np.zeros(len(self.taken_N))
        weights_N[rows_Q] = weights_Q
        return weights_N

    def _sum(self, weights_N: np.ndarray, level: float, trace_decay: float = 1.0) -> Aggregate:
        """sum_k weights_k (G_k - V_k) with its normal interval."""
        links_N = trace_decay * np.append(0.0, self.decays_N[:-1])
        traces_N = decayed_sums(weights_N[::-1], links_N[::-1])[::-1]
        value = float(np.sum(traces_N * self.residuals_N))
        variance = np.sum((traces_N * self.residuals_N) ** 2) + UNSEEN_ENDINGS * np.mean(
            (traces_N * self.stakes_N) ** 2
        )
        half = NormalDist().inv_cdf(0.5 + level / 2) * float(np.sqrt(variance))
        return Aggregate(value, value - half, value + half)


def _shifted(aggregate: Aggregate, by: float) -> Aggregate:
    return Aggregate(aggregate.value + by, aggregate.low + by, aggregate.high + by)
