"""Checkpoints: weights as safetensors, everything else in a JSON card beside them. No pickle is ever read.

Bundled checkpoints lie in ``icrl_gym/checkpoints/<name>.safetensors`` and ``<name>.json``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from icrl_gym.evaluator.error_bars import SpreadHead
from icrl_gym.evaluator.gate import Gate
from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS
from icrl_gym.runs import replacing, write_text

SCHEMA_VERSION = 4
UPGRADED = (2, 3)  # versions that `upgrade_checkpoint` reads
HASHED = ("schema_version", "heads", "width", "num_members", "statistics", "query_statistics")  # fields of the card
REMOVED = (
    "The gate's share of returns imagined with a model of the closed loop, from the last layer of each member. "
    "Validation figures were measured with it, and the error bars were trained with it."
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint: its settings, its hash and its origin.

    Attributes:
        schema_version: version of the files.
        heads: each head's settings, as keyword arguments.
        width: width of the gate's and the spread head's hidden layers.
        num_members: number of the gate's members.
        statistics, query_statistics: the inputs by name, in order.
        sha256: hash of the safetensors file followed by the fields of `HASHED`; see `digest_of`.
        training: settings, families, tasks, steps, wall time, commit of the training, validation errors, known limits.
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
        "",
        training,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    return _write_card(path, content, card)


def digest_of(content: bytes, card: Card) -> str:
    """SHA-256 of the weights' file followed by the canonical JSON of the card's settings.

    Canonical: the fields of `HASHED`, keys sorted, no spaces. So neither weights nor settings can change unnoticed.
    """
    settings = {name: getattr(card, name) for name in HASHED}
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content + canonical.encode()).hexdigest()


def upgrade_checkpoint(path: Path, training: dict[str, Any]) -> Card:
    """Write a checkpoint of schema 2 or 3 again as one of this schema; leaf values stay as they are.

    In the older schemas the gate had one more dial, a share of returns that were imagined with a model of the closed
    loop. Its weights are taken out of the last layers, and the card's training says so under "removed". The last query
    statistic is named after what is left of it.

    Args:
        path: the weights (.safetensors), with the old card beside them.
        training: entries that replace those of the card's training.

    Raises:
        CheckpointError: a file is missing or damaged, of another schema, or the weights are not those of the card.
    """
    content, stored = _read(path)
    if (version := stored.get("schema_version")) not in UPGRADED:
        raise CheckpointError(f"{path}: schema_version must be one of {UPGRADED} to be upgraded, got {version!r}")
    card = _card(path, stored)
    digest = hashlib.sha256(content).hexdigest() if version == 2 else digest_of(content, card)
    if digest != card.sha256:
        raise CheckpointError(f"{path}: the weights are not those of the card")
    if card.query_statistics[-1:] != ["imagination"]:
        raise CheckpointError(f"{path}: its last query statistic must be 'imagination', got {card.query_statistics}")
    last_layer = re.compile(r"gate\.members\.\d+\.4\.(weight|bias)")
    try:
        tensors = {
            name: tensor[:-1].contiguous() if last_layer.fullmatch(name) else tensor
            for name, tensor in load_tensors(content).items()
        }
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot read the weights: {error}") from error
    content = save_tensors(tensors)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    upgraded = replace(
        card,
        schema_version=SCHEMA_VERSION,
        query_statistics=[*card.query_statistics[:-1], "consensus"],
        training=card.training | {"removed": [REMOVED]} | training,
    )
    return _write_card(path, content, upgraded)


def _write_card(path: Path, content: bytes, card: Card) -> Card:
    card = replace(card, sha256=digest_of(content, card))
    write_text(path.with_suffix(".json"), json.dumps(asdict(card), indent=2, sort_keys=True) + "\n")
    return card


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The weights' bytes and the card as it is stored."""
    try:
        content = path.read_bytes()
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint or its card: {error}") from error
    return content, stored if isinstance(stored, dict) else {}


def _card(path: Path, stored: dict[str, Any]) -> Card:
    try:
        return Card(**stored)
    except TypeError as error:
        raise CheckpointError(f"{path}: the card does not describe this model: {error}") from error


def load_checkpoint(path: Path) -> tuple[Generalist, Card]:
    """Read a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or of another schema, hash, set of statistics or shape.
    """
    content, stored = _read(path)
    if (version := stored.get("schema_version")) != SCHEMA_VERSION:
        advice = "pretrain it again with `icrl-gym pretrain`"
        advice += ", or upgrade it with scripts/upgrade_checkpoint.py" if version in UPGRADED else ""
        raise CheckpointError(f"{path}: schema_version must be {SCHEMA_VERSION}, got {version!r}; {advice}")
    card = _card(path, stored)
    if (digest := digest_of(content, card)) != card.sha256:
        raise CheckpointError(f"{path}: sha256 of weights and settings must be {card.sha256} by its card, got {digest}")
    try:
        heads = tuple(Setting(**head) for head in card.heads)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the card does not describe this model: {error}") from error
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
    return (
        Gate(len(STATISTICS), num_heads, width, num_members, STATISTICS.index("constant_reward")),
        SpreadHead(len(STATISTICS), len(QUERY_STATISTICS), width),
    )


def _non_default(head: Setting) -> dict[str, Any]:
    default = asdict(Setting())
    return {name: value for name, value in asdict(head).items() if value != default[name]}
