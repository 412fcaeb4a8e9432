"""The OpenAPI description of requests, responses and errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from lewm_serve import errors
from lewm_serve.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.requests.base import RequestModel
from lewm_serve.responses import (
    EncodeResponse,
    ModelDescription,
    PlanResponse,
    PredictResponse,
)
from lewm_serve.rest.examples import EXAMPLE_PLAN

PLACE = "#/components/schemas/"
JSON = "application/json"
REFUSALS: tuple[type[errors.ServiceError], ...] = (
    errors.MalformedJson,
    errors.UnknownModel,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.Overloaded,
    errors.Internal,
    errors.Loading,
    errors.DeadlineExceeded,
)
ABOUT = """\
Plans actions from camera frames with a latent world model: send what the robot sees and what it
should see, get the actions that lead there.

`/encode`, `/predict`, `/plan` and `/models` are also served under `/v1`. Errors are
`application/problem+json` (RFC 9457): `code` is for programs, `detail` for people, `errors` lists
the fields. Send `X-Request-ID` to find a request in the logs; every answer returns one. The same
service is available over gRPC.
"""

STRING = {"type": "string"}
PROBLEM = {
    "type": "object",
    "description": "An RFC 9457 problem document.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": STRING,
        "status": {"type": "integer"},
        "detail": {
            "type": "string",
            "description": "names the field, what came, what was expected",
        },
        "code": {"type": "string", "enum": list(errors.CODES)},
        "request_id": STRING,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "received", "expected"],
                "properties": {
                    "field": {"type": "string", "examples": ["frames[0].pixels.shape"]},
                    "code": STRING,
                    "received": STRING,
                    "expected": STRING,
                },
            },
        },
    },
}
NUMBERS = {"type": "array", "items": {"type": "number"}}
ROWS = {"type": "array", "items": NUMBERS}
SEQUENCES = {"type": "array", "items": ROWS}


class _ResponseSchema(GenerateJsonSchema):
    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        """Arrays; how deep they nest is said by `_refine`."""
        return {"type": "array", "items": {}}


def _refine(schemas: dict[str, Any]) -> None:
    """Say of each array of the responses what its axes are."""
    schemas["EncodedLatent"]["properties"]["latent"] = {
        "anyOf": [
            NUMBERS,
            {
                "type": "string",
                "format": "byte",
                "description": "base64 of little-endian float32",
            },
        ]
    }
    schemas["PredictResponse"]["properties"]["latents"] = {
        "anyOf": [ROWS, SEQUENCES],
        "description": "steps × latent_dim for actions, candidates × steps × latent_dim otherwise",
    }
    schemas["PlanResponse"]["examples"] = [EXAMPLE_PLAN]
    plan = schemas["PlanResponse"]["properties"]
    plan["actions"] = ROWS | {"description": "horizon · action_block rows of action_dim numbers"}
    plan["trajectory"] = ROWS | {"description": "horizon × latent_dim, if the request included it"}


def component_schemas() -> dict[str, Any]:
    """The schemas of all requests, responses and errors by name."""
    place = PLACE + "{model}"
    requests = (EncodeRequest, PredictRequest, PlanRequest)
    _, asked = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in requests], ref_template=place
    )
    responses = TypeAdapter(
        tuple[EncodeResponse, PredictResponse, PlanResponse, ModelDescription],
        config=ConfigDict(arbitrary_types_allowed=True),
    )
    answered = responses.json_schema(
        mode="serialization", ref_template=place, schema_generator=_ResponseSchema
    )
    schemas: dict[str, Any] = asked["$defs"] | answered["$defs"]
    _refine(schemas)
    described = {"$ref": PLACE + "ModelDescription"}
    return schemas | {
        "Problem": PROBLEM,
        "Models": {
            "type": "object",
            "required": ["models"],
            "properties": {"models": {"type": "array", "items": described}},
        },
        "Status": {
            "type": "object",
            "required": ["status"],
            "properties": {"status": STRING},
        },
    }


def _problem(kind: type[errors.ServiceError]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "description": kind.title,
        "content": {"application/problem+json": {"schema": {"$ref": PLACE + "Problem"}}},
    }
    if kind in (errors.Overloaded, errors.Loading):
        about = {
            "description": "seconds after which to try again",
            "schema": {"type": "integer"},
        }
        return described | {"headers": {"Retry-After": about}}
    return described


def _answer(name: str) -> dict[str, Any]:
    return {"description": "OK", "content": {JSON: {"schema": {"$ref": PLACE + name}}}}


def describe_inference(request: type[RequestModel], response: type) -> dict[str, Any]:
    """The keywords of a route that takes `request` and answers `response`."""
    body = {
        "required": True,
        "content": {JSON: {"schema": {"$ref": PLACE + request.__name__}}},
    }
    return {
        "openapi_extra": {"requestBody": body},
        "responses": {200: _answer(response.__name__)}
        | {kind.status: _problem(kind) for kind in REFUSALS},
    }


def describe_operation(answer: str, *refusals: type[errors.ServiceError]) -> dict[str, Any]:
    """The keywords of a route that answers the schema of that name."""
    problems = {kind.status: _problem(kind) for kind in refusals}
    unforeseen = {"default": _problem(errors.Internal)}
    return {"responses": {200: _answer(answer)} | problems | unforeseen}


def install(app: FastAPI) -> None:
    """Make `/openapi.json` hold the schemas that the routes refer to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=ABOUT,
                routes=app.routes,
            )
            document["components"] = {"schemas": component_schemas()}
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
