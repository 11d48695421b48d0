"""Networks fitted to the log: what a practitioner would train when there is no simulator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from icrl_gym.acting.policies import AskedPolicy
from icrl_gym.context.features import FeatureMap
from icrl_gym.context.pairs import as_pairs, known_successors, next_action_ratios, pair_process
from icrl_gym.context.prompt import Prompt
from icrl_gym.observations import Observations, as_batch, batch_size, infer_space
from icrl_gym.rivals.base import PromptEstimator, all_features, check_positive, excess_rewards, importance_ratios
from icrl_gym.values import Estimand, ValueEstimates

_NOISE_STREAM = 0xF0E


@dataclass(eq=False)
class NetworkEstimator(PromptEstimator):
    """A two-layer network regressed on targets that its own copy bootstraps.

    Values are learned relative to the prompt's constant, in units of the targets' spread.

    Args:
        width: hidden units per layer.
        num_steps: number of Adam's steps, on minibatches of ``batch_size`` transitions.
        learning_rate: Adam's.
        target_period: steps between renewals of the target copy.
        batch_size: transitions in a minibatch.
        seed: seed of the initial weights and the minibatches; the global generator is left alone.
    """

    weighs_ratios = True

    width: int = 64
    num_steps: int = 2000
    learning_rate: float = 1e-3
    target_period: int = 50
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(
            width=self.width, num_steps=self.num_steps, learning_rate=self.learning_rate,
            target_period=self.target_period, batch_size=self.batch_size,
        )  # fmt: skip

    def _standardise(self, prompt: Prompt) -> Tensor:
        """Fix the scale; the rewards (N,) relative to the constant, in its units."""
        centred_N = excess_rewards(prompt)
        self._scale = float(np.std(centred_N)) / (1.0 - prompt.gamma) ** 0.5 or 1.0
        return _tensor(centred_N / self._scale)

    def _train(self, inputs_MD: Tensor, targets: Callable[[nn.Module], Tensor], weights_M: np.ndarray) -> nn.Module:
        """Least squares on ``targets(copy)`` (M,), weighted; the copy is renewed every ``target_period`` steps."""
        relative_M = _tensor(weights_M / weights_M.mean())
        network = nn.Sequential(
            nn.Linear(inputs_MD.shape[1], self.width), nn.Tanh(),
            nn.Linear(self.width, self.width), nn.Tanh(), nn.Linear(self.width, 1),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for step in range(self.num_steps):
            if step % self.target_period == 0:
                with torch.no_grad():
                    targets_M = targets(copy.deepcopy(network))
            picked = torch.randint(len(inputs_MD), (self.batch_size,))
            error = network(inputs_MD[picked])[:, 0] - targets_M[picked]
            loss = (relative_M[picked] * error.square()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return network

    def _read(self, network: nn.Module, inputs_BD: np.ndarray) -> np.ndarray:
        """The network's answers in reward units, (B,)."""
        with torch.no_grad():
            raw = network(_tensor(inputs_BD))[:, 0]
        return self.prompt_.constant + self._scale * raw.double().numpy()


class FittedValueNetwork(NetworkEstimator):
    """Fitted value iteration for a fixed policy: targets r + discount v_target(S').

    Importance ratios weigh the squared errors. Arguments: see `NetworkEstimator`.
    """

    def _fit(self, prompt: Prompt) -> None:
        columns_CD = _tensor(all_features(prompt))
        next_ND = columns_CD[torch.as_tensor(prompt.successors)]
        rewards_N, discounts_N = self._standardise(prompt), _tensor(prompt.discounts)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = self._train(
                columns_CD[: len(prompt)],
                lambda copied: rewards_N + discounts_N * copied(next_ND)[:, 0],
                importance_ratios(prompt),
            )

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self._read(self._network, features_QD)


