"""Certainty equivalence: count, then solve."""

from __future__ import annotations

import numpy as np

from icrl_gym.context.prompt import Prompt
from icrl_gym.rivals.base import PromptEstimator, all_features, importance_ratios


class CertaintyEquivalence(PromptEstimator):
    """(I - P_gamma)^{-1} r of the empirical model over distinct observations, importance ratios counting for counts.

    A state that was entered but never left, and a query that was never visited, are worth the prompt's constant.
    """

    weighs_ratios = True

    def _fit(self, prompt: Prompt) -> None:
        columns_CD = all_features(prompt)
        self._states_SD, state_C = np.unique(columns_CD, axis=0, return_inverse=True)
        state_C = state_C.reshape(-1)
        num_states, source_N = len(self._states_SD), state_C[: len(prompt)]
        ratio_N = importance_ratios(prompt)
        counts_S = np.bincount(source_N, ratio_N, minlength=num_states)
        rewards_S = np.bincount(source_N, ratio_N * prompt.rewards, minlength=num_states)
        transition_SS = np.zeros((num_states, num_states))
        np.add.at(transition_SS, (source_N, state_C[prompt.successors]), ratio_N * prompt.discounts)
        left = counts_S > 0
        transition_SS[left] /= counts_S[left, None]
        rewards_S[left] /= counts_S[left]
        rewards_S[~left] = prompt.constant
        self._values_S = np.linalg.solve(np.eye(num_states) - transition_SS, rewards_S)

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        joined = np.concatenate([self._states_SD, features_QD])
        _, inverse = np.unique(joined, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        table = {int(group): value for group, value in zip(inverse, self._values_S, strict=False)}
        return np.array([table.get(int(group), self.prompt_.constant) for group in inverse[len(self._states_SD) :]])
