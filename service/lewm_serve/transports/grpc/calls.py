"""A gRPC call: its context, its metadata, and how it is refused."""

from __future__ import annotations

import math
import time
from contextvars import ContextVar
from typing import NoReturn

import grpc

from lewm_serve.access.keys import Key, client_of
from lewm_serve.api.requests import RequestContext, printable_or_none, request_id_from
from lewm_serve.constants import Endpoint, Protocol
from lewm_serve.errors import ServiceError
from lewm_serve.transports.grpc.transfers import Call

SERVICE = "lewm.v1.PlannerService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"

MAX_DETAIL_CHARACTERS = 1000
"""gRPC sends details in a header, which must stay small."""

KEY_OF_CALL: ContextVar[Key | None] = ContextVar("key_of_call", default=None)
"""The key of the call that this task answers."""


def call_context(call: Call, endpoint: Endpoint, protocol: Protocol = "grpc") -> RequestContext:
    """The context of a call that has just arrived."""
    now = time.monotonic()
    remaining_s = call.time_remaining()
    deadline = None
    if remaining_s is not None and math.isfinite(remaining_s):
        remaining_s = max(0.0, remaining_s)
        deadline = now + remaining_s - travel_time_s(remaining_s)
    headers = first_headers(call)
    key = KEY_OF_CALL.get()
    return RequestContext(
        request_id=request_id_from(headers.get("x-request-id")),
        endpoint=endpoint,
        protocol=protocol,
        received=now,
        deadline=deadline,
        traceparent=printable_or_none(headers.get("traceparent")),
        robot=printable_or_none(headers.get("lewm-robot")),
        client=call.peer() if key is None else client_of(key),
        key=None if key is None else key.name,
    )


def operation_of(method: str) -> dict[str, str]:
    """What a call called, by OpenTelemetry's semantic conventions for RPC."""
    return {"rpc.system.name": "grpc", "rpc.method": method}


def travel_time_s(remaining_s: float) -> float:
    """How long before the call's deadline its answer has to leave, in seconds.

    A tenth of the remaining time, at least 5 ms (for a local network), at most 250 ms, and never
    more than half of the remaining time.
    """
    return min(max(0.005, 0.1 * remaining_s), 0.25, 0.5 * remaining_s)


def first_headers(call: Call) -> dict[str, str]:
    """The call's text metadata. If a name has several values, the first one counts."""
    headers: dict[str, str] = {}
    for name, value in call.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, value)
    return headers


async def abort(call: Call, error: ServiceError, request_id: str) -> NoReturn:
    """End the call with the error's status. Code and request id are in the trailing metadata."""
    trailing = [("code", error.code), ("request_id", request_id)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after-ms", str(math.ceil(1000 * error.retry_after_s))))
    status = grpc.StatusCode[error.grpc_status]
    await call.abort(status, error.detail[:MAX_DETAIL_CHARACTERS], tuple(trailing))
    raise AssertionError("abort does not return")
