"""Errors as problem documents (RFC 9457)."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from lewm_serve.constants import PROBLEM_MEDIA_TYPE
from lewm_serve.errors import (
    BodyTooLarge,
    Draining,
    Forbidden,
    Loading,
    Overloaded,
    RequestTimeout,
    Restarting,
    ServiceError,
    Unauthenticated,
    retry_after_header,
)
from lewm_serve.transports.exchange import exchange_of

BODY_REFUSALS = (
    BodyTooLarge,
    Forbidden,
    Loading,
    Restarting,
    Overloaded,
    RequestTimeout,
    Unauthenticated,
)
"""If a request is refused with one of these before its body is read, its connection is closed: the
client may still be sending the body."""

READING_METHODS = ("GET", "HEAD")
"""Methods with which a browser may send a key as the password of Basic. It also sends it with what
other sites ask it to send, so what changes something must not take it."""


def problem_response(request: Request, error: ServiceError) -> Response:
    """The answer to a request that is refused."""
    exchange = exchange_of(request.scope)
    exchange.code = error.code
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = retry_after_header(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        offers_basic = request.method in READING_METHODS
        headers["WWW-Authenticate"] = "Bearer" + ', Basic realm="lewm"' * offers_basic
    if isinstance(error, Draining) or (exchange.awaits_body and isinstance(error, BODY_REFUSALS)):
        headers["Connection"] = "close"
    problem = error.problem(exchange.context.request_id)
    if exchange.context.protocol == "oip":
        problem["error"] = f"{error.code}: {error.detail}"
    body = orjson.dumps(problem)
    return Response(body, status_code=error.status, headers=headers, media_type=PROBLEM_MEDIA_TYPE)
