"""Wrappers that evaluate the acting policy in context while it runs, from a window of its latest transitions.

Nothing is computed for a number that nobody reads. Every ``every`` steps the window is set aside; the evaluator is
fitted on it, and values are predicted, when somebody looks at ``info["in_context_value"]``. Where windows are long and
overlap, and the evaluator can, it goes on from the window before instead.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from icrl_gym.acting.policies import ActingPolicy, as_policy
from icrl_gym.context.recorder import Recorder, Stretch, Tape, reset_mask
from icrl_gym.context.trajectory import Trajectory
from icrl_gym.observations import Observations, concatenate, stack
from icrl_gym.registry import make_estimator
from icrl_gym.tracking import ScalarWriter
from icrl_gym.values import check_gamma

INFO_KEY = "in_context_value"
LIVE_TAG = "in_context/value"
DEFAULT_LIVE_ESTIMATOR = "generalist_at_rest"
LONGEST_BLOCK = 128  # steps whose values are predicted together


class LazyInfo(dict):
    """An info dictionary that computes "in_context_value" when that key, or the whole content, is read.

    It is a dictionary in every respect; copies made by ``deepcopy`` stay lazy, all others hold the number.
    """

    def __init__(self, info: dict[str, Any], block: _Block, row: int) -> None:
        super().__init__(info)
        super().__setitem__(INFO_KEY, None)
        self._block: _Block | None = block
        self._row = row

    def _content(self) -> dict[str, Any]:
        """This dictionary with the number in it."""
        if self._block is not None:
            super().__setitem__(INFO_KEY, self._block.value(self._row))
            self._block = None
        return self

    def __getitem__(self, key: str) -> Any:
        return dict.__getitem__(self._content() if key == INFO_KEY else self, key)

    def __setitem__(self, key: str, value: Any) -> None:
        if key == INFO_KEY:
            self._block = None
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if key == INFO_KEY:
            self._block = None
        super().__delitem__(key)

    def __iter__(self) -> Any:
        return super().__iter__()  # a method of its own keeps `{**info}` and `dict(info)` from reading past __getitem__

    def get(self, key: str, default: Any = None) -> Any:
        return dict.get(self._content() if key == INFO_KEY else self, key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        return dict.setdefault(self._content() if key == INFO_KEY else self, key, default)

    def items(self) -> Any:
        return dict.items(self._content())

    def values(self) -> Any:
        return dict.values(self._content())

    def pop(self, key: str, *default: Any) -> Any:
        return dict.pop(self._content(), key, *default)

    def popitem(self) -> tuple[str, Any]:
        return dict.popitem(self._content())

    def update(self, *arguments: Any, **more: Any) -> None:
        dict.update(self._content(), *arguments, **more)

    def copy(self) -> dict[str, Any]:
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self._content(), other)

    def __repr__(self) -> str:
        return dict.__repr__(self._content())

    def __copy__(self) -> dict[str, Any]:
        return dict(self)

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        copied = deepcopy({key: dict.__getitem__(self, key) for key in self}, memo)
        return copied if self._block is None else LazyInfo(copied, self._block, self._row)


class _Block:
    """Successive observations under one window; the values of all of them are made when one of them is read."""

    def __init__(self, live: _LiveEvaluation, window: Stretch | Trajectory) -> None:
        self._live, self.window = live, window
        self._states: list[Observations] = []
        self._values: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._states)

    def add(self, observations: Observations) -> int:
        """Append a step's observations; returns its row."""
        self._states.append(observations)
        return len(self._states) - 1

    def value(self, row: int) -> Any:
        """The value of a row: a float, of a vector (B,)."""
        if row >= len(self._values):
            self._values += self._live.values(self._states[len(self._values) :], self.window)
        return self._values[row]


