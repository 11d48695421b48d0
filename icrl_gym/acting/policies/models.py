"""Stable-Baselines3 models as policies, recognised by their methods and never imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from icrl_gym.acting.policies.acting import (
    ActingPolicy,
    determinism_suffix,
    discrete_actions,
    one_hot,
    policy_generator,
)
from icrl_gym.observations import Observations, batch_size, named_leaves

MAX_SINGLE_THREADED = 100_000  # numbers in a batch of observations


class ModelPolicy(ActingPolicy):
    """A Stable-Baselines3 model, or anything with its ``predict`` and ``policy``."""

    def __init__(
        self,
        model: Any,
        action_space: spaces.Space,
        observation_space: spaces.Space | None,
        *,
        deterministic: bool,
        seed: Any,
    ) -> None:
        check_model_spaces(model, action_space, observation_space)
        self._model = model
        self._action_space = action_space
        self._deterministic = deterministic
        self._generator = policy_generator(seed)
        self._torch_state = _torch_state(
            int(seed) if isinstance(seed, Integral) else int(self._generator.integers(2**63))
        )
        self.identity = f"{type(model).__name__}:{model_digest(model)}{determinism_suffix(deterministic)}"

    def act(self, observations: Observations) -> np.ndarray:
        actions, _ = self._predict(observations, None, None)
        return self._explore(actions)

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        num_actions = int(discrete_actions(self._action_space, "action_probabilities").n)
        if self._exploration is not None:
            greedy = one_hot(self._predict(observations, None, None)[0], num_actions)
            return (1 - self._exploration) * greedy + self._exploration / num_actions
        if not hasattr(self._model.policy, "get_distribution"):
            return super().action_probabilities(observations)
        with torch.no_grad():
            self._model.policy.set_training_mode(False)
            tensor, _ = self._model.policy.obs_to_tensor(normalised(self._model, observations))
            categorical = self._model.policy.get_distribution(tensor).distribution
        probabilities = categorical.probs.double().cpu().numpy()
        if self._deterministic:
            return one_hot(probabilities.argmax(axis=1), num_actions)
        return probabilities / probabilities.sum(axis=1, keepdims=True)

    @property
    def _exploration(self) -> float | None:
        """The epsilon of an epsilon-greedy model, else None."""
        if not hasattr(self._model, "exploration_rate"):
            return None
        return 0.0 if self._deterministic else float(self._model.exploration_rate)

    def _predict(self, observations: Observations, state: Any, episode_starts: Any) -> tuple[np.ndarray, Any]:
        # Epsilon-greedy models explore in `_explore`, row by row; their own predict flips one global coin per batch.
        predict = self._model.predict if self._exploration is None else self._model.policy.predict
        inputs = normalised(self._model, observations)
        noise = _fresh_exploration_noise(self._model, batch_size(observations))
        with _threads_that_pay(inputs), self._own_torch_randomness(), noise:
            return predict(inputs, state=state, episode_start=episode_starts, deterministic=self._deterministic)

    def _explore(self, actions: np.ndarray) -> np.ndarray:
        if not self._exploration:
            return actions
        explores = self._generator.random(len(actions)) < self._exploration
        num_actions = discrete_actions(self._action_space, "exploration").n
        return np.where(explores, self._generator.integers(num_actions, size=len(actions)), actions)

    @contextmanager
    def _own_torch_randomness(self) -> Iterator[None]:
        device = torch.device(getattr(self._model, "device", "cpu"))
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self._torch_state)
            if devices:
                torch.cuda.manual_seed(int(torch.randint(2**62, (1,))))
            yield
            self._torch_state = torch.get_rng_state()


@contextmanager
def _threads_that_pay(observations: Observations) -> Iterator[None]:
    """One thread for small inputs: waking and awaiting a pool costs more than a small network."""
    before = torch.get_num_threads()
    numbers = sum(np.size(leaf) for _, leaf in named_leaves(observations, "observations"))
    torch.set_num_threads(before if numbers > MAX_SINGLE_THREADED else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class RecurrentModelPolicy(ModelPolicy):
    """A recurrent SB3 model; the hidden and cell states are arrays with the batch on their second axis."""

    recurrent = True

    def act(self, observations: Observations) -> np.ndarray:
        del observations
        raise ValueError(f"policy {self.identity!r} is recurrent: use initial_state and act_recurrent")

    def action_probabilities(self, observations: Observations) -> np.ndarray:
        return ActingPolicy.action_probabilities(self, observations)

    def initial_state(self, batch: int) -> tuple[np.ndarray, np.ndarray]:
        layers, _, hidden = self._model.policy.lstm_hidden_state_shape
        return np.zeros((layers, batch, hidden), np.float32), np.zeros((layers, batch, hidden), np.float32)

    def act_recurrent(
        self, observations: Observations, state: Any, episode_starts: np.ndarray
    ) -> tuple[np.ndarray, Any]:
        return self._predict(observations, state, np.asarray(episode_starts, dtype=bool))

    def take_state(self, state: Any, index: Any) -> Any:
        return tuple(part[:, index] for part in state)


def normalised(model: Any, observations: Observations) -> Observations:
    """Raw observations as the model was trained on them: through its VecNormalize, if it has one."""
    vec_normalize = getattr(model, "get_vec_normalize_env", lambda: None)()
    return observations if vec_normalize is None else vec_normalize.normalize_obs(observations)


def check_model_spaces(model: Any, action_space: spaces.Space, observation_space: spaces.Space | None) -> None:
    """Raise ValueError unless the model's spaces fit the environment's (images may differ in channel order)."""
    theirs = getattr(model, "action_space", None)
    if theirs is not None and not _same_actions(theirs, action_space):
        raise ValueError(f"policy: its action space {theirs} does not fit the environment's {action_space}")
    theirs = getattr(model, "observation_space", None)
    if theirs is not None and observation_space is not None and not _same_observations(theirs, observation_space):
        raise ValueError(f"policy: its observation space {theirs} does not fit the environment's {observation_space}")


def _same_actions(first: spaces.Space, second: spaces.Space) -> bool:
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box):
        same_shape = first.shape == second.shape
        return same_shape and np.allclose(first.low, second.low) and np.allclose(first.high, second.high)
    return first == second


def _same_observations(first: spaces.Space, second: spaces.Space) -> bool:
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        same_keys = set(first.spaces) == set(second.spaces)
        return same_keys and all(_same_observations(first[key], second[key]) for key in first.spaces)
    if isinstance(first, spaces.Box) and isinstance(second, spaces.Box):
        height_width_channels = second.shape
        return first.shape == second.shape or (
            len(second.shape) == 3 and first.shape == (height_width_channels[-1], *height_width_channels[:-1])
        )
    return first == second


def model_digest(model: Any) -> str:
    """Eight hex digits over everything that decides the actions: parameters, normalisation, exploration."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.policy.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(repr(getattr(model, "exploration_rate", None)).encode())
    vec_normalize = getattr(model, "get_vec_normalize_env", lambda: None)()
    if vec_normalize is not None and vec_normalize.norm_obs:
        moments = vec_normalize.obs_rms
        for one in moments.values() if isinstance(moments, dict) else (moments,):
            digest.update(np.asarray(one.mean).tobytes() + np.asarray(one.var).tobytes())
    return digest.hexdigest()[:8]


def _torch_state(seed: int) -> torch.Tensor:
    return torch.Generator().manual_seed(seed).get_state()


@contextmanager
def _fresh_exploration_noise(model: Any, batch: int) -> Iterator[None]:
    """State-dependent exploration (gSDE) holds its noise matrices still; draw new ones for this step, then put back."""
    if not getattr(model, "use_sde", False):
        yield
        return
    actor = getattr(model.policy, "actor", model.policy)
    distribution = actor.action_dist
    held = distribution.exploration_mat, distribution.exploration_matrices
    try:
        actor.reset_noise(batch)
        yield
    finally:
        distribution.exploration_mat, distribution.exploration_matrices = held
