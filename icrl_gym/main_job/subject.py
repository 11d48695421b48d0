"""What one run is about: a policy in an environment, with its context, its true values, and what its critic says."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.adapters import left_out_parts
from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.acting.policy_source import PolicySource
from icrl_gym.context.collection import collect
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.ground_truth.transitions import TransitionTable
from icrl_gym.ground_truth.values import exact_values, monte_carlo_values, query_histories
from icrl_gym.observations import Observations, batch_size, take
from icrl_gym.rivals.critics import recurrent_critic_states, sb3_critic_values
from icrl_gym.runs import Progress
from icrl_gym.values import ValueEstimates


@dataclass(frozen=True, eq=False)
class Subject:
    """A policy in an environment.

    Attributes:
        spec: the environment.
        source: the policy, and the model that it comes from.
        gamma: discount in [0, 1).
        deterministic: whether a model acts by its mode.
        seed: seed of the context, of the queries and of the rollouts.
        progress: told how far the long parts are.
    """

    spec: EnvSpec
    source: PolicySource
    gamma: float
    deterministic: bool
    seed: int
    progress: Progress

    def exact_truth_applies(self, truth: str) -> tuple[bool, str]:
        """Whether to solve for the truth, and why not where there is a transition table all the same.

        Args:
            truth: "auto", "exact" or "monte_carlo".

        Raises:
            ValueError, TypeError: the policy cannot act here; or "exact" is wanted and there is no table, or the policy
                has no action probabilities.
        """
        with closing(make_environment(self.spec)) as env:
            actor = self._actor(env)
            if truth == "monte_carlo" or (truth == "auto" and not hasattr(env.unwrapped, "P")):
                return False, ""
            try:
                actor.action_probabilities(take(TransitionTable.from_environment(env).observations, slice(1)))
            except ValueError as error:
                if truth == "exact":
                    raise
                return False, f"the truth is simulated although {self.spec.id} has a transition table: {error}"
        return True, ""

    def context(self, num_transitions: int) -> Trajectory:
        """One stretch of the policy's experience."""
        return collect(
            self.spec, self.source.policy, num_transitions, self.seed, deterministic=self.deterministic,
            progress=lambda done, total: self.progress("collecting the context", done, total),
        )  # fmt: skip

    def left_out(self) -> list[str]:
        """A remark on the parts of observations that are no arrays, and so are not seen."""
        with closing(make_environment(self.spec)) as env:
            parts = left_out_parts(env)
        return [f"left out of the observations, as no arrays: {', '.join(parts)}"] if parts else []

    def evaluated(self) -> ActingPolicy:
        """The policy to be evaluated, as an estimator may ask it."""
        with closing(make_environment(self.spec)) as env:
            return self._actor(env)

    def exact_truth(self) -> ValueEstimates:
        """Values of all non-terminal states, solved for."""
        with closing(make_environment(self.spec)) as env:
            return exact_values(env, self._actor(env), self.gamma)

    def simulated_truth(self, num_queries: int, num_rollouts: int) -> ValueEstimates:
        """Values of states on the policy's way, from rollouts."""
        return monte_carlo_values(
            self.spec, self.source.policy, num_queries=num_queries, num_rollouts=num_rollouts,
            gamma=self.gamma, seed=self.seed, deterministic=self.deterministic,
            progress=lambda done, total: self.progress("measuring the truth", done, total),
        )  # fmt: skip

    def critic(self, truth: ValueEstimates) -> ValueEstimates:
        """The critic's values at the queries of a truth; a recurrent one is first run through each query's episode.

        Raises:
            ValueError: the critic answers another question than the truth, or has no values.
        """
        memory: tuple[Any, ...] = ()
        if self.source.recurrent:
            histories = query_histories(
                self.spec, self.source.policy, num_queries=len(truth), seed=self.seed, deterministic=self.deterministic
            )
            memory = recurrent_critic_states(self.source.model, histories), np.zeros(len(truth), dtype=bool)
        values = sb3_critic_values(
            self.source.model, truth.observations, *memory, deterministic=self.deterministic, env=truth.estimand.env
        )
        values.estimand.check_matches(truth.estimand)
        return values

    def critic_along(self, episode: Observations) -> ValueEstimates:
        """The critic's values at the successive states of one whole episode."""
        memory: tuple[Any, ...] = ()
        if self.source.recurrent:
            starts = np.zeros(batch_size(episode), dtype=bool)
            starts[0] = True
            memory = recurrent_critic_states(self.source.model, [take(episode, slice(1))]), starts
        return sb3_critic_values(self.source.model, episode, *memory, deterministic=self.deterministic)

    def _actor(self, env: Env) -> ActingPolicy:
        spaces = env.action_space, env.observation_space
        return as_policy(self.source.policy, *spaces, deterministic=self.deterministic, seed=self.seed)
