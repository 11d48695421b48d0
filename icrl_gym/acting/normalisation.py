"""VecNormalize beside a model of Stable-Baselines3: its statistics, and noticing that they were forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from icrl_gym.acting.environments import make_environment
from icrl_gym.acting.policies import lacks_normalisation


class _SpacesOnly(gymnasium.Env):
    """Stands for the environment of a model where there is none; it cannot be stepped."""

    def __init__(self, model: Any) -> None:
        self.observation_space, self.action_space = model.observation_space, model.action_space


def attach_statistics(model: Any, path: Path, env: EnvSpec | None) -> None:
    """Give a model the VecNormalize statistics that it was trained with; reached only if its file is trusted.

    Args:
        model: an SB3 model; the number of environments that it was trained with does not matter.
        path: what ``VecNormalize.save`` wrote.
        env: the environment, or None where there is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no such statistics, or those of other observations.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    try:
        venv = DummyVecEnv([lambda: _SpacesOnly(model) if env is None else make_environment(env)])
        statistics = VecNormalize.load(str(path), venv)
        statistics.training = False
        model.n_envs = venv.num_envs  # as its own ``load(path, env=...)`` does; it is about training alone
        model.set_env(statistics)
    except OSError as error:
        raise type(error)(f"vec_normalize {path}: {error.strerror}") from error
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"vec_normalize {path}: cannot be used: {reason}") from error


def missing_statistics(path: Path, model: Any) -> tuple[str, ...]:
    """A note on a model without VecNormalize that seems to have been trained in one, or none.

    One that was saved before it trained, or stripped, does not show it, but may have its statistics beside it.

    Args:
        path: the model's file.
        model: what was loaded from it.
    """
    trained_so = lacks_normalisation(model)
    beside = statistics_beside(path)
    if not trained_so and beside is None:
        return ()
    where = f"--vec-normalize {beside}" if beside is not None else "--vec-normalize FILE, what VecNormalize.save wrote"
    if trained_so:
        return (
            "the model was trained in a VecNormalize, whose statistics are not given: here it sees raw observations, "
            f"and neither its actions nor its critic are those that were trained; add {where}",
        )
    return (
        f"statistics of a VecNormalize lie beside the model and are not used; if it trained with them, add {where}",
    )


def statistics_beside(path: Path) -> Path | None:
    """A file whose name says that it holds VecNormalize statistics: in the model's folder, or in one of its name."""
    folders = [path.parent, path.with_suffix("")]
    found = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.pkl")) if _says_so(file)]
    steps = {part for part in path.stem.split("_") if part.isdigit()}
    return min(found, key=lambda file: not steps <= set(file.stem.split("_")), default=None)


def _says_so(file: Path) -> bool:
    return "vecnorm" in file.name.lower().replace("_", "").replace("-", "")
