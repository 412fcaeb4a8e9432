"""A gRPC client that may stop at any byte. It writes the frames of HTTP/2 itself."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Self

from tests.patience import PATIENCE_S

DATA, HEADERS, RESET, SETTINGS, PING, GO_AWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
INITIAL_WINDOW = 65_535
MAX_FRAME = 16_384
PLAN = "/lewm.v1.PlannerService/Plan"


class Http2Connection:
    """One connection to the gRPC port. Without ``tls`` it speaks in the clear.

    Attributes:
        ended: the streams that the server has ended.
        closed: whether the server has closed the connection.
        received: the bytes of each stream's data and headers.
    """

    def __init__(
        self,
        port: int,
        *,
        initial_window: int = INITIAL_WINDOW,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        if tls is not None:
            self._socket = tls.wrap_socket(self._socket, server_hostname="127.0.0.1")
        self._buffer = b""
        self._next_stream = 1
        self._window = INITIAL_WINDOW
        self._initial_stream_window = INITIAL_WINDOW
        self._stream_windows: defaultdict[int, int] = defaultdict(int)  # beside the initial one
        self.ended: set[int] = set()
        self.closed = False
        self.received: defaultdict[int, bytes] = defaultdict(bytes)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send_frame(SETTINGS, 0, 0, struct.pack(">HI", 4, initial_window))

    def send_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """Send one frame, unless the server has closed the connection."""
        head = (
            struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        )
        try:
            self._socket.sendall(head + payload)
        except (BrokenPipeError, ConnectionResetError):
            self.closed = True

    def start_call(self, method: str = PLAN, metadata: Iterable[tuple[str, str]] = ()) -> int:
        """Send the headers of a call and return its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *metadata,
        ]
        self.send_frame(HEADERS, 4, stream, b"".join(_literal(*header) for header in headers))
        return stream

    def send_data(self, stream: int, data: bytes, patience_s: float = PATIENCE_S) -> int:
        """Send as much as the server takes, and return how much that was."""
        sent = 0
        end = time.monotonic() + patience_s
        while sent < len(data) and stream not in self.ended and not self.closed:
            window = min(
                self._window, self._initial_stream_window + self._stream_windows[stream], MAX_FRAME
            )
            if window > 0:
                part = data[sent : sent + window]
                self.send_frame(DATA, 0, stream, part)
                self._window -= len(part)
                self._stream_windows[stream] -= len(part)
                sent += len(part)
            elif time.monotonic() > end:
                break
            self.receive(0 if window > 0 else 0.05)
        return sent

    def receive(self, wait_s: float = 0.0) -> None:
        """Read what the server has sent."""
        while not self.closed and select.select([self._socket], [], [], wait_s)[0]:
            try:
                data = self._socket.recv(1 << 20)
            except ConnectionResetError:
                data = b""
            self.closed = not data
            self._buffer += data
            self._read_frames()
            wait_s = 0.0

    def _read_frames(self) -> None:
        while len(self._buffer) >= 9:
            length = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + length:
                return
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
            self._on_frame(kind, flags, stream, payload)

    def _on_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & 1:
            for start in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[start : start + 6])
                if name == 4:
                    self._initial_stream_window = value
            self.send_frame(SETTINGS, 1, 0, b"")
        elif kind == PING and not flags & 1:
            self.send_frame(PING, 1, 0, payload)
        elif kind == WINDOW_UPDATE:
            (size,) = struct.unpack(">I", payload)
            if stream:
                self._stream_windows[stream] += size
            else:
                self._window += size
        elif kind in (DATA, HEADERS):
            self.received[stream] += payload
        if kind == RESET or (kind in (DATA, HEADERS) and flags & 1):
            self.ended.add(stream)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def message_head(length: int, *, compressed: bool = False) -> bytes:
    """The prefix of a gRPC message."""
    return struct.pack(">BI", compressed, length)


def _literal(name: str, value: str) -> bytes:
    """A header as HPACK writes it without tables and compression."""
    return b"\x00" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    data = text.encode()
    size = len(data)
    if size < 127:
        return bytes([size]) + data
    size -= 127
    prefix = [127]
    while size >= 128:
        prefix.append(size % 128 + 128)
        size //= 128
    return bytes([*prefix, size]) + data
