"""One gRPC call: its context, and how it ends."""

import math
import time
from typing import Any, NoReturn

import grpc
import grpc.aio

from lewm_serve.context import Endpoint, RequestContext, plain, request_id_of
from lewm_serve.errors import ServiceError

Call = grpc.aio.ServicerContext[Any, Any]

DETAIL_LIMIT = 1000  # details travel in a header, which must stay small


def margin(remaining: float) -> float:
    """How long before a call's deadline its answer should leave, in seconds.

    A tenth of what remains, between 5 ms (for the way back on a local network) and 250 ms, never
    more than half.
    """
    return min(max(0.005, 0.1 * remaining), 0.25, 0.5 * remaining)


def _headers(call: Call) -> dict[str, str]:
    """The call's metadata as text; of those of one name, the first."""
    headers: dict[str, str] = {}
    for name, value in call.invocation_metadata() or ():
        if isinstance(value, str):
            headers.setdefault(name, value)
    return headers


def context_of(call: Call, endpoint: Endpoint) -> RequestContext:
    """The context of a call that arrives now."""
    now = time.monotonic()
    remaining = call.time_remaining()
    deadline = None
    if remaining is not None and math.isfinite(remaining):
        remaining = max(0.0, remaining)
        deadline = now + remaining - margin(remaining)
    headers = _headers(call)
    return RequestContext(
        request_id_of(headers.get("x-request-id")),
        endpoint,
        "grpc",
        now,
        deadline,
        plain(headers.get("traceparent")),
    )


async def abort(call: Call, error: ServiceError, request_id: str) -> NoReturn:
    """End the call with the error's status, its code and request id in trailing metadata."""
    trailing = [("code", error.code), ("request_id", request_id)]
    if error.retry_after_s is not None:
        trailing.append(("retry-after-ms", str(math.ceil(1000 * error.retry_after_s))))
    status = grpc.StatusCode[error.grpc_status]
    await call.abort(status, error.detail[:DETAIL_LIMIT], tuple(trailing))
    raise AssertionError("abort does not return")
