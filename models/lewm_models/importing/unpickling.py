"""Reading files of `torch.save` without running anything that their pickle names.

torch's own safe loader refuses a training checkpoint as a whole if it holds one object of an
unknown class, such as the hyper-parameters or the callbacks of Lightning. Here such an object
becomes a `ForeignObject`, which keeps nothing but the name of its class.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class ForeignObject(dict[object, object]):
    """What stands for an object of an unknown class. Its class is not imported and not run.

    The entries of an object that is a kind of dict are kept; any other content is dropped.
    """

    class_name = ""

    def __init__(self, *_args: object, **_keywords: object) -> None:
        super().__init__()

    def __call__(self, *_args: object, **_keywords: object) -> ForeignObject:
        return self

    def __setstate__(self, _state: object) -> None:
        """Drop the state."""

    def append(self, _value: object) -> None:
        """Drop an entry of a kind of list."""

    def extend(self, _values: object) -> None:
        """Drop entries of a kind of list."""

    def add(self, _value: object) -> None:
        """Drop an entry of a kind of set."""

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


def load_without_running(path: Path) -> object:
    """The content of a file of `torch.save`: tensors, numbers, texts, and lists and dicts of them.

    Raises:
        Exception: of many types, if the file is damaged.
    """
    pickle_module = SimpleNamespace(
        __name__="restricted", Unpickler=RestrictedUnpickler, load=_load_restricted
    )
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=pickle_module)


class RestrictedUnpickler(pickle.Unpickler):
    """Makes tensors and a `ForeignObject` for everything else that a pickle wants to call.

    torch adds the types of storages. The functions below belong to one unpickler, so that a pickle
    that changes their attributes changes nothing else.
    """

    def find_class(self, module: str, name: str) -> Any:
        """See `pickle.Unpickler`. Nothing is imported."""
        full_name = f"{module}.{name}"
        if full_name == "collections.OrderedDict":
            return OrderedDict
        if full_name == "torch._utils._rebuild_tensor_v2":
            return lambda *args: _make_tensor(*args[:4])
        if full_name == "torch._utils._rebuild_parameter":
            return lambda tensor, *_: tensor
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type("ForeignObject", (ForeignObject,), {"class_name": full_name})


def _make_tensor(
    storage: torch.TypedStorage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    # `set_` would enlarge a storage that is too small, to whatever a damaged file asks for.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True) if n > 0)
    if min(offset, *size, *stride, 0) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError(f"a tensor {tuple(size)} needs more than {len(storage)} values")
    values: torch.UntypedStorage = storage.untyped()  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=storage.dtype).set_(values, offset, size, stride)


def _load_restricted(file: Any, **keywords: Any) -> object:
    return RestrictedUnpickler(file, **keywords).load()
