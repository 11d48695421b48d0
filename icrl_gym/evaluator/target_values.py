"""State values of a policy that did not act, read off columns of state-action pairs.

V(s) = sum_a pi(a | s) Q(s, a): the attention of a state is the weighted mean of that of its pairs, so everything that
is linear in attention rows is read as for any other query.

Shape legend: Q queries, M actions in each, P = Q * M pairs, N sources, D features, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.pairs import StateActionFeatures
from icrl_gym.context.prompt import Prompt
from icrl_gym.context.target_pairs import ActionLikeness, WeightedActions, expected_actions, target_pair_prompt
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.evaluator.compiled import CompiledMixture, Member, Reading

ACTIONS_AT_ENDS = 2
PAIR_BLOCK = 1024  # rows of attention held at once
Ask = Callable[[np.ndarray], WeightedActions]  # features of states (Q, D) -> the target's actions there


@dataclass(frozen=True, eq=False)
class TargetValues:
    """A target's values of states, ready for queries; it reads as a `CompiledMixture` does.

    Queries are features of states. The target's actions there are given by `with_actions`, or asked by features where
    these can be turned back into observations.

    Attributes:
        prompt: the context as states, whose features queries have.
        pairs: the context as pairs, under the network.
        likeness: says how like the logged actions others are.
        ask: gives the target's actions at features of states, or None where they have to be given.
    """

    prompt: Prompt
    pairs: CompiledMixture
    likeness: ActionLikeness
    ask: Ask | None = None

    @classmethod
    def of(
        cls, log: Trajectory, prompt: Prompt, target: AskedPolicy, compile_prompt: Callable[[Prompt], CompiledMixture]
    ) -> TargetValues:
        """The values of a target from a log.

        Args:
            log: transitions of any behaviour.
            prompt: the log as states.
            target: the policy to be evaluated.
            compile_prompt: runs a prompt through the network.
        """
        features, ask = prompt.feature_map, None
        if features.invertible:  # walks end in many states, over which a few actions in each are averaged
            ask = lambda states: expected_actions(target, features.inverse(states), ACTIONS_AT_ENDS)  # noqa: E731
        pairs = compile_prompt(target_pair_prompt(log, prompt.gamma, features, target))
        likeness = ActionLikeness.of(target.action_space, log.actions_for("policy"))
        return cls(prompt, pairs, likeness, ask)

    @property
    def members(self) -> tuple[Member, ...]:
        """The heads that answer."""
        return self.pairs.members

    @property
    def fell_back(self) -> bool:
        """Whether the safe averager took over in any member."""
        return self.pairs.fell_back

    @property
    def trust(self) -> float:
        """How far the context is like those that the error bars were trained on, in [0, 1]."""
        return self.pairs.trust

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what to be careful about in this context."""
        return self.pairs.warnings

    def with_actions(self, actions: WeightedActions) -> TargetValues:
        """The same for queries in which these are the target's actions."""
        return replace(self, ask=lambda _: actions)

    def read(self, features_QD: np.ndarray) -> Reading:
        """Values, standard errors and support of queries.

        Variances are averaged, as the errors of one state's actions may all have one sign. Support is that of pairs,
        averaged over the actions; a source counts as much as its action is like them.

        Raises:
            ValueError: the target cannot be asked by features, and its actions were not given by `with_actions`.
        """
        features_PD, actions_P, weights_QM = self._pairs_of(features_QD)
        found = self.pairs.read(features_PD)
        variance_Q = None if found.stderr_Q is None else self._mean(np.square(found.stderr_Q), weights_QM)
        return Reading(
            np.stack([self._mean(values, weights_QM) for values in found.by_layer_LQ]),
            None if variance_Q is None else np.sqrt(variance_Q),
            self._mean(found.support_Q * self._share_alike(features_PD, actions_P), weights_QM),
        )

    def attention(self, features_QD: np.ndarray) -> np.ndarray:
        """Attention of queries over the context's sources, (Q, N)."""
        features_PD, _, weights_QM = self._pairs_of(features_QD)
        return self._mean(self.pairs.attention(features_PD), weights_QM)

    def attribution(self, features_QD: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with values = W @ rewards."""
        return self.pooled_attribution(features_QD[:, None], np.ones((len(features_QD), 1)))

    def pooled_attribution(self, features_QMD: np.ndarray, weights_QM: np.ndarray) -> np.ndarray:
        """The matrix W (Q, N) with weighted sums of values = W @ rewards; see `CompiledMixture`."""
        num_queries, num_points, num_features = features_QMD.shape
        features_PD, _, actions_PA = self._pairs_of(features_QMD.reshape(-1, num_features))
        num_pairs = num_points * actions_PA.shape[1]
        weights_QP = (weights_QM.reshape(-1, 1) * actions_PA).reshape(num_queries, num_pairs)
        return self.pairs.pooled_attribution(
            features_PD.reshape(num_queries, num_pairs, features_PD.shape[1]), weights_QP
        )

    def _share_alike(self, features_PD: np.ndarray, actions_P: np.ndarray) -> np.ndarray:
        """Share of the attention of pairs that falls on sources with actions like theirs, (P,)."""
        shares = [np.zeros(0)]
        for start in range(0, len(features_PD), PAIR_BLOCK):
            block = slice(start, start + PAIR_BLOCK)
            attention_PN = self.pairs.attention(features_PD[block])
            alike_P = (attention_PN * self.likeness(actions_P[block])).sum(axis=1)
            shares.append(alike_P / np.maximum(attention_PN.sum(axis=1), np.finfo(float).tiny))
        return np.concatenate(shares)

    def _pairs_of(self, features_QD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features (P, D) and actions (P,) + shape of the queries' pairs, and their weights (Q, M)."""
        if self.ask is None:
            raise ValueError("actions are needed: features of states cannot be turned back into observations here")
        actions = self.ask(features_QD)
        features = self.pairs.prompt.feature_map
        assert isinstance(features, StateActionFeatures)
        num_queries, num_actions = actions.weights_BM.shape
        repeated = np.repeat(features_QD, num_actions, axis=0)
        flat = actions.actions.reshape(num_queries * num_actions, *actions.actions.shape[2:])
        return features.beside(repeated, flat), flat, actions.weights_BM

    @staticmethod
    def _mean(by_pair: np.ndarray, weights_QM: np.ndarray) -> np.ndarray:
        """Weighted mean over each query's actions, (P,) + more -> (Q,) + more."""
        return np.einsum("qm,qm...->q...", weights_QM, by_pair.reshape(*weights_QM.shape, *by_pair.shape[1:]))
