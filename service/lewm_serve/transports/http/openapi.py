"""The OpenAPI description of requests, responses and errors."""

from collections.abc import Iterable
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
from lewm_serve.constants import JSON_MEDIA_TYPE, PROBLEM_MEDIA_TYPE, InferenceEndpoint
from lewm_serve.errors import ServiceError
from lewm_serve.transports.http import examples
from lewm_serve.transports.http.access import OPEN_PATHS

SCHEMA_PATH = "#/components/schemas/"

REQUEST_TYPES: dict[InferenceEndpoint, type[RequestModel]] = {
    "encode": EncodeRequest,
    "predict": PredictRequest,
    "plan": PlanRequest,
}

DESCRIPTION = """\
Plans actions from camera frames with a latent world model: send what the robot sees and what it
should see, and get the actions that lead there.

`/encode`, `/predict`, `/plan` and `/models` are also served under `/v1`. Errors are
`application/problem+json` (RFC 9457): `code` is for programs, `detail` for people, `errors` lists
the refused fields. Send `X-Request-ID` to find a request in the logs; every answer returns one. The
same service is available over gRPC.
"""

TAGS = [
    {"name": "inference", "description": "Frames to latents, predictions and plans."},
    {"name": "models", "description": "The models that are served, and their cards."},
    {"name": "operation", "description": "What monitoring and orchestrators ask for."},
    {"name": "admin", "description": "What needs the role `admin`."},
]

REQUEST_DESCRIPTIONS: dict[InferenceEndpoint, str] = {
    "encode": "the frames to turn into latents",
    "predict": "frames, and the actions whose outcome is predicted",
    "plan": "what the robot sees now, and what it should see",
}

REQUEST_HEADERS = {
    "X-Request-ID": "the request's id in the answer, in logs and in traces; left out: a new one",
    "Lewm-Robot": "the robot's name, for logs and traces alone",
    "traceparent": "the client's trace, as W3C Trace Context defines it",
}
"""The headers of every request for inference: 1 to 128 printable ASCII characters. Other values
count as left out."""

KEY_SCHEME = {
    "type": "http",
    "scheme": "bearer",
    "description": "a key of this server, made with `lewm keys add`",
}

KEY_ERRORS = (errors.Unauthenticated, errors.Forbidden, errors.RateLimited)
"""The errors of requests that need a key."""

