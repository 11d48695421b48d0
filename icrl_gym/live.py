"""Wrappers that evaluate the acting policy in context while it runs, from a window of its latest transitions."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.recorder import Recorder, batch_of_one, reset_mask
from icrl_gym.observations import Observations, stack
from icrl_gym.tracking import ScalarWriter
from icrl_gym.values import check_gamma

INFO_KEY = "in_context_value"
LIVE_TAG = "in_context/value"


class _LiveEvaluation:
    """The window, the clock and the evaluator that the single and the vector wrapper share."""

    def __init__(
        self,
        recorder: Recorder,
        evaluator: Any,
        gamma: float,
        every: int,
        writer: ScalarWriter | None,
        policy: ActingPolicy | None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.recorder = recorder
        self._evaluator = evaluator
        self._gamma = check_gamma(gamma)
        self._every = every
        self._writer = writer
        self._policy = policy
        self._num_steps = 0
        self._fitted: Any = None

    def after_step(self, observations: Observations) -> np.ndarray | None:
        """Count the step, refit when it is time, and value the observations that it led to."""
        self._num_steps += 1
        refit = self._num_steps % self._every == 0
        if refit:
            self._fitted = self._evaluator.fit(self.recorder.trajectory(), self._gamma, policy=self._policy)
        values = self.values(observations)
        if refit and self._writer is not None and values is not None:
            self._writer.add_scalar(LIVE_TAG, float(values.mean()), self._num_steps)
        return values

    def values(self, observations: Observations) -> np.ndarray | None:
        """(B,) values of the current observations, or None before the first fit."""
        if self._fitted is None:
            return None
        return np.asarray(self._fitted.predict(observations).values, dtype=np.float64)


class EvaluateInContext(gymnasium.Wrapper, RecordConstructorArgs):
    """Publishes the in-context value of the current observation under ``info["in_context_value"]``.

    Every ``every`` steps the evaluator is fitted on the latest ``window`` transitions (the window reaches across
    episodes). From the first fit on, every ``reset`` and ``step`` carries the value, a float, of the observation that
    it returns. Before the first fit the key is ABSENT. At a terminated step the number is the evaluator's answer for
    the final observation all the same; do not bootstrap from it. The writer is not part of ``env.spec``.

    Args:
        env: the environment.
        evaluator: anything with ``fit(trajectory, gamma, policy)``, returning something with
            ``predict(observations).values``.
        gamma: discount in [0, 1).
        window: number of latest transitions to fit on.
        every: steps between fits.
        writer: anything with ``add_scalar(tag, value, step)``; at each fit it is given the current value under
            "in_context/value" and the number of steps taken.
        policy: the policy to be evaluated, anything `as_policy` takes; None: the one that acts, known by its actions.

    Raises:
        ValueError: gamma, window or every is out of range, or the policy does not fit the environment.
        TypeError: observations or actions of ``env`` have no array form, or not a policy.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        evaluator: Any,
        gamma: float = 0.99,
        window: int = 512,
        every: int = 100,
        writer: ScalarWriter | None = None,
        policy: Any = None,
    ) -> None:
        arguments = {"evaluator": evaluator, "gamma": gamma, "window": window, "every": every, "policy": policy}
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **arguments)
        gymnasium.Wrapper.__init__(self, env)
        acting = _acting(policy, env.action_space, env.observation_space)
        self._live = _LiveEvaluation(_window(env, window), evaluator, gamma, every, writer, acting)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the window stays."""
        observation, info = self.env.reset(seed=seed, options=options)
        batch = stack([observation])
        self._live.recorder.reset(batch)
        return observation, _published(info, self._live.values(batch))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, refit when it is time, publish the value."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        batch = batch_of_one(observation, reward, terminated, truncated, info)
        self._live.recorder.step(stack([action]), *batch)
        values = self._live.after_step(batch[0])
        return observation, reward, terminated, truncated, _published(info, values)


class VectorEvaluateInContext(VectorWrapper, RecordConstructorArgs):
    """`EvaluateInContext` for vector environments, in all three autoreset modes.

    ``infos["in_context_value"]`` is a float array (B,), absent before the first fit. The window holds the latest
    transitions of all environments together; ``every`` counts steps of the vector; the writer is given the mean over
    the B environments.

    Args:
        env: the vector environment.
        evaluator: see `EvaluateInContext`.
        gamma: discount in [0, 1).
        window: number of latest transitions to fit on, over all environments.
        every: steps of the vector between fits.
        writer: anything with ``add_scalar(tag, value, step)``.
        policy: see `EvaluateInContext`.

    Raises:
        ValueError: gamma, window or every is out of range, or the policy does not fit the environment.
        TypeError: observations or actions of ``env`` have no array form, or not a policy.
    """

    def __init__(
        self,
        env: VectorEnv,
        evaluator: Any,
        gamma: float = 0.99,
        window: int = 512,
        every: int = 100,
        writer: ScalarWriter | None = None,
        policy: Any = None,
    ) -> None:
        arguments = {"evaluator": evaluator, "gamma": gamma, "window": window, "every": every, "policy": policy}
        RecordConstructorArgs.__init__(self, _disable_deepcopy=True, **arguments)
        VectorWrapper.__init__(self, env)
        acting = _acting(policy, env.single_action_space, env.single_observation_space)
        self._live = _LiveEvaluation(_window(env, window), evaluator, gamma, every, writer, acting)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in ``options["reset_mask"]``; the window stays."""
        mask = reset_mask(options)
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._live.recorder.reset(observations, mask)
        values = self._live.values(observations)
        return observations, infos if values is None else {**infos, INFO_KEY: values}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments, refit when it is time, publish the values."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._live.recorder.step(actions, observations, rewards, terminated, truncated, infos)
        values = self._live.after_step(observations)
        infos = infos if values is None else {**infos, INFO_KEY: values}
        return observations, rewards, terminated, truncated, infos


def _window(env: gymnasium.Env | VectorEnv, window: int) -> Recorder:
    if window < 1:
        raise ValueError(f"window must be at least 1 transition, got {window}")
    return Recorder(env, capacity=window)


def _acting(policy: Any, action_space: spaces.Space, observation_space: spaces.Space) -> ActingPolicy | None:
    return None if policy is None else as_policy(policy, action_space, observation_space, seed=0)


def _published(info: dict[str, Any], values: np.ndarray | None) -> dict[str, Any]:
    return info if values is None else {**info, INFO_KEY: float(values[0])}
