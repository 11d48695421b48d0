"""The policy that ships inside the package, for a first run without any training: weights without pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from icrl_gym.runs import replacing

SCHEMA_VERSION = 1
DEMO_CARD = Path(__file__).parents[1] / "checkpoints" / "cartpole-ppo.json"


def load_demo_policy(card_path: Path = DEMO_CARD) -> Any:
    """An SB3 PPO with the shipped weights; nothing is trained and nothing is unpickled.

    Raises:
        ValueError: the card has another schema, or the weights are not those that the card describes.
    """
    import torch
    from stable_baselines3 import PPO

    card = json.loads(card_path.read_text(encoding="utf-8"))
    if card.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{card_path}: schema_version must be {SCHEMA_VERSION}, got {card.get('schema_version')}")
    weights = card_path.with_suffix(".safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != card["sha256"]:
        raise ValueError(f"{card_path}: the weights beside it do not have the sha256 that it states")
    with torch.random.fork_rng(devices=[]):  # the network is initialised before its weights are replaced
        model = PPO(card["policy_class"], card["env"], gamma=card["gamma"], device="cpu")
    model.policy.load_state_dict(load(weights))
    model.policy.set_training_mode(False)
    model.num_timesteps = card["num_steps_taken"]
    return model


def export_demo_policy(snapshot: Path, card_path: Path = DEMO_CARD, command: str = "") -> dict[str, Any]:
    """Write the policy of a PPO snapshot (its own card beside it) as safetensors and JSON; returns the new card.

    Only for snapshots that this machine trained: reading one unpickles it.

    Raises:
        ValueError: the snapshot is no plain PPO with SB3's default network.
    """
    from stable_baselines3 import PPO

    source = json.loads(snapshot.with_suffix(".json").read_text(encoding="utf-8"))
    special = source["wrapper"] or source["env_kwargs"] or "policy_kwargs" in source["options"]
    if source["algorithm"] != "PPO" or special:
        raise ValueError(f"snapshot {snapshot}: only a plain PPO can be rebuilt, got {source['algorithm']}")
    model = PPO.load(snapshot, device="cpu")
    tensors = {name: tensor.contiguous() for name, tensor in model.policy.state_dict().items()}
    weights = save(tensors)
    kept = ("env", "algorithm", "policy_class", "gamma", "seed", "num_steps", "num_steps_taken", "num_envs", "options",
            "mean_return", "stderr_return", "num_evaluation_episodes", "versions")  # fmt: skip
    card = {
        "schema_version": SCHEMA_VERSION,
        **{name: source[name] for name in kept},
        "architecture": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "training_command": source["command"],
        "export_command": command,
        "snapshot_sha256": source["sha256"],
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    card_path.parent.mkdir(parents=True, exist_ok=True)
    _write(card_path.with_suffix(".safetensors"), weights)
    _write(card_path, (json.dumps(card, indent=2) + "\n").encode())
    return card


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
