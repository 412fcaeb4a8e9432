"""The OpenAPI description of requests, responses and errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from lewm_serve import errors
from lewm_serve.api.fields import RequestModel
from lewm_serve.api.requests import EncodeRequest, PlanRequest, PredictRequest
from lewm_serve.api.responses import (
    EncodeResponse,
    PlanResponse,
    PredictResponse,
)
from lewm_serve.constants import JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE

SCHEMA_PATH = "#/components/schemas/"

INFERENCE_ERRORS: tuple[type[errors.ServiceError], ...] = (
    errors.MalformedJson,
    errors.UnknownModel,
    errors.RequestTimeout,
    errors.BodyTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.Overloaded,
    errors.Internal,
    errors.Loading,
    errors.DeadlineExceeded,
)
DESCRIPTION = """\
Plans actions from camera frames with a latent world model: send what the robot sees and what it
should see, and get the actions that lead there.

`/encode`, `/predict`, `/plan` and `/models` are also served under `/v1`. Errors are
`application/problem+json` (RFC 9457): `code` is for programs, `detail` for people, `errors` lists
the refused fields. Send `X-Request-ID` to find a request in the logs; every answer returns one. The
same service is available over gRPC.
"""

STRING = {"type": "string"}

PROBLEM_SCHEMA = {
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

EXAMPLE_PLAN = {
    "request_id": "5c0963f4d2004efc8e3a961e808d652f",
    "model": "two-room",
    "model_version": "9f2c41d07ab35e68",
    "backend": "torch",
    "precision": "float32",
    "actions": [[0.98, -0.12], [0.95, -0.08]],
    "action_block": 5,
    "cost": 3.71,
    "status": "completed",
    "iterations": 10,
    "candidates": 1281,
    "solver": {
        "name": "cem",
        "samples": 128,
        "iterations": 10,
        "elites": 16,
        "horizon": 5,
        "tolerance": 0.0,
    },
    "seed": 7,
    "latent_ids": {
        "frames": ["5d1e90c47fb24a6f8e02b3d59c7a1164"],
        "goal": "a07c6be1f05d4c2b93d8e4471c60f2a5",
    },
    "health": {
        "status": "ok",
        "latent_norm": 11.2,
        "latent_norm_zscore": 0.4,
        "surprise": None,
        "sigreg": None,
        "reasons": [],
        "latent_mahalanobis": 10.4,
    },
    "fallback": None,
    "timing_ms": {"queue": 0.1, "decode": 0.9, "encode": 4.2, "solve": 310.5, "total": 315.8},
}


class _ResponseSchema(GenerateJsonSchema):
    def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
        """pydantic calls this for NumPy arrays. `_describe_arrays` adds their axes."""
        return {"type": "array", "items": {}}


def _describe_arrays(schemas: dict[str, Any]) -> None:
    """Describe the axes of each array in the responses."""
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
    """The schemas of all requests, responses and errors, by name."""
    ref_template = SCHEMA_PATH + "{model}"
    requests = (EncodeRequest, PredictRequest, PlanRequest)
    _, request_schemas = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in requests], ref_template=ref_template
    )
    responses = TypeAdapter(
        tuple[EncodeResponse, PredictResponse, PlanResponse],
        config=ConfigDict(arbitrary_types_allowed=True),
    )
    response_schemas = responses.json_schema(
        mode="serialization", ref_template=ref_template, schema_generator=_ResponseSchema
    )
    schemas: dict[str, Any] = request_schemas["$defs"] | response_schemas["$defs"]
    _describe_arrays(schemas)
    return schemas | {"Problem": PROBLEM_SCHEMA}


def _error_response(kind: type[errors.ServiceError]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": kind.title,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": SCHEMA_PATH + "Problem"}}},
    }
    if kind in (errors.Overloaded, errors.Loading):
        retry_after = {
            "description": "seconds after which to try again",
            "schema": {"type": "integer"},
        }
        return response | {"headers": {"Retry-After": retry_after}}
    return response


def _ok_response(name: str) -> dict[str, Any]:
    content = {JSON_MEDIA_TYPE: {"schema": {"$ref": SCHEMA_PATH + name}}}
    return {"description": "OK", "content": content}


def describe_inference(request_type: type[RequestModel], response_type: type) -> dict[str, Any]:
    """The keyword arguments of a route: the schemas of its request, its response and its errors."""
    body = {
        "required": True,
        "content": {JSON_MEDIA_TYPE: {"schema": {"$ref": SCHEMA_PATH + request_type.__name__}}},
    }
    return {
        "openapi_extra": {"requestBody": body},
        "responses": {200: _ok_response(response_type.__name__)}
        | {kind.status: _error_response(kind) for kind in INFERENCE_ERRORS},
    }


def error_responses(*error_types: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route for these errors and, as the default, for unexpected ones."""
    responses: dict[int | str, dict[str, Any]] = {
        kind.status: _error_response(kind) for kind in error_types
    }
    return responses | {"default": _error_response(errors.Internal)}


def install(app: FastAPI) -> None:
    """Add to `/openapi.json` the schemas that its routes use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas |= component_schemas()
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
