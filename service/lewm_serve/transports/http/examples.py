"""Examples in the OpenAPI document: requests, a plan, and each error.

The requests work as they are on a server with the embedded Two-Room model. The errors are what such
a server answers; `tests/lewm_serve/transports/http/test_examples.py` compares them.
"""

from typing import Any

from lewm_serve import errors
from lewm_serve.constants import InferenceEndpoint
from lewm_serve.errors import FieldProblem, InvalidRequest, ServiceError
from lewm_serve.frames.decode import SQUARE_FRAME

Document = dict[str, Any]

REQUEST_ID = "5c0963f4d2004efc8e3a961e808d652f"
MODEL = "two-room"

START_FRAME = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABABAMAAABYR2ztAAAAMFBMVEX//////v7+/v7//f37+vr+8PDg4ODp29vLy8vX"
    "u7uSkpKAWVlBQUEvLy88Hx8AAAAkfL9SAAABQUlEQVR42t1VMU7DMBR9/opYWJxyASeCiImBpRMSA0MZGLgBU4ZubByh"
    "Sw8ClWBm4xgsJF4RUp0DVN8MacFU/c4QoAJLGZ798vL++44NTK8QjIfFaYB2nkHoGMnE7B4GWGM0+kSKJuqFOHxhoKsQ"
    "GqvK4asNZs4vxgGi6yl6m/x+AtfrOazh20cbJ9z9vMlfIOyfdeRwc7R4iirsHf+HHP4moW1WCriYQrp8JEK6UhEI6uNo"
    "6DCpIgTKjSSRAABl2sNGyswyAHbzNxIAlJJhbzZLkAKg8zxXggkCkJHJyQxivSCYnt1kqci2ijqzYDsXCB5AUzF7AI2g"
    "wE5XcLEka2g/B7xI4NqwjW45riBYCHPwUg6rhUYMqt3QLpKkk9eXJt12/81SF+WXmaIIN2TZebEms4O3MKHhySxA6vK+"
    "/8X6Du/FVZZuD6+AAAAAAElFTkSuQmCC"
)
GOAL_FRAME = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABABAMAAABYR2ztAAAAMFBMVEX//////v7+/v7//f37+vr+8fHg4OD41dXLy8vZ"
    "t7eSkpKAWVlBQUEvLy88Hx8AAAAmrswdAAABNElEQVR42u2VsU7DMBCGf58iFhYnvIATRMTEgJA6ITGWgYE3YIoQW9+i"
    "Sx8EKsHMxmOwkHhFSHUeoDqzFHpEdjIEIYZaspXf+Xx2/svJwOIGoj2tL4TaewVhoCVzs38stMZ0ulWK5uqNWC7IdC2l"
    "saqavFsxc3l1JxTNFhh9yN8HuOn60NH3zzYKpIDDQ3yLdNNjQCrGEKC+cxEBdAfsAgoAFSYQYntIytPM4PAs7IMG8hyA"
    "vT1Zv4R9oJQMe3NwGoygAOjCsO3xISdTkMn6kkUwI9PNsKHf/uuhyS3YriKAB9DWzL4nAjtdw9kY0Go00H7VEwHcBI3a"
    "AB4A132f2Q754AeNcmIMO+mC72VduD8q3h2wA/49kFS6rH7MlKVYrqrBizVZHn3Iyp6cL4VS14/jL9ZPMQRSz70HyH4A"
    "AAAASUVORK5CYII="
)
RED_PIXEL = {"pixels": {"data": "/wAA", "shape": [1, 1, 3]}}
ACTIONS = [[0.5, 0.0]] * 5

