"""Making and naming environments."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import (
    EnvSpec,
    WrapperSpec,
    find_highest_version,
    get_env_id,
    load_env_creator,
    parse_env_id,
)
from gymnasium.vector import VectorEnv

from icrl_gym.acting.adapters import WeightedReward, adapted

PETTINGZOO = (
    "make a Gymnasium vector of it with supersuit.pettingzoo_env_to_vec_env_v1 (an AEC one through "
    "pettingzoo.utils.aec_to_parallel first), or an environment of one agent in which the others are played"
)
EnvironmentLike = str | gymnasium.Env | EnvSpec  # an id, an environment, or a specification of one

# Wrappers that pass observations, actions and rewards through unchanged; they are no part of an environment's identity.
TRANSPARENT_WRAPPERS = frozenset(
    {"Autoreset", "EvaluateInContext", "HumanRendering", "Monitor", "OrderEnforcing", "PassiveEnvChecker"}
    | {"RecordEpisodeStatistics", "RecordTrajectory", "RecordVideo", "RenderCollection", "TimeLimit"}
    | {"VectorEvaluateInContext", "VectorRecordTrajectory"}
)
# Modules that register ids of a form, for those who forgot to name the module.
REGISTERED_BY = {
    r"ALE/": "ale_py",
    r"(MiniGrid|BabyAI)-": "minigrid",
    r"icrl/": "icrl_envs",
    r"(highway|merge|roundabout|parking|intersection|racetrack|exit|two-way|u-turn|lane-keeping)-": "highway_env",
    r"(mo-|deep-sea-|resource-gathering|fishwood|breakable-bottles|four-room|minecart|fruit-|water-)": "mo_gymnasium",
    r"popgym-": "popgym",
    r"(Fetch|Hand|AdroitHand|AntMaze|PointMaze|FrankaKitchen)": "gymnasium_robotics",
    r"FlappyBird-": "flappy_bird_gymnasium",
    r"Meta-World/": "metaworld",
    r"Panda": "panda_gym",
    r"gym_pusht/": "gym_pusht",
    r"(stocks|forex)-": "gym_anytrading",
}
# Keyword arguments of make and make_vec that do not change the decision process.
_NEUTRAL_ARGUMENTS = frozenset(
    {"render_mode", "num_envs", "vectorization_mode", "vector_kwargs", "wrappers", "max_episode_steps"}
)


def make_environment(env: EnvironmentLike) -> gymnasium.Env:
    """Make an environment from its id or its specification, or take one that exists.

    Parts of its observations that are no arrays, such as MiniGrid's missions, are left out (`ArrayObservations`).

    Args:
        env: an id, also of the form "module:Env-v0" (the module is imported first); a specification, whose additional
            wrappers are put around; or an environment, which is not copied.

    Raises:
        ValueError: unknown id (the nearest names are listed), unknown module, an id of a vector environment only, or a
            wrapper that cannot be made again.
        TypeError: none of the three; arguments that the environment does not know; a wrapper that does not return an
            environment.
    """
    if isinstance(env, gymnasium.Env):
        return adapted(env)
    if isinstance(env, str):
        env = environment_spec(env)
    if not isinstance(env, EnvSpec):
        if any(kind.__module__.startswith("pettingzoo.") for kind in type(env).__mro__):
            raise TypeError(f"env must have one agent, got PettingZoo's {type(env).__name__}; {PETTINGZOO}")
        raise TypeError(f"env must be an environment id, a gymnasium.Env or an EnvSpec, got {type(env).__name__}")
    if env.entry_point is None and env.vector_entry_point is not None:
        raise ValueError(
            f"{env.id} is registered as a vector environment only: make it with gymnasium.make_vec and give the vector "
            "to collect; the truth needs a single environment"
        )
    made = gymnasium.make(replace(env, additional_wrappers=()))
    own = made.spec.additional_wrappers if made.spec is not None else ()  # the environment's constructor put them there
    outer = env.additional_wrappers
    for wrapper in outer[len(own) :] if outer[: len(own)] == own else outer:
        made = _wrapped(made, wrapper)
    return adapted(made)


def environment_spec(
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    wrapper: str | None = None,
    wrapper_kwargs: Sequence[Mapping[str, Any]] = (),
    *,
    reward_weights: Sequence[float] | None = None,
) -> EnvSpec:
    """The specification of an environment that is described in words, as on the command line.

    Args:
        env_id: an id, also of the form "module:Env-v0".
        env_kwargs: keyword arguments for ``gymnasium.make``: the environment's own, and ``max_episode_steps`` (-1 for
            none).
        wrapper: "module:Class", as in "minigrid.wrappers:ImgObsWrapper", put around the outside; several are separated
            by commas, the innermost first.
        wrapper_kwargs: keyword arguments of each wrapper; empty for none at all.
        reward_weights: of an environment whose reward is a vector: one weight per number, see `WeightedReward`.

    Raises:
        ValueError: unknown id (the nearest names are listed), unknown module or wrapper, or not as many keyword
            arguments as wrappers.
    """
    added = _wrapper_specs(wrapper, wrapper_kwargs)  # first, as importing a package registers its ids
    registered = _registered(env_id)
    arguments = dict(env_kwargs or {})
    stated = {name: arguments.pop(name, None) for name in ("max_episode_steps", "disable_env_checker")}
    return replace(
        registered,
        kwargs={**registered.kwargs, **arguments},
        additional_wrappers=(*registered.additional_wrappers, *_weighing(reward_weights), *added),
        **{name: None if value == -1 else value for name, value in stated.items() if value is not None},
    )


def _weighing(reward_weights: Sequence[float] | None) -> tuple[WrapperSpec, ...]:
    """The wrapper that weighs rewards, if they are to be weighed."""
    if reward_weights is None:
        return ()
    entry_point = f"{WeightedReward.__module__}:{WeightedReward.__name__}"
    return (WrapperSpec(WeightedReward.__name__, entry_point, {"weights": [*map(float, reward_weights)]}),)


def _registered(env_id: str) -> EnvSpec:
    """The registered specification of an id; an id without a version means the latest, as in ``gymnasium.make``."""
    module, separator, name = env_id.rpartition(":")
    if separator:
        _import_registrations(module, env_id)
    try:
        namespace, plain, version = parse_env_id(name)
        latest = find_highest_version(namespace, plain)
        if version is None and latest is not None:
            name = get_env_id(namespace, plain, latest)
        found = gymnasium.spec(name)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        raise ValueError(f"unknown environment id {env_id!r}; {_suggestion(env_id)}") from error
    except gymnasium.error.Error as error:
        if "Malformed environment ID" not in str(error):
            raise
        raise ValueError(f"malformed environment id {env_id!r}; {_suggestion(env_id)}") from error
    if version is not None and latest is not None and latest > version:
        gymnasium.logger.deprecation(f"The environment {name} is out of date; its latest version is v{latest}.")
    return found


def _import_registrations(module: str, env_id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"environment id {env_id!r}: there is no module {module!r}") from error


def _suggestion(env_id: str) -> str:
    if env_id.startswith("pettingzoo"):
        return f"PettingZoo's environments have several agents; {PETTINGZOO}"
    name = env_id.rpartition(":")[2]
    module = next((module for form, module in REGISTERED_BY.items() if re.match(form, name)), None)
    if module is not None and not env_id.startswith(f"{module}:"):
        missing = "" if importlib.util.find_spec(module) else f" (there is no module {module} here: install it first)"
        return f"did you mean {module}:{name}?{missing}"
    lowered = {known.lower(): known for known in gymnasium.registry}
    near = [lowered[match] for match in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.5)]
    if near:
        return f"nearest known: {', '.join(near)}"
    return "no similar name is known; ids of other packages are written module:Env-v0"


def _wrapped(env: gymnasium.Env, wrapper: WrapperSpec) -> gymnasium.Env:
    if wrapper.kwargs is None:
        raise ValueError(f"wrapper {wrapper.name!r} did not record its arguments and cannot be made again")
    creator: Any = load_env_creator(wrapper.entry_point)
    try:
        wrapped = creator(env, **wrapper.kwargs)
    except TypeError as error:
        raise TypeError(
            f"wrapper {wrapper.name!r}: {error} (its arguments: wrapper_kwargs, --wrapper-kwargs)"
        ) from error
    if not isinstance(wrapped, gymnasium.Env):
        raise TypeError(f"wrapper {wrapper.entry_point!r} must return a gymnasium.Env, got {type(wrapped).__name__}")
    return wrapped


def _wrapper_specs(names: str | None, arguments: Sequence[Mapping[str, Any]]) -> tuple[WrapperSpec, ...]:
    """The wrappers "module:Class,module:Class" with their arguments, the innermost first."""
    each = [] if names is None else [name.strip() for name in names.split(",")]
    if arguments and len(arguments) != len(each):
        raise ValueError(f"wrapper_kwargs must have one object for each of {len(each)} wrappers, got {len(arguments)}")
    return tuple(
        _wrapper_spec(name, dict(given)) for name, given in zip(each, arguments or [{}] * len(each), strict=True)
    )


def _wrapper_spec(name: str, arguments: dict[str, Any]) -> WrapperSpec:
    """The wrapper "module:Class" with its arguments; the module is imported."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise ValueError(f"wrapper must be written 'module:Class', got {name!r}")
    try:
        getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"wrapper {name!r} cannot be imported: {error}") from error
    return WrapperSpec(attribute, name, arguments)


