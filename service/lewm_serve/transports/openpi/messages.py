"""openpi's messages: msgpack with NumPy arrays as maps of bytes keys.

An array is ``{b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [...]}``, a NumPy
scalar ``{b"__npgeneric__": true, b"data": number, b"dtype": ...}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from lewm_serve.errors import InvalidRequest, MalformedMessage, shorten

NUMERIC_DTYPE = re.compile(r"[<>|=]?(?:[iu][1248]|f[248])")
"""The types of arrays that an observation may hold: integers and floating-point numbers."""

MAX_AXES = 8

MAX_ITEMS_OF_ONE = 1024
"""The most items of one list or map. Large arrays are binary data, which have no such limit."""

MAX_ITEMS = 50_000
"""The most items of all lists and maps. Each takes up to a hundred times the bytes of its text."""


def pack(message: object) -> bytes:
    """A message of maps, lists, strings, numbers and arrays."""
    packed: bytes = msgpack.packb(message, default=_pack_array)
    return packed


def unpack(data: bytes | bytearray) -> Any:
    """What a message holds. Arrays are read-only; one without axes is a number.

    Raises:
        MalformedMessage: it is not msgpack, or has too many items.
        InvalidRequest: an array is of another type than numbers, or its bytes do not match its
            shape.
    """
    items = 0

    def count(container: Any) -> Any:
        nonlocal items
        items += 1 + len(container)
        if items > MAX_ITEMS:
            raise MalformedMessage(
                f"message: received more than {MAX_ITEMS} items, the maximum; send arrays of NumPy"
            )
        return container

    def to_value(fields: dict[Any, Any]) -> Any:
        count(fields)
        if b"__ndarray__" in fields:
            return _to_array(fields)
        if b"__npgeneric__" in fields:
            return fields.get(b"data")
        return fields

    hooks: dict[str, Callable[[Any], Any]] = {"object_hook": to_value, "list_hook": count}
    try:
        return msgpack.unpackb(
            data, **hooks, max_array_len=MAX_ITEMS_OF_ONE, max_map_len=MAX_ITEMS_OF_ONE
        )
    except (ValueError, msgpack.UnpackException) as error:
        detail = f"message: received {len(data)} bytes that are not an observation in msgpack"
        raise MalformedMessage(f"{detail} ({error or type(error).__name__})") from None


def _to_array(fields: dict[Any, Any]) -> NDArray[Any] | float:
    dtype, shape, data = (fields.get(name) for name in (b"dtype", b"shape", b"data"))
    if not isinstance(dtype, str) or not NUMERIC_DTYPE.fullmatch(dtype):
        expected = "integers of 8 to 64 bits or floating-point numbers of 16 to 64"
        raise InvalidRequest("wrong_type", "array.dtype", received=dtype, expected=expected)
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_AXES
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        expected = f"at most {MAX_AXES} sizes"
        raise InvalidRequest("shape_mismatch", "array.shape", received=shape, expected=expected)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not isinstance(data, bytes) or len(data) != size:
        expected = f"{shorten(size)} bytes for {dtype} of shape {shorten(shape)}"
        raise InvalidRequest("shape_mismatch", "array.data", received=data, expected=expected)
    if size == 0:
        return np.empty((0,) * max(1, len(shape)), dtype)
    array = np.frombuffer(data, dtype).reshape(shape)
    return array if shape else array.item()


def _pack_array(value: object) -> object:
    """The form of what msgpack does not know."""
    if isinstance(value, np.ndarray):
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"{type(value).__name__} has no form in msgpack")
