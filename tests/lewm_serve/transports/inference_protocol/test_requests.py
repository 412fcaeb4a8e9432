"""Any document and any tensors are read or refused, with an error that clients understand."""

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lewm_serve.errors import InvalidRequest, ServiceError
from lewm_serve.transports.http.inference_protocol import _read_request
from lewm_serve.transports.inference_protocol.requests import (
    INPUTS,
    PARAMETERS,
    InferRequest,
    to_requests,
)
from lewm_serve.transports.inference_protocol.tensors import DTYPES, Tensor

NAMES = st.sampled_from([*INPUTS, "x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES | SCALARS,
        "datatype": st.sampled_from([*DTYPES, "BYTES"]) | SCALARS,
        "shape": st.lists(st.integers(-1, 3), max_size=5) | JSON,
        "data": JSON | st.lists(st.integers(0, 9), max_size=4),
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": JSON}) | JSON,
    },
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "id": JSON,
        "inputs": st.lists(TENSORS, max_size=3) | JSON,
        "outputs": st.lists(TENSORS, max_size=3) | JSON,
        "parameters": st.dictionaries(st.text(max_size=9), SCALARS, max_size=3) | JSON,
    },
)


@given(DOCUMENTS, st.binary(max_size=16))
def test_any_document(document: Any, tail: bytes) -> None:
    head = json.dumps(document).encode()
    with suppress(ServiceError):
        received = _read_request(bytearray(head + tail), "random", str(len(head)))
        to_requests(received.request)


ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda kind: st.tuples(
        st.just(kind), arrays.arrays(DTYPES[kind], arrays.array_shapes(max_dims=5, max_side=3))
    )
)
PARAMETER_NAMES = st.sampled_from(["operation", "timeout", "x", *PARAMETERS["plan"]])


@given(
    st.dictionaries(NAMES, ARRAYS, max_size=4),
    st.dictionaries(PARAMETER_NAMES, SCALARS, max_size=3),
    st.sampled_from(["encode", "predict", "plan"]),
)
def test_any_tensors(
    tensors: dict[str, tuple[str, Any]], parameters: dict[str, Any], operation: str
) -> None:
    inputs = {name: Tensor(name, kind, array) for name, (kind, array) in tensors.items()}
    request = InferRequest("random", {"operation": operation} | parameters, inputs)
    with suppress(ServiceError):
        assert len(to_requests(request)) == len(next(iter(inputs.values())).values)


def test_a_request_for_each_item() -> None:
    inputs = {
        "frames": Tensor("frames", "FP32", np.zeros((3, 1, 8), np.float32)),
        "goal": Tensor("goal", "FP32", np.ones((3, 8), np.float32)),
        "fallback_state": Tensor("fallback_state", "FP64", np.arange(6.0).reshape(3, 2)),
    }
    parameters = {"seed": 7, "solver.samples": 8, "fallback.controller": "waypoint"}
    requests: list[Any] = to_requests(InferRequest("random", parameters, inputs))
    assert [request.seed for request in requests] == [7, 7, 7]
    assert [request.solver.samples for request in requests] == [8, 8, 8]
    assert [request.fallback.state.tolist() for request in requests] == [[0, 1], [2, 3], [4, 5]]
    assert {request.fallback.controller for request in requests} == {"waypoint"}


def test_goals_by_states_and_regions_are_json() -> None:
    def texts(name: str, *values: str) -> Tensor:
        return Tensor(name, "BYTES", np.array([value.encode() for value in values], object))

    inputs = {
        "frames": Tensor("frames", "FP32", np.zeros((2, 1, 8), np.float32)),
        "goal_state": texts("goal_state", '{"x": 40}', '{"x": 50, "y": 1.5}'),
        "avoid": texts("avoid", "[]", '[{"state": {"x": [60, 90]}}]'),
    }
    requests: list[Any] = to_requests(InferRequest("random", {}, inputs))
    assert [request.goal.state for request in requests] == [{"x": 40}, {"x": 50, "y": 1.5}]
    assert [len(request.avoid) for request in requests] == [0, 1]
    for change, detail in (
        ({"goal_state": texts("goal_state", "{}", "x")}, "item 0 of 2: goal.state: received 0"),
        ({"avoid": texts("avoid", "[]", "[{")}, "item 1 of 2: avoid: received 2 bytes"),
        ({"goal_id": texts("goal_id", "a", "b")}, "goal_state: received both"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            to_requests(InferRequest("random", {}, inputs | change))
        assert refused.value.detail.startswith(detail)


def test_vectors_are_those_of_the_frames_of_their_item() -> None:
    inputs = {
        "frames": Tensor("frames", "UINT8", np.zeros((2, 2, 4, 4, 3), np.uint8)),
        "vectors": Tensor("vectors", "FP64", np.arange(8.0).reshape(2, 2, 2)),
        "goal": Tensor("goal", "UINT8", np.zeros((2, 4, 4, 3), np.uint8)),
        "goal_vector": Tensor("goal_vector", "FP32", np.ones((2, 2), np.float32)),
        "past_actions": Tensor("past_actions", "FP32", np.zeros((2, 5, 2), np.float32)),
    }
    requests: list[Any] = to_requests(InferRequest("random", {}, inputs))
    found = [[frame.vector.tolist() for frame in request.frames] for request in requests]
    assert found == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    assert [request.goal.vector.tolist() for request in requests] == [[1, 1], [1, 1]]
    fewer = {"vectors": Tensor("vectors", "FP32", np.zeros((2, 1, 2), np.float32))}
    with pytest.raises(InvalidRequest, match=r"vectors: received 1 vectors, expected 2, one for"):
        to_requests(InferRequest("random", {}, inputs | fewer))
    several = {"frames": Tensor("frames", "FP32", np.zeros((2, 2, 8), np.float32))}
    with pytest.raises(InvalidRequest, match=r"frames\[0\]\.vector: received latent"):
        to_requests(InferRequest("random", {}, inputs | several))
