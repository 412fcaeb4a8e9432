"""Tensors of the Open Inference Protocol in both of their forms."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lewm_serve.errors import InvalidRequest
from lewm_serve.transports.inference_protocol.tensors import BYTES, DTYPES, Tensor, numbers, texts

KINDS = st.sampled_from(sorted(DTYPES))


@given(KINDS.flatmap(lambda kind: st.tuples(st.just(kind), arrays.arrays(DTYPES[kind], (2, 3)))))
def test_numbers_in_both_forms(kind_and_array: tuple[str, Any]) -> None:
    kind, array = kind_and_array
    is_float = array.dtype.kind == "f"
    raw = Tensor.from_raw("x", kind, [2, 3], array.tobytes())
    assert np.array_equal(raw.values, array, equal_nan=is_float)
    assert raw.to_raw() == array.tobytes()
    for form in (array.ravel().tolist(), array.tolist()):
        listed = Tensor.from_values("x", kind, [2, 3], form)
        assert listed.values.dtype == DTYPES[kind]
        assert np.array_equal(listed.values, array, equal_nan=is_float)
    assert len(listed.to_values()) == 6


@given(st.lists(st.binary(max_size=9), min_size=6, max_size=6))
def test_bytes_in_raw_form(items: list[bytes]) -> None:
    tensor = Tensor("x", BYTES, np.array([*items, None], object)[:6].reshape(3, 2))
    again = Tensor.from_raw("x", BYTES, [3, 2], tensor.to_raw())
    assert again.values.ravel().tolist() == items


def test_texts() -> None:
    assert texts("x", ["a", ""]).to_raw() == b"\x01\0\0\0a\0\0\0\0"
    assert texts("x", [["ä"], ["b"]]).shape == (2, 1)
    assert Tensor.from_values("x", BYTES, [2], ["ä", "b"]).to_values() == ["ä", "b"]


def test_none_is_nan() -> None:
    assert np.isnan(numbers("cost", "FP32", [None]).values).all()


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "code"),
    [
        ("FP16", [1], b"ab", "invalid_choice"),
        ("OBJECT", [1], b"ab", "invalid_choice"),
        (None, [1], b"ab", "invalid_choice"),
        ("FP32", [2], b"abcd", "shape_mismatch"),
        ("FP32", [-1, -1], b"abcd", "shape_mismatch"),
        ("FP32", [2**62, 2**62], b"abcd", "shape_mismatch"),
        ("FP32", [], b"abcd", "shape_mismatch"),
        ("FP32", [1] * 9, b"abcd", "shape_mismatch"),
        ("FP32", "1", b"abcd", "shape_mismatch"),
        ("FP32", [True], b"abcd", "shape_mismatch"),
        ("BYTES", [1], b"\x05\0\0\0abc", "shape_mismatch"),
        ("BYTES", [1], b"\x01\0\0\0abc", "shape_mismatch"),
        ("BYTES", [2], b"\x01\0\0\0a", "shape_mismatch"),
        ("BYTES", [1], b"\x01\0", "shape_mismatch"),
        ("BYTES", [10**9], b"", "out_of_range"),
    ],
)
def test_raw_data_that_do_not_match(datatype: Any, shape: Any, data: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Tensor.from_raw("frames", datatype, shape, data)
    assert refused.value.code == code
    assert "frames" in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "code"),
    [
        ("FP32", [2], [1.0], "shape_mismatch"),
        ("FP32", [2], [[1.0], [1.0, 2.0]], "shape_mismatch"),
        ("FP32", [2], [[1.0], 2.0], "wrong_type"),
        ("FP32", [1], ["1"], "wrong_type"),
        ("FP32", [1], [True], "wrong_type"),
        ("FP32", [1], [None], "wrong_type"),
        ("FP32", [1], 1.0, "wrong_type"),
        ("FP32", [1], None, "wrong_type"),
        ("FP32", [1], [10**400], "out_of_range"),
        ("UINT8", [1], [1.5], "wrong_type"),
        ("UINT8", [1], [256], "out_of_range"),
        ("UINT8", [1], [-1], "out_of_range"),
        ("INT64", [1], [2**63], "out_of_range"),
        ("BYTES", [1], [5], "wrong_type"),
    ],
)
def test_values_that_do_not_match(datatype: str, shape: Any, data: Any, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Tensor.from_values("frames", datatype, shape, data)
    assert refused.value.code == code
