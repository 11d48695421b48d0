"""Checkpoints: weights as safetensors, everything else in a JSON card beside them. No pickle is ever read.

Bundled checkpoints lie in ``icrl_gym/checkpoints/<name>.safetensors`` and ``<name>.json``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from icrl_gym.evaluator.mixture import Generalist
from icrl_gym.evaluator.setting import Setting
from icrl_gym.evaluator.spread_head import SpreadHead
from icrl_gym.evaluator.statistics import QUERY_STATISTICS, STATISTICS
from icrl_gym.runs import replacing, write_text

SCHEMA_VERSION = 5
HASHED = ("schema_version", "heads", "width", "statistics", "query_statistics")  # fields of the card


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, with the reason."""


@dataclass(frozen=True)
class Card:
    """Description of a checkpoint: its settings, its hash and its origin.

    Attributes:
        schema_version: version of the files.
        heads: each head's settings, as keyword arguments.
        width: width of the spread head's hidden layers.
        statistics, query_statistics: the inputs by name, in order.
        sha256: hash of the safetensors file followed by the fields of `HASHED`; see `digest_of`.
        training: settings, families, tasks, steps, wall time, commit of the training, validation errors, known limits.
    """

    schema_version: int
    heads: list[dict[str, Any]]
    width: int
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
    tensors = model.spread.state_dict()
    content = save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    card = Card(
        SCHEMA_VERSION,
        [_non_default(head) for head in model.heads],
        model.spread.width,
        list(STATISTICS),
        list(QUERY_STATISTICS),
        "",
        training,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)
    card = replace(card, sha256=digest_of(content, card))
    write_text(path.with_suffix(".json"), json.dumps(asdict(card), indent=2, sort_keys=True) + "\n")
    return card


def digest_of(content: bytes, card: Card) -> str:
    """SHA-256 of the weights' file followed by the canonical JSON of the card's settings.

    Canonical: the fields of `HASHED`, keys sorted, no spaces. So neither weights nor settings can change unnoticed.
    """
    settings = {name: getattr(card, name) for name in HASHED}
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content + canonical.encode()).hexdigest()


def _read(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The weights' bytes and the card as it is stored."""
    try:
        content = path.read_bytes()
        stored = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot read the checkpoint or its card: {error}") from error
    return content, stored if isinstance(stored, dict) else {}


def load_checkpoint(path: Path) -> tuple[Generalist, Card]:
    """Read a checkpoint.

    Raises:
        CheckpointError: a file is missing or damaged, or of another schema, hash, set of statistics or shape.
    """
    content, stored = _read(path)
    if (version := stored.get("schema_version")) != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path}: schema_version must be {SCHEMA_VERSION}, got {version!r}; pretrain it again with "
            "`icrl-gym pretrain`"
        )
    try:
        card = Card(**stored)
        model = Generalist(tuple(Setting(**head) for head in card.heads), SpreadHead(card.width).eval())
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the card does not describe this model: {error}") from error
    if (digest := digest_of(content, card)) != card.sha256:
        raise CheckpointError(f"{path}: sha256 of weights and settings must be {card.sha256} by its card, got {digest}")
    if (card.statistics, card.query_statistics) != (list(STATISTICS), list(QUERY_STATISTICS)):
        raise CheckpointError(f"{path}: it reads other statistics than this version computes")
    try:
        model.spread.load_state_dict(load_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{path}: weights do not fit the card: {str(error).splitlines()[0]}") from error
    return model, card


def _non_default(head: Setting) -> dict[str, Any]:
    default = asdict(Setting())
    return {name: value for name, value in asdict(head).items() if value != default[name]}
