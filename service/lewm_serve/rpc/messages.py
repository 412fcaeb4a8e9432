"""Messages to documents, responses to messages.

Fields have the same names on both sides, so a request message becomes the document that JSON
would have held, with arrays in place of tensors, and is validated like it.
"""

import math
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from numpy.typing import NDArray

from lewm.v1 import planner_pb2 as pb
from lewm_serve.errors import InvalidRequest
from lewm_serve.requests import MAX_FRAMES

MAX_RANK = 4
MAX_ITEMS = MAX_FRAMES + 1  # more would take long to read, and be refused all the same


class _Field(NamedTuple):
    """What has to be known of a message's field to read it."""

    name: str
    is_list: bool
    always_there: bool


@cache
def _fields(kind: Descriptor) -> tuple[_Field, ...]:
    # Descriptors are slow to ask, and never change.
    return tuple(
        _Field(field.name, field.is_repeated, not field.has_presence) for field in kind.fields
    )


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def to_document(message: Message, path: str = "") -> dict[str, Any]:
    """The message's fields by name: what was not sent is left out, lists are always there.

    Raises `InvalidRequest` for tensors whose bytes do not fill their shape, and for fields that
    this version does not know, as REST does.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        here, known = path or "message", message.DESCRIPTOR.full_name
        number = unknown[0].field_number
        raise InvalidRequest("unknown_field", here, number, f"field numbers of {known}")
    document: dict[str, Any] = {}
    for name, is_list, always_there in _fields(message.DESCRIPTOR):
        if is_list:
            here = _join(path, name)
            document[name] = [
                _to_value(item, f"{here}[{index}]")
                for index, item in enumerate(getattr(message, name)[:MAX_ITEMS])
            ]
        elif always_there or message.HasField(name):
            document[name] = _to_value(getattr(message, name), _join(path, name))
    return document


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _to_value(value: Any, path: str) -> Any:
    if isinstance(value, pb.Tensor):
        return to_array(value, path)
    return to_document(value, path) if isinstance(value, Message) else value


def to_array(tensor: pb.Tensor, field: str) -> NDArray[np.float32]:
    """The tensor as an array over its bytes, without a copy.

    Raises `InvalidRequest` (`shape_mismatch`) before anything is allocated.
    """
    shape = list(tensor.shape)
    rows, *others = shape or [0]
    if not 1 <= len(shape) <= MAX_RANK or rows < 0 or min(others, default=1) < 1:
        expected = f"1 to {MAX_RANK} axes, none of them empty"
        raise InvalidRequest("shape_mismatch", f"{field}.shape", shape, expected)
    size = math.prod(shape)
    if len(tensor.data) != 4 * size:
        expected = f"{4 * size} bytes for shape {shape}"
        raise InvalidRequest("shape_mismatch", f"{field}.data", tensor.data, expected)
    if size == 0:
        return np.empty((0,) * len(shape), np.float32)
    return np.frombuffer(tensor.data, "<f4").reshape(shape)


def to_fields(value: Any) -> Any:
    """A response, or a part of one, as the fields of its message; None is left out."""
    if isinstance(value, np.ndarray):
        return {
            "shape": value.shape,
            "data": np.ascontiguousarray(value, "<f4").tobytes(),
        }
    if is_dataclass(value):
        kind: Any = type(value)
        items = ((name, getattr(value, name)) for name in _names(kind))
        return {name: to_fields(item) for name, item in items if item is not None}
    if isinstance(value, tuple | list):
        return [to_fields(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
