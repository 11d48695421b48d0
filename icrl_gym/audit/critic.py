"""What a model's critic says along a stretch of experience, in the rewards that it was trained on.

A V critic (PPO, A2C, TRPO, RecurrentPPO, MaskablePPO) is about the policy that samples. A Q critic is about the policy
inside its own targets: the greedy one of DQN and QRDQN, the actor without exploration noise of TD3 and DDPG, the
sampling actor of SAC, TQC and CrossQ, whose critics count entropy as reward. Rewards here are counted as the critic
counts them (clipped where VecNormalize clips them, with the entropy bonus), but in units of the environment.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from icrl_gym.acting.policies import ActingPolicy, as_policy, normalised
from icrl_gym.audit.stream import Stretch, with_last_successors
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, batch_size, concatenate, take
from icrl_gym.rivals.critics import entropy_weight, reward_scale, sb3_action_values, sb3_critic_values
from icrl_gym.values import ValueEstimates, check_gamma

NUM_ACTION_SAMPLES = 4  # per state, where the critic's expectation over a stochastic actor is sampled


@dataclass(frozen=True, eq=False)
class CriticReading:
    """A critic along n transitions.

    Attributes:
        values: its estimates of the policy's values at the n states.
        taken_N: its values of the states (V critics) or of the pairs of state and executed action (Q critics).
        successors_N: its values of the n successors; meaningless where they are not known or the episode terminated.
        residuals_N: temporal-difference residuals, reward + discount * value of the successor - taken; in the mean 0
            wherever the critic is right. 0 where the successor's value is not known.
        known_N: whether it is.
    """

    values: ValueEstimates
    taken_N: np.ndarray
    successors_N: np.ndarray
    residuals_N: np.ndarray
    known_N: np.ndarray


def check_has_critic(model: Any) -> None:
    """Raise ValueError unless the model has a critic that can be audited."""
    heads = ("predict_values", "q_net", "quantile_net", "critic")
    if not any(hasattr(model.policy, head) for head in heads):
        raise ValueError(f"model: {type(model).__name__} has no critic")
    check_gamma(model.gamma)


class AuditedCritic:
    """The critic of a model, the policy it is about, and the rewards it counts.

    Args:
        model: a Stable-Baselines3 or sb3-contrib model.

    Attributes:
        policy: the policy whose values the critic estimates.

    Raises:
        ValueError: the model has no critic, or its gamma is not below 1.
    """

    policy: ActingPolicy

    def __init__(self, model: Any) -> None:
        check_has_critic(model)
        self.model = model
        self._has_value_head = hasattr(model.policy, "predict_values")
        self._counts_entropy = not self._has_value_head and hasattr(model, "ent_coef")
        self._greedy = not self._has_value_head and not self._counts_entropy
        self.policy = as_policy(model, model.action_space, model.observation_space, deterministic=self._greedy, seed=0)

    @property
    def on_policy(self) -> bool:
        """Whether the model acts with the very policy that its critic is about, as long as it is not updated."""
        return self._has_value_head

    @property
    def askable(self) -> ActingPolicy | None:
        """The policy as an evaluator may ask it at any state; None where its masks are not known at other states."""
        heads = getattr(self.model.policy, "get_distribution", None)
        masked = heads is not None and "action_masks" in inspect.signature(heads).parameters
        return None if masked else self.policy

    def counted(self, stretch: Stretch) -> Trajectory:
        """The stretch with rewards as the critic counts them, and the policy's name where it alone acted."""
        trajectory = stretch.trajectory
        rewards_N = self._clipped(trajectory.rewards)
        if self._counts_entropy:
            open_N = ~trajectory.terminated
            bonus_N = self._entropy_bonus(take(trajectory.next_observations, open_N))
            rewards_N = rewards_N.copy()
            rewards_N[open_N] += self.model.gamma * bonus_N
        acted = self.on_policy and stretch.num_policies == 1
        return replace(trajectory, rewards=rewards_N, policy=self.policy.identity if acted else None)

    def read(self, stretch: Stretch, trajectory: Trajectory) -> CriticReading:
        """Ask the critic along a stretch.

        Args:
            stretch: the stretch.
            trajectory: the same, from `counted`.

        Raises:
            ValueError: the model has no critic.
        """
        if self.policy.recurrent:
            values_N, successors_N, known_N = self._along_sequences(stretch)
        else:
            values_N, successors_N, known_N = self._along_transitions(trajectory)
        taken_N = values_N.values
        if not self._has_value_head:
            taken_N = sb3_action_values(self.model, trajectory.observations, trajectory.actions).values
        discounts_N = self.model.gamma * (1.0 - trajectory.terminated)
        residuals_N = np.where(known_N, trajectory.rewards + discounts_N * successors_N - taken_N, 0.0)
        return CriticReading(values_N, taken_N, successors_N, residuals_N, known_N)

    def _ask(self, observations: Observations, *memory: Any) -> ValueEstimates:
        return sb3_critic_values(
            self.model, observations, *memory, deterministic=self._greedy, num_action_samples=NUM_ACTION_SAMPLES
        )

    def _along_transitions(self, trajectory: Trajectory) -> tuple[ValueEstimates, np.ndarray, np.ndarray]:
        """Values of the n states, of their successors, and which of these are known: all."""
        n, ends_N = len(trajectory), np.flatnonzero(trajectory.episode_ends)
        asked = self._ask(concatenate([trajectory.observations, take(trajectory.next_observations, ends_N)]))
        successors_N = np.append(asked.values[1:n], 0.0)
        successors_N[ends_N] = asked.values[n:]
        return _rows(asked, slice(n)), successors_N, np.ones(n, dtype=bool)

    def _along_sequences(self, stretch: Stretch) -> tuple[ValueEstimates, np.ndarray, np.ndarray]:
        """The same of a critic with memory; after the true end of an episode that was cut nobody asked it."""
        trajectory, num_envs = stretch.trajectory, stretch.num_envs
        ended_BT = (trajectory.terminated | trajectory.truncated).reshape(num_envs, -1)
        starts_BT = np.append(stretch.starts.reshape(num_envs, -1), ended_BT[:, -1:], axis=1)
        memory = getattr(stretch.memory, "vf", stretch.memory)
        states = tuple(part.cpu().numpy() for part in memory)
        asked = self._ask(with_last_successors(stretch), states, starts_BT.reshape(-1))
        values_BT = asked.values.reshape(num_envs, -1)
        rows = np.flatnonzero(np.arange(values_BT.size) % values_BT.shape[1] != values_BT.shape[1] - 1)
        return _rows(asked, rows), values_BT[:, 1:].reshape(-1), ~trajectory.truncated

    def _clipped(self, rewards_N: np.ndarray) -> np.ndarray:
        """Rewards as VecNormalize clips them, in units of the environment."""
        vec_normalize = self.model.get_vec_normalize_env()
        if vec_normalize is None or not vec_normalize.norm_reward:
            return rewards_N
        limit = vec_normalize.clip_reward * reward_scale(self.model)
        return np.clip(rewards_N, -limit, limit)

    def _entropy_bonus(self, observations: Observations) -> np.ndarray:
        """Coefficient times entropy of the actor, in units of the environment's reward, (B,)."""
        model, count = self.model, batch_size(observations)
        if not count:
            return np.zeros(0)
        inputs, _ = model.policy.obs_to_tensor(normalised(model, observations))
        with torch.no_grad():
            draws = [model.policy.actor.action_log_prob(inputs)[1].reshape(-1) for _ in range(NUM_ACTION_SAMPLES)]
            log_probability_B = torch.stack(draws).mean(dim=0).double().cpu().numpy()
        return -reward_scale(model) * entropy_weight(model) * log_probability_B


def _rows(estimates: ValueEstimates, index: Any) -> ValueEstimates:
    return replace(estimates, values=estimates.values[index], observations=take(estimates.observations, index))