@dataclass(eq=False)
class FittedQEvaluation(NetworkEstimator):
    """Fitted Q evaluation (Le, Voloshin & Yue 2019): targets r + discount E_pi q_target(S', .) on pairs (S, A).

    With ``fit(trajectory, gamma, policy)`` the log may be of any behaviour, and needs no importance ratios: discrete
    actions that the policy states probabilities of are summed over, of others ``num_samples`` are drawn per state.
    Without a policy, or with one that cannot be asked, the next logged action stands for the expectation (weighted by
    its ratio, where there are ratios), a stretch's last transition is used only if it terminated, and state values are
    a second network's regression on q of the logged pairs.

    Args:
        width, num_steps, learning_rate, target_period, batch_size, seed: see `NetworkEstimator`.
        num_samples: actions drawn per state.
    """

    can_ask = True

    num_samples: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(num_samples=self.num_samples)

    def predict(self, observations: Observations) -> ValueEstimates:
        """State values E_pi q(s, .) of raw observations (Q,) + shape.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: the observations do not fit the observation space.
        """
        log = self._fitted_log()
        if self._asked is None:
            return super().predict(observations)
        observations = as_batch(observations, log.observation_space, "observations")
        features_QD = self.prompt_.queries(observations)
        inputs_QMD, probability_QM = self._expectation(self._asked, observations, features_QD)
        num_queries, num_actions, _ = inputs_QMD.shape
        q_QM = self._read(self._network, inputs_QMD.reshape(num_queries * num_actions, -1)).reshape(
            probability_QM.shape
        )
        values_Q = (probability_QM * q_QM).sum(axis=1)
        return ValueEstimates(values_Q, observations, self._estimand(), notes=self._notes)

    def predict_q(self, observations: Observations, actions: Any) -> ValueEstimates:
        """Action values of raw observations (Q,) + shape and actions (Q,) + shape; the estimates' observations are the
        pairs, and their estimand is that of the process of pairs.

        Raises:
            RuntimeError: called before `fit`.
            TypeError, ValueError: observations or actions do not fit, or their numbers differ.
        """
        pair_space = spaces.Tuple((self._fitted_log().observation_space, self._actions.space))
        observations, actions = as_pairs(observations, actions, pair_space)
        inputs_QD = np.concatenate([self.prompt_.queries(observations), self._actions(actions)], axis=1)
        estimand = self._estimand()
        of_pairs = replace(estimand, env=pair_process(estimand.env))
        values_Q = self._read(self._network, inputs_QD)
        return ValueEstimates(values_Q, (observations, actions), of_pairs, notes=self._notes)

    def _fit(self, prompt: Prompt) -> None:
        log = self._trajectory
        logged = log.actions_for(type(self).__name__)
        space = infer_space(logged) if self._asked is None else self._asked.action_space
        self._actions = FeatureMap(space).fit(logged)
        pairs_ND = np.concatenate([prompt.source_features, self._actions(logged)], axis=1)
        next_ND = all_features(prompt)[prompt.successors]
        if self._asked is None:
            next_NMD, probability_NM, weight_N = self._logged_next_pairs(next_ND)
        else:
            next_NMD, probability_NM = self._expectation(self._asked, log.next_observations, next_ND)
            weight_N = np.ones(len(log))
        rewards_N, discounts_N = self._standardise(prompt), _tensor(prompt.discounts)
        expectation = _tensor(next_NMD), _tensor(probability_NM)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = self._train(
                _tensor(pairs_ND), lambda copied: rewards_N + discounts_N * _expected(copied, *expectation), weight_N
            )
            if self._asked is None:
                with torch.no_grad():
                    q_N = self._network(_tensor(pairs_ND))[:, 0]
                states_ND = _tensor(prompt.source_features)
                self._state_network = self._train(states_ND, lambda _: q_N, importance_ratios(prompt))

    def _logged_next_pairs(self, next_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs (N, 1, D) of the successors with their logged actions, probabilities (N, 1), and weights (N,)."""
        log = self._trajectory
        weight_N = next_action_ratios(log) * known_successors(log)
        if not weight_N.any():
            raise ValueError("policy: is needed, as the log has no transition whose next action is known and counts")
        logged = log.actions_for(type(self).__name__)
        next_actions_ND = self._actions(np.concatenate([logged[1:], logged[-1:]]))
        return np.concatenate([next_ND, next_actions_ND], axis=1)[:, None], np.ones((len(log), 1)), weight_N

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        return self._read(self._state_network, features_QD)

    def _estimand(self) -> Estimand:
        if self._asked is None:
            return self.prompt_.estimand
        return replace(self.prompt_.estimand, policy=self._asked.identity)

    def _expectation(
        self, asked: AskedPolicy, observations: Observations, features_BD: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (B, M, D) of the policy's actions in these states, and their probabilities (B, M)."""
        batch, space = batch_size(observations), asked.action_space
        probability_BM = asked.probabilities(observations)
        if probability_BM is not None:
            assert isinstance(space, spaces.Discrete)
            actions = np.tile(np.arange(space.start, space.start + space.n), batch)
        else:  # continuous actions, or a policy that only acts
            noise_MBU = _noise(self.seed, (self.num_samples, batch, asked.num_noise))
            drawn = [asked.actions(observations, noise_BU) for noise_BU in noise_MBU]
            actions = np.stack(drawn, axis=1).reshape(batch * self.num_samples, *np.shape(drawn[0])[1:])
            probability_BM = np.full((batch, self.num_samples), 1.0 / self.num_samples)
        repeated = np.repeat(features_BD, probability_BM.shape[1], axis=0)
        inputs = np.concatenate([repeated, self._actions(actions)], axis=1)
        return inputs.reshape(*probability_BM.shape, -1), probability_BM


def _noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform numbers in (0, 1)."""
    return np.clip(np.random.default_rng([seed, _NOISE_STREAM]).random(shape), 1e-12, 1.0 - 1e-12)


def _expected(network: nn.Module, inputs_NMD: Tensor, probability_NM: Tensor) -> Tensor:
    """E q over the target's actions, (N,)."""
    return (probability_NM * network(inputs_NMD)[..., 0]).sum(dim=1)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.asarray(array), dtype=torch.float32)