REQUESTS: dict[InferenceEndpoint, dict[str, Document]] = {
    "encode": {
        "image": {"frames": [{"image": START_FRAME}]},
        "data_url": {"frames": [{"image": f"data:image/png;base64,{START_FRAME}"}]},
        "pixels": {"frames": [RED_PIXEL], "encoding": "base64"},
    },
    "predict": {
        "actions": {"frames": [{"image": START_FRAME}], "actions": ACTIONS},
        "candidates": {
            "frames": [{"image": START_FRAME}],
            "candidates": [ACTIONS, [[0.0, -0.5]] * 5],
        },
        "history": {
            "frames": [{"image": START_FRAME}, {"image": START_FRAME}],
            "past_actions": [[0.0, 0.0]] * 5,
            "actions": ACTIONS,
        },
    },
    "plan": {
        "images": {
            "frames": [{"image": START_FRAME}],
            "goal": {"image": GOAL_FRAME},
            "solver": {"samples": 64, "iterations": 4, "elites": 8, "horizon": 2},
            "seed": 7,
        },
        "fallback": {
            "model": MODEL,
            "frames": [{"image": START_FRAME}],
            "goal": {"image": GOAL_FRAME},
            "deadline_ms": 5000,
            "priority": 9,
            "fallback": {"controller": "hold"},
            "include": ["trajectory"],
        },
        "icem": {
            "frames": [{"image": START_FRAME}],
            "goal": {"image": GOAL_FRAME},
            "solver": {"name": "icem", "samples": 32, "iterations": 4, "elites": 8, "horizon": 5},
            "warm_start": ACTIONS,
        },
        "distance": {
            "frames": [{"image": START_FRAME}],
            "goal": {"image": GOAL_FRAME},
            "solver": {"objective": "distance"},
            "seed": 7,
        },
        "states": {
            "frames": [{"image": START_FRAME}],
            "goal": {"state": {"x": 160, "y": 60}},
            "avoid": [
                {"state": {"x": [125, 150], "y": [80, 120]}},
                {"centre": {"x": 60, "y": 60}, "radius": 15, "weight": 5},
            ],
            "solver": {"samples": 64, "iterations": 3, "elites": 8},
            "seed": 7,
        },
    },
}
"""Requests by endpoint and name. The first one of an endpoint is the one to begin with."""

PLAN_RESPONSE: Document = {
    "request_id": REQUEST_ID,
    "model": MODEL,
    "model_version": "b5819e1ba8d64a0a",
    "backend": "onnx",
    "precision": "float32",
    "actions": [
        [1.0, -1.0],
        [1.0, -1.0],
        [1.0, -0.997],
        [0.965, -0.998],
        [0.697, -0.99],
        [-0.304, -1.0],
        [-0.418, -0.995],
        [0.411, -0.999],
        [0.747, -1.0],
        [0.428, -1.0],
    ],
    "action_block": 5,
    "cost": 1.417,
    "status": "completed",
    "iterations": 4,
    "candidates": 187,
    "solver": {
        "name": "icem",
        "samples": 64,
        "iterations": 4,
        "horizon": 2,
        "tolerance": 0.0,
        "objective": "distance",
        "elites": 8,
        "momentum": 0.1,
        "deviation": 1.0,
        "noise_exponent": 2.0,
    },
    "seed": 7,
    "latent_ids": {
        "frames": ["5c5326ffe4a568eef828546c72686c21"],
        "goal": "f9c01cbb690a21de3d6cab1df438f41d",
    },
    "health": {
        "status": "ok",
        "latent_norm": 11.2,
        "latent_norm_zscore": -0.01,
        "surprise": None,
        "sigreg": None,
        "reasons": [],
        "latent_mahalanobis": 15.4,
    },
    "fallback": None,
    "timing_ms": {"queue": 7.6, "decode": 0.7, "encode": 1.2, "solve": 14.4, "total": 24.8},
    "distance": {"start": 17.8, "end": 5.0},
}
"""The answer to the first example of a plan request."""

RELOAD_FAILURE: Document = {
    "model": MODEL,
    "result": "failed",
    "old_version": "b5819e1ba8d64a0a",
    "new_version": None,
    "seconds": 0.0,
    "error": "two-room/model.safetensors: there is no such file",
}

MALFORMED_HTTP = errors.MalformedHttp(
    "received bytes that are not an HTTP/1.1 request: Invalid method encountered"
)
TOO_MANY_HEADERS = errors.TooManyHeaders("head: received more than 128 fields, the maximum")

