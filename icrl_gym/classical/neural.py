"""A value network fitted to the log: what a practitioner would train when there is no simulator."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from icrl_gym.classical.base import PromptEstimator, all_features, check_positive, prompt_constant
from icrl_gym.prompt import Prompt


class FittedValueNetwork(PromptEstimator):
    """Fitted value iteration for a fixed policy: a two-layer network regressed on bootstrapped targets.

    Targets r + discount v_target(S') come from a copy that is renewed every ``target_period`` steps. Values are learned
    relative to the prompt's constant, in units of the targets' spread.

    Args:
        width: hidden units per layer.
        num_steps: of Adam, on minibatches of ``batch_size``.
        learning_rate: of Adam.
        target_period: steps between renewals of the target copy.
        seed: of the initial weights and the minibatches; the global generator is left alone.
    """

    def __init__(
        self,
        width: int = 64,
        num_steps: int = 2000,
        learning_rate: float = 1e-3,
        target_period: int = 50,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        check_positive(
            width=width, num_steps=num_steps, learning_rate=learning_rate, target_period=target_period,
            batch_size=batch_size,
        )  # fmt: skip
        self.width, self.num_steps, self.learning_rate = width, num_steps, learning_rate
        self.target_period, self.batch_size, self.seed = target_period, batch_size, seed

    def _fit(self, prompt: Prompt) -> None:
        columns_CD = torch.as_tensor(all_features(prompt), dtype=torch.float32)
        source_ND, next_ND = columns_CD[: len(prompt)], columns_CD[torch.as_tensor(prompt.successors)]
        self._constant = prompt_constant(prompt)
        centred_N = prompt.rewards - (1.0 - prompt.discounts) * self._constant
        self._scale = float(np.std(centred_N)) / (1.0 - prompt.gamma) ** 0.5 or 1.0
        rewards_N = torch.as_tensor(centred_N / self._scale, dtype=torch.float32)
        discounts_N = torch.as_tensor(prompt.discounts, dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self._network = self._train(source_ND, next_ND, rewards_N, discounts_N)

    def _train(
        self, source_ND: torch.Tensor, next_ND: torch.Tensor, rewards_N: torch.Tensor, discounts_N: torch.Tensor
    ) -> nn.Module:
        network = nn.Sequential(
            nn.Linear(source_ND.shape[1], self.width), nn.Tanh(),
            nn.Linear(self.width, self.width), nn.Tanh(), nn.Linear(self.width, 1),
        )  # fmt: skip
        optimiser = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        for step in range(self.num_steps):
            if step % self.target_period == 0:
                target = copy.deepcopy(network)
                with torch.no_grad():
                    targets_N = rewards_N + discounts_N * target(next_ND)[:, 0]
            picked = torch.randint(len(source_ND), (self.batch_size,))
            loss = nn.functional.mse_loss(network(source_ND[picked])[:, 0], targets_N[picked])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return network

    def _values(self, features_QD: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            raw = self._network(torch.as_tensor(features_QD, dtype=torch.float32))[:, 0]
        return self._constant + self._scale * raw.double().numpy()
