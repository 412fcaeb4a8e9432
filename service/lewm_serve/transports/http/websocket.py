"""WebSockets (RFC 6455) on the connections of the HTTP server, with the limits of HTTP.

A client offers to change the protocol with the head of a GET request. The head is answered like any
other: a route that speaks WebSocket accepts the offer, all others ignore it. Frames are read and
written by the library `websockets`; this module gives them a connection, limits and timers:

    state                              ends after
    ───────────────────────────────────────────────────────────────────────────────────────
    no message                         no byte, nor an answer to a ping, for `PING_S` + `receive_s`
    a message is being received        `receive_s`: refused and closed
    a message is being answered        the work ends, or the client goes away
    the client does not read answers   `receive_s`: closed
    closing                            `LINGER_S`

`pyproject.toml` allows only the versions of `websockets` whose reader
`tests/lewm_serve/transports/http/test_websocket.py` checks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from starlette.requests import ClientDisconnect
from websockets.datastructures import Headers
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from lewm_serve.errors import BodyTooLarge, Overloaded, RequestTimeout, ServiceError
from lewm_serve.observability.logging import log
from lewm_serve.transports.exchange import MemoryReservation, RequestMemory
from lewm_serve.transports.http.connections import Connections

if TYPE_CHECKING:
    from uvicorn.server import ServerState

WEBSOCKET_PATH = "/"
"""The only path that accepts offers."""

OFFER = "lewm.websocket"
"""Where the scope of a request has its offer."""

SWITCHING = 101
"""The HTTP status of an accepted offer."""

PING_S = 20.0
"""A client that has been silent for so long is asked whether it is there."""

LINGER_S = 5.0
"""How long a connection that has been closed for a reason waits for the client's answer."""

SHUTDOWN_S = 1.0
"""How long it waits when the server stops."""

SHUTTING_DOWN = "the server is shutting down"

PIECE_BYTES = 16 * 1024
"""The most bytes that are parsed at once, so that few tiny frames are."""

MAX_WAITING_MESSAGES = 2
"""How many complete messages wait while another is answered. A client of openpi waits itself."""

MAX_FRAME_BURST = 1000
FRAMES_PER_S = 50.0
CONTENT_BYTES_PER_FRAME = 1024
"""How many frames a client may send: so many at once, so many per second, and one more for so much
content. Each frame takes time and each ping an answer, however small they are."""

MAX_LAST_BYTES = 4096
"""How much is read of what a client sends after the connection has been closed."""

MAX_REASON_BYTES = 123

LIBRARY_LOGGER = logging.getLogger("websockets.server")
LIBRARY_LOGGER.setLevel(logging.WARNING)
"""On the level debug, the library would write a line for each frame."""


