"""Reading the tensors of a public checkpoint, in any layout that the field's code writes.

The file holds a state dict, alone or somewhere in nested dicts beside the state of a training run.
Wrappers of the model (`DataParallel`, `torch.compile`, a Lightning module) add words to the names
of tensors. No code from a pickle is run.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lewm_models.checkpoint import CheckpointError
from lewm_models.file_kinds import SAFETENSORS, ZIP_ARCHIVE, kind_of_file, safetensors_problem
from lewm_models.importing.unpickling import ForeignObject, load_without_running

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

PARTS = ("encoder", "projector", "action_encoder", "predictor", "pred_proj")
"""The parts of a LeWM: the name of each tensor begins with one."""

WRAPPERS = {
    "module",
    "model",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
"""Words that wrappers put into the names of tensors, before a part or inside it."""

STATE_DICTS = {"state_dict", "model_state_dict"}
"""Names under which training runs keep the state dict of a model."""

TRAINING_PARTS = {"sigreg"}
"""Parts of a model that only training needs."""

MAX_NESTING = 8

EXPECTED = "expected the state dict of a LeWM, as torch.save or safetensors writes it"

LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first pickle of a file that `torch.save` wrote without a zip archive."""

MASK_TOKEN = "encoder.embeddings.mask_token"
"""Dropped: only masked pre-training uses it."""


@dataclass(frozen=True)
class StateDict:
    """The tensors of a checkpoint.

    Args:
        tensors: by their names in transformers 5; floats as float32.
        file_names: the name that each tensor has in the file, with those of nested dicts before it.
        prefix: what comes before the part in the names of most tensors.
        uses_old_names: whether the encoder's tensors have their names in transformers 4.
        ignored: the numbers of tensors that do not belong to the model, by the first part of their
            names.
        hyper_parameters: those that a training run has stored beside the tensors, if any.
    """

    tensors: dict[str, Tensor]
    file_names: dict[str, str]
    prefix: str = ""
    uses_old_names: bool = False
    ignored: dict[str, int] = field(default_factory=dict)
    hyper_parameters: Mapping[Any, object] = field(default_factory=dict)

    def name_in_file(self, name: str) -> str:
        """The name that a tensor has in the file, or would have if it were there."""
        if name in self.file_names:
            return self.file_names[name]
        return self.prefix + (_to_transformers_4(name) if self.uses_old_names else name)


class _Entry(NamedTuple):
    """An entry of the nested dicts of a file.

    Attributes:
        path: the words of its name.
        folder: how many of them are names of nested dicts.
        value: a tensor or anything else.
    """

    path: tuple[str, ...]
    folder: int
    value: object

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def part(self) -> int | None:
        """The index of the word that names a part of a LeWM; None if no word does."""
        return next((index for index, word in enumerate(self.path) if word in PARTS), None)

    @property
    def owner(self) -> tuple[str, ...] | None:
        """What names the model that the entry belongs to: the words before the part.

        Wrappers and state dicts do not count, so that it is usually empty.
        """
        if self.part is None:
            return None
        return tuple(word for word in self.path[: self.part] if word not in WRAPPERS | STATE_DICTS)

    @property
    def stripped_name(self) -> str:
        """The name from the part on, without wrappers."""
        words = self.path[self.part or 0 :]
        return ".".join(word for word in words if word not in WRAPPERS)


def read_state_dict(path: Path) -> StateDict:
    """Read the tensors of a LeWM from a file of `torch.save` or of safetensors.

    Raises:
        CheckpointError: the file holds something else. Nothing in it has been run.
    """
    content = _load(path)
    entries = list(_entries(content))
    tensors = [entry for entry in entries if isinstance(entry.value, Tensor)]
    owner = _choose_owner(path, content, tensors)
    model = [entry for entry in tensors if entry.owner == owner]
    places = {(entry.path[: entry.folder], entry.path[: entry.part]) for entry in model}
    _check_other_entries(path, entries, owner, folders={folder for folder, _ in places})
    result: dict[str, Tensor] = {}
    file_names: dict[str, str] = {}
    ignored: Counter[str] = Counter()
    for entry in tensors:
        if entry.owner != owner and not _is_unknown_tensor(entry, places):
            ignored[_ignored_name(entry)] += 1
            continue
        name, tensor = _to_transformers_5(entry.stripped_name), entry.value
        assert isinstance(tensor, Tensor)
        if name == MASK_TOKEN:
            continue
        if name in file_names:
            raise CheckpointError(f"{entry.name}: is there twice, also as {file_names[name]}")
        if tensor.layout is not torch.strided or tensor.numel() > tensor.untyped_storage().size():
            raise CheckpointError(f"{entry.name}: expected a dense tensor with all its values")
        file_names[name] = entry.name
        result[name] = tensor.detach().float() if tensor.is_floating_point() else tensor
    prefixes = Counter(entry.path[: entry.part] for entry in model)
    [(prefix, _)] = prefixes.most_common(1)
    hyper_parameters = content.get("hyper_parameters")
    return StateDict(
        tensors=result,
        file_names=file_names,
        prefix="".join(f"{word}." for word in prefix),
        uses_old_names=any(
            entry.stripped_name.startswith(TRANSFORMERS_4_TO_5[0][0]) for entry in model
        ),
        ignored=dict(ignored),
        hyper_parameters=hyper_parameters if isinstance(hyper_parameters, dict) else {},
    )


