"""One HTTP request and its answer: its id, its log line, its count, its last line of defence."""

import asyncio
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lewm_serve.access import Exchange, record
from lewm_serve.context import Endpoint, RequestContext, plain, request_id_of
from lewm_serve.errors import Cancelled
from lewm_serve.logs import log
from lewm_serve.metrics import Metrics

ENDPOINTS: dict[str, Endpoint] = {
    "encode": "encode",
    "predict": "predict",
    "plan": "plan",
    "models": "models",
}
# Asked every few seconds by machines; they would drown the requests in log and metrics.
OPERATIONS = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json")


def exchange_of(request: Request) -> Exchange:
    """The exchange that `ExchangeMiddleware` opened for this request."""
    exchange = request.scope["lewm.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange


def _endpoint_of(path: str) -> Endpoint:
    first = path.removeprefix("/v1").strip("/").partition("/")[0]
    return ENDPOINTS.get(first, "other")


class ExchangeMiddleware:
    """Opens an exchange for each request, returns its id, and records how it ended."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        request_id = request_id_of(headers.get("x-request-id"))
        exchange = Exchange(
            RequestContext(
                request_id,
                _endpoint_of(scope["path"]),
                "rest",
                time.monotonic(),
                traceparent=plain(headers.get("traceparent")),
            )
        )
        scope["lewm.exchange"] = exchange
        status = Cancelled.status

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            exchange.code = Cancelled.code
        except asyncio.CancelledError:
            exchange.code = Cancelled.code
            raise
        except Exception:
            # The client has been told; the reason stays here.
            log.exception("internal error", request_id=request_id)
        finally:
            if scope["path"] not in OPERATIONS:
                record(self.metrics, exchange, status)
