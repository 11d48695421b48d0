"""Transitions in expectation over the policy's action: what chance had a part in is replaced by its mean, unbiased.

In a simulator most of the noise of a transition is the policy's own choice of an action. Where the policy can be asked
and the world m(s, a) tells what an action does, that choice is a control variate for the attention s' of a successor
over the keys, and for the reward:

    s'_k  ->  s'_k - b (K(. | m(S_k, A_k)) - sum_j p_j K(. | m(S_k, a_j)))
    R_k   ->  R_k  - b (r(S_k, A_k) - sum_j p_j r(S_k, a_j))

with a_j actions of the policy in S_k and p_j their weights. The bracket has mean zero whatever m is, as long as m was
not fitted to the transition; so every transition is read by a member of the world that was fitted without it, and a
wrong model costs variance alone. This is the control variate of doubly robust evaluation (Jiang & Li 2016), put into
softmax TD's equations. The share b is the lesser of two regressions: of how far transitions went on how far their
actions were foretold to take them; and of the TD errors of the leaf without variates on what the same leaf makes of the
two brackets. Where many features are spread over few transitions its values at states that nobody visited are mostly
interpolation, which says little of TD errors.

An ending is no successor, so a transition that ended stays as it was; where the action decides on an ending, the mean
over the others is not exactly zero.

Shape legend: N transitions, K members, B rows of each member, M parts, X action features, D features, P terms,
L logged rows of a member, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from icrl_gym.context.prompt import EndMixtures, Prompt
from icrl_gym.evaluator.compiled import CompiledMixture, Reading
from icrl_gym.evaluator.world.imagination import OverLeaf
from icrl_gym.evaluator.world.model import Step, World

ROWS_AT_ONCE = 512  # of each member
LEAST_SHARE = 0.1  # below it variates say too little of the TD errors


@dataclass(frozen=True, eq=False)
class Actions:
    """Logged actions, and the policy's in the same states.

    Attributes:
        logged_NX: features of the logged ones.
        asked_MNX: features of the policy's.
        weights_MN: weights of these; over M they sum to 1.
    """

    logged_NX: np.ndarray
    asked_MNX: np.ndarray
    weights_MN: np.ndarray

    @property
    def parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features (N, X) and signed weights (N,): the logged actions less the mean of the policy's."""
        yield self.logged_NX, np.ones(len(self.logged_NX))
        yield from zip(self.asked_MNX, -self.weights_MN, strict=True)


@dataclass(frozen=True, eq=False)
class ActionVariates:
    """Control variates of one context.

    Attributes:
        prompt: the context as it was.
        world: what foretells the transitions.
        actions: logged and asked.
        share: b.
        expected: the context in expectation: rewards as above, and for every transition that went on an end column
            that is a mixture.
    """

    prompt: Prompt
    world: World
    actions: Actions
    share: float
    expected: Prompt

    @classmethod
    def of(
        cls,
        prompt: Prompt,
        world: World,
        successors_ND: np.ndarray,
        actions: Actions,
        values: Callable[[np.ndarray], np.ndarray],
    ) -> ActionVariates | None:
        """The variates of a prompt, or None where actions are no matter of chance or what is foretold of them says too
        little of the TD errors.

        Args:
            prompt: the context; its end columns are states.
            world: its world.
            successors_ND: features of the true successors.
            actions: logged and asked.
            values: those of features (B, D) without variates.
        """
        live = np.flatnonzero(prompt.discounts > 0)
        predicted = [_predicted(prompt, world, features_NX) for features_NX, _ in actions.parts]
        next_MND, rewards_MN = (np.stack(part) for part in zip(*predicted, strict=True))
        weights_MN = np.stack([weights_N for _, weights_N in actions.parts])
        read = values(np.concatenate([prompt.source_features, successors_ND, *next_MND])).reshape(-1, len(prompt))
        errors_N = prompt.rewards + prompt.discounts * read[1] - read[0]
        foretold_N = np.einsum("mn,mn->n", weights_MN, rewards_MN + prompt.discounts * read[2:])
        moved_ND = np.einsum("mn,mnd->nd", weights_MN, next_MND)  # what the action does, as foretold
        happened_ND = successors_ND - next_MND[0] + moved_ND
        share = min(
            _slope(moved_ND[live].ravel(), happened_ND[live].ravel()),
            _slope(foretold_N[live], errors_N[live] - errors_N[live].mean()),
        )
        if share < LEAST_SHARE:
            return None
        parts_MED = np.concatenate([successors_ND[None], next_MND])[:, live]
        weights_ME = np.concatenate([np.ones((1, len(live))), -share * weights_MN[:, live]])
        mixtures = EndMixtures(parts_MED, weights_ME)
        successors, rewards_N = np.arange(len(prompt)), prompt.rewards.copy()
        successors[live] = len(prompt) + np.arange(len(live))
        rewards_N[live] -= share * np.einsum("mn,mn->n", weights_MN, rewards_MN)[live]
        expected = replace(
            prompt, end_features=mixtures.mean_ED, end_mixtures=mixtures, successors=successors, rewards=rewards_N
        )
        return cls(prompt, world, actions, share, expected)

    def transposed(self, weights_QN: np.ndarray) -> np.ndarray:
        """Weights (Q, N) of the rewards as they were, from those of the rewards in expectation."""
        live_QN = weights_QN * (self.prompt.discounts > 0)
        totals: list[Tensor] = []
        for rows_KB, counted_KB in _blocks(self.world):
            weights_KQB = torch.as_tensor(
                np.moveaxis(live_QN[:, rows_KB] * counted_KB, 0, 1), device=self.world.low_KD.device
            )
            read = [weights_KQB @ part for part in self._differences(rows_KB)]
            totals = _plus(totals, read)
        return weights_QN - self.share * self.world.reward_weights(totals)

    def _differences(self, rows_KB: np.ndarray) -> list[Tensor]:
        """What rewards are read from at the logged actions less the mean of that at the policy's."""
        totals: list[Tensor] = []
        for features_NX, weights_N in self.actions.parts:
            step = _advance(self.prompt, self.world, features_NX, rows_KB)
            weights_KB1 = torch.as_tensor(weights_N[rows_KB, None], device=step.rewards_KB.device)
            read = [weights_KB1 * part for part in step.reward_reads]
            totals = _plus(totals, read)
        return totals