def environment_identity(env: gymnasium.Env | VectorEnv) -> str:
    """The name of the decision process: id, arguments that are not the defaults, wrappers that change what is seen.

    For example ``FrozenLake-v1 {"is_slippery": false}`` or ``MiniGrid-Empty-5x5-v0 + ImgObsWrapper``. Time limits and
    wrappers that only watch are left out, so a stack without them has the same identity. An environment that was never
    registered is named after its class. Functions inside a wrapper's arguments are named, not compared. The members of
    a vector that differ are joined by " | ".
    """
    if isinstance(env, VectorEnv):
        return _vector_identity(env)
    wrappers = []
    while isinstance(env, gymnasium.Wrapper):
        wrappers.append((type(env).__name__, getattr(env, "_saved_kwargs", None)))
        env = env.env
    parts = [_base_identity(env.spec, type(env)), *_wrapper_identities(reversed(wrappers))]
    return " + ".join(parts)


def _vector_identity(env: VectorEnv) -> str:
    wrappers = []
    while isinstance(env, gymnasium.vector.VectorWrapper):
        wrappers.append((type(env).__name__, getattr(env, "_saved_kwargs", None)))
        env = env.env
    if hasattr(env, "envs"):
        members = list(dict.fromkeys(environment_identity(member) for member in env.envs))  # type: ignore[attr-defined]
    elif hasattr(env, "env_fns"):
        members = list(dict.fromkeys(_worker_identities(env)))
    else:
        members = [_spec_identity(env.spec, type(env))]
    return " + ".join([" | ".join(members), *_wrapper_identities(reversed(wrappers))])


