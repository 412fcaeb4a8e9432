"""Import of a public checkpoint, with a card for what the checkpoint does not contain."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lewm_models.card import CardError, ModelCard, read_json
from lewm_models.checkpoint import model_of_tensors
from lewm_models.config import LeWMConfig
from lewm_models.importing.architecture import (
    read_architecture,
    read_block_width,
    unknown_settings,
    with_counters,
)
from lewm_models.importing.files import CONFIG_FILE, CheckpointFiles, find_files
from lewm_models.importing.settings import Settings, model_settings
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


@dataclass(frozen=True)
class PublicCheckpoint:
    """The tensors and the settings of a public checkpoint."""

    files: CheckpointFiles
    settings: Settings
    state: StateDict

    @classmethod
    def read(cls, source: Path) -> PublicCheckpoint:
        """Read a checkpoint. No code that it names is imported or run.

        Args:
            source: see `lewm_models.importing.files.find_files`. Of several files
                `weights_epoch_N.pt`, the one with the greatest N is read. A file of tensors needs
                no `config.json` if the card gives the numbers of heads.

        Raises:
            CheckpointError: a file is missing or holds something else.
            CardError: `config.json` is no JSON.
        """
        files = find_files(source)
        state = read_state_dict(files.weights)
        if files.config is not None:
            settings = model_settings(read_json(files.config), CONFIG_FILE)
        else:
            settings = model_settings(state.hyper_parameters, files.weights.name)
        return cls(files, settings, state)

    @property
    def block_width(self) -> int:
        """The numbers in one action block."""
        return read_block_width(self.state)

    def with_card(self, card: Mapping[str, Any]) -> tuple[LeWM, ModelCard]:
        """The model and its card; see `import_checkpoint`."""
        if missing := [name for name in REQUIRED_CARD_FIELDS if card.get(name) is None]:
            raise CardError(
                f"{', '.join(missing)}: missing from the card; a public checkpoint does not "
                "contain these fields, so the card or a recording (--data) has to give them"
            )
        if card.get("distance") is not None:
            raise CardError(
                "distance: belongs to other latents; leave it out of the card, and train one with "
                "`lewm models distance`"
            )
        config = read_architecture(self.settings, self.state, card)
        tensors = with_counters(config, self.state.tensors)
        model = model_of_tensors(config, tensors, self.state.name_in_file)
        other_fields = {
            name: value for name, value in card.items() if name not in ARCHITECTURE_FIELDS
        }
        architecture = asdict(config)
        imported = ModelCard.from_json({**other_fields, "architecture": architecture})
        provenance = {**self._provenance(), **imported.provenance}
        return model, replace(imported, provenance=provenance)

    def _provenance(self) -> dict[str, Any]:
        provenance: dict[str, Any] = {
            "imported_from": self.files.origin,
            "weights_sha256": hashlib.sha256(self.files.weights.read_bytes()).hexdigest(),
            "command": "lewm models import",
        }
        if self.files.revision is not None:
            provenance["revision"] = self.files.revision
        if unknown := unknown_settings(self.settings):
            provenance["unknown_settings"] = unknown
        if self.state.ignored:
            provenance["ignored_tensors"] = self.state.ignored
        return provenance


def import_checkpoint(source: Path, card: Mapping[str, Any]) -> tuple[LeWM, ModelCard]:
    """Read a public checkpoint. No code that the checkpoint names is imported or run.

    Args:
        source: see `PublicCheckpoint.read`.
        card: the fields of `REQUIRED_CARD_FIELDS` and any other field of a card. Fields of the
            architecture have to agree with the tensors. Unknown fields are kept.

    Returns:
        The model, float32 and in ``eval()`` mode, and its card. The settings of `config.json` that
        are unknown, and the tensors that do not belong to the model, are listed in its
        ``provenance``.

    Raises:
        CardError: a field of the card is missing or wrong; the message names it.
        CheckpointError: a file, a number of `config.json` or a tensor is missing, unknown or
            wrong; the message names it.
    """
    return PublicCheckpoint.read(source).with_card(card)
