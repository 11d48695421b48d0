"""Copies of an environment with all its wrappers, and fresh randomness for a copy."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils import EzPickle

_PRIMING_FRAMES = 25  # after which an action asked for is all but certainly the one executed last


def levels_of(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """The wrappers from the outside in, then the environment itself."""
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
    yield env


def is_mujoco(base: Any) -> bool:
    return type(getattr(base, "data", None)).__name__ == "MjData" and hasattr(base, "model")


def copy_stack(env: gymnasium.Env, *, new_base: bool = False) -> gymnasium.Env:
    """Copy an environment and its wrappers; spaces, specs and transition tables are shared.

    ``new_base`` makes the innermost environment anew from its constructor's arguments, where its class knows how to.
    """
    levels = list(levels_of(env))
    memo: dict[int, Any] = {}
    for level in levels:
        memo |= {id(part): part for part in vars(level).values() if isinstance(part, (gymnasium.Space, EnvSpec))}
    base: Any = levels[-1]
    if isinstance(getattr(base, "P", None), dict):
        memo[id(base.P)] = base.P  # the transition table of a tabular environment: large and never written to
    if new_base:
        memo[id(base)] = copy.deepcopy(base)
    elif hasattr(base, "ale"):
        _copy_emulator(base, memo)
    else:
        _copy_attributes(base, _with_physics(base, memo))
    for wrapper in reversed(levels[:-1]):
        _copy_attributes(wrapper, memo)
    return memo[id(env)]


def _copy_attributes(level: Any, memo: dict[int, Any]) -> None:
    """Copy one level, its attributes and all; a class that says how it is copied (other than by EzPickle) is obeyed."""
    kind = type(level)
    own_rule = hasattr(kind, "__deepcopy__") or kind.__getstate__ not in (object.__getstate__, EzPickle.__getstate__)
    if own_rule:
        memo[id(level)] = copy.deepcopy(level, memo)
        return
    copied = memo[id(level)] = object.__new__(kind)
    for name, value in vars(level).items():
        copied.__dict__[name] = copy.deepcopy(value, memo)


def _with_physics(base: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """MuJoCo copies its own data, of which deepcopy would copy the model too; the model is shared."""
    if is_mujoco(base):
        memo[id(base.model)] = base.model
        memo[id(base.data)] = copy.copy(base.data)
    return memo


def _copy_emulator(base: Any, memo: dict[int, Any]) -> None:
    copied = memo[id(base)] = copy.deepcopy(base)  # a new emulator with the same game
    memo[id(base.ale)] = copied.ale
    for name, value in vars(base).items():
        if name != "ale":
            copied.__dict__[name] = copy.deepcopy(value, memo)
    _restore_emulator(copied, base.ale.cloneState(include_rng=True))


def _restore_emulator(base: Any, state: Any) -> None:
    """Restore a save state. It lacks the action executed last, which a sticky emulator may repeat: play that first.

    What was executed last is taken to be what was asked for last: wrong with probability p^frameskip, p that of a
    repetition.
    """
    last_action = getattr(base, "_last_action", None)
    if last_action is not None and base.ale.getFloat("repeat_action_probability") > 0:
        for _ in range(_PRIMING_FRAMES):
            base.ale.act(base._action_set[last_action])
    base.ale.restoreState(state)


def refresh_randomness(env: gymnasium.Env, seed: np.random.SeedSequence) -> None:
    """Give every random generator of the environment and of its wrappers a new state, in place."""
    base: Any = env.unwrapped
    _ = base.np_random  # an environment that was never seeded makes its generator now
    for index, generator in enumerate(_random_generators(env)):
        _reseed(generator, np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index)))
    if hasattr(base, "ale"):
        _refresh_emulator(base, int(seed.generate_state(1)[0] % 2**31))


def _refresh_emulator(base: Any, seed: int) -> None:
    state = base.ale.cloneState(include_rng=False)
    base.ale.setInt("random_seed", seed)
    base.load_game()  # the seed is read when a game is loaded
    _restore_emulator(base, state)


def _reseed(generator: Any, seed: np.random.SeedSequence) -> None:
    if isinstance(generator, np.random.Generator):
        bits: Any = generator.bit_generator
        bits.state = type(bits)(seed).state
    else:
        generator.seed(int(seed.generate_state(1)[0]))


def _random_generators(env: gymnasium.Env) -> Iterator[Any]:
    """Each generator once: attributes of every level, and attributes or items of those."""
    kinds = (np.random.Generator, np.random.RandomState, random.Random)
    seen: set[int] = set()
    for level in levels_of(env):
        for value in list(vars(level).values()):
            for part in (value, *_parts(value)):
                if isinstance(part, kinds) and id(part) not in seen:
                    seen.add(id(part))
                    yield part


def _parts(value: Any) -> list[Any]:
    if isinstance(value, (gymnasium.Env, gymnasium.Space, EnvSpec, type)):
        return []
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else []
