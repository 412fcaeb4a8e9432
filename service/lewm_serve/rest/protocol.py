"""HTTP on the wire: uvicorn's httptools protocol, bounded, with problem documents."""

import asyncio
import time
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lewm_serve.access import Exchange, record
from lewm_serve.context import RequestContext, request_id_of
from lewm_serve.errors import (
    MalformedHttp,
    Overloaded,
    RequestTimeout,
    ServiceError,
    retry_after_header,
)
from lewm_serve.metrics import Metrics
from lewm_serve.settings import Settings

MAX_HEAD_BYTES = 512 * 1024  # generous: a read of 256 KiB may hold the end of a body as well
RETRY_S = 1.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """Bounds connections, and the bytes and the time of a head, which the parser would collect.

    Refusals are problems like all others, though no application sees such a request.
    """

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(
        self, *arguments: Any, bounds: Settings, metrics: Metrics, **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self._bounds = bounds
        self._metrics = metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client may begin, if there are not too many."""
        super().connection_made(transport)
        self._time_head()
        if len(self.connections) > self._bounds.max_connections:
            detail = f"there are {self._bounds.max_connections} connections already"
            self._refuse(Overloaded(RETRY_S, detail))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        super().connection_lost(exc)
        self._end_head()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what belongs to a head."""
        if self._in_head and self._head_timer is None:
            self._time_head()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(MalformedHttp(f"head: received more than {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """The head ends."""
        super().on_headers_complete()
        self._in_head = False
        self._end_head()

    def on_message_complete(self) -> None:
        """The body ends, and with it the request: the next head begins."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """What uvicorn says of bytes that are not HTTP."""
        self._refuse(MalformedHttp(msg))

    def _time_head(self) -> None:
        self._head_timer = self.loop.call_later(self._bounds.receive_s, self._head_too_slow)

    def _end_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        if not self.transport.is_closing():
            seconds = self._bounds.receive_s
            self._refuse(RequestTimeout(f"head: not received within {seconds:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Tell the client, then close the connection."""
        context = RequestContext(request_id_of(None), "other", "rest", time.monotonic())
        body = orjson.dumps(error.problem(context.request_id))
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "Content-Type: application/problem+json",
            f"Content-Length: {len(body)}",
            f"X-Request-ID: {context.request_id}",
            "Connection: close",
        ]
        if error.retry_after_s is not None:
            head.append(f"Retry-After: {retry_after_header(error.retry_after_s)}")
        self.transport.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
        self.transport.close()
        record(self._metrics, Exchange(context, code=error.code), error.status)