def _worker_identities(env: Any) -> list[str]:
    """Identities of environments that live in other processes; those without a specification are made again here."""
    identities = []
    for spec, make in zip(env.get_attr("spec"), env.env_fns, strict=True):
        if spec is not None:
            identities.append(_spec_identity(spec, type(env)))
            continue
        with make() as twin:
            identities.append(environment_identity(twin))
    return identities


def _spec_identity(spec: Any, made_by: type) -> str:
    wrappers = [] if spec is None else [(wrapper.name, wrapper.kwargs) for wrapper in spec.additional_wrappers]
    return " + ".join([_base_identity(spec, made_by), *_wrapper_identities(wrappers)])


def _base_identity(spec: Any, made_by: type) -> str:
    if spec is None:
        return f"{made_by.__module__}.{made_by.__qualname__}"
    defaults = _default_arguments(spec)
    given = {
        name: value
        for name, value in spec.kwargs.items()
        if name not in _NEUTRAL_ARGUMENTS and not (name in defaults and _described(value) == _described(defaults[name]))
    }
    return spec.id + (f" {_described(given)}" if given else "")


def _default_arguments(spec: Any) -> dict[str, Any]:
    creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    parameters = {} if creator is None else inspect.signature(creator).parameters
    defaults = {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}
    registered = gymnasium.registry.get(spec.id)
    return defaults if registered is None else {**defaults, **registered.kwargs}


def _wrapper_identities(wrappers: Any) -> list[str]:
    """Identities of ``(class name, constructor arguments)`` pairs, the innermost first."""
    visible = [(name, arguments) for name, arguments in wrappers if name not in TRANSPARENT_WRAPPERS]
    arguments_of = [
        {key: value for key, value in (arguments or {}).items() if key != "env"} for _, arguments in visible
    ]
    return [
        name + (f" {_described(arguments)}" if arguments else "")
        for (name, _), arguments in zip(visible, arguments_of, strict=True)
    ]


def _described(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=_json_form)


def _json_form(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', type(value).__module__)}.{value.__qualname__}"
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__}" if " at 0x" in text else text