NOT_OVER_HTTP = (errors.MalformedMessage.code, errors.Cancelled.code)
"""Codes of gRPC, and of clients that are gone."""

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
        "code": {
            "type": "string",
            "enum": [code for code in errors.CODES if code not in NOT_OVER_HTTP],
        },
        "request_id": STRING,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "received", "expected"],
                "properties": {
                    "field": {
                        "type": "string",
                        "description": "a path such as `frames[0].pixels.shape`",
                    },
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
        """pydantic calls this for NumPy arrays. `_describe_arrays` adds their axes."""
        return {"type": "array", "items": {}}


def _add_examples(schemas: dict[str, Any]) -> None:
    for endpoint, request_type in REQUEST_TYPES.items():
        requests = examples.REQUESTS[endpoint].values()
        schemas[request_type.__name__]["examples"] = list(requests)
    schemas["PlanResponse"]["examples"] = [examples.PLAN_RESPONSE]


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
    plan = schemas["PlanResponse"]["properties"]
    plan["actions"] = ROWS | {"description": "horizon · action_block rows of action_dim numbers"}
    plan["trajectory"] = ROWS | {"description": "horizon × latent_dim, if the request included it"}
    plan["states"] = {
        "allOf": [{"$ref": SCHEMA_PATH + "PlanStates"}],
        "description": "the imagined states before and after the plan, if the request has a goal "
        "by states or regions to avoid",
    }
    plan["violations"] |= {
        "description": "with `states`: the steps of the trajectory, from 0 on, that lead into a "
        "region to avoid or are in one"
    }


def component_schemas() -> dict[str, Any]:
    """The schemas of all requests, responses and errors, by name."""
    ref_template = SCHEMA_PATH + "{model}"
    request_types = REQUEST_TYPES.values()
    _, request_schemas = TypeAdapter.json_schemas(
        [(kind, "validation", TypeAdapter(kind)) for kind in request_types],
        ref_template=ref_template,
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
    _add_examples(schemas)
    return schemas | {"Problem": PROBLEM_SCHEMA}


def _problem_response(*problems: ServiceError) -> dict[str, Any]:
    """The response for errors of one status, with each of them as an example."""
    values = {error.code: {"value": error.problem(examples.REQUEST_ID)} for error in problems}
    titles = dict.fromkeys(error.title for error in problems)
    content = {"schema": {"$ref": SCHEMA_PATH + "Problem"}, "examples": values}
    response: dict[str, Any] = {
        "description": " / ".join(titles),
        "content": {PROBLEM_MEDIA_TYPE: content},
    }
    if any(error.retry_after_s is not None for error in problems):
        retry_after = {
            "description": "seconds after which to try again",
            "schema": {"type": "integer"},
        }
        response["headers"] = {"Retry-After": retry_after}
    return response


def _problem_responses(problems: Iterable[ServiceError]) -> dict[int | str, dict[str, Any]]:
    by_status: dict[int, list[ServiceError]] = {}
    for error in problems:
        by_status.setdefault(error.status, []).append(error)
    return {status: _problem_response(*by_status[status]) for status in sorted(by_status)}


def _ok_response(name: str) -> dict[str, Any]:
    content = {JSON_MEDIA_TYPE: {"schema": {"$ref": SCHEMA_PATH + name}}}
    return {"description": "OK", "content": content}


def _header_parameters() -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": description, "schema": STRING}
        for name, description in REQUEST_HEADERS.items()
    ]


def describe_inference(endpoint: InferenceEndpoint, response_type: type) -> dict[str, Any]:
    """The keyword arguments of a route: the schemas of its request, its response and its errors."""
    requests = {name: {"value": request} for name, request in examples.REQUESTS[endpoint].items()}
    schema = {"$ref": SCHEMA_PATH + REQUEST_TYPES[endpoint].__name__}
    content = {JSON_MEDIA_TYPE: {"schema": schema, "examples": requests}}
    return {
        "openapi_extra": {
            "parameters": _header_parameters(),
            "requestBody": {
                "description": REQUEST_DESCRIPTIONS[endpoint],
                "required": True,
                "content": content,
            },
        },
        "responses": {200: _ok_response(response_type.__name__)}
        | _problem_responses(examples.inference_errors(endpoint)),
    }


def error_responses(*kinds: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route for errors of these types, and for those of every route."""
    # The default keeps FastAPI from adding a response of its own, which the server never gives.
    default = {
        "description": "Any other error",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": SCHEMA_PATH + "Problem"}}},
    }
    return _problem_responses(examples.errors_of_types(*kinds)) | {"default": default}


def _routing_responses() -> dict[str, Any]:
    """The responses to paths and methods that the document does not have."""
    return {
        type(error).__name__: _problem_response(error)
        for error in examples.ERRORS
        if isinstance(error, errors.UnknownRoute | errors.MethodNotAllowed)
    }


def install(app: FastAPI, *, needs_key: bool) -> None:
    """Add to `/openapi.json` the schemas that its routes use, and what they need of a client."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=DESCRIPTION,
                routes=app.routes,
                tags=app.openapi_tags,
                # Relative to the document, so that it also holds behind a proxy with a path prefix.
                servers=[{"url": ".", "description": "this server"}],
            )
            components = document.setdefault("components", {})
            components["schemas"] = components.get("schemas", {}) | component_schemas()
            components["responses"] = _routing_responses()
            if needs_key:
                components["securitySchemes"] = {"key": KEY_SCHEME}
                document["security"] = [{"key": []}]
                for path in document["paths"].keys() & set(OPEN_PATHS):
                    document["paths"][path]["get"]["security"] = []
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