def handshake(
    method: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]
) -> Response | None:
    """The answer that accepts an offer. None: the head does not offer a WebSocket as it should."""
    fields = Headers([(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers])
    has_body = "transfer-encoding" in fields or fields.get_all("content-length") not in ([], ["0"])
    if method != b"GET" or version != "1.1" or has_body:
        return None
    response = ServerProtocol(logger=LIBRARY_LOGGER).accept(Request("/", fields))
    return response if response.status_code == SWITCHING else None


Serve = Callable[["WebSocketConnection"], Awaitable[None]]


class WebSocketOffer:
    """A head that offers to speak WebSocket from now on.

    Args:
        response: the answer that accepts it.
        switch: gives the connection to another protocol. False: the client has gone away.
    """

    def __init__(self, response: Response, switch: Callable[[WebSocketConnection], bool]) -> None:
        self._response = response
        self._switch = switch

    def accept(self, connection: WebSocketConnection, serve: Serve) -> None:
        """Speak WebSocket. ``serve`` runs from now on, and the connection ends with it.

        Raises:
            ClientDisconnect: the client has gone away.
        """
        connection.response = self._response.serialize()
        connection.serve = serve
        if not self._switch(connection):
            raise ClientDisconnect


@dataclass
class Message:
    """A message from the client. Its bytes count as held by the server in the ``with`` block."""

    data: bytes | bytearray
    _reservation: MemoryReservation

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Count the bytes no longer."""
        self._reservation.release()


class _FrameBudget:
    """How many frames a client may still send."""

    def __init__(self) -> None:
        self._left = float(MAX_FRAME_BURST)
        self._at = time.monotonic()

    def take(self, content_bytes: int) -> bool:
        """Count a frame. False: it is one too many."""
        now = time.monotonic()
        gained = FRAMES_PER_S * (now - self._at) + content_bytes / CONTENT_BYTES_PER_FRAME
        self._left = min(MAX_FRAME_BURST, self._left + gained) - 1
        self._at = now
        return self._left >= 0


class WebSocketConnection(asyncio.Protocol):
    """One connection: messages in, messages out, one after the other.

    Args:
        memory: counts the bytes of messages.
        max_message_bytes: the largest message from the client.
        receive_s: the time in which a message must arrive, and an answer be read.
        record: records a message that is refused before it is complete.

    Attributes:
        response: the answer that accepts the offer.
        serve: what the connection is for.
    """

    def __init__(
        self,
        *,
        memory: RequestMemory,
        max_message_bytes: int,
        receive_s: float,
        record: Callable[[ServiceError], None],
    ) -> None:
        self.response = b""
        self.serve: Serve
        self._gone = asyncio.Event()
        self._memory = memory
        self._record = record
        self._max_message_bytes = max_message_bytes
        self._receive_s = receive_s
        self._frames = ServerProtocol(state=OPEN, max_size=max_message_bytes, logger=LIBRARY_LOGGER)
        self._budget = _FrameBudget()
        self._parts = bytearray()  # the fragments of a message that is not complete
        self._is_text = False
        self._reservation = MemoryReservation(memory)
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._is_receiving = False
        self._is_answering = False
        self._is_closing = False
        self._was_pinged = False
        self._last_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport
        self._connections: Connections
        self._state: ServerState

    def start(
        self, transport: asyncio.Transport, connections: Connections, state: ServerState
    ) -> None:
        """Accept the offer on a connection that has spoken HTTP until now."""
        self._transport, self._connections, self._state = transport, connections, state
        connections.slots.take(self)
        state.connections.add(self)  # type: ignore[arg-type]
        transport.write(self.response)
        self._wait()
        task = asyncio.create_task(self._run())
        state.tasks.add(task)
        task.add_done_callback(state.tasks.discard)

    async def _run(self) -> None:
        try:
            await self.serve(self)
        except Exception:
            log.exception("internal error")
            self.close(CloseCode.INTERNAL_ERROR, "internal error")
        else:
            self.close(CloseCode.GOING_AWAY, SHUTTING_DOWN)

    # What the connection is for

    async def receive(self) -> Message | None:
        """The next message. None: the connection is closed, or is to be closed now."""
        if self._is_answering:
            self._is_answering = False
            if self._connections.closing:
                return None
        self._set_waiting()
        while not self._messages and not self._gone.is_set():
            self._arrived.clear()
            await self._arrived.wait()
        if self._gone.is_set():
            return None
        self._is_answering = True
        self._connections.slots.set_busy(self)
        return self._messages.popleft()

    async def wait_gone(self) -> None:
        """Wait until the client goes away, or the connection is closed for another reason."""
        await self._gone.wait()

    async def send(self, message: bytes | str) -> None:
        """Send a message when the client has read most of those before."""
        await self._writable.wait()
        if self._is_closing:
            return
        if isinstance(message, str):
            self._frames.send_text(message.encode())
        else:
            self._frames.send_binary(message)
        self._flush()

    def _refuse(self, error: ServiceError, code: CloseCode) -> None:
        """Say why the connection is closed, in a text message and in the reason, and close it."""
        if not self._is_closing:
            self._record(error)
            text = f"{error.code}: {error.detail}"
            # The library may have closed its side already: then it sends no message.
            self._transport.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=False))
            self.close(code, text)

    def close(self, code: int, reason: str) -> None:
        """Close the connection, and drop what the client still sends."""
        if self._is_closing:
            return
        if self._frames.state is OPEN:
            short = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
            self._frames.send_close(code, short)
        self._flush()
        self._linger()

    # What the server asks of its connections

    def close_after_answer(self) -> None:
        """Close the connection after the answer that is due: `receive` does."""

    def close_if_idle(self) -> None:
        """Close the connection if no message is being received or answered."""
        if not (self._is_receiving or self._is_answering or self._messages):
            self.close(CloseCode.GOING_AWAY, SHUTTING_DOWN)

    def shutdown(self) -> None:
        """Close the connection, now that the server stops."""
        self.close(CloseCode.GOING_AWAY, SHUTTING_DOWN)
        self._set_timer(SHUTDOWN_S, self._transport.abort)

    def evict(self) -> None:
        """Close the connection at once for a new one. No message is being answered on it."""
        if not self._is_closing:
            self.close(CloseCode.TRY_AGAIN_LATER, "the connection has waited longest")
        self._transport.abort()

    # What the transport reports

    def data_received(self, data: bytes) -> None:
        """Parse the bytes. Those of a message count as held by the server until it is answered."""
        if self._is_closing:
            self._read_last(data)
            return
        self._was_pinged = False
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            try:
                self._reservation.add(len(piece))
            except Overloaded as error:
                self._refuse(error, CloseCode.TRY_AGAIN_LATER)
                return
            self._frames.receive_data(piece)
            for frame in self._frames.events_received():
                assert isinstance(frame, Frame)
                if not self._is_closing:
                    self._take(frame)
            if isinstance(self._frames.parser_exc, PayloadTooBig):
                detail = f"message: received more than {self._max_message_bytes} bytes, the maximum"
                self._refuse(BodyTooLarge(detail), CloseCode.MESSAGE_TOO_BIG)
            if self._frames.parser_exc is not None or self._is_closing:
                self._flush()
                self._linger()
                return
            self._flush()
        self._note_progress()

    def eof_received(self) -> None:
        """The client sends nothing more. The transport closes itself."""
        self._go()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the message that is being answered, and those that wait."""
        self._is_closing = True
        self._go()
        self._drop_messages()
        self._stop_timer()
        self._connections.slots.release(self)
        self._state.connections.discard(self)
        self.resume_writing()

    def pause_writing(self) -> None:
        """The client does not read its answers. It must do so within the time for a message."""
        self._writable.clear()
        if self._write_timer is None:
            loop = asyncio.get_running_loop()
            self._write_timer = loop.call_later(self._receive_s, self._transport.abort)

    def resume_writing(self) -> None:
        """The client has read its answers."""
        self._writable.set()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # Frames

    def _take(self, frame: Frame) -> None:
        """Take a frame of a message. The library has answered pings and closing frames."""
        if not self._budget.take(len(frame.data)):
            self.close(CloseCode.POLICY_VIOLATION, "too many small frames")
            return
        if frame.opcode is Opcode.CLOSE:
            self._flush()
            self._linger()
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        if not frame.fin or self._parts:
            self._parts += frame.data
        if frame.fin:
            message, self._parts = self._parts or bytearray(frame.data), bytearray()
            self._take_message(message)

    def _take_message(self, data: bytearray) -> None:
        if len(self._messages) >= MAX_WAITING_MESSAGES:
            self.close(CloseCode.POLICY_VIOLATION, "expected one message at a time")
            return
        if self._is_text:
            self.close(CloseCode.UNSUPPORTED_DATA, "expected binary messages, received text")
            return
        self._messages.append(Message(data, self._reservation))
        self._reservation = MemoryReservation(self._memory)
        self._is_receiving = False
        self._arrived.set()

    def _flush(self) -> None:
        """Write what the library has to send. An empty piece is the end of the connection."""
        data = b"".join(self._frames.data_to_send())
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # Timers

    def _note_progress(self) -> None:
        """Restart the timer, and count no bytes if no message is being received."""
        was_receiving = self._is_receiving
        self._is_receiving = bool(self._parts or self._frames.reader.buffer)
        if not self._is_receiving:
            self._reservation.release()
            self._wait()
        elif not was_receiving:
            self._connections.slots.set_busy(self)
            self._set_timer(self._receive_s, self._on_receive_timeout)

    def _set_waiting(self) -> None:
        if not self._is_receiving:
            self._connections.slots.set_waiting(self)

    def _wait(self) -> None:
        """Wait for a message, with a ping now and then."""
        if not self._is_answering:
            self._set_waiting()
        self._set_timer(PING_S, self._on_silence)

    def _on_silence(self) -> None:
        if self._was_pinged:
            self._transport.abort()
            return
        self._was_pinged = True
        self._frames.send_ping(b"")
        self._flush()
        self._set_timer(self._receive_s, self._on_silence)

    def _on_receive_timeout(self) -> None:
        error = RequestTimeout(f"message: not received within {self._receive_s:g} s")
        self._refuse(error, CloseCode.POLICY_VIOLATION)

    def _set_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # The end

    def _linger(self) -> None:
        """Drop what the client sends until it closes the connection, or for `LINGER_S`."""
        self._is_closing = True
        self._go()
        self._drop_messages()
        self._connections.slots.set_waiting(self)
        self._set_timer(LINGER_S, self._transport.abort)
        if self._frames.close_rcvd is not None:
            self._transport.close()
        elif not self._transport.is_closing() and self._transport.can_write_eof():  # not of TLS
            self._transport.write_eof()

    def _read_last(self, data: bytes) -> None:
        """Look for the client's closing frame. What is longer than one is dropped."""
        self._last_bytes += len(data)
        if self._last_bytes <= MAX_LAST_BYTES and self._frames.parser_exc is None:
            self._frames.receive_data(data)
            if self._frames.close_rcvd is not None:
                self._transport.close()

    def _go(self) -> None:
        """Let it be known that no answer will be read."""
        self._gone.set()
        self._arrived.set()

    def _drop_messages(self) -> None:
        self._reservation.release()
        while self._messages:
            self._messages.popleft().discard()
        self._parts = bytearray()