@dataclass(frozen=True, eq=False)
class ExpectedValues(OverLeaf):
    """Values of softmax TD from transitions in expectation; it reads as a `CompiledMixture` does.

    Attributes:
        variates: what the context's rewards and successors were replaced by.
        leaf: the context in expectation, under the network.
    """

    variates: ActionVariates
    leaf: CompiledMixture

    @property
    def prompt(self) -> Prompt:
        """The context as it was."""
        return self.variates.prompt

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of queries."""
        return self.leaf.read(features_QD)

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of queries over the context's sources, (Q, N)."""
        return self.leaf.attention(features_QD)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards."""
        return self.variates.transposed(self.leaf.attribution(features_QD))

    def pooled_attribution(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with weighted sums of values = W @ rewards; see `CompiledMixture`."""
        return self.variates.transposed(self.leaf.pooled_attribution(features_QMD, weights_QM))


def _blocks(world: World) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every transition once, in blocks: rows (K, B) that each member was fitted without, and whether they count; the
    members' last rows are repeated where one has fewer.
    """
    longest = max(map(len, world.held_out))
    rows_KB = np.stack([np.pad(rows, (0, longest - len(rows)), mode="edge") for rows in world.held_out])
    counted_KB = np.arange(longest) < np.array([[len(rows)] for rows in world.held_out])
    for start in range(0, longest, ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        yield rows_KB[:, block], counted_KB[:, block]


def _advance(prompt: Prompt, world: World, actions_NX: np.ndarray, rows_KB: np.ndarray) -> Step:
    """One step from rows of the context with given actions."""
    device = world.low_KD.device
    states_KBD = torch.as_tensor(prompt.source_features[rows_KB], dtype=torch.float64, device=device)
    return world.advance(states_KBD, torch.as_tensor(actions_NX[rows_KB], dtype=torch.float64, device=device))


def _predicted(prompt: Prompt, world: World, actions_NX: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Successors (N, D) and rewards (N,) of going on, each by a member that was fitted without the transition."""
    next_ND, rewards_N = np.empty_like(prompt.source_features, dtype=np.float64), np.empty(len(prompt))
    for rows_KB, _ in _blocks(world):
        step = _advance(prompt, world, actions_NX, rows_KB)
        next_ND[rows_KB], rewards_N[rows_KB] = step.next_KBD.cpu().numpy(), step.rewards_KB.cpu().numpy()
    return next_ND, rewards_N


def _slope(foretold_N: np.ndarray, errors_N: np.ndarray) -> float:
    """That of errors on what was foretold of them, in [0, 1]."""
    power = float(np.square(foretold_N).sum())
    return min(1.0, max(0.0, float(foretold_N @ errors_N) / power)) if power > 0 else 0.0


def _plus(totals: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    return [one + two for one, two in zip(totals, more, strict=True)] if totals else more
