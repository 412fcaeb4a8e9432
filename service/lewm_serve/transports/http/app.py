"""The ASGI application: routes, request ids, the access log, and errors as problem documents.

Every error is an `application/problem+json` document (RFC 9457), also on unknown routes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from functools import partial
from http import HTTPMethod
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lewm_serve.access.keys import Keys
from lewm_serve.api.requests import RequestContext, printable_or_none, request_id_from
from lewm_serve.constants import ENDPOINTS, Endpoint, Protocol
from lewm_serve.errors import (
    Cancelled,
    Forbidden,
    Internal,
    MethodNotAllowed,
    ServiceError,
    Unauthenticated,
    UnknownRoute,
    shorten,
)
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import Exchange, RequestMemory, RequestRecorder, exchange_of
from lewm_serve.transports.http import docs, home, openapi
from lewm_serve.transports.http.access import CONSOLE_PATH, OPEN_PATHS, KeyMiddleware
from lewm_serve.transports.http.admin import admin_routes
from lewm_serve.transports.http.inference_protocol import InferenceProtocolRoutes
from lewm_serve.transports.http.openpi import OpenpiRoute
from lewm_serve.transports.http.problems import problem_response
from lewm_serve.transports.http.proxies import (
    MONITORING_PATHS,
    SelectPaths,
    allow_web_pages,
    behind_proxies,
)
from lewm_serve.transports.http.routes import (
    InferenceRoutes,
    model_routes,
    operation_routes,
)
from lewm_serve.transports.http.websocket import OFFER, WEBSOCKET_PATH, WebSocketConnection
from lewm_serve.transports.inference_protocol.service import InferenceService
from lewm_serve.transports.openpi.session import OpenpiService

if TYPE_CHECKING:
    from lewm_serve.transports.http.console.data import ConsoleData

TITLE = "LeWM planner"
API_VERSION = "1"

UNRECORDED_PATHS = (
    *MONITORING_PATHS,
    *OPEN_PATHS,
    "/openapi.json",
    docs.DOCS_PATH,
    *docs.ASSET_PATHS,
    CONSOLE_PATH,
)
"""Not logged and not counted: they are for operators and monitoring, which requests some of them
every few seconds. Nor is what the console's pages ask for, except the plans that they make."""

CONSOLE_PLANS = re.compile(f"{CONSOLE_PATH}/api/plans/[^/]+/replay")

KEY_REFUSALS = (Unauthenticated.code, Forbidden.code)
"""The codes of refusals that are recorded on every path."""

MAX_PREDICTED_VALUES = 1_000_000
"""The most values in the answer to a predict request. Larger answers belong on gRPC."""

HTTP_METHODS = frozenset(HTTPMethod)
"""The methods that have a name of their own in traces. A client may send any other word."""

NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}
"""FastAPI would send its own traces, metrics and logs wherever the variables `OTEL_…` say."""


def create_app(
    planner: Planner,
    settings: Settings,
    *,
    metrics: Metrics,
    memory: RequestMemory,
    recorder: RequestRecorder,
    keys: Keys | None,
    is_local: Callable[[], bool] = lambda: False,
    console: ConsoleData | None = None,
) -> tuple[ASGIApp, ASGIApp]:
    """The application that serves a planner over HTTP, and the one for monitoring alone.

    None for keys: clients need none. ``is_local`` says whether only this machine can reach the
    server. None for ``console``: there is no console.
    """
    app = FastAPI(
        title=TITLE,
        version=API_VERSION,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        openapi_tags=openapi.TAGS,
        generate_unique_id_function=lambda route: route.name,
        telemetry=NO_TELEMETRY,
    )
    inference = InferenceRoutes(planner, settings, metrics=metrics, memory=memory)
    admin = admin_routes(
        planner,
        cors_origins=settings.cors_origins,
        is_local=is_local if keys is None else None,
    )
    for router in (inference.router(), model_routes(planner), admin):
        app.include_router(router)
        app.include_router(router, prefix="/v1", include_in_schema=False)
    app.include_router(operation_routes(planner, metrics))
    oip = InferenceProtocolRoutes(
        InferenceService(planner), settings, metrics=metrics, memory=memory
    )
    app.include_router(oip.router())
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_exception)
    openpi = OpenpiService(planner, metrics=metrics, recorder=recorder, keys=keys)
    make_connection = partial(
        WebSocketConnection,
        memory=memory,
        max_message_bytes=settings.max_body_bytes,
        receive_s=settings.receive_s,
    )
    app.router.routes.append(OpenpiRoute(openpi, make_connection, settings.cors_origins))
    openapi.install(app, needs_key=keys is not None)
    docs.install(app)
    home.install(
        app,
        planner,
        has_console=console is not None,
        has_metrics=settings.metrics_port is None,
    )
    if console is not None:
        from lewm_serve.transports.http.console import install as install_console

        install_console(
            app, planner, console, metrics=metrics, memory=memory, recorder=recorder, keys=keys
        )
    checked = app if keys is None else KeyMiddleware(app, keys)
    if settings.metrics_port is None:
        main: ASGIApp = checked
    else:
        main = SelectPaths(checked, ("/metrics",), only=False)
    main = ExchangeMiddleware(allow_web_pages(main, settings), recorder)
    monitoring = ExchangeMiddleware(SelectPaths(checked, MONITORING_PATHS, only=True), recorder)
    return behind_proxies(main, settings), monitoring


