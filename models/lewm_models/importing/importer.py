"""A public checkpoint folder and the statistics it lacks → a model and its card."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from lewm_models.card import CardError, ModelCard, read_json
from lewm_models.checkpoint import CheckpointError, assemble
from lewm_models.config import LeWMConfig
from lewm_models.importing.architecture import read_architecture
from lewm_models.importing.state_dict import StateDict, read_state_dict
from lewm_models.importing.widths import read_widths
from lewm_models.lewm import LeWM

REQUIRED = (
    "name",
    "action_dim",
    "action_block",
    "action_mean",
    "action_std",
    "action_low",
    "action_high",
)
"""What no public checkpoint carries and nobody can guess."""

ARCHITECTURE = {field.name for field in fields(LeWMConfig)} | {"architecture"}


def import_checkpoint(source: Path, card: Mapping[str, Any]) -> tuple[LeWM, ModelCard]:
    """Read a public checkpoint; nothing that it names is imported or run.

    Args:
        source: a folder with `config.json` and `weights.pt`, or `weights_epoch_N.pt`, of which the
            greatest N is taken.
        card: the fields of `REQUIRED`, and any other field of a card. What it says of the
            architecture has to agree with the tensors; what it does not know is kept.

    Returns:
        The model, float32 and in ``eval()``, and its card.

    Raises:
        CardError: a required field is missing, or one is wrong; the message names it.
        CheckpointError: a file, a number of `config.json` or a tensor is missing, unknown or
            wrong; the message names it.
    """
    if missing := [name for name in REQUIRED if card.get(name) is None]:
        raise CardError(
            f"{', '.join(missing)}: missing from the card; a public checkpoint does not carry "
            "these, so they have to be given"
        )
    weights = _weights_file(source)
    published = read_json(source / "config.json")
    state = read_state_dict(weights)
    config = read_architecture(published, read_widths(state), card)
    _check_batch_norms(state)
    model = assemble(config, state.tensors, state.spelling)
    told = {name: value for name, value in card.items() if name not in ARCHITECTURE}
    made = ModelCard.from_json({**told, "architecture": asdict(config)})
    return model, replace(made, provenance={**_provenance(weights), **made.provenance})


def _weights_file(source: Path) -> Path:
    if not source.is_dir():
        raise CheckpointError(f"{source}: expected a folder with weights.pt and config.json")
    if (source / "weights.pt").is_file():
        return source / "weights.pt"
    epochs = {
        int(found[1]): path
        for path in source.iterdir()
        if (found := re.fullmatch(r"weights_epoch_(\d+)\.pt", path.name))
    }
    if not epochs:
        raise CheckpointError(
            f"{source}: holds neither weights.pt nor weights_epoch_N.pt, "
            f"but {sorted(path.name for path in source.iterdir())}"
        )
    return epochs[max(epochs)]


def _check_batch_norms(state: StateDict) -> None:
    """Another norm, or none, has other tensors: say so rather than call one missing."""
    for name in ("projector.net.1", "pred_proj.net.1"):
        found = sorted(key for key in state.tensors if key.startswith(f"{name}."))
        if not any(key.endswith((".running_mean", ".running_var")) for key in found):
            raise CheckpointError(
                f"{name}: expected BatchNorm1d with its statistics {name}.running_mean and "
                f"{name}.running_var, got {f'another norm, {found}' if found else 'no norm'}"
            )


def _provenance(weights: Path) -> dict[str, str]:
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    return {
        "imported_from": f"{weights.resolve().parent.name}/{weights.name}",
        "weights_sha256": digest,
        "command": "lewm models import",
    }
