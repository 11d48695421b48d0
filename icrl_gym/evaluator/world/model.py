"""`World`: how the process goes on from a state and an action, as members that were each fitted without a part.

Shape legend: N transitions, K members, M rows of a member, B states of each member, D features, X action features,
E endings, P terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.features import FeatureMap
from icrl_gym.context.prompt import Prompt
from icrl_gym.evaluator.keys import evenly
from icrl_gym.evaluator.world.bounds import Bounds
from icrl_gym.evaluator.world.events import Events, Limits
from icrl_gym.evaluator.world.levels import MOST_VALUES, RewardLevels
from icrl_gym.evaluator.world.regression import SmoothRegression

MEMBERS = 4
PIECES = 16  # stretches of the context that the members leave out in turn
MOST_ROWS = 768  # of a member, evenly spaced
FEWEST_ROWS = 64
MOST_ENDINGS = 256  # evenly spaced
MOST_LEVEL_ROWS = 2048  # transitions from which rewards of few values are read, evenly spaced
NEAR, FAR = 1.0, 4.0  # standard deviations beyond the context's range that still count as seen
STAYING = ((5, 1), (2, 2), (0, 3))  # with at least so many endings, so many members stay near
REWARD_MARGIN = 0.25  # of the range of the context's rewards, beyond it
TINY = 1e-9
ENDING_BANDWIDTH = 0.8  # of the read of ending rewards


@dataclass(frozen=True, eq=False)
class Step:
    """One imagined step of every state.

    Attributes:
        next_KBD: successors.
        rewards_KB: rewards of going on.
        endings_KB: probabilities of an ending.
        ending_rewards_KB: rewards at it.
        reward_reads: what the rewards of going on are linear in, for `World.reward_weights`.
        ending_weights_KBE: weights of the endings' rewards, None where the context holds no ending.
    """

    next_KBD: Tensor
    rewards_KB: Tensor
    endings_KB: Tensor
    ending_rewards_KB: Tensor
    reward_reads: tuple[Tensor, ...]
    ending_weights_KBE: Tensor | None


@dataclass(frozen=True, eq=False)
class World:
    """A model of one context.

    Attributes:
        regression: displacement and reward; rewards are the last output.
        num_transitions: N.
        rows_KM: transitions that each member holds.
        held_out: transitions (of those that may start a check) that each member was fitted without.
        endings: model of endings, or None.
        ended_E: transitions that ended an episode, some of them where there are many.
        ended_features_ED: their successors.
        ending_rewards_E: their rewards.
        ending_width: width of the kernel that reads them, infinite for the mean.
        low_KD, high_KD: range of the context's states with each member's margin.
        still_D: features that never move.
        low_reward, high_reward: range of the context's rewards of going on, with a margin.
        feature_map: of observations.
        levels: rewards of going on that take few values; None where the regression reads them.
        bounds: where numbers are cut off.
    """

    regression: SmoothRegression
    num_transitions: int
    rows_KM: np.ndarray
    held_out: tuple[np.ndarray, ...]
    endings: Events | None
    ended_E: np.ndarray
    ended_features_ED: Tensor
    ending_rewards_E: Tensor
    ending_width: float
    low_KD: Tensor
    high_KD: Tensor
    still_D: Tensor
    low_reward: float
    high_reward: float
    feature_map: FeatureMap
    levels: RewardLevels | None
    bounds: Bounds

    @classmethod
    def fit(
        cls, prompt: Prompt, successors_ND: np.ndarray, actions_NX: np.ndarray, origin_D: np.ndarray,
        device: torch.device | str,
    ) -> World | None:  # fmt: skip
        """The world of a prompt; None where too few transitions went on.

        Args:
            prompt: the context.
            successors_ND: features of the true successors, those of endings among them.
            actions_NX: features of the logged actions.
            origin_D: features of the observation 0.
            device: torch device.
        """
        states_ND = prompt.source_features
        live_N, ended = prompt.discounts > 0, evenly(np.flatnonzero(prompt.discounts == 0), MOST_ENDINGS)
        piece_N = np.arange(len(prompt)) * PIECES // len(prompt) % MEMBERS
        bounds = Bounds.of(states_ND, successors_ND, live_N)
        free_N = live_N & ~bounds.touched_N
        members = [np.flatnonzero(free_N & (piece_N != member)) for member in range(MEMBERS)]
        num_rows = min(MOST_ROWS, *map(len, members))
        if num_rows < FEWEST_ROWS:
            return None
        live = evenly(np.flatnonzero(free_N), MOST_ROWS)
        index_of = np.full(len(prompt), -1)
        rows_KM = np.stack([evenly(rows, num_rows) for rows in members])
        used = np.union1d(live, rows_KM)
        index_of[used] = np.arange(len(used))
        outputs_NO = np.column_stack([successors_ND - states_ND, prompt.rewards])
        inputs_NX = np.concatenate([states_ND, actions_NX], axis=1)
        regression = SmoothRegression.fit(
            inputs_NX[used], outputs_NO[used], index_of[live], list(index_of[rows_KM]), device
        )
        margins_KD = np.repeat(_margins(len(ended))[:, None], states_ND.shape[1], axis=1)
        tensors = [torch.as_tensor(part, dtype=torch.float64, device=device) for part in (
            successors_ND[ended], prompt.rewards[ended],
            states_ND.min(axis=0) - margins_KD, states_ND.max(axis=0) + margins_KD,
        )]  # fmt: skip
        levels = _levels(regression, inputs_NX, successors_ND, prompt.rewards, live_N, piece_N, origin_D)
        still_D = torch.as_tensor(states_ND.std(axis=0) < 1e-9, device=device)
        held_out = tuple(np.flatnonzero(piece_N == member) for member in range(MEMBERS))
        endings = Events.fit(successors_ND[live_N], successors_ND[ended], origin_D, MEMBERS)
        return cls(
            regression, len(prompt), rows_KM, held_out, endings, ended, tensors[0], tensors[1],
            _ending_width(tensors[0], tensors[1], prompt.kernel_width(ENDING_BANDWIDTH)),
            tensors[2], tensors[3], still_D, *_paid(prompt.rewards[live_N]), prompt.feature_map, levels, bounds,
        )  # fmt: skip

    @property
    def held_in(self) -> tuple[np.ndarray, ...]:
        """Transitions that each member was not kept from."""
        return tuple(np.setdiff1d(np.arange(self.num_transitions), rows) for rows in self.held_out)

    def seen(self, states_KBD: Tensor) -> Tensor:
        """Which states (K, B) lie within what the member takes as seen."""
        low_K1D, high_K1D = self.low_KD[:, None], self.high_KD[:, None]
        return ((states_KBD >= low_K1D) & (states_KBD <= high_K1D)).all(dim=-1)

    def pays_as_seen(self, rewards: Tensor) -> Tensor:
        """Which rewards lie within what counts as seen."""
        return (rewards >= self.low_reward) & (rewards <= self.high_reward)

    def completed(self, states_KBD: Tensor) -> Tensor:
        """States whose derived features are those of their others."""
        if not self.feature_map.has_goal:
            return states_KBD
        return torch.as_tensor(self.feature_map.completed(states_KBD.cpu().numpy()), device=states_KBD.device)

    def limits(self, alive_KBD: Tensor) -> Limits | None:
        """What ends the episodes that go on at these states; None where nothing does."""
        return None if self.endings is None else self.endings.limits(alive_KBD.cpu().numpy())

    def advance(self, states_KBD: Tensor, actions_KBX: Tensor, limits: Limits | None = None) -> Step:
        """One step of every state, under the limits of its particle."""
        terms_KBP, kernel_KBM = self.regression.read(torch.cat([states_KBD, actions_KBX], dim=-1))
        outputs_KBO = self.regression.outputs(terms_KBP, kernel_KBM)
        moved_KBD = outputs_KBO[..., :-1].masked_fill(self.still_D, 0.0)
        next_KBD = self.completed(self.bounds.held(states_KBD + moved_KBD))
        if self.levels is None:
            rewards_KB = outputs_KBO[..., -1]
            reads = (terms_KBP, torch.ones_like(terms_KBP[..., :1]), *(() if kernel_KBM is None else (kernel_KBM,)))
        else:
            reads = (self.levels.shares(next_KBD),)
            rewards_KB = self.levels.rewards(*reads)
        if self.endings is None:
            nothing_KB = torch.zeros_like(rewards_KB)
            return Step(next_KBD, rewards_KB, nothing_KB, nothing_KB, reads, None)
        endings_KB = torch.as_tensor(self.endings(next_KBD.cpu().numpy(), limits), device=next_KBD.device)
        weights_KBE = _ending_weights(next_KBD, self.ended_features_ED, self.ending_width)
        ending_rewards_KB = weights_KBE @ self.ending_rewards_E
        return Step(next_KBD, rewards_KB, endings_KB, ending_rewards_KB, reads, weights_KBE)

    def reward_weights(self, reads_KQX: Sequence[Tensor]) -> np.ndarray:
        """Weights (Q, N) of the context's rewards in sums of rewards of going on, over all members.

        Args:
            reads_KQX: sums of the steps' ``reward_reads``, each weighed as its reward is.
        """
        if self.levels is not None:
            return self.levels.attribution(reads_KQX[0].sum(dim=0).cpu().numpy(), self.num_transitions)
        terms_KQP, mass_KQ1, *kernel_KQM = reads_KQX
        weights_QN = np.zeros((terms_KQP.shape[1], self.num_transitions))
        found_KQM = self.regression.reward_attribution(terms_KQP, kernel_KQM[0] if kernel_KQM else None, mass_KQ1)
        for rows_M, found_QM in zip(self.rows_KM, found_KQM.cpu().numpy(), strict=True):
            weights_QN[:, rows_M] += found_QM
        return weights_QN


def _levels(
    regression: SmoothRegression, inputs_NX: np.ndarray, successors_ND: np.ndarray, rewards_N: np.ndarray,
    live_N: np.ndarray, piece_N: np.ndarray, origin_D: np.ndarray,
) -> RewardLevels | None:  # fmt: skip
    """Levels of the rewards of going on, where members foretell those that they left out with less squared error by
    them than by the regression.
    """
    if len(np.unique(rewards_N[live_N])) > MOST_VALUES:
        return None
    rows_L = evenly(np.flatnonzero(live_N), MOST_LEVEL_ROWS)
    left_out_KL = piece_N[rows_L] == np.arange(MEMBERS)[:, None]
    successors_LD, rewards_L = successors_ND[rows_L], rewards_N[rows_L]
    levels = RewardLevels.fit(successors_LD, rewards_L, rows_L, left_out_KL, origin_D)
    if levels is None:
        return None
    x_LX = torch.as_tensor(inputs_NX[rows_L], dtype=torch.float64, device=regression.inputs_KMX.device)
    smooth_KL = regression.outputs(*regression.read(x_LX.expand(MEMBERS, -1, -1)))[..., -1].cpu().numpy()
    by_smooth, by_levels = (
        float(np.square(foretold_L - rewards_L).mean())
        for foretold_L in (smooth_KL[left_out_KL.argmax(axis=0), np.arange(len(rows_L))],
                           levels.foretold(successors_LD, left_out_KL))
    )  # fmt: skip
    return levels if by_levels < by_smooth else None


def _paid(rewards_N: np.ndarray) -> tuple[float, float]:
    """Range of rewards with its margin; what rounds a constant reward lies within it."""
    low, high = float(rewards_N.min()), float(rewards_N.max())
    margin = REWARD_MARGIN * (high - low) + TINY * max(abs(low), abs(high))
    return low - margin, high + margin


def _margins(num_endings: int) -> np.ndarray:
    """Each member's margin (K,): beyond the seen range there may be endings of a kind that the context does not show.

    The fewer endings there are, the likelier is another kind (the rule of succession), and the more members stop near.
    """
    staying = next(count for least, count in STAYING if num_endings >= least)
    order = np.array([1, 3, 0, 2])  # so that it does not go with the endings' explanations
    return np.where(order < staying, NEAR, FAR)


def _ending_weights(states_BD: Tensor, ended_ED: Tensor, width: float) -> Tensor:
    """Softmax attention over the endings, (..., B, E)."""
    if math.isinf(width):
        shape = (*states_BD.shape[:-1], len(ended_ED))
        return torch.full(shape, 1.0 / len(ended_ED)).to(states_BD)
    squares = (
        states_BD.square().sum(dim=-1, keepdim=True) - 2.0 * states_BD @ ended_ED.mT + ended_ED.square().sum(dim=-1)
    )
    return torch.softmax(-squares / (2.0 * width**2), dim=-1)


def _ending_width(ended_ED: Tensor, rewards_E: Tensor, width: float) -> float:
    """The kernel's width where it foretells the endings' rewards from one another better than their mean does."""
    if len(ended_ED) < 4:
        return math.inf
    count = len(rewards_E)
    by_mean = ((rewards_E - rewards_E.mean()) * count / (count - 1)).square().sum()
    squares_EE = torch.cdist(ended_ED, ended_ED).square().fill_diagonal_(math.inf)
    by_kernel = (rewards_E - torch.softmax(-squares_EE / (2.0 * width**2), dim=-1) @ rewards_E).square().sum()
    return width if bool(by_kernel < by_mean) else math.inf