class _LiveEvaluation:
    """The clock, the windows that are set aside, and the evaluator, which the single and the vector wrapper share."""

    def __init__(
        self,
        evaluator: Any,
        gamma: float,
        every: int,
        writer: ScalarWriter | None,
        policy: ActingPolicy | None,
        marks_at_once: int,
        num_envs: int | None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self._evaluator = _evaluator(evaluator)
        self._gamma = check_gamma(gamma)
        self._every = every
        self._writer = writer
        self._policy = policy
        self._marks_at_once = max(1, marks_at_once // every)
        self._num_envs = num_envs
        self._num_steps = 0
        self._block: _Block | None = None
        self._marks: list[tuple[int, Observations]] = []
        self._fitted: Any = None
        self._fitted_on: Stretch | Trajectory | None = None
        self._fitted_anew_on: Stretch | Trajectory | None = None

    def count(self) -> bool:
        """Count a step; returns whether the window is to be set aside."""
        self._num_steps += 1
        return self._num_steps % self._every == 0

    def set_aside(self, window: Stretch | Trajectory, current: Observations) -> None:
        """Value states from this window from now on, and keep the current one for the writer."""
        self._block = _Block(self, window)
        if self._writer is not None:
            self._marks.append((self._num_steps, current))
            if len(self._marks) == self._marks_at_once:
                self.write()

    def published(self, info: dict[str, Any], current: Observations) -> dict[str, Any]:
        """The info with the value of the current observations, once a window was set aside."""
        if self._block is None:
            return info
        if len(self._block) == LONGEST_BLOCK:
            self._block = _Block(self, self._block.window)
        return LazyInfo(info, self._block, self._block.add(current))

    def write(self) -> None:
        """Give the writer the marks that it was not given yet, all from the window that was set aside last."""
        if self._writer is None or self._block is None or not self._marks:
            return
        values = self.values([current for _, current in self._marks], self._block.window)
        for (step, _), value in zip(self._marks, values, strict=True):
            self._writer.add_scalar(LIVE_TAG, float(np.mean(value)), step)
        self._marks = []

    def values(self, states: list[Observations], window: Stretch | Trajectory) -> list[Any]:
        """The values at successive steps: a float each, of a vector (B,) each."""
        if self._fitted_on is not window:  # an old info may be read after a newer one
            if not self._went_on(window):
                trajectory = window.trajectory() if isinstance(window, Stretch) else window
                self._fitted = self._evaluator.fit(trajectory, self._gamma, policy=self._policy)
                self._fitted_anew_on = window
            self._fitted_on = window
        batch = stack(states) if self._num_envs is None else concatenate(states)
        values = np.asarray(self._fitted.predict(batch).values, dtype=np.float64)
        return values.tolist() if self._num_envs is None else list(values.reshape(len(states), self._num_envs))

    def _went_on(self, window: Stretch | Trajectory) -> bool:
        """Whether the evaluator could go on to this window from the one that it was fitted on, which it then has.

        It does so while more than half of the window is of the one that it was last fitted on anew.
        """
        before, anew = self._fitted_on, self._fitted_anew_on
        if not (isinstance(window, Stretch) and isinstance(before, Stretch) and isinstance(anew, Stretch)):
            return False
        if self._policy is not None or not getattr(self._fitted, "goes_on", False):
            return False
        new, since_anew = window.rows_after(before), window.rows_after(anew)
        if new is None or since_anew is None or 2 * len(since_anew.rows) >= len(window.rows):
            return False
        if new.rows:
            self._fitted.update(new.trajectory(), window=len(window.rows))
        return True


class EvaluateInContext(gymnasium.Wrapper, RecordConstructorArgs):
    """Publishes the in-context value of the current observation under ``info["in_context_value"]``.

    Every ``every`` steps the latest ``window`` transitions are set aside (the window reaches across episodes). From
    then on, every ``reset`` and ``step`` carries the value, a float, of the observation that it returns, as the
    evaluator fitted on the window set aside last sees it. Before that the key is ABSENT. At a terminated step the
    number is the evaluator's answer for the final observation all the same; do not bootstrap from it.

    **What it costs.** The evaluator is fitted, and values are predicted, when the key is read (or the whole dictionary:
    ``items()``, a copy other than ``deepcopy``, a pickle); who does not read pays for the recording alone. Reading one
    number after each fit costs one fit; infos that are kept and read later cost one prediction per block of steps. The
    default evaluator does not walk in the context's world (``imagination=False``): it is fitted in hundredths of a
    second at 512 transitions, where "generalist" takes seconds. docs/live.md has figures.

    Args:
        env: the environment.
        evaluator: the name of an estimator, such as "generalist" (`estimators` lists them); anything with
            ``fit(trajectory, gamma, policy)`` that returns something with ``predict(observations).values``; or None for
            "generalist_at_rest". Only with a name or None can ``env.spec`` be written as JSON.
        gamma: discount in [0, 1).
        window: number of latest transitions to fit on.
        every: steps between windows.
        writer: anything with ``add_scalar(tag, value, step)``; it is not part of ``env.spec``. It is given the value at
            each multiple of ``every`` under "in_context/value", in blocks: all that happened within one window come
            from one fit on that window, when it is full, and the rest when the environment is closed.
        policy: the policy to be evaluated, anything `as_policy` takes; None: the one that acts, known by its actions.

    Raises:
        ValueError: gamma, window or every is out of range, no estimator has this name, or the policy does not fit the
            environment.
        TypeError: observations or actions of ``env`` have no array form; not an evaluator; or not a policy.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        evaluator: Any = None,
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
        self._tape = Tape(env, _checked(window))
        self._live = _LiveEvaluation(evaluator, gamma, every, writer, acting, window, None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the window stays."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._tape.reset(observation)
        return observation, self._live.published(info, self._tape.current)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment, set the window aside when it is time, publish the value."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._tape.step(action, observation, reward, terminated, truncated)
        if self._live.count():
            self._live.set_aside(self._tape.stretch(), self._tape.current)
        return observation, reward, terminated, truncated, self._live.published(info, self._tape.current)

    def close(self) -> None:
        """Give the writer what it was not given yet, and close the environment."""
        self._live.write()
        super().close()


class VectorEvaluateInContext(VectorWrapper, RecordConstructorArgs):
    """`EvaluateInContext` for vector environments, in all three autoreset modes.

    ``infos["in_context_value"]`` is a float array (B,), absent before the first window. The window holds the latest
    transitions of all environments together; ``every`` counts steps of the vector; the writer is given the mean over
    the B environments. Wrap the vector rather than its members: a vector reads the infos of its members at every step.

    Args:
        env: the vector environment.
        evaluator: see `EvaluateInContext`.
        gamma: discount in [0, 1).
        window: number of latest transitions to fit on, over all environments.
        every: steps of the vector between windows.
        writer: anything with ``add_scalar(tag, value, step)``, see `EvaluateInContext`.
        policy: see `EvaluateInContext`.

    Raises:
        ValueError: gamma, window or every is out of range, no estimator has this name, or the policy does not fit the
            environment.
        TypeError: observations or actions of ``env`` have no array form; not an evaluator; or not a policy.
    """

    def __init__(
        self,
        env: VectorEnv,
        evaluator: Any = None,
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
        self._recorder = Recorder(env, capacity=_checked(window))
        per_member = window // env.num_envs
        self._live = _LiveEvaluation(evaluator, gamma, every, writer, acting, per_member, env.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those in ``options["reset_mask"]``; the window stays."""
        mask = reset_mask(options)
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._recorder.reset(observations, mask)
        return observations, self._live.published(infos, self._recorder.current)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step all environments, set the window aside when it is time, publish the values."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._recorder.step(actions, observations, rewards, terminated, truncated, infos)
        if self._live.count():
            self._live.set_aside(self._recorder.trajectory(), self._recorder.current)
        return observations, rewards, terminated, truncated, self._live.published(infos, self._recorder.current)

    def close(self, **kwargs: Any) -> None:
        """Give the writer what it was not given yet, and close the environments."""
        self._live.write()
        super().close(**kwargs)


def _evaluator(evaluator: Any) -> Any:
    if evaluator is None or isinstance(evaluator, str):
        return make_estimator(evaluator or DEFAULT_LIVE_ESTIMATOR)
    if not callable(getattr(evaluator, "fit", None)):
        kinds = "a name, something with fit(trajectory, gamma, policy), or None"
        raise TypeError(f"evaluator must be {kinds}, got {type(evaluator).__name__}")
    return evaluator


def _checked(window: int) -> int:
    if window < 1:
        raise ValueError(f"window must be at least 1 transition, got {window}")
    return window


def _acting(policy: Any, action_space: spaces.Space, observation_space: spaces.Space) -> ActingPolicy | None:
    return None if policy is None else as_policy(policy, action_space, observation_space, seed=0)
