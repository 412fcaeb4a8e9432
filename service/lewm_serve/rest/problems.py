"""Errors as `application/problem+json`, on every route there is and on those there are not."""

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lewm_serve.errors import (
    BodyTooLarge,
    Internal,
    MethodNotAllowed,
    RequestTimeout,
    ServiceError,
    UnknownRoute,
    retry_after_header,
    shorten,
)
from lewm_serve.rest.exchange import exchange_of

MEDIA_TYPE = "application/problem+json"


def problem_response(error: ServiceError, request_id: str) -> Response:
    """The answer that tells a client about `error`."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = retry_after_header(error.retry_after_s)
    if isinstance(error, BodyTooLarge | RequestTimeout):
        headers["Connection"] = "close"  # the rest of the body is still on its way
    body = orjson.dumps(error.problem(request_id))
    return Response(body, error.status, headers, MEDIA_TYPE)


def _answer(request: Request, error: ServiceError) -> Response:
    exchange = exchange_of(request)
    exchange.code = error.code
    return problem_response(error, exchange.context.request_id)


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _answer(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = shorten(request.url.path)
    if error.status_code != 405:
        return _answer(request, UnknownRoute(f"there is no {path}"))
    detail = f"{path} does not take {shorten(request.method)}"
    response = _answer(request, MethodNotAllowed(detail))
    response.headers.update(error.headers or {})
    return response


async def _on_exception(request: Request, _error: Exception) -> Response:
    return _answer(request, Internal(exchange_of(request).context.request_id))


def install(app: FastAPI) -> None:
    """Make `app` answer every error as a problem document."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)
