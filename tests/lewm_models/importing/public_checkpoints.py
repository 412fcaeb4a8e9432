"""Public checkpoints of `TINY`, with one change each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lewm_models.importing.state_dict import TRANSFORMERS_4_TO_5
from lewm_models.lewm import LeWM
from tests.lewm_models.examples import public_config, tiny_model, write_public_checkpoint

StateDict = dict[str, Tensor]

CLS_TOKEN = "encoder.embeddings.cls_token"


def copy_state(model: LeWM) -> StateDict:
    """The state dict, with tensors of its own."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def with_transformers_4_names(state: StateDict) -> StateDict:
    """The same tensors with the encoder's names in transformers 4."""

    def old_name(name: str) -> str:
        if name.startswith("encoder.layers."):
            for old, new in TRANSFORMERS_4_TO_5:
                name = name.replace(new, old)
        return name

    return {old_name(name): tensor for name, tensor in state.items()}


def with_changed_state(source: Path, change: Callable[[StateDict], object]) -> Path:
    """Write the checkpoint with a changed state dict."""
    state = copy_state(tiny_model())
    change(state)
    return write_public_checkpoint(source, state, public_config())


def with_tensors(source: Path, tensors: StateDict) -> Path:
    """Write the checkpoint with these tensors added or replaced."""
    return with_changed_state(source, lambda state: state.update(tensors))


def with_config_entry(source: Path, path: str, value: Any) -> Path:
    """Write the checkpoint with one entry of `config.json` replaced; None removes the entry."""
    *parents, last = path.split(".")
    config = copy.deepcopy(public_config())
    parent = config
    for name in parents:
        parent = parent[name]
    parent[last] = value
    if value is None:
        del parent[last]
    return write_public_checkpoint(source, copy_state(tiny_model()), config)
