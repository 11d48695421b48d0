"""`RewardLevels`: rewards of going on that take few values, each of which is an event that the successor shows.

A goal that is reached or not, a pipe that is passed: such a reward is a jump, which a smooth function of state and
action blurs and a threshold on the successor reads exactly. One value is paid where no event of another value is: the
commonest, or the rarer of two where thresholds explain the commonest alone. A member knows the events of its own
transitions alone, so that members can be asked for the rewards that they left out.

Shape legend: L transitions that went on, V values (the first is no event), K members, B states, D features,
Q queries, N transitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.evaluator.world.events import Events, Rules

MOST_VALUES = 4
FEWEST_EVENTS = 4  # of each value


@dataclass(frozen=True, eq=False)
class RewardLevels:
    """What each of K members holds of rewards that take V values.

    Attributes:
        values_V: the rewards.
        rows_V: the transitions that paid each.
        events_KV: a member's model of each value but the first.
    """

    values_V: np.ndarray
    rows_V: tuple[np.ndarray, ...]
    events_KV: tuple[tuple[Events, ...], ...]

    @classmethod
    def fit(
        cls, successors_LD: np.ndarray, rewards_L: np.ndarray, rows_L: np.ndarray, left_out_KL: np.ndarray,
        origin_D: np.ndarray,
    ) -> RewardLevels | None:  # fmt: skip
        """Levels, or None where rewards take many values or one, or a member holds no event of a value.

        Args:
            successors_LD, rewards_L: transitions that went on.
            rows_L: their numbers in the context.
            left_out_KL: which of them each member was fitted without.
            origin_D: features of the observation 0.
        """
        values_V, which_L, counts_V = np.unique(rewards_L, return_inverse=True, return_counts=True)
        if not 2 <= len(values_V) <= MOST_VALUES or counts_V.min() < FEWEST_EVENTS:
            return None
        of_value_VL = which_L == np.arange(len(values_V))[:, None]
        order_V = np.argsort(-counts_V, kind="stable")
        if len(values_V) == 2:
            rarer, commoner = (_explained(successors_LD, of_value_VL[value], origin_D) for value in order_V[::-1])
            order_V = order_V[::-1] if commoner and not rarer else order_V
        of_value_VL, events_KV = of_value_VL[order_V], []
        for member, left_out_L in enumerate(left_out_KL):
            found = [
                _read(successors_LD, paid_L, ~left_out_L, origin_D, member, len(left_out_KL))
                for paid_L in of_value_VL[1:]
            ]
            events_KV.append(tuple(events for events in found if events is not None))
        if any(len(events_V) < len(values_V) - 1 for events_V in events_KV):
            return None
        return cls(values_V[order_V], tuple(rows_L[paid_L] for paid_L in of_value_VL), tuple(events_KV))

    def foretold(self, successors_LD: np.ndarray, left_out_KL: np.ndarray) -> np.ndarray:
        """Rewards (L,) of transitions, each by the member that was fitted without it."""
        found_L = np.empty(len(successors_LD))
        for member, left_out_L in enumerate(left_out_KL):
            found_L[left_out_L] = self._shares_of(member, successors_LD[left_out_L]) @ self.values_V
        return found_L

    def shares(self, successors_KBD: Tensor) -> Tensor:
        """How likely each value is, (K, B, V), at successors of each member."""
        found = [self._shares_of(member, part) for member, part in enumerate(successors_KBD.cpu().numpy())]
        return torch.as_tensor(np.stack(found), device=successors_KBD.device)

    def rewards(self, shares_KBV: Tensor) -> Tensor:
        """Rewards (K, B) of these shares."""
        return shares_KBV @ torch.as_tensor(self.values_V).to(shares_KBV)

    def attribution(self, shares_QV: np.ndarray, num_transitions: int) -> np.ndarray:
        """Weights (Q, N) of the context's rewards in sums of shares; a value is the mean of the rewards that are it."""
        weights_QN = np.zeros((len(shares_QV), num_transitions))
        for share_Q, rows in zip(shares_QV.T, self.rows_V, strict=True):
            weights_QN[:, rows] = share_Q[:, None] / len(rows)
        return weights_QN

    def _shares_of(self, member: int, successors_BD: np.ndarray) -> np.ndarray:
        """Those (B, V) of one member; where several events are foretold they share."""
        rarer_VB = np.concatenate([events(successors_BD[None]) for events in self.events_KV[member]])
        rarer_VB = rarer_VB / np.maximum(rarer_VB.sum(axis=0), 1.0)
        return np.concatenate([1.0 - rarer_VB.sum(axis=0, keepdims=True), rarer_VB]).T


def _explained(successors_LD: np.ndarray, paid_L: np.ndarray, origin_D: np.ndarray) -> bool:
    """Whether rules explain where a value is paid."""
    return bool(Rules.fit(successors_LD[~paid_L], successors_LD[paid_L], origin_D).explained_E.all())


def _read(
    successors_LD: np.ndarray, paid_L: np.ndarray, held_L: np.ndarray, origin_D: np.ndarray, member: int, members: int
) -> Events | None:
    """The reading of one member of the events of one value, from the transitions that it holds."""
    found = Events.fit(successors_LD[held_L & ~paid_L], successors_LD[held_L & paid_L], origin_D, members)
    return None if found is None else found.of_member(member)
