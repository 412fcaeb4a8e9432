"""Any document becomes a request or an `InvalidRequest` that names the field."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.errors import (
    INVALID_REQUEST_CODES,
    MAX_RECEIVED_CHARACTERS,
    InvalidRequest,
    shorten,
)
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.requests import plan

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, -(10**30), 1e39, math.nan, "AAAA", "/wAA"])
)
FIELD_NAMES = st.sampled_from(
    [
        *PlanRequest.model_fields,
        *PredictRequest.model_fields,
        *("image", "pixels", "latent", "latent_id", "data", "shape", "samples", "name", "x y"),
    ]
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELD_NAMES, inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=500)
@given(
    kind=st.sampled_from([EncodeRequest, PredictRequest, PlanRequest]),
    document=DOCUMENTS,
    changes=st.dictionaries(FIELD_NAMES, DOCUMENTS, max_size=3),
    is_changed_plan=st.booleans(),
)
def test_every_document_is_parsed_or_refused(
    kind: type[RequestModel], document: Any, changes: dict[str, Any], is_changed_plan: bool
) -> None:
    try:
        parse(kind, plan(**changes) if is_changed_plan else document)
    except InvalidRequest as refusal:
        error = refusal
    else:
        return
    assert error.code in INVALID_REQUEST_CODES
    assert len(error.detail) < 1500
    for problem in error.errors:
        assert problem.field
        assert len(problem.received) <= MAX_RECEIVED_CHARACTERS


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"frames": [pixels(), {"pixels": {"data": "AAAA", "shape": [1, 1]}}]},
            "frames[1].pixels.shape",
        ),
        ({"frames": [{"image": 3}]}, "frames[0].image"),
        ({"goal": {"latent": [0.0, math.nan]}}, "goal.latent[1]"),
        ({"goal": {"latent": [0.0, 1e9]}}, "goal.latent"),
        ({"past_actions": [[0.0, 0.0], [0.0]]}, "past_actions[1]"),
        ({"past_actions": [[0.0, 0.0], [0.0, "1"]]}, "past_actions[1][1]"),
        ({"solver": {"samples": 0}}, "solver.samples"),
        ({"solver": {"samples": 2, "elites": 3}}, "solver.elites"),
        ({"solver": {"\n": 3}}, "solver.'\\n'"),
        ({"include": ["trajectory", "cost"]}, "include[1]"),
    ],
)
def test_errors_name_the_path_of_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(PlanRequest, plan(**changes))
    assert caught.value.errors[0].field == field
    assert caught.value.detail.startswith(field)


def test_arrays_come_from_lists_or_arrays() -> None:
    rows = [[0.25, -1.0], [3, 4]]
    for given_rows in (rows, np.array(rows), np.array(rows, np.float32)[:, ::1]):
        request = parse(PlanRequest, plan(warm_start=given_rows))
        assert request.warm_start is not None
        assert request.warm_start.dtype == np.float32
        assert request.warm_start.tolist() == rows
    assert parse(PlanRequest, plan(past_actions=np.zeros((0, 2)))).past_actions is None


def test_pixels_are_not_copied() -> None:
    data = bytes(range(12))
    request = parse(EncodeRequest, {"frames": [{"pixels": {"data": data, "shape": [2, 2, 3]}}]})
    array = request.frames[0].pixels
    assert array is not None
    assert array.tobytes() == data
    assert not array.flags.owndata


@given(st.recursive(SCALARS | st.binary(), lambda inner: st.lists(inner), max_leaves=20))
def test_descriptions_of_received_values_are_short(value: Any) -> None:
    assert len(shorten(value)) <= MAX_RECEIVED_CHARACTERS


@pytest.mark.parametrize(
    ("value", "description"),
    [
        (True, "true"),
        (None, "null"),
        ([1, 2, 3], "[1, 2, 3]"),
        (list(range(9)), "[0, 1, 2, 3, …] (9 items)"),
        (b"abc", "3 bytes"),
        ({"a": 1}, "an object with 1 fields"),
        (np.zeros((3, 4)), "an array of shape [3, 4]"),
    ],
)
def test_descriptions_of_received_values(value: Any, description: str) -> None:
    assert shorten(value) == description


@pytest.mark.parametrize(
    ("field", "document", "expected"),
    [
        ("past_action", plan(past_action=1), "; did you mean past_actions?"),
        ("colour", plan(colour=1), ""),
        ("solver.sample", plan(solver={"sample": 1}), "; did you mean samples?"),
        ("goal.pixelz", plan(goal={"pixelz": 1}), "; did you mean pixels?"),
    ],
)
def test_an_unknown_field_is_answered_with_the_most_similar_one(
    field: str, document: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(PlanRequest, document)
    assert f"{field}: received " in raised.value.detail
    assert raised.value.detail.endswith(f"expected no field of this name{expected}")
