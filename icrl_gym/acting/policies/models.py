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
from icrl_gym.acting.policies.inversion import index_by_inversion, normal_quantiles, numbers_in_action
from icrl_gym.acting.policies.missing_wrappers import (
    briefly,
    missing_action_wrapper,
    missing_observation_wrapper,
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
        self._action_space = self.action_space = action_space
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
    def states_probabilities(self) -> bool:
        """Whether the actions are discrete, and drawn from a distribution or epsilon-greedy."""
        known = self._exploration is not None or hasattr(self._model.policy, "get_distribution")
        return known and isinstance(self._action_space, spaces.Discrete)

    @property
    def takes_noise(self) -> bool:
        """Whether it acts by a distribution that it states; of a model without one nothing is assumed."""
        return self.states_probabilities or self._has_distribution

    @property
    def num_noise(self) -> int:
        """One for a discrete action, else one for each number of an action."""
        drawn = self._has_distribution and not self._deterministic and not self.states_probabilities
        return numbers_in_action(self._action_space) if drawn else 1

    def act_with_noise(self, observations: Observations, noise_BU: np.ndarray) -> np.ndarray:
        """Actions from the model's own distribution by inversion, then clipped or scaled as its ``predict`` does."""
        if self.states_probabilities:
            return index_by_inversion(self.action_probabilities(observations), noise_BU[:, 0])
        if self._deterministic or not self._has_distribution:
            return self.act(observations)
        return self._quantiles(observations, noise_BU)

    @property
    def _has_distribution(self) -> bool:
        policy = self._model.policy
        return hasattr(policy, "get_distribution") or hasattr(getattr(policy, "actor", None), "get_action_dist_params")

    def _quantiles(self, observations: Observations, noise_BU: np.ndarray) -> np.ndarray:
        """Actions (B,) + action shape of a head with several numbers."""
        policy, inputs = self._model.policy, normalised(self._model, observations)
        policy.set_training_mode(False)
        with torch.no_grad(), _threads_that_pay(inputs):
            tensor, _ = policy.obs_to_tensor(inputs)
            if hasattr(policy, "get_distribution"):
                head, log_std = policy.get_distribution(tensor), getattr(policy, "log_std", None)
            else:
                mean, log_std, latent = policy.actor.get_action_dist_params(tensor)
                head = policy.actor.action_dist.proba_distribution(mean, log_std, **latent)
            raw = _head_quantiles(head, log_std, noise_BU)
        actions = raw.reshape(-1, *self._model.action_space.shape)
        if not isinstance(self._model.action_space, spaces.Box):
            return actions.astype(self._model.action_space.dtype)
        actions = actions.astype(np.float32)
        if policy.squash_output:
            return policy.unscale_action(np.tanh(actions))
        return np.clip(actions, self._model.action_space.low, self._model.action_space.high)

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


def _head_quantiles(head: Any, log_std: torch.Tensor | None, noise_BU: np.ndarray) -> np.ndarray:
    """The numbers (B, U) that an action head of SB3 draws, before they are clipped or squashed.

    State-dependent exploration multiplies the latent features with a matrix of independent normals, so that given the
    state its noise is normal, independent over the actions, of variance latent^2 @ std^2. SB3's own distribution adds a
    small constant to it, which its actions do not have.
    """
    parts = getattr(head, "distributions", None) or head.distribution
    if isinstance(parts, list):  # one categorical for each number
        indices = [index_by_inversion(_array(part.probs), noise_BU[:, column]) for column, part in enumerate(parts)]
        return np.stack(indices, axis=1)
    if isinstance(parts, torch.distributions.Bernoulli):
        return noise_BU >= 1.0 - _array(parts.probs)
    std = parts.scale
    if hasattr(head, "exploration_mat"):
        std = torch.mm(head._latent_sde.square(), head.get_std(log_std).square()).sqrt()
    return _array(parts.mean) + _array(std) * normal_quantiles(noise_BU)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()


class RecurrentModelPolicy(ModelPolicy):
    """A recurrent SB3 model; the hidden and cell states are arrays with the batch on their second axis."""

    recurrent = True

    @property
    def states_probabilities(self) -> bool:
        """Never: they depend on what was seen before."""
        return False

    @property
    def takes_noise(self) -> bool:
        """Never: actions depend on what was seen before."""
        return False

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


def lacks_normalisation(model: Any) -> bool:
    """Whether a model trained in a VecNormalize and is without one now.

    A model that trained so keeps its last observations as they were before they were normalised.
    """
    trained_so = getattr(model, "_last_original_obs", None) is not None
    return trained_so and getattr(model, "get_vec_normalize_env", lambda: None)() is None


def check_model_spaces(model: Any, action_space: spaces.Space, observation_space: spaces.Space | None) -> None:
    """Raise ValueError unless the model's spaces fit the environment's (images may differ in channel order)."""
    theirs = getattr(model, "action_space", None)
    if theirs is not None and not _same_actions(theirs, action_space):
        raise ValueError(
            f"policy: its action space {briefly(theirs)} does not fit the environment's {briefly(action_space)}"
            f"{missing_action_wrapper(theirs, action_space)}"
        )
    theirs = getattr(model, "observation_space", None)
    if theirs is not None and observation_space is not None and not _same_observations(theirs, observation_space):
        raise ValueError(
            f"policy: its observation space {briefly(theirs)} does not fit the environment's "
            f"{briefly(observation_space)}{missing_observation_wrapper(theirs, observation_space)}"
        )


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
