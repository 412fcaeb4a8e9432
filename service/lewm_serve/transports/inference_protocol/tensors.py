"""Tensors of the Open Inference Protocol, and their forms: raw bytes and lists of values."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lewm_serve.constants import MAX_FRAMES_PER_REQUEST
from lewm_serve.errors import InvalidRequest, Unquoted, shorten

DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The types of numbers that an input or output of this server may have."""

BYTES = "BYTES"
"""The type of strings and files: an array of `bytes` objects."""

MAX_AXES = 8
LENGTH = struct.Struct("<I")
"""In raw form, each item of type BYTES comes after its length."""


@dataclass(frozen=True)
class Tensor:
    """A named array: numbers of the type `DTYPES[datatype]`, or for BYTES `bytes` objects."""

    name: str
    datatype: str
    values: NDArray[Any]

    @classmethod
    def from_raw(cls, name: str, datatype: object, shape: object, data: bytes) -> Self:
        """A tensor in raw form. Arrays of numbers are views of the data.

        Raises:
            InvalidRequest: the data does not match the type and the shape.
        """
        kind, sizes = _check_datatype(name, datatype), _check_shape(name, datatype, shape)
        if kind is None:
            return cls(name, BYTES, _from_length_prefixed(name, data, sizes))
        expected_bytes = math.prod(sizes) * kind.itemsize
        if len(data) != expected_bytes:
            expected = f"{shorten(expected_bytes)} bytes for {datatype} of shape {shorten(sizes)}"
            raise InvalidRequest("shape_mismatch", name, received=data, expected=expected)
        return cls(name, str(datatype), np.frombuffer(data, kind).reshape(sizes))

    @classmethod
    def from_values(cls, name: str, datatype: object, shape: object, data: object) -> Self:
        """A tensor whose values are in a flat or nested list.

        Raises:
            InvalidRequest: the values do not match the type and the shape.
        """
        kind, sizes = _check_datatype(name, datatype), _check_shape(name, datatype, shape)
        values = _flatten(name, data)
        if len(values) != math.prod(sizes):
            expected = f"{shorten(math.prod(sizes))} values for shape {shorten(sizes)}"
            received = Unquoted(f"{len(values)} values")
            raise InvalidRequest("shape_mismatch", name, received=received, expected=expected)
        if kind is None:
            return cls(name, BYTES, _object_array(_to_bytes(name, values), sizes))
        types = {int} if kind.kind in "iu" else {int, float}
        if not set(map(type, values)) <= types:
            wrong = next(value for value in values if type(value) not in types)
            expected = f"values of {datatype}"
            raise InvalidRequest("wrong_type", name, received=wrong, expected=expected)
        try:
            return cls(name, str(datatype), np.array(values, kind).reshape(sizes))
        except OverflowError:
            received = Unquoted("a number beyond its range")
            raise InvalidRequest(
                "out_of_range", name, received=received, expected=f"values of {datatype}"
            ) from None

    def to_raw(self) -> bytes:
        """The raw form."""
        if self.datatype != BYTES:
            return self.values.astype(DTYPES[self.datatype]).tobytes()
        return b"".join(LENGTH.pack(len(item)) + item for item in self.values.flat)

    def to_values(self) -> list[Any]:
        """The values as a flat list. Items of type BYTES are text."""
        if self.datatype != BYTES:
            flat: list[Any] = self.values.ravel().tolist()
            return flat
        return [item.decode(errors="replace") for item in self.values.flat]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""
        return self.values.shape


def numbers(name: str, datatype: str, values: Any) -> Tensor:
    """A tensor of numbers; None becomes NaN."""
    return Tensor(name, datatype, np.array(values, DTYPES[datatype]))


def texts(name: str, values: Sequence[str] | Sequence[Sequence[str]]) -> Tensor:
    """A tensor of type BYTES, of one or two axes."""
    shape = np.shape(np.array(values, object))
    flat = values if len(shape) == 1 else list(chain.from_iterable(values))
    return Tensor(name, BYTES, _object_array([str(text).encode() for text in flat], shape))


def _check_datatype(name: str, datatype: object) -> np.dtype[Any] | None:
    """The type of the values. None: BYTES."""
    if datatype == BYTES:
        return None
    if not isinstance(datatype, str) or datatype not in DTYPES:
        expected = f"one of {', '.join([*DTYPES, BYTES])}"
        raise InvalidRequest(
            "invalid_choice", f"{name}.datatype", received=datatype, expected=expected
        )
    return DTYPES[datatype]


def _check_shape(name: str, datatype: object, shape: object) -> tuple[int, ...]:
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or not 1 <= len(shape) <= MAX_AXES
        or any(type(size) is not int or size < 0 for size in shape)
    ):
        expected = f"1 to {MAX_AXES} sizes"
        raise InvalidRequest("shape_mismatch", f"{name}.shape", received=shape, expected=expected)
    if datatype == BYTES and math.prod(shape) > MAX_FRAMES_PER_REQUEST:
        expected = f"at most {MAX_FRAMES_PER_REQUEST} items of type BYTES"
        raise InvalidRequest("out_of_range", f"{name}.shape", received=shape, expected=expected)
    return tuple(shape)


def _from_length_prefixed(name: str, data: bytes, shape: tuple[int, ...]) -> NDArray[Any]:
    items, start = [], 0
    for _ in range(math.prod(shape)):
        end = start + LENGTH.size
        if end > len(data):
            break
        (length,) = LENGTH.unpack_from(data, start)
        start, end = end, end + length
        items.append(bytes(data[start:end]))
        start = end
    if start != len(data) or len(items) != math.prod(shape):
        expected = f"{math.prod(shape)} items, each after its length"
        raise InvalidRequest("shape_mismatch", name, received=data, expected=expected)
    return _object_array(items, shape)


def _object_array(items: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def _flatten(name: str, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidRequest("wrong_type", f"{name}.data", received=data, expected="a list")
    flat = data
    for _ in range(MAX_AXES):
        if not flat or set(map(type, flat)) != {list}:
            break
        flat = list(chain.from_iterable(flat))
    return flat


def _to_bytes(name: str, values: Sequence[Any]) -> list[bytes]:
    for value in values:
        if not isinstance(value, str | bytes):
            raise InvalidRequest("wrong_type", name, received=value, expected="strings")
    return [value.encode() if isinstance(value, str) else value for value in values]
