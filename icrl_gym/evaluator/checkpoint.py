"""Checkpoints: weights as safetensors, everything else in a JSON card beside them. No pickle is ever read.

Bundled checkpoints lie in ``icrl_gym/checkpoints/<name>.safetensors`` and ``<name>.json``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from icrl_gym.evaluator.gate import Gate, SpreadHead
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.network import Setting
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS
from icrl_gym.runs import replacing

SCHEMA_VERSION = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint is and where it comes from.

    Attributes:
        schema_version: of the files.
        heads: settings, as keyword arguments.
        width: of the gate's and the spread head's hidden layers.
        num_members: of the gate.
        statistics, query_statistics: the inputs by name, in order.
        sha256: of the safetensors file.
        training: command, seed, families, tasks, steps, wall time, commit, validation errors, known limits.
    """

    schema_version: int
    heads: list[dict[str, Any]]
    width: int
    num_members: int
    statistics: list[str]
    query_statistics: list[str]
    sha256: str
    training: dict[str, Any] = field(default_factory=dict)


def bundled_checkpoint(name: str) -> Path:
    """Path of a bundled checkpoint's weights."""
    return Path(str(files("icrl_gym"))) / "checkpoints" / f"{name}.safetensors"


def available_checkpoints() -> list[str]:
    """Names of the bundled mixtures; policies lie in the same folder, under cards without heads."""
    cards = (Path(str(files("icrl_gym"))) / "checkpoints").glob("*.json")
    return sorted(path.stem for path in cards if "heads" in json.loads(path.read_text(encoding="utf-8")))


def checkpoint_digest(name: str) -> str:
    """The sha256 that the card of a bundled mixture states."""
    card = bundled_checkpoint(name).with_suffix(".json")
    return str(json.loads(card.read_text(encoding="utf-8"))["sha256"])


def save_checkpoint(path: Path, model: Generalist, training: dict[str, Any]) -> Card:
    """Write ``path`` (.safetensors) and its card; each file is complete or absent, the card comes last."""
    tensors = {f"gate.{name}": tensor for name, tensor in model.gate.state_dict().items()}
    tensors |= {f"spread.{name}": tensor for name, tensor in model.spread.state_dict().items()}
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    card = Card(
        SCHEMA_VERSION,
        [_non_default(head) for head in model.heads],
        model.gate.width,
        len(model.gate.members),
        list(STATISTICS),
        list(QUERY_STATISTICS),
        hashlib.sha256(content).hexdigest(),
        training,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    _write(path.with_suffix(".json"), (json.dumps(asdict(card), indent=2, sort_keys=True) + "\n").encode())
    return card


def load_checkpoint(path: Path) -> tuple[Generalist, Card]:
    """Read a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or of another schema, hash, set of statistics or shape.
    """
    try:
        content = path.read_bytes()
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint or its card: {error}") from error
    if not isinstance(stored, dict) or stored.get("schema_version") != SCHEMA_VERSION:
        version = stored.get("schema_version") if isinstance(stored, dict) else None
        raise CheckpointError(f"{path}: schema_version must be {SCHEMA_VERSION}, got {version!r}")
    try:
        card = Card(**stored)
        heads = tuple(Setting(**head) for head in card.heads)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the card does not describe this model: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise CheckpointError(f"{path}: sha256 must be {card.sha256} by its card, got {digest}")
    if (card.statistics, card.query_statistics) != (list(STATISTICS), list(QUERY_STATISTICS)):
        raise CheckpointError(f"{path}: it reads other statistics than this version computes")
    try:
        gate, spread = new_networks(len(heads), card.width, card.num_members)
        tensors = load_tensors(content)
        for name, module in (("gate", gate), ("spread", spread)):
            own = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
            module.load_state_dict(own)
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: weights do not fit the card: {str(error).splitlines()[0]}") from error
    return Generalist(heads, gate.eval(), spread.eval()), card


def new_networks(num_heads: int, width: int, num_members: int = 1) -> tuple[Gate, SpreadHead]:
    """Untrained networks: with them the mixture is its first head."""
    columns = (STATISTICS.index("constant_reward"), STATISTICS.index("predictability"))
    return (
        Gate(len(STATISTICS), num_heads, width, num_members, *columns),
        SpreadHead(len(STATISTICS), len(QUERY_STATISTICS), width),
    )


def _non_default(head: Setting) -> dict[str, Any]:
    default = asdict(Setting())
    return {name: value for name, value in asdict(head).items() if value != default[name]}


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
