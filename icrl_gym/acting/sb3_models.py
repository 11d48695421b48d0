"""Models of Stable-Baselines3 and sb3-contrib: telling which algorithm a file is of, and loading it.

Stable-Baselines3 is imported only when a model is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ALGORITHMS: Mapping[str, str] = {
    "A2C": "stable_baselines3",
    "DDPG": "stable_baselines3",
    "DQN": "stable_baselines3",
    "PPO": "stable_baselines3",
    "SAC": "stable_baselines3",
    "TD3": "stable_baselines3",
    "ARS": "sb3_contrib",
    "CrossQ": "sb3_contrib",
    "MaskablePPO": "sb3_contrib",
    "QRDQN": "sb3_contrib",
    "RecurrentPPO": "sb3_contrib",
    "TQC": "sb3_contrib",
    "TRPO": "sb3_contrib",
}
# What a stored model is: a piece of the module of its policy class, then a setting that only this algorithm has.
_POLICY_MODULES = {
    ".recurrent.": "RecurrentPPO",
    ".maskable.": "MaskablePPO",
    ".qrdqn.": "QRDQN",
    ".crossq.": "CrossQ",
    ".tqc.": "TQC",
    ".ars.": "ARS",
    ".dqn.": "DQN",
    ".sac.": "SAC",
}
_SETTINGS = {
    "cg_max_steps": "TRPO",
    "clip_range": "PPO",
    "top_quantiles_to_drop_per_net": "TQC",
    "policy_delay": "TD3",
    "target_entropy": "SAC",
    "exploration_initial_eps": "DQN",
    "n_delta": "ARS",
    "gae_lambda": "A2C",
}


def algorithm_class(name: str) -> Any:
    """The SB3 or sb3-contrib class of this name, in any case.

    Raises:
        ValueError: unknown name, or sb3-contrib is needed and not installed.
    """
    proper = {known.lower(): known for known in ALGORITHMS}.get(name.lower())
    if proper is None:
        raise ValueError(f"algorithm must be one of {', '.join(ALGORITHMS)}, got {name!r}")
    try:
        return getattr(importlib.import_module(ALGORITHMS[proper]), proper)
    except ImportError as error:
        raise ValueError(f"algorithm {proper!r} needs {ALGORITHMS[proper]}: pip install icrl-gym[contrib]") from error


def load_sb3_model(path: str | os.PathLike[str], algo: str = "auto", trust: bool = False) -> Any:
    """Load a model that Stable-Baselines3 saved.

    Args:
        path: the ``.zip`` file.
        algo: name of the algorithm; "auto" reads it from the card beside the file or from the file's own (textual)
            settings.
        trust: SB3's files hold pickles, and unpickling runs whatever code they contain: say that you know where it is
            from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a file of SB3's; not trusted; the algorithm cannot be told, or the file does not fit it.
    """
    path = existing_model(Path(path))
    settings = _stored_settings(path)
    if not trust:
        raise ValueError(
            f"model {path}: a Stable-Baselines3 zip holds pickles, which run code when loaded; "
            "pass trust=True (--trust-model) if you know where it is from"
        )
    kind = algorithm_class(_detect_algorithm(path, settings) if algo == "auto" else algo)
    try:
        return kind.load(path, device="cpu")
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"model {path}: cannot be loaded as {kind.__name__}: {reason}") from error


def existing_model(path: Path) -> Path:
    """The model's file, its name with or without ".zip"; raises FileNotFoundError where there is neither."""
    for candidate in (path, path.with_name(path.name + ".zip")):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"model {path}: no such file")


def _stored_settings(path: Path) -> dict[str, Any]:
    """The settings inside an SB3 zip, as text: nothing is unpickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"model {path}: not a Stable-Baselines3 model zip") from error
    if not isinstance(settings, dict) or "policy_class" not in settings:
        raise ValueError(f"model {path}: not a Stable-Baselines3 model zip (no policy_class in it)")
    return settings


def _detect_algorithm(path: Path, settings: dict[str, Any]) -> str:
    card = path.with_suffix(".json")
    if card.is_file():
        stated = json.loads(card.read_text(encoding="utf-8")).get("algorithm")
        if stated in ALGORITHMS:
            return stated
    module = str(settings["policy_class"].get("__module__", ""))
    for piece, name in _POLICY_MODULES.items():
        if piece in module:
            return name
    for setting, name in _SETTINGS.items():
        if setting in settings:
            is_ddpg = name == "TD3" and settings["policy_delay"] == 1 and settings.get("target_noise_clip") == 0.0
            return "DDPG" if is_ddpg else name
    raise ValueError(f"model {path}: cannot tell which algorithm it is of; name it (algo, --algo)")
