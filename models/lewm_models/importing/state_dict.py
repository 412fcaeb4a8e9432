"""A public checkpoint's tensors, read without running what a pickle may hold."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewm_models.checkpoint import CheckpointError

TRANSFORMERS_4 = (
    ("encoder.encoder.layer.", "encoder.layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""The encoder's names under transformers 4 and 5, the longer of two that overlap first."""

DROPPED = "encoder.embeddings.mask_token"
"""Only masked pre-training uses it."""


@dataclass(frozen=True)
class StateDict:
    """Tensors by their transformers 5 names, floats as float32."""

    tensors: dict[str, Tensor]
    names: dict[str, str]
    """How the file calls each tensor."""

    def spelling(self, name: str) -> str:
        """How the file calls this tensor, or would call it, for a person to find it."""
        if name in self.names:
            return self.names[name]
        is_old = any(theirs != ours for ours, theirs in self.names.items())
        return _old(name) if is_old else name


def read_state_dict(path: Path) -> StateDict:
    """Read a bare state dict in either spelling.

    Raises:
        CheckpointError: the file holds something else; nothing of it has been run.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    for theirs, tensor in _load(path).items():
        if not isinstance(theirs, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path.name}: expected a bare state dict of tensors, "
                f"but {theirs!r:.80} holds {type(tensor).__name__}"
            )
        if theirs == DROPPED:
            continue
        name = _new(theirs)
        if name in names:
            raise CheckpointError(f"{theirs}: is there twice, also as {names[name]}")
        if tensor.layout is not torch.strided or tensor.numel() > tensor.untyped_storage().size():
            raise CheckpointError(f"{theirs}: expected a dense tensor, whole in the file")
        names[name] = theirs
        tensors[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    return StateDict(tensors, names)


def _load(path: Path) -> dict[object, object]:
    try:
        with warnings.catch_warnings():
            # torch warns of old formats, which it reads all the same.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"a pickled object ({named[1]})" if named else "a pickled object"
        raise CheckpointError(
            f"{path.name}: holds {what}, which is refused because loading one runs code; "
            "expected a bare state dict of tensors"
        ) from error
    except Exception as error:  # A broken file makes torch trip over anything.
        raise CheckpointError(
            f"{path.name}: cannot be read: {type(error).__name__}: {str(error).splitlines()[:1]}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name}: expected a bare state dict of tensors, got {type(content).__name__}"
        )
    return content


def _new(name: str) -> str:
    if name.startswith("encoder.encoder.layer."):
        for old, new in TRANSFORMERS_4:
            name = name.replace(old, new)
    return name


def _old(name: str) -> str:
    if name.startswith("encoder.layers."):
        for old, new in TRANSFORMERS_4:
            name = name.replace(new, old)
    return name
