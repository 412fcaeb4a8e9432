"""openpi's messages: what is read, and what hostile bytes may cost."""

from contextlib import suppress
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lewm_serve.errors import InvalidRequest, MalformedMessage, ServiceError
from lewm_serve.transports.openpi.messages import MAX_ITEMS, MAX_ITEMS_OF_ONE, pack, unpack
from tests.lewm_serve.support.openpi import pack as pack_as_client
from tests.lewm_serve.support.openpi import unpack as unpack_as_client


def array_map(**changes: Any) -> bytes:
    """The message of an array of four numbers, with changed fields."""
    fields = {"__ndarray__": True, "data": bytes(16), "dtype": "<f4", "shape": [2, 2]} | changes
    return bytes(msgpack.packb({name.encode(): value for name, value in fields.items()}))


NUMBERS = st.sampled_from(["<f4", "<f8", "<f2", "|u1", "|i1", "<i4", "<i8", ">f4", ">u2"])


@given(NUMBERS.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=4))))
def test_arrays_of_clients(array: Any) -> None:
    read = unpack(pack_as_client({"observation/image": array}))["observation/image"]
    assert read.dtype == array.dtype
    assert np.array_equal(read, array, equal_nan=array.dtype.kind == "f")
    back = unpack_as_client(pack({"actions": array}))["actions"]
    assert np.array_equal(back, array, equal_nan=array.dtype.kind == "f")


def test_numbers_of_numpy_are_numbers() -> None:
    values = {"a": np.int64(7), "b": np.float32(0.5), "c": np.array(3), "d": "text", "e": b"file"}
    assert unpack(pack_as_client(values)) == {"a": 7, "b": 0.5, "c": 3, "d": "text", "e": b"file"}


def test_empty_arrays() -> None:
    assert unpack(pack_as_client(np.zeros((0, 2), "f4"))).shape == (0, 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"dtype": "|O"}, "wrong_type"),
        ({"dtype": "|V8"}, "wrong_type"),
        ({"dtype": "<c8"}, "wrong_type"),
        ({"dtype": "|b1"}, "wrong_type"),
        ({"dtype": "<f4,<f4"}, "wrong_type"),
        ({"dtype": 4}, "wrong_type"),
        ({"dtype": None}, "wrong_type"),
        ({"shape": [2, 3]}, "shape_mismatch"),
        ({"shape": [-2, -2]}, "shape_mismatch"),
        ({"shape": [2**62, 2**62]}, "shape_mismatch"),
        ({"shape": [2.0, 2.0]}, "shape_mismatch"),
        ({"shape": [1] * 9}, "shape_mismatch"),
        ({"shape": 4}, "shape_mismatch"),
        ({"data": "text"}, "shape_mismatch"),
        ({"data": bytes(15)}, "shape_mismatch"),
    ],
)
def test_arrays_that_are_none(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        unpack(array_map(**changes))
    assert refused.value.code == code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\xa1a",
        b"\x01\x02",
        b"\xa2\xff\xff",
        b"\x81\x01\x02",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        msgpack.packb([0] * (MAX_ITEMS_OF_ONE + 1)),
        msgpack.packb([[0] * MAX_ITEMS_OF_ONE] * (MAX_ITEMS // MAX_ITEMS_OF_ONE + 1)),
        msgpack.packb([[{}] * 1000] * 60),
    ],
    ids=[
        *("nothing", "not msgpack", "cut", "two messages", "not UTF-8", "integer as key", "deep"),
        *("vast list", "vast map", "vast bytes", "long list", "many numbers", "many maps"),
    ],
)
def test_bytes_that_are_no_observation(data: bytes) -> None:
    with pytest.raises(MalformedMessage, match="message: received "):
        unpack(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(ServiceError):
        unpack(data)
