"""HTTP on the wire: uvicorn's httptools protocol with limits, and errors as problem documents.

This subclass relies on internals of uvicorn. `pyproject.toml` allows only the versions whose
internals `tests/lewm_serve/transports/http/test_protocol.py` checks.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lewm_serve.api.requests import RequestContext, request_id_from
from lewm_serve.constants import PROBLEM_MEDIA_TYPE
from lewm_serve.errors import (
    MalformedHttp,
    Overloaded,
    RequestTimeout,
    ServiceError,
    retry_after_header,
)
from lewm_serve.observability.metrics import Metrics
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import Exchange, record

MAX_HEAD_BYTES = 512 * 1024
"""The limit is large, because a read of 256 KiB may hold the end of the previous body as well."""

CONNECTION_RETRY_AFTER_S = 1.0
"""`Retry-After` when there are too many connections."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """Limits the connections, and the size and duration of request heads.

    It refuses a request itself, before the application sees it, with a problem document.
    """

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None

    def __init__(
        self, *arguments: Any, settings: Settings, metrics: Metrics, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings
        self._metrics = metrics

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        self._start_head_timer()
        if len(self.connections) > self._settings.max_connections:
            detail = f"there are {self._settings.max_connections} connections already"
            self._refuse(Overloaded(CONNECTION_RETRY_AFTER_S, detail))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting for a head."""
        super().connection_lost(exc)
        self._stop_head_timer()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count the bytes that belong to a head."""
        if self._in_head and self._head_timer is None:
            self._start_head_timer()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(MalformedHttp(f"head: received more than {MAX_HEAD_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        """Stop the timer of the head."""
        super().on_headers_complete()
        self._in_head = False
        self._stop_head_timer()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for bytes that are not HTTP."""
        self._refuse(MalformedHttp(msg))

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self._settings.receive_s, self._on_head_timeout)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_head_timeout(self) -> None:
        if not self.transport.is_closing():
            seconds = self._settings.receive_s
            self._refuse(RequestTimeout(f"head: not received within {seconds:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error and close the connection."""
        context = RequestContext(
            request_id=request_id_from(None),
            endpoint="other",
            protocol="rest",
            received=time.monotonic(),
        )
        body = orjson.dumps(error.problem(context.request_id))
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            f"Content-Type: {PROBLEM_MEDIA_TYPE}",
            f"Content-Length: {len(body)}",
            f"X-Request-ID: {context.request_id}",
            "Connection: close",
        ]
        if error.retry_after_s is not None:
            head.append(f"Retry-After: {retry_after_header(error.retry_after_s)}")
        self.transport.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
        self.transport.close()
        record(self._metrics, Exchange(context, code=error.code), error.status)