ERRORS: tuple[ServiceError, ...] = (
    MALFORMED_HTTP,
    errors.MalformedJson("body: EOF while parsing a list at line 1 column 12"),
    errors.Unauthenticated("expected a key: Authorization: Bearer KEY"),
    errors.Forbidden("the key arm-1 has the roles infer, expected read"),
    errors.UnknownModel("arm", [MODEL]),
    errors.UnknownLatent("frames[0].latent_id", "5d1e90c47fb24a6f8e02b3d59c7a1164"),
    errors.UnknownRoute("there is no '/plans'"),
    errors.MethodNotAllowed("'/plan' does not take 'GET'"),
    errors.RequestTimeout("body: received 0 bytes in 60 s, expected the whole body"),
    errors.BodyTooLarge("body: received 33554433 bytes, expected at most 33554432"),
    errors.UnsupportedMediaType("content-type: received 'text/plain', expected application/json"),
    TOO_MANY_HEADERS,
    errors.Overloaded(2.0),
    errors.RateLimited(0.5, "the key arm-1 may send 20 requests per second"),
    errors.Internal(REQUEST_ID),
    errors.NonFiniteResult("latents"),
    errors.ReloadFailed([RELOAD_FAILURE]),
    errors.Loading(),
    errors.Draining(),
    errors.Restarting(),
    errors.Failed(),
    errors.DeadlineExceeded(
        "deadline: it leaves no time for the iterations that the request needs; choose a later one "
        "(1 ms have passed since the request arrived)"
    ),
)
"""One error of each type that HTTP has, except those of `INVALID_REQUESTS`."""


def _invalid(
    code: str, field: str, *, received: str, expected: str, only: InferenceEndpoint | None = None
) -> tuple[InferenceEndpoint | None, InvalidRequest]:
    problem = FieldProblem(field=field, code=code, received=received, expected=expected)
    return only, InvalidRequest.of(problem)


INVALID_REQUESTS: tuple[tuple[InferenceEndpoint | None, InvalidRequest], ...] = (
    _invalid(
        "conflicting_fields",
        "frames[0]",
        received="image and pixels",
        expected="exactly one of image, pixels, latent, latent_id",
    ),
    _invalid(
        "image_too_large",
        "frames[0].image",
        received="4096 x 4096 pixels",
        expected="at most 4194304 pixels",
    ),
    _invalid(
        "invalid_choice",
        "encoding",
        received="'hex'",
        expected="one of 'float' or 'base64'",
        only="encode",
    ),
    _invalid(
        "invalid_choice",
        "fallback.controller",
        received="'brake'",
        expected="one of none, hold, tail, waypoint",
        only="plan",
    ),
    _invalid(
        "invalid_image", "frames[0].image", received="5 bytes", expected="a PNG or JPEG image"
    ),
    _invalid("missing_field", "frames", received="nothing", expected="a value"),
    _invalid("not_finite", "frames[0].latent[1]", received="inf", expected="a finite number"),
    _invalid(
        "not_square",
        "frames[0].pixels",
        received="2 x 1",
        expected=SQUARE_FRAME,
    ),
    _invalid(
        "out_of_range", "frames[0].latent", received="1e+30", expected="numbers within ±10000"
    ),
    _invalid(
        "shape_mismatch",
        "frames[0].pixels.data",
        received="3 bytes",
        expected="192 bytes, height × width × 3",
    ),
    _invalid("unknown_field", "colour", received="'red'", expected="no field of this name"),
    _invalid(
        "unknown_solver",
        "solver.name",
        received="'simplex'",
        expected="one of cem, icem, mppi, random, gradient",
        only="plan",
    ),
    _invalid("wrong_type", "model", received="3", expected="a string"),
)
"""Refused requests, one for each code, and the endpoint if only one can answer this."""


def inference_errors(endpoint: InferenceEndpoint) -> list[ServiceError]:
    """The errors that an endpoint can answer. Only a plan has a deadline over HTTP."""
    never = [errors.UnknownRoute, errors.MethodNotAllowed, errors.ReloadFailed]
    if endpoint != "plan":
        never.append(errors.DeadlineExceeded)
    return [
        *(error for error in ERRORS if type(error) not in never),
        *(error for only, error in INVALID_REQUESTS if only in (None, endpoint)),
    ]


def errors_of_types(*kinds: type[ServiceError]) -> list[ServiceError]:
    """The errors of these types, and those that every request can get."""
    always = [
        MALFORMED_HTTP,
        errors.RequestTimeout("head: not received within 60 s"),
        TOO_MANY_HEADERS,
        errors.Overloaded(1.0, "all 800 connections are in use"),
        errors.Internal(REQUEST_ID),
    ]
    return [*always, *(error for error in ERRORS if type(error) in kinds)]
