"""HTTP by hand, for what no client library sends."""

import json
import socket
import ssl
from collections.abc import Iterable
from typing import Any, NamedTuple, Self

from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

JSON_HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class RawAnswer(NamedTuple):
    """An answer as it came: its status, its fields by lower-case names, its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The body as JSON."""
        document: dict[str, Any] = json.loads(self.body)
        return document


class RawConnection:
    """One connection to the HTTP port.

    Args:
        server: the server.
        receive_buffer: the size of the buffer for answers that nobody reads; None: the system's.
        tls: what the client encrypts with; None: it speaks in the clear.
    """

    def __init__(
        self,
        server: ServerProcess,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(PATIENCE_S)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", server.http_port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self._received = bytearray()

    def send(self, *parts: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(b"".join(parts))

    def send_in_vain(self, parts: Iterable[bytes]) -> None:
        """Send bytes until the server has closed the connection, which it must do."""
        try:
            for part in parts:
                self.socket.sendall(part)
        except ConnectionError:
            return

    def read_answer(self) -> RawAnswer:
        """The next answer. An interim answer is an answer too."""
        head = self._read_until(b"\r\n\r\n")
        status_line, *fields = head.decode("ascii").split("\r\n")[:-2]
        names_and_values = (field.split(": ", 1) for field in fields)
        headers = {name.lower(): value for name, value in names_and_values}
        body = self.read(int(headers.get("content-length", 0)))
        return RawAnswer(int(status_line.split()[1]), headers, body)

    def read(self, size: int) -> bytes:
        """The next bytes."""
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def is_closed(self) -> bool:
        """Wait until the server closes the connection; False if it sends something before."""
        try:
            return not self._received and self.socket.recv(65536) == b""
        except ConnectionResetError:
            return True

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        return self.read(self._received.index(end) + len(end))

    def _receive(self) -> None:
        part = self.socket.recv(65536)
        if not part:
            raise EOFError(f"the server closed the connection after {self._received!r}")
        self._received += part

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def post(path: str, document: object, *fields: bytes) -> bytes:
    """A request with a JSON body."""
    body = json.dumps(document).encode()
    return b"".join([post_head(path, len(body), *fields), body])


def post_head(path: str, content_length: int | None, *fields: bytes) -> bytes:
    """The head of a request with a JSON body; None: the body is chunked."""
    length = (
        b"Transfer-Encoding: chunked"
        if content_length is None
        else b"Content-Length: %d" % content_length
    )
    return JSON_HEAD % path.encode() + b"\r\n".join([*fields, length, b"", b""])


def get(path: str) -> bytes:
    """A request without a body."""
    return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()


def chunked(body: bytes, chunk_size: int) -> bytes:
    """A body in chunks of a size."""
    parts = [body[start : start + chunk_size] for start in range(0, len(body), chunk_size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
