"""Messages to documents, responses to messages.

Fields have the same names on both sides, so a request message becomes the document that JSON
would have held, with arrays in place of tensors, and is validated like it.
"""

import math
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from lewm.v1 import planner_pb2 as pb
from numpy.typing import NDArray

from service.errors import InvalidRequest
from service.requests import MAX_FRAMES

MAX_RANK = 4
MAX_ITEMS = MAX_FRAMES + 1  # more would take long to read, and be refused all the same


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
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        here = _join(path, field.name)
        if field.is_repeated:
            document[field.name] = [
                _to_value(item, f"{here}[{index}]") for index, item in enumerate(value[:MAX_ITEMS])
            ]
        elif not field.has_presence or message.HasField(field.name):
            document[field.name] = _to_value(value, here)
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
        items = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: to_fields(item) for name, item in items if item is not None}
    if isinstance(value, tuple | list):
        return [to_fields(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
