"""HTTP on the wire: uvicorn's httptools protocol with bounded heads and problem documents."""

import time
from http import HTTPStatus
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.access import record
from service.context import RequestContext, request_id_of
from service.errors import MalformedHttp
from service.metrics import Metrics

MAX_HEAD_BYTES = 512 * 1024  # generous: a read of 256 KiB may hold the end of a body as well


class BoundedHttpProtocol(HttpToolsProtocol):
    """Refuses endless heads, which the parser would collect, and says why as a problem."""

    _head_bytes = 0
    _in_head = True

    def __init__(self, *arguments: Any, metrics: Metrics, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._metrics = metrics

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what belongs to a head."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"head: received more than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """The head ends."""
        super().on_headers_complete()
        self._in_head = False

    def on_message_complete(self) -> None:
        """The body ends, and with it the request: the next head begins."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Tell the client, then close the connection. No application sees such a request."""
        context = RequestContext(request_id_of(None), "other", "rest", time.monotonic())
        body = orjson.dumps(MalformedHttp(msg).problem(context.request_id))
        head = (
            f"HTTP/1.1 400 {HTTPStatus.BAD_REQUEST.phrase}\r\n"
            "Content-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\n"
            f"X-Request-ID: {context.request_id}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()
        record(self._metrics, context, status=MalformedHttp.status, code=MalformedHttp.code)