def _entries(
    content: Mapping[Any, object], above: tuple[str, ...] = (), depth: int = 0
) -> Iterator[_Entry]:
    """All entries of nested dicts that are no dicts themselves."""
    for key, value in content.items():
        words = tuple(str(key).split("."))
        if isinstance(value, dict) and not isinstance(value, ForeignObject):
            if depth < MAX_NESTING:
                yield from _entries(value, (*above, *words), depth + 1)
        else:
            yield _Entry((*above, *words), len(above), value)


def _choose_owner(
    path: Path, content: Mapping[Any, object], tensors: list[_Entry]
) -> tuple[str, ...]:
    """The `_Entry.owner` of the model's tensors; there may be another model beside it."""
    parts: dict[tuple[str, ...], set[str]] = {}
    for entry in tensors:
        if entry.owner is not None and entry.part is not None:
            parts.setdefault(entry.owner, set()).add(entry.path[entry.part])
    if not parts:
        raise CheckpointError(f"{path.name}: {EXPECTED}, got {_describe(content)}")
    if () in parts:
        return ()
    models = [owner for owner, names in parts.items() if {"encoder", "predictor"} <= names]
    if len(models) > 1:
        names = ", ".join(".".join(owner) for owner in models)
        raise CheckpointError(
            f"{path.name}: holds several models, {names}; save the state dict of one of them alone"
        )
    return models[0] if models else next(iter(parts))


def _describe(content: Mapping[Any, object]) -> str:
    """The first entries of a file and their types."""
    if not content:
        return "an empty dict"
    shown = [f"{key!r:.80} ({_type_name(value)})" for key, value in list(content.items())[:5]]
    return f"{', '.join(shown)}{' and more' if len(content) > len(shown) else ''}"


def _type_name(value: object) -> str:
    if isinstance(value, ForeignObject):
        return f"a pickled object, {value.class_name}"
    return type(value).__name__


def _check_other_entries(
    path: Path,
    entries: list[_Entry],
    owner: tuple[str, ...],
    *,
    folders: set[tuple[str, ...]],
) -> None:
    """Refuse what stands among the model's tensors and is neither a tensor nor a plain value."""
    for entry in entries:
        if isinstance(entry.value, Tensor) or entry.path[: entry.folder] not in folders:
            continue
        if isinstance(entry.value, ForeignObject):
            # Beside the tensors of a nested state dict nothing else belongs; a training run keeps
            # its objects outside of it.
            raise CheckpointError(f"{path.name}: {_refused_pickle(entry.value.class_name)}")
        if entry.owner == owner:
            raise CheckpointError(
                f"{path.name}: {EXPECTED}, but {entry.name!r:.80} holds "
                f"{type(entry.value).__name__}"
            )


def _is_unknown_tensor(entry: _Entry, places: set[tuple[tuple[str, ...], tuple[str, ...]]]) -> bool:
    """Whether a tensor without a part seems to belong to the model: it stands beside its parts.

    Args:
        entry: the tensor.
        places: where the model's tensors are: the nested dict, and the words before the part.
    """
    words = [word for word in entry.path if word not in WRAPPERS | STATE_DICTS]
    if entry.owner is not None or (words and words[0] in TRAINING_PARTS):
        return False
    folder = entry.path[: entry.folder]
    return any(folder == place and entry.path[: len(before)] == before for place, before in places)


def _ignored_name(entry: _Entry) -> str:
    words = [word for word in entry.path if word not in WRAPPERS | STATE_DICTS]
    return words[0] if words else entry.name


def _load(path: Path) -> Mapping[Any, object]:
    """What a file holds. torch's own messages advise to run the code in it."""
    if kind_of_file(path) == SAFETENSORS:
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name}: {safetensors_problem(path, error)}") from error
    _check_is_pytorch(path)
    try:
        with warnings.catch_warnings():
            # torch warns about old file formats, but it reads them.
            warnings.simplefilter("ignore")
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # there is more than tensors
                content = load_without_running(path)
    except Exception as error:  # With a broken file, torch raises exceptions of many types.
        reason = type(error).__name__
        raise CheckpointError(f"{path.name}: is cut off or damaged ({reason})") from error
    if isinstance(content, ForeignObject):
        raise CheckpointError(f"{path.name}: {_refused_pickle(content.class_name)}")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name}: {EXPECTED}, got {type(content).__name__}")
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


def _refused_pickle(class_name: str = "") -> str:
    shown = f" ({class_name})" if class_name else ""
    return (
        f"holds a pickled object{shown}, which is refused because loading one runs code; {EXPECTED}"
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
