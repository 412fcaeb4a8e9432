"""Request messages to documents, and responses to message fields.

Fields have the same names in messages and in JSON. A request message becomes the document that JSON
would hold, with arrays instead of nested lists, and is validated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from lewm.v1 import planner_pb2 as pb
from lewm_serve.constants import MAX_FRAMES_PER_REQUEST
from lewm_serve.errors import InvalidRequest

MAX_TENSOR_AXES = 4

MAX_LIST_ITEMS = MAX_FRAMES_PER_REQUEST + 1
"""Longer lists are refused in any case, so the rest of them is not read."""


T = TypeVar("T")


class _Field(NamedTuple):
    """What is needed to read a field of a message."""

    name: str
    is_list: bool
    always_present: bool


@cache
def _message_fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    # Descriptors are slow to read and never change.
    return tuple(
        _Field(field.name, is_list=field.is_repeated, always_present=not field.has_presence)
        for field in descriptor.fields
    )


@cache
def _dataclass_field_names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def to_document(message: Message, path: str = "") -> dict[str, Any]:
    """The fields of a message by name. Fields that were not sent are left out, except lists.

    Raises:
        InvalidRequest: the message has a field that this version does not know, or a tensor whose
            bytes do not match its shape.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise InvalidRequest(
            "unknown_field",
            path or "message",
            received=unknown[0].field_number,
            expected=f"field numbers of {message.DESCRIPTOR.full_name}",
        )
    document: dict[str, Any] = {}
    for name, is_list, always_present in _message_fields(message.DESCRIPTOR):
        field_path = f"{path}.{name}" if path else name
        if is_list:
            items = getattr(message, name)[:MAX_LIST_ITEMS]
            document[name] = [
                _to_value(item, f"{field_path}[{index}]") for index, item in enumerate(items)
            ]
        elif always_present or message.HasField(name):
            document[name] = _to_value(getattr(message, name), field_path)
    return document


def _to_value(value: Any, path: str) -> Any:
    if isinstance(value, pb.Tensor):
        return to_array(value, path)
    if isinstance(value, pb.States):
        return dict(_first(value.values.items()))
    if isinstance(value, pb.StateBox):
        return {name: [item.low, item.high] for name, item in _first(value.ranges.items())}
    return to_document(value, path) if isinstance(value, Message) else value


def _first(items: Iterable[T]) -> Iterator[T]:
    """As many items as can be used, and one more, which is refused."""
    return islice(items, MAX_LIST_ITEMS)


def to_array(tensor: pb.Tensor, field: str) -> NDArray[np.float32]:
    """The tensor as an array over its bytes, without a copy.

    Raises:
        InvalidRequest: `shape_mismatch`; it is raised before any memory is allocated.
    """
    shape = list(tensor.shape)
    rows, *other_axes = shape or [0]
    if not 1 <= len(shape) <= MAX_TENSOR_AXES or rows < 0 or min(other_axes, default=1) < 1:
        expected = f"1 to {MAX_TENSOR_AXES} axes, none of them empty"
        raise InvalidRequest("shape_mismatch", f"{field}.shape", received=shape, expected=expected)
    size = math.prod(shape)
    if len(tensor.data) != 4 * size:
        expected = f"{4 * size} bytes for shape {shape}"
        raise InvalidRequest(
            "shape_mismatch", f"{field}.data", received=tensor.data, expected=expected
        )
    if size == 0:
        return np.empty((0,) * len(shape), np.float32)
    return np.frombuffer(tensor.data, "<f4").reshape(shape)


def to_message_fields(value: Any) -> Any:
    """A response, or a part of one, as the fields of its message, without those that are None."""
    if isinstance(value, np.ndarray):
        return {
            "shape": value.shape,
            "data": np.ascontiguousarray(value, "<f4").tobytes(),
        }
    if is_dataclass(value):
        kind: Any = type(value)
        names = _dataclass_field_names(kind)
        items = ((name, getattr(value, name)) for name in names)
        return {name: to_message_fields(item) for name, item in items if item is not None}
    if isinstance(value, tuple | list):
        return [to_message_fields(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
