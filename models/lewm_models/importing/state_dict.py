"""Reading the tensors of a public checkpoint without running code from its pickle."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lewm_models.checkpoint import CheckpointError
from lewm_models.file_kinds import ZIP_ARCHIVE, kind_of_file

TRANSFORMERS_4_TO_5 = (
    ("encoder.encoder.layer.", "encoder.layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""Parts of the encoder's tensor names in transformers 4 and 5. The order matters, because one part
contains another."""

WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of all names in the state dict of a model that was wrapped: `DataParallel` and its like,
`torch.compile`."""

EXPECTED = "expected a bare state dict of tensors, as torch.save writes it"

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file that `torch.save` wrote without a zip archive."""

MASK_TOKEN = "encoder.embeddings.mask_token"
"""Dropped: only masked pre-training uses it."""


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint.

    Args:
        tensors: by their names in transformers 5; floats as float32.
        file_names: the name that each tensor has in the file.
        prefix: what all names in the file start with, because the model was wrapped.
    """

    tensors: dict[str, Tensor]
    file_names: dict[str, str]
    prefix: str = ""

    def name_in_file(self, name: str) -> str:
        """The name that a tensor has in the file, or would have if it were there."""
        if name in self.file_names:
            return self.file_names[name]
        uses_old_names = any(
            self.prefix + name != in_file for name, in_file in self.file_names.items()
        )
        return self.prefix + (_to_transformers_4(name) if uses_old_names else name)


def read_state_dict(path: Path) -> StateDict:
    """Read a file that holds a bare state dict, with the names of transformers 4 or 5.

    Raises:
        CheckpointError: the file holds something else. Nothing in it has been run.
    """
    tensors: dict[str, Tensor] = {}
    file_names: dict[str, str] = {}
    content = _load(path)
    prefix = _common_prefix(content)
    for in_file, tensor in content.items():
        if not isinstance(in_file, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path.name}: expected a bare state dict of tensors, "
                f"but {in_file!r:.80} holds {type(tensor).__name__}"
            )
        name = _to_transformers_5(in_file.removeprefix(prefix))
        if name == MASK_TOKEN:
            continue
        if name in file_names:
            raise CheckpointError(f"{in_file}: is there twice, also as {file_names[name]}")
        if tensor.layout is not torch.strided or tensor.numel() > tensor.untyped_storage().size():
            raise CheckpointError(f"{in_file}: expected a dense tensor with all its values")
        file_names[name] = in_file
        tensors[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    return StateDict(tensors, file_names, prefix)


def _common_prefix(names: Collection[object]) -> str:
    """The wrappers' prefixes that all names have, such as ``module._orig_mod.``."""
    prefix = ""
    while names:
        longer = [prefix + wrapper for wrapper in WRAPPERS]
        found = [p for p in longer if all(isinstance(n, str) and n.startswith(p) for n in names)]
        if not found:
            break
        (prefix,) = found
    return prefix


def _load(path: Path) -> dict[object, object]:
    """What a file of PyTorch holds. torch's own messages advise to run the code in it."""
    _check_is_pytorch(path)
    try:
        with warnings.catch_warnings():
            # torch warns about old file formats, but it reads them.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL ([\w.]+)", str(error))
        if match is None:
            raise CheckpointError(
                f"{path.name}: is damaged, or holds more than tensors; {EXPECTED}"
            ) from error
        raise CheckpointError(f"{path.name}: {_refused_pickle(f' ({match[1]})')}") from error
    except Exception as error:  # With a broken file, torch raises exceptions of many types.
        reason = type(error).__name__
        raise CheckpointError(f"{path.name}: is cut off or damaged ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name}: expected a bare state dict of tensors, got {type(content).__name__}"
        )
    return content


def _check_is_pytorch(path: Path) -> None:
    """Refuse what is no file of `torch.save`: a zip archive with a pickle, or a bare pickle.

    Raises:
        CheckpointError: it is something else; the message says what.
    """
    kind = kind_of_file(path)
    if kind == ZIP_ARCHIVE:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except Exception as error:  # zipfile raises exceptions of many types too
            reason = type(error).__name__
            raise CheckpointError(f"{path.name}: is a damaged zip archive ({reason})") from error
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(f"{path.name}: is a TorchScript program; {EXPECTED}")
        if not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(f"{path.name}: is a zip archive of {names[:3]}; {EXPECTED}")
    elif kind is not None:
        raise CheckpointError(f"{path.name}: is {kind}; {EXPECTED}")
    else:
        with path.open("rb") as file:
            start = file.read(len(LEGACY_START))
        if start[:1] != pickle.PROTO:
            raise CheckpointError(f"{path.name}: is of an unknown format; {EXPECTED}")
        if len(start) == len(LEGACY_START) and start != LEGACY_START:
            raise CheckpointError(f"{path.name}: {_refused_pickle()}")


def _refused_pickle(name: str = "") -> str:
    return (
        f"holds a pickled object{name}, which is refused because loading one runs code; {EXPECTED}"
    )


def _to_transformers_5(name: str) -> str:
    if name.startswith("encoder.encoder.layer."):
        for old, new in TRANSFORMERS_4_TO_5:
            name = name.replace(old, new)
    return name


def _to_transformers_4(name: str) -> str:
    if name.startswith("encoder.layers."):
        for old, new in TRANSFORMERS_4_TO_5:
            name = name.replace(new, old)
    return name
