"""Exact copies of a running simulator, behind one interface.

A `Simulator` runs one episode and hands out `SavedState`s, each of which makes any number of copies of the moment it
was saved at. How a moment is held is a strategy:

    deepcopy     every attribute of the environment and of its wrappers, copied
    mujoco       the same, with the physics state copied by MuJoCo and the model shared
    ale          the emulator's own save state, wrappers copied
    replay       the seed and the actions since the reset, played again in a fresh environment (Box2D cannot be copied)
    independent  nothing: no copy can be made

`choose_strategy` takes the first that applies and passes a check: a copy that is given the same actions must see what
the original sees. The check is needed: a plain ``copy.deepcopy`` of most MuJoCo, Box2D and Atari environments silently
builds a new, freshly reset environment from the constructor's arguments.

A copy is made for looking ahead: it carries no time limit and no wrapper that only watches, and it has its own random
generator (a copied generator would give every copy the same noise).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from icrl_gym.acting.adapters import adapted, one_reward
from icrl_gym.acting.environments import TRANSPARENT_WRAPPERS, EnvironmentLike, make_environment
from icrl_gym.ground_truth.copies import copy_stack, is_mujoco, levels_of, refresh_randomness
from icrl_gym.observations import Observations, map_leaves, named_leaves

Factory = Callable[[], gymnasium.Env]
_WARM_UP_STEPS = 6
_CHECKED_STEPS = 8


@dataclass(frozen=True, eq=False)
class SavedState:
    """The state of a running simulator at one moment.

    Attributes:
        restore: makes an exact copy of that moment, random generators included.
        observation: the observation at that moment.
    """

    restore: Factory
    observation: Any

    def branch(self, seed: np.random.SeedSequence) -> gymnasium.Env:
        """A copy of that moment whose future noise comes from ``seed``."""
        env = self.restore()
        refresh_randomness(env, seed)
        return env


class Simulator:
    """One environment that runs episodes and can be copied at any moment.

    Args:
        factory: makes the environment; called for every episode where the strategy is "replay" (an environment that
            was reset before need not replay exactly), once otherwise.
        strategy: a key of ``STRATEGIES``, or "independent".
    """

    def __init__(self, factory: Factory, strategy: str) -> None:
        self.factory = factory
        self.strategy = strategy
        self.env = _strip(factory(), keep_time_limit=True)
        self.seed: int | None = None
        self.actions: list[Any] = []
        self.observation: Any = None

    def reset(self, seed: int) -> Any:
        """Start an episode; returns the first observation."""
        if self.strategy == "replay" and self.seed is not None:
            self.env.close()
            self.env = _strip(self.factory(), keep_time_limit=True)
        self.seed, self.actions = seed, []
        vars(self.env.unwrapped).pop("_last_action", None)
        self.observation, _ = self.env.reset(seed=seed)
        return self.observation

    def step(self, action: Any) -> tuple[Any, float, bool, bool]:
        """One step: observation, reward, terminated, truncated."""
        self.actions.append(action)
        self.observation, reward, terminated, truncated, _ = self.env.step(action)
        return self.observation, one_reward(reward), bool(terminated), bool(truncated)

    @property
    def stopped_by_time_limit(self) -> bool:
        """Whether a `TimeLimit` alone has run out, so that the environment below it can go on."""
        limits: list[Any] = [level for level in levels_of(self.env) if isinstance(level, gymnasium.wrappers.TimeLimit)]
        return any(limit._elapsed_steps >= limit._max_episode_steps and not limit.env.truncated for limit in limits)

    def lift_time_limit(self) -> gymnasium.Env:
        """The running environment, from now on without `TimeLimit`."""
        self.env = _strip(self.env)
        return self.env

    def save(self) -> SavedState:
        """The state at this moment.

        Raises:
            ValueError: the strategy is "independent".
        """
        if self.strategy not in STRATEGIES:
            raise ValueError(f"no saved state: the simulator cannot be copied (strategy {self.strategy!r})")
        return SavedState(STRATEGIES[self.strategy](self), map_leaves(np.array, self.observation))


def environment_factory(env: EnvironmentLike) -> Factory:
    """A function that makes any number of environments like the one described; an environment given is left alone."""
    if not isinstance(env, gymnasium.Env):
        return lambda: make_environment(env)

    def another() -> gymnasium.Env:
        try:
            return adapted(copy_stack(env))
        except Exception:  # it holds something that cannot be copied: make it anew
            return adapted(copy_stack(env, new_base=True))

    return another


def choose_strategy(factory: Factory, seed: int = 0) -> str:
    """The name of the first strategy whose copies reproduce the original, or "independent"."""
    base = factory().unwrapped
    ale, mujoco = hasattr(base, "ale"), is_mujoco(base)
    applies = {"ale": ale, "mujoco": mujoco, "deepcopy": not (ale or mujoco), "replay": True}
    candidates = [name for name in STRATEGIES if applies[name]]
    for name in candidates:
        try:
            if _reproduces(factory, name, seed):
                return name
        except Exception:  # whatever a simulator raises when it is copied, it means: not this way
            continue
    return "independent"


class _BelowTimeLimit(gymnasium.Wrapper):
    """Stands right below a `TimeLimit` and remembers whether the last step was truncated without it."""

    truncated = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self.truncated = bool(result[3])
        return result


def _strip(env: gymnasium.Env, *, keep_time_limit: bool = False) -> gymnasium.Env:
    """Take the wrappers that only watch, and the time limit, out of a stack that belongs to us alone."""
    if not isinstance(env, gymnasium.Wrapper):
        return env
    inner = _strip(env.env, keep_time_limit=keep_time_limit)
    if isinstance(env, gymnasium.wrappers.TimeLimit) and keep_time_limit:
        env.env = _BelowTimeLimit(inner)
        return env
    watches = isinstance(env, (gymnasium.wrappers.TimeLimit, _BelowTimeLimit))
    if watches or type(env).__name__ in TRANSPARENT_WRAPPERS:
        return inner
    env.env = inner
    return env


def _save_copy(simulator: Simulator) -> Factory:
    base: Any = simulator.env.unwrapped
    if hasattr(base, "ale") and simulator.actions and not base.continuous:
        base._last_action = int(simulator.actions[-1])
    saved = _strip(copy_stack(simulator.env))
    return lambda: copy_stack(saved)


def _save_actions(simulator: Simulator) -> Factory:
    factory, seed, actions = simulator.factory, simulator.seed, tuple(simulator.actions)

    def restore() -> gymnasium.Env:
        env = _strip(factory(), keep_time_limit=True)
        env.reset(seed=seed)
        for action in actions:
            env.step(action)
        return _strip(env)

    return restore


STRATEGIES: Mapping[str, Callable[[Simulator], Factory]] = {
    "ale": _save_copy,
    "mujoco": _save_copy,
    "deepcopy": _save_copy,
    "replay": _save_actions,
}


def _reproduces(factory: Factory, strategy: str, seed: int) -> bool:
    """Whether two copies, each stepped before the original goes on, see what the original then sees."""
    simulator = Simulator(factory, strategy)
    actions = _sample_actions(simulator.env, seed)
    simulator.reset(seed)
    for action in actions[:_WARM_UP_STEPS]:
        _, _, terminated, truncated = simulator.step(action)
        if terminated or truncated:
            simulator.reset(seed)
    saved = simulator.save()
    rest = actions[_WARM_UP_STEPS:]
    copies = [_outcomes(saved.restore(), rest) for _ in range(2)]
    original = _outcomes(simulator.lift_time_limit(), rest)
    return all(_same_outcomes(copied, original) for copied in copies)


def _sample_actions(env: gymnasium.Env, seed: int) -> list[Any]:
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    return [space.sample() for _ in range(_WARM_UP_STEPS + _CHECKED_STEPS)]


def _outcomes(env: gymnasium.Env, actions: list[Any]) -> list[tuple[Observations, float, bool, bool]]:
    """Observation, reward, terminated and truncated of each action, up to the end of the episode."""
    outcomes = []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        outcomes.append((map_leaves(np.array, observation), one_reward(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return outcomes


def _same_outcomes(first: list[Any], second: list[Any]) -> bool:
    if [outcome[1:] for outcome in first] != [outcome[1:] for outcome in second]:
        return False
    leaves = [
        zip(named_leaves(a[0], ""), named_leaves(b[0], ""), strict=True) for a, b in zip(first, second, strict=True)
    ]
    return all(np.array_equal(a, b) for pairs in leaves for (_, a), (_, b) in pairs)