class ExchangeMiddleware:
    """Starts an `Exchange` for each request, returns its request id, and records how it ended."""

    def __init__(self, app: ASGIApp, recorder: RequestRecorder) -> None:
        self.app = app
        self.recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        request_id = request_id_from(headers.get("x-request-id"))
        protocol = _protocol_of(scope)
        endpoint = "plan" if protocol == "openpi" else _endpoint_of(scope["path"])
        exchange = Exchange(
            RequestContext(
                request_id=request_id,
                endpoint=endpoint,
                protocol=protocol,
                received=time.monotonic(),
                traceparent=printable_or_none(headers.get("traceparent")),
                robot=printable_or_none(headers.get("lewm-robot")),
                max_answer_values=MAX_PREDICTED_VALUES if endpoint == "predict" else None,
                client="{}:{}".format(*scope.get("client") or ("", 0)),
            )
        )
        scope["lewm.exchange"] = exchange
        status = Cancelled.status  # if no response starts, the client has disconnected

        async def send_with_request_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_request_id)
        except ClientDisconnect:
            # `_on_exception` has tried to answer with another status. Nobody has read that.
            exchange.code, status = Cancelled.code, Cancelled.status
        except asyncio.CancelledError:
            exchange.code = Cancelled.code
            raise
        except Exception:
            # `_on_exception` has answered the client. Only the log gets the cause.
            log.exception("internal error", request_id=request_id)
        finally:
            is_recorded = exchange.is_recorded and _is_recorded(scope["path"], protocol)
            if is_recorded or exchange.code in KEY_REFUSALS:
                exchange.operation = _operation(scope)
                self.recorder.record(exchange, status)


def _is_recorded(path: str, protocol: Protocol) -> bool:
    if path == home.HOME_PATH:
        return protocol == "openpi"
    if path.startswith(f"{CONSOLE_PATH}/"):
        return CONSOLE_PLANS.fullmatch(path) is not None
    return path not in UNRECORDED_PATHS


def _protocol_of(scope: Scope) -> Protocol:
    path = scope["path"]
    if OFFER in scope and path == WEBSOCKET_PATH:
        return "openpi"
    return "oip" if _is_inference_protocol(path) else "rest"


def _is_inference_protocol(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _endpoint_of(path: str) -> Endpoint:
    """What a path asks for. An inference request of `/v2` says so later, in its body."""
    if _is_inference_protocol(path):
        return "plan" if path.endswith("/infer") else "models"
    if CONSOLE_PLANS.fullmatch(path):
        return "plan"
    first_part = path.removeprefix("/v1").strip("/").partition("/")[0]
    return next((endpoint for endpoint in ENDPOINTS if endpoint == first_part), "other")


def _operation(scope: Scope) -> dict[str, str]:
    """What a request called, by OpenTelemetry's semantic conventions for HTTP."""
    method = scope["method"]
    operation = {
        "http.request.method": method if method in HTTP_METHODS else "_OTHER",
        "url.path": scope["path"],
        "url.scheme": scope["scheme"],
    }
    if (route := scope.get("route")) is not None:
        operation["http.route"] = route.path
    return operation


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return problem_response(request, error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """The router's own errors: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    path = shorten(request.url.path)
    if error.status_code != 405:
        return problem_response(request, UnknownRoute(f"there is no {path}"))
    detail = f"{path} does not take {shorten(request.method)}"
    response = problem_response(request, MethodNotAllowed(detail))
    response.headers.update(error.headers or {})
    return response


async def _on_exception(request: Request, _error: Exception) -> Response:
    return problem_response(request, Internal(exchange_of(request.scope).context.request_id))
