"""The schemas of the requests accept what the server accepts: null, missing and empty fields."""

import copy
from itertools import chain
from typing import Any

import fastjsonschema
import pytest

from lewm_serve.api.fields import RequestModel, parse
from lewm_serve.api.requests import (
    EncodeRequest,
    Fallback,
    Frame,
    Goal,
    Pixels,
    PlanRequest,
    PredictRequest,
    Region,
    SolverSettings,
)
from lewm_serve.errors import InvalidRequest
from lewm_serve.transports.http.openapi import component_schemas
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.requests import HOLD, SMALL_SOLVER, plan, rows

Document = dict[str, Any]

REQUESTS: dict[type[RequestModel], Document] = {
    EncodeRequest: {"frames": [pixels()], "encoding": "float"},
    PredictRequest: {"frames": [pixels()], "past_actions": [], "actions": rows(5)},
    PlanRequest: plan(
        solver=SMALL_SOLVER,
        fallback=HOLD,
        warm_start=rows(5),
        deadline_ms=1e4,
        avoid=[{"centre": {"x": 1.0}, "radius": 2.0, "weight": 3.0}],
    ),
}
PLACES: dict[type[RequestModel], tuple[type[RequestModel], tuple[str | int, ...]]] = {
    EncodeRequest: (EncodeRequest, ()),
    PredictRequest: (PredictRequest, ()),
    PlanRequest: (PlanRequest, ()),
    SolverSettings: (PlanRequest, ("solver",)),
    Fallback: (PlanRequest, ("fallback",)),
    Frame: (EncodeRequest, ("frames", 0)),
    Goal: (PlanRequest, ("goal",)),
    Region: (PlanRequest, ("avoid", 0)),
    Pixels: (EncodeRequest, ("frames", 0, "pixels")),
}
"""A place of each type: a request, and the path in it."""

FIELDS = [(kind, name) for kind in PLACES for name in kind.model_fields]
VALUES: dict[str, Any] = {
    "null": None,
    "missing": ...,
    "empty-list": [],
    "empty-object": {},
    "true": True,
}


def schema_accepts(kind: type[RequestModel], document: Document) -> bool:
    """Whether the OpenAPI document's schema of a request accepts a document."""
    components = {"components": {"schemas": component_schemas()}}
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    validate = fastjsonschema.compile(components | {"allOf": [reference]})
    try:
        validate(document)
    except fastjsonschema.JsonSchemaValueException:
        return False
    return True


def server_accepts(kind: type[RequestModel], document: Document) -> bool:
    """Whether a request is accepted, as far as that does not depend on the model."""
    try:
        parse(kind, document)
    except InvalidRequest:
        return False
    return True


def test_every_type_is_tested() -> None:
    kinds = RequestModel.__subclasses__()
    every = (*kinds, *chain(*(kind.__subclasses__() for kind in kinds)))
    in_document = [kind for kind in every if kind.__module__.startswith("lewm_serve.api.")]
    names = {kind.__name__ for kind in in_document}
    assert names == {kind.__name__ for kind in PLACES}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_the_schema_says_what_is_accepted(kind: type[RequestModel], name: str, value: str) -> None:
    request_type, path = PLACES[kind]
    document = copy.deepcopy(REQUESTS[request_type])
    place: Any = document
    for step in path:
        place = place[step]
    if VALUES[value] is ...:
        place.pop(name, None)
    else:
        place[name] = VALUES[value]
    accepted = server_accepts(request_type, document)
    assert schema_accepts(request_type, document) == accepted


@pytest.mark.parametrize("name", ["model", "encoding"])
def test_null_is_accepted_where_a_field_may_be_left_out(name: str) -> None:
    document = {"frames": [pixels()], name: None}
    assert server_accepts(EncodeRequest, document)
    assert schema_accepts(EncodeRequest, document)


@pytest.mark.parametrize(
    ("region", "accepted"),
    [
        ({"state": {"x": [1.0, 2.0]}}, True),
        ({"state": {"x": [1.0, 2.0]}, "radius": None, "centre": None, "weight": None}, True),
        ({"state": {"x": [1.0, 2.0]}, "radius": 1.0}, False),
        ({"state": {"x": [1.0, 2.0]}, "centre": {"x": 1.0}, "radius": 1.0}, False),
        ({"state": {"x": [1.0]}}, False),
        ({"state": {"x": 1.0}}, False),
        ({"state": {}}, False),
        ({"centre": {"x": 1.0}}, False),
        ({"radius": 1.0}, False),
        ({"centre": {}, "radius": 1.0}, False),
        ({"centre": {"x": 1.0}, "radius": 0.0}, False),
        ({"weight": 1.0}, False),
    ],
)
def test_regions(region: Document, accepted: bool) -> None:
    document = plan(avoid=[region])
    assert server_accepts(PlanRequest, document) == accepted
    assert schema_accepts(PlanRequest, document) == accepted


@pytest.mark.parametrize(
    ("goal", "accepted"),
    [
        ({"state": {"x": 1}}, True),
        ({"state": {"x": 1.5}, "image": None}, True),
        ({"state": {}}, False),
        ({"state": {"x": None}}, False),
        ({"state": {"x": 1.0}, "latent_id": "a"}, False),
    ],
)
def test_goals_by_states(goal: Document, accepted: bool) -> None:
    document = plan(goal=goal)
    assert server_accepts(PlanRequest, document) == accepted
    assert schema_accepts(PlanRequest, document) == accepted


def test_an_unknown_field_is_refused_by_both() -> None:
    document = {"frames": [pixels()], "colour": 1}
    assert not server_accepts(EncodeRequest, document)
    assert not schema_accepts(EncodeRequest, document)
