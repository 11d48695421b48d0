"""Which wrapper is probably missing where a model's spaces are not the environment's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from gymnasium import spaces
from gymnasium.spaces.utils import flatdim

GYMNASIUM = "gymnasium.wrappers"
SCREEN = (210, 160)  # of Atari games, height and width


def briefly(space: spaces.Space) -> str:
    """A space in a few words: bounds of many numbers are left out."""
    if isinstance(space, spaces.Box):
        small = math.prod(space.shape) <= 2
        bounds = f" from {space.low.min():g} to {space.high.max():g}" if small else ""
        return f"Box of shape {space.shape}{bounds}"
    if isinstance(space, spaces.Dict):
        return f"Dict of {', '.join(space.spaces)}"
    if isinstance(space, spaces.Tuple):
        return f"Tuple of {len(space.spaces)}"
    return str(space)


def missing_observation_wrapper(model: spaces.Space, env: spaces.Space) -> str:
    """An ending of the message that names a wrapper which turns ``env`` into what the ``model`` sees, or ""."""
    shown, wanted = getattr(env, "shape", None), getattr(model, "shape", None)
    if isinstance(model, spaces.Box) and isinstance(env, spaces.Dict | spaces.Tuple | spaces.Discrete):
        return _of_structure(model, env)
    if not isinstance(model, spaces.Box) or not isinstance(env, spaces.Box) or shown is None or wanted is None:
        return ""
    if len(shown) == 3 and len(wanted) == 3:
        return _of_picture(wanted, shown)
    if len(shown) == 1 and len(wanted) == 1 and shown[0] and wanted[0] > shown[0]:
        if wanted[0] % shown[0] == 0:
            return _named("FrameStackObservation", "FlattenObservation", arguments=[_stack(wanted[0] // shown[0]), {}])
        return _named("TimeAwareObservation") if wanted[0] == shown[0] + 1 else ""
    if wanted[1:] == shown and len(wanted) == len(shown) + 1:
        return _named("FrameStackObservation", arguments=[_stack(wanted[0])])
    if len(wanted) == 1 and math.prod(shown) == wanted[0]:
        return _named("FlattenObservation")
    return ""


def missing_action_wrapper(model: spaces.Space, env: spaces.Space) -> str:
    """An ending of the message that names a wrapper which lets the ``model`` act in ``env``, or ""."""
    if isinstance(model, spaces.Box) and isinstance(env, spaces.Box) and model.shape == env.shape:
        bounds = {"min_action": float(model.low.min()), "max_action": float(model.high.max())}
        return _named("RescaleAction", arguments=[bounds])
    return ""


def _of_structure(model: spaces.Box, env: spaces.Space) -> str:
    parts = env.spaces if isinstance(env, spaces.Dict) else {}
    if len(model.shape) == 3 and "image" in parts and _alike(model.shape, parts["image"].shape or ()):
        return _ending(["minigrid.wrappers:ImgObsWrapper"])
    fits = [key for key, part in parts.items() if part.shape == model.shape]
    numeric = flatdim(env) if env.is_np_flattenable else None
    if numeric is not None and model.shape == (numeric,):
        return _named("FlattenObservation")
    if len(fits) == 1:
        return f"; the model seems to have seen {fits[0]!r} alone: the wrapper that picks it is missing (--wrapper)"
    return ""


def _of_picture(wanted: tuple[int, ...], shown: tuple[int, ...]) -> str:
    """Pictures; a model has the channels first, an environment as a rule last."""
    size, channels = shown[:2], shown[2]
    stacked = wanted[0] if wanted[0] < wanted[-1] else wanted[-1]
    wanted_size = wanted[1:] if wanted[0] < wanted[-1] else wanted[:2]
    if size == SCREEN and wanted_size == (84, 84):
        stack = ("FrameStackObservation",) if stacked > 1 else ()
        return _named("AtariPreprocessing", *stack, arguments=[{}, *([_stack(stacked, "reset")] if stack else [])])
    if wanted_size != size:
        return _named("ResizeObservation", arguments=[{"shape": list(wanted_size)}])
    if channels == 3 and stacked == 1:
        return _named("GrayscaleObservation", arguments=[{"keep_dim": True}])
    if stacked > channels and stacked % channels == 0:
        return f"; a stack of {stacked // channels} frames along the channels is missing (--wrapper)"
    return ""


def _alike(wanted: tuple[int, ...], shown: tuple[int, ...]) -> bool:
    return shown in (wanted, (*wanted[1:], wanted[0]))


def _stack(size: int, padding: str = "zero") -> dict[str, Any]:
    """Arguments of a frame stack; VecFrameStack of Stable-Baselines3 begins episodes with zeros."""
    return {"stack_size": int(size), "padding_type": padding}


def _named(*names: str, arguments: Iterable[dict[str, Any]] = ()) -> str:
    return _ending([f"{GYMNASIUM}:{name}" for name in names], list(arguments))


def _ending(names: list[str], arguments: list[dict[str, Any]] | None = None) -> str:
    given = f" --wrapper-kwargs '{json.dumps(arguments)}'" if arguments and any(arguments) else ""
    return f"; a wrapper is probably missing: --wrapper {','.join(names)}{given}"
