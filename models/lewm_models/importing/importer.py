"""Import of a public checkpoint folder, with a card for what the folder does not contain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lewm_models.card import CardError, ModelCard, read_json
from lewm_models.checkpoint import CheckpointError, model_of_tensors
from lewm_models.config import LeWMConfig
from lewm_models.importing.architecture import read_architecture, unknown_settings
from lewm_models.importing.state_dict import StateDict, read_state_dict
from lewm_models.lewm import LeWM

REQUIRED_CARD_FIELDS = (
    "name",
    "action_dim",
    "action_block",
    "action_mean",
    "action_std",
    "action_low",
    "action_high",
)
"""What a public checkpoint does not contain and what cannot be derived from it."""

ARCHITECTURE_FIELDS = {field.name for field in fields(LeWMConfig)} | {"architecture"}


def import_checkpoint(source: Path, card: Mapping[str, Any]) -> tuple[LeWM, ModelCard]:
    """Read a public checkpoint. No code that the checkpoint names is imported or run.

    Args:
        source: a folder with `config.json` and either `weights.pt` or files `weights_epoch_N.pt`,
            of which the one with the greatest N is read.
        card: the fields of `REQUIRED_CARD_FIELDS` and any other field of a card. Fields of the
            architecture have to agree with the tensors. Unknown fields are kept.

    Returns:
        The model, float32 and in ``eval()`` mode, and its card. The settings of `config.json` that
        are unknown are listed in its ``provenance``.

    Raises:
        CardError: a field of the card is missing or wrong; the message names it.
        CheckpointError: a file, a number of `config.json` or a tensor is missing, unknown or
            wrong; the message names it.
    """
    if missing := [name for name in REQUIRED_CARD_FIELDS if card.get(name) is None]:
        raise CardError(
            f"{', '.join(missing)}: missing from the card; a public checkpoint does not contain "
            "these fields, so the card has to give them"
        )
    weights = _find_weights(source)
    published = read_json(source / "config.json")
    state = read_state_dict(weights)
    config = read_architecture(published, state, card)
    _check_batch_norms(state)
    model = model_of_tensors(config, state.tensors, state.name_in_file)
    other_fields = {name: value for name, value in card.items() if name not in ARCHITECTURE_FIELDS}
    imported = ModelCard.from_json({**other_fields, "architecture": asdict(config)})
    provenance = {**_provenance(weights), **imported.provenance}
    if unknown := unknown_settings(published):
        provenance["unknown_settings"] = unknown
    return model, replace(imported, provenance=provenance)


def _find_weights(source: Path) -> Path:
    if not source.is_dir():
        raise CheckpointError(f"{source}: expected a folder with weights.pt and config.json")
    if (source / "weights.pt").is_file():
        return source / "weights.pt"
    epochs = {
        int(match[1]): path
        for path in source.iterdir()
        if (match := re.fullmatch(r"weights_epoch_(\d+)\.pt", path.name))
    }
    if not epochs:
        raise CheckpointError(
            f"{source}: holds neither weights.pt nor weights_epoch_N.pt, "
            f"but {sorted(path.name + '/' * path.is_dir() for path in source.iterdir())}"
        )
    return epochs[max(epochs)]


def _check_batch_norms(state: StateDict) -> None:
    """Refuse another norm by name; else the error would only name a missing tensor."""
    for norm in ("projector.net.1", "pred_proj.net.1"):
        tensors = sorted(name for name in state.tensors if name.startswith(f"{norm}."))
        if not any(name.endswith((".running_mean", ".running_var")) for name in tensors):
            raise CheckpointError(
                f"{norm}: expected BatchNorm1d with its statistics {norm}.running_mean and "
                f"{norm}.running_var, got {f'another norm, {tensors}' if tensors else 'no norm'}"
            )


def _provenance(weights: Path) -> dict[str, str]:
    return {
        "imported_from": f"{weights.resolve().parent.name}/{weights.name}",
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "command": "lewm models import",
    }
