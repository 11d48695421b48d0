"""Policies by name, as after ``--policy``: the bundled demo, "random", an SB3 file, or somebody's own callable."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.demo_policy import load_demo_policy
from icrl_gym.acting.normalisation import attach_statistics, missing_statistics
from icrl_gym.acting.sb3_models import existing_model, load_sb3_model
from icrl_gym.configuration import DEMO_ENVIRONMENT

OTHERS = '"random", the path of a Stable-Baselines3 model.zip, or "module:callable"'


@dataclass(frozen=True, eq=False)
class PolicySource:
    """A policy, and the SB3 model that it comes from, if any.

    Attributes:
        policy: anything that `icrl_gym.acting.policies.as_policy` accepts.
        model: an SB3 model, whose critic is a rival, or None.
        notes: what to be careful about with this policy.
    """

    policy: Any
    model: Any = None
    notes: tuple[str, ...] = ()

    @property
    def critic_name(self) -> str:
        """Name of the model's critic in tables."""
        return f"{type(self.model).__name__} critic"

    @property
    def recurrent(self) -> bool:
        """Whether the model's values depend on what it saw before."""
        return hasattr(getattr(self.model, "policy", None), "lstm_actor")

    @property
    def training_steps(self) -> int | None:
        """Environment steps that the model was trained on, or None if it does not say."""
        return getattr(self.model, "num_timesteps", None) or None


def find_policy(
    name: str,
    env: EnvSpec | None,
    *,
    trust: bool = False,
    algo: str = "auto",
    vec_normalize: Path | None = None,
) -> PolicySource:
    """The policy of a name.

    Args:
        name: "demo", "random", the path of a Stable-Baselines3 model.zip (also without ".zip"), or "module:callable".
        env: the environment that it acts in; None where there is none, as beside a log.
        trust: unpickle a model's file, which can run any code; for files that you trust.
        algo: class of the model, such as "PPO"; "auto" finds it out.
        vec_normalize: VecNormalize statistics saved beside the model (pickled too), or None.

    Raises:
        ValueError: none of the known forms; a model that is not trusted or not SB3's; the demo policy elsewhere than in
            CartPole-v1; a module or attribute that does not exist.
        FileNotFoundError: no such model file.
    """
    is_file = name.endswith(".zip") or os.path.exists(name) or os.path.isfile(f"{name}.zip")
    if vec_normalize is not None and not is_file:
        raise ValueError(f"vec_normalize belongs to a Stable-Baselines3 model file; policy is {name!r}")
    if name == "random":
        return PolicySource("random")
    if name == "demo":
        if env is not None and env.id != DEMO_ENVIRONMENT:
            raise ValueError(f'policy "demo" plays {DEMO_ENVIRONMENT} only; for {env.id!r} give --policy {OTHERS}')
        return _of_model(load_demo_policy())
    if is_file:
        path = existing_model(Path(name))
        model = load_sb3_model(path, algo=algo, trust=trust)
        if vec_normalize is None:
            return _of_model(model, missing_statistics(path, model))
        attach_statistics(model, vec_normalize, env)
        return _of_model(model)
    if ":" in name:
        return PolicySource(_imported(name))
    raise ValueError(f'policy must be "demo", {OTHERS}; got {name!r}')


def _of_model(model: Any, notes: tuple[str, ...] = ()) -> PolicySource:
    return PolicySource(policy=model, model=model, notes=notes)


def _imported(name: str) -> Any:
    """The attribute "module:attribute", looked for in the working directory too."""
    module_name, _, attribute = name.partition(":")
    working_directory = os.getcwd()
    sys.path.insert(0, working_directory)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name!r} cannot be imported: {error}") from error
    finally:
        sys.path.remove(working_directory)
    return found
