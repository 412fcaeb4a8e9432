"""HTTP on the wire: uvicorn's httptools protocol with limits, and errors as problem documents.

This subclass relies on internals of uvicorn. `pyproject.toml` allows only the versions whose
internals `tests/lewm_serve/transports/http/test_protocol.py` checks.

Every state of a connection ends by itself:

    state                                ends after
    ─────────────────────────────────────────────────────────────────────────────────────────
    no request yet, a head               `receive_s`: 408
    a body                               `receive_s`: 408 (`bodies.read_body`)
    a request is being answered          the work ends, or the client goes away
    the client does not read an answer   `receive_s`: closed
    answered, but the body has not ended `LINGER_S`: closed
    idle                                 `KEEP_ALIVE_S`: closed (`server`)
    closing                              `LINGER_S`; `receive_s` if the client has to read an answer
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lewm_serve.api.requests import RequestContext, request_id_from
from lewm_serve.constants import PROBLEM_MEDIA_TYPE
from lewm_serve.errors import (
    MalformedHttp,
    MethodNotAllowed,
    Overloaded,
    RequestTimeout,
    ServiceError,
    retry_after_header,
)
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import Exchange, RequestRecorder
from lewm_serve.transports.http.connections import PROBE_PATHS, Connections, ConnectionSlots
from lewm_serve.transports.http.framing import RequestFraming
from lewm_serve.transports.http.websocket import (
    OFFER,
    WebSocketConnection,
    WebSocketOffer,
    handshake,
)

CONNECTION_RETRY_AFTER_S = 1.0
"""`Retry-After` when there are too many connections."""

PROBE_HEAD_S = 1.0
"""The longest time for a head on a connection that is for probes alone."""

MAX_PIPELINED_BYTES = 64 * 1024
"""How many bytes of later requests wait while a request on the same connection is answered."""

LINGER_S = 5.0
MAX_DROPPED_BODIES = 8
"""How long the rest of a body, or of what else a client sends after its last answer, is received
and dropped, and how much: this many times the largest body. If the connection were closed at once,
the bytes on their way would reset it, and the client could not read its answer."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection: its limits, its timers, and what a client loses that goes away.

    The requests on a connection are parsed one after the other: what comes behind a request waits
    as bytes until it is answered. A request that breaks HTTP or a limit is refused here, before the
    application sees it, with a problem document.
    """

    def __init__(
        self,
        *arguments: Any,
        settings: Settings,
        recorder: RequestRecorder,
        connections: Connections,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings
        self._recorder = recorder
        self._all_connections = connections
        self._slots: ConnectionSlots = connections.slots
        self._framing = RequestFraming()
        self._pipelined = bytearray()
        self._pipelined_too_much = False
        self._dropped_bytes = 0
        self._is_lingering = False
        self._refusal: ServiceError | None = None
        self._offer: WebSocketOffer | None = None
        self._state_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # The life of the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, if need be for probes alone."""
        super().connection_made(transport)
        if not self._slots.take(self):
            self._slots = self._all_connections.probe_slots
            if not self._slots.take(self):
                self._write_problem(self._too_many_connections())
                self._close()
                return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the request that is in progress, and the bytes of later ones."""
        super().connection_lost(exc)
        self._give_up_request()
        self._pipelined.clear()
        self._slots.release(self)
        self._stop_state_timer()
        self.resume_writing()

    def eof_received(self) -> None:
        """The client sends nothing more. It has gone away, as far as a server can know.

        The transport closes itself, but not before the client has read what is already written.
        """
        self._give_up_request()
        self._set_state_timer(self._settings.receive_s, self.transport.abort)

    def close_after_answer(self) -> None:
        """Close the connection after the answer to the request in progress, if there is one."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def close_if_idle(self) -> None:
        """Close the connection if it waits for another request."""
        is_between = self.cycle is not None and self.cycle.response_complete
        if is_between and self._framing.in_head and not self._framing.head_bytes:
            self._close()

    def evict(self) -> None:
        """Close the connection at once for a new one. No request is in progress on it."""
        if self._framing.in_head and self._framing.head_bytes and not self._is_closed:
            detail = "the connection has waited longest, and there are too many"
            self._write_problem(Overloaded(CONNECTION_RETRY_AFTER_S, detail))
            self._close()
        else:
            self.transport.abort()

    @property
    def _is_closed(self) -> bool:
        """Whether what the client sends is of no interest any more."""
        return self._is_lingering or self.transport.is_closing()

    @property
    def _is_answering(self) -> bool:
        """Whether a request has been received completely and is not answered yet."""
        return self._framing.in_head and self.cycle is not None and not self.cycle.response_complete

    # Bytes from the client

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, or let them wait for the answer that is due before."""
        if self._is_closed:
            self._drop(len(data))
        elif self._is_answering:
            self._hold(data)
        else:
            self._parse(data)

    def _parse(self, data: bytes) -> None:
        start = 0
        try:
            while start < len(data) and not self._is_closed:
                if self._is_answering:
                    self._hold(data[start:])
                    return
                if self._framing.in_head and not self._framing.head_bytes:
                    self._start_head_timer()
                end = self._framing.next_piece(data, start)
                piece = memoryview(data)[start:end]
                if self._framing.in_head:
                    self._feed_parser(piece)
                elif self.cycle.response_complete:
                    self._drop(len(piece))
                    self._feed_parser(piece)
                else:
                    size_before = len(self.cycle.body)
                    self._feed_parser(piece)
                    self._framing.add_content(len(self.cycle.body) - size_before)
                start = end
        except ServiceError as error:
            self._refuse(error)
        except httptools.HttpParserError as error:
            detail = f"received bytes that are not an HTTP/1.1 request: {error}"
            self._refuse(self._refusal or MalformedHttp(detail))

    def _feed_parser(self, piece: memoryview) -> None:
        """Parse a piece. An offer to change the protocol waits for a route that accepts it.

        After a head with an `Upgrade` offer, the parser takes all that follows for bytes of the
        other protocol. Then a new parser gets the same head without the offer.
        """
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            method, version = self.parser.get_method(), self.parser.get_http_version()
            accepting = handshake(method, version, self.headers)
            if accepting is not None:
                self._offer = WebSocketOffer(accepting, self._switch)
            lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
            lines += [b"%s: %s" % field for field in self.headers if field[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self._framing.start_head()
            self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _switch(self, connection: WebSocketConnection) -> bool:
        """Let the connection be a WebSocket from now on. False: it is closed already."""
        if self._is_closed or self.cycle.disconnected:
            return False
        self._stop_state_timer()
        self._slots.release(self)
        self.connections.discard(self)
        self.cycle.response_started = self.cycle.response_complete = True
        self.transport.set_protocol(connection)
        connection.start(self.transport, self._all_connections, self.server_state)
        connection.data_received(bytes(self._pipelined))
        self._pipelined.clear()
        return True

    def _hold(self, data: bytes) -> None:
        """Keep the bytes of later requests, up to a limit.

        Beyond it they are dropped, and the connection is closed after the answer that is due.
        Reading never stops, because a client that goes away would not be noticed.
        """
        if len(self._pipelined) + len(data) > MAX_PIPELINED_BYTES:
            self._pipelined.clear()
            self._pipelined_too_much = True
        if self._pipelined_too_much:
            self.cycle.keep_alive = False
            self._drop(len(data))
        else:
            self._pipelined += data

    def _drop(self, size: int) -> None:
        self._dropped_bytes += size
        if self._dropped_bytes > MAX_DROPPED_BODIES * self._settings.max_body_bytes:
            self.transport.abort()

    # What the parser reports

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head. Those of trailer sections are ignored."""
        if self._framing.in_head:
            self._framing.add_header(name, value)
            super().on_header(name, value)
            return
        try:
            self._framing.add_trailer()
        except ServiceError as error:
            self._reject(error)

    def on_headers_complete(self) -> None:
        """Start the request, unless it has to be refused."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._reject(MethodNotAllowed("this server does not take CONNECT"))
            return
        if self._is_probe_connection and self.url.partition(b"?")[0] not in PROBE_PATHS:
            self._reject(self._too_many_connections())
        if self.cycle is not None and not self.cycle.response_complete:
            self._reject(MalformedHttp("head: it does not start on a line of its own"))
        if self._offer is not None:
            self.scope[OFFER] = self._offer  # type: ignore[literal-required]
            self._offer = None
        super().on_headers_complete()
        self.cycle.transport = _AnswerTransport(self.transport, self._finish)
        if self._all_connections.closing or self._is_probe_connection:
            self.cycle.keep_alive = False
        self._framing.end_head()
        self._stop_state_timer()
        self._slots.set_busy(self)

    def on_message_complete(self) -> None:
        """Expect the next head."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._framing.start_head()
        if self.cycle.response_complete:
            self._wait_for_request()

    def _reject(self, error: ServiceError) -> NoReturn:
        """Stop the parser. It raises an error of its own, which says little about this one."""
        self._refusal = error
        raise error

    # Answers

    def on_response_complete(self) -> None:
        """Go on with the next request."""
        self.server_state.total_requests += 1
        if self._is_closed:
            return
        self._dropped_bytes = 0
        self.flow.resume_reading()
        if not self._framing.in_head:
            self._slots.set_waiting(self)
            self._set_state_timer(LINGER_S, self._close)
            return
        self._wait_for_request()
        data = bytes(self._pipelined)
        self._pipelined.clear()
        self._parse(data)

    def pause_writing(self) -> None:
        """The client does not read its answers. It must do so within the time for a body."""
        super().pause_writing()
        if self._write_timer is None:
            seconds = self._settings.receive_s
            self._write_timer = self.loop.call_later(seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read its answers."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _wait_for_request(self) -> None:
        self._slots.set_waiting(self)
        self._set_state_timer(self.timeout_keep_alive, self._close)

    def _give_up_request(self) -> None:
        """Let the application know that nobody waits for the request in progress."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()

    def _finish(self) -> None:
        """Close the connection after the last answer."""
        if self._framing.in_head and not self._pipelined and not self._pipelined_too_much:
            self._close()
        else:
            self._linger()

    def _close(self) -> None:
        """Close the connection. The client may still read its answer."""
        self._slots.set_waiting(self)
        self.transport.close()
        self._set_state_timer(self._settings.receive_s, self.transport.abort)

    def _linger(self) -> None:
        """Close the connection for answers, and drop what the client still sends."""
        self._is_lingering = True
        self._slots.set_waiting(self)
        self._pipelined.clear()
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS has no such thing
            self.transport.write_eof()
        has_unread_answer = self.transport.get_write_buffer_size() > 0
        seconds = self._settings.receive_s if has_unread_answer else LINGER_S
        self._set_state_timer(seconds, self.transport.abort)

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error, unless there is an answer already, and close the connection."""
        is_answered = not self._framing.in_head and self.cycle.response_started
        self._give_up_request()
        if not is_answered:
            self._write_problem(error)
        self._linger()

    def _write_problem(self, error: ServiceError) -> None:
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
        if isinstance(error, MethodNotAllowed):
            head.append("Allow: GET, HEAD, POST")
        if error.retry_after_s is not None:
            head.append(f"Retry-After: {retry_after_header(error.retry_after_s)}")
        self.transport.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
        self._recorder.record(Exchange(context, code=error.code), error.status)

    # Timers and limits

    @property
    def _is_probe_connection(self) -> bool:
        return self._slots is self._all_connections.probe_slots

    def _too_many_connections(self) -> Overloaded:
        detail = f"all {self._settings.max_connections} connections are in use"
        return Overloaded(CONNECTION_RETRY_AFTER_S, detail)

    def _start_head_timer(self) -> None:
        seconds = PROBE_HEAD_S if self._is_probe_connection else self._settings.receive_s
        self._set_state_timer(seconds, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        if self._is_probe_connection:
            self._refuse(self._too_many_connections())
        else:
            seconds = self._settings.receive_s
            self._refuse(RequestTimeout(f"head: not received within {seconds:g} s"))

    def _set_state_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        """End the present state after a time. There is one such timer at most."""
        self._stop_state_timer()
        self._state_timer = self.loop.call_later(seconds, callback)

    def _stop_state_timer(self) -> None:
        if self._state_timer is not None:
            self._state_timer.cancel()
            self._state_timer = None


class _AnswerTransport(asyncio.Transport):
    """The transport as the answer to one request uses it. To close it is left to the connection."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        super().__init__()
        self._transport = transport
        self._close = close

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes of the answer."""
        self._transport.write(data)

    def is_closing(self) -> bool:
        """Whether the connection is being closed."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after the answer."""
        self._close()
