"""What `BoundedHttpProtocol` and `HttpServer` rely on in uvicorn, which does not document it.

When uvicorn is updated and these tests pass, run the tests of this folder, then add the version to
`KNOWN_VERSIONS` and to the range in `pyproject.toml`.
"""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from lewm_serve.transports.http.protocol import BoundedHttpProtocol

KNOWN_VERSIONS = ("0.54",)
"""Versions (major and minor) whose protocol is as expected."""

OVERRIDDEN_METHODS = {
    "connection_made": ("self", "transport"),
    "connection_lost": ("self", "exc"),
    "data_received": ("self", "data"),
    "eof_received": ("self",),
    "on_header": ("self", "name", "value"),
    "on_headers_complete": ("self",),
    "on_message_complete": ("self",),
    "on_response_complete": ("self",),
    "pause_writing": ("self",),
    "resume_writing": ("self",),
}
"""The methods that `BoundedHttpProtocol` overrides, with their parameters in uvicorn."""


def test_the_installed_version_is_known() -> None:
    assert uvicorn.__version__.rpartition(".")[0] in KNOWN_VERSIONS


@pytest.mark.parametrize(("name", "parameters"), OVERRIDDEN_METHODS.items())
def test_the_overridden_methods_have_the_expected_parameters(
    name: str, parameters: tuple[str, ...]
) -> None:
    method: Callable[..., Any] = getattr(HttpToolsProtocol, name)
    assert tuple(inspect.signature(method).parameters) == parameters
    assert not inspect.iscoroutinefunction(method)


def test_no_other_method_is_overridden() -> None:
    inherited = set(dir(HttpToolsProtocol))
    overridden = {name for name in vars(BoundedHttpProtocol) if name in inherited}
    ignored = {name for name in overridden if name.startswith("__")}
    assert overridden - ignored == set(OVERRIDDEN_METHODS)


def test_the_constructor_takes_what_the_server_gives() -> None:
    """`BoundedHttpProtocol` passes all arguments on, and adds three of its own."""
    parameters = inspect.signature(HttpToolsProtocol.__init__).parameters
    assert {"config", "server_state", "app_state"} <= set(parameters)
    assert not {"settings", "metrics", "connections"} & set(parameters)


class FakeTransport(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


class RecordingProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which records its own calls of methods that are overridden."""

    calls: list[str]

    def on_headers_complete(self) -> None:
        self.calls.append("on_headers_complete")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.calls.append("on_message_complete")
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.calls.append("on_response_complete")
        super().on_response_complete()


async def answer_nothing(scope: object, receive: object, send: object) -> None:
    """An application that waits for ever."""
    await asyncio.Event().wait()


@pytest.fixture
async def protocol() -> RecordingProtocol:
    config = uvicorn.Config(answer_nothing, http=RecordingProtocol, log_config=None, lifespan="off")
    config.load()
    protocol = RecordingProtocol(config=config, server_state=ServerState(), app_state={})
    protocol.calls = []
    protocol.connection_made(FakeTransport())
    return protocol


async def test_a_connection_has_the_expected_attributes(protocol: RecordingProtocol) -> None:
    assert protocol.loop is asyncio.get_running_loop()
    assert isinstance(protocol.transport, FakeTransport)
    assert protocol.connections == {protocol}
    protocol.connection_lost(None)
    assert protocol.connections == set()


async def test_the_parser_reports_the_ends_of_head_and_body(protocol: RecordingProtocol) -> None:
    protocol.data_received(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n")
    assert protocol.calls == []
    protocol.data_received(b"\r\n{")
    assert protocol.calls == ["on_headers_complete"]
    protocol.data_received(b"}")
    assert protocol.calls == ["on_headers_complete", "on_message_complete"]
    protocol.connection_lost(None)


async def test_a_request_has_the_expected_attributes(protocol: RecordingProtocol) -> None:
    """Those of the cycle, which is one request and its answer, and those of the connection."""
    protocol.data_received(
        b"POST /path?query HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}"
    )
    cycle = protocol.cycle
    assert (protocol.url, protocol.headers[0]) == (b"/path?query", (b"upgrade", b"h2c"))
    assert (cycle.transport, bytes(cycle.body)) == (protocol.transport, b"{}")
    assert (cycle.response_started, cycle.response_complete) == (False, False)
    assert (cycle.disconnected, cycle.keep_alive) == (False, True)
    cycle.disconnected = True
    cycle.message_event.set()
    assert await cycle.receive() == {"type": "http.disconnect"}
    protocol.connection_lost(None)


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_an_answer_closes_the_connection_and_then_calls_on_response_complete(
    protocol: RecordingProtocol, keep_alive: bool
) -> None:
    transport = protocol.transport
    assert isinstance(transport, FakeTransport)
    protocol.data_received(b"GET / HTTP/1.1\r\n\r\n")
    cycle = protocol.cycle
    cycle.keep_alive = keep_alive
    assert protocol.server_state.total_requests == 0
    head: Any = {"type": "http.response.start", "status": 200, "headers": []}
    body: Any = {"type": "http.response.body", "body": b"{}"}
    await cycle.send(head)
    assert cycle.response_started
    await cycle.send(body)
    assert cycle.response_complete
    assert (b"connection: close" in transport.written, transport.closed) == (not keep_alive,) * 2
    assert protocol.calls[-1] == "on_response_complete"
    assert protocol.server_state.total_requests == 1
    protocol.connection_lost(None)


def test_the_server_has_the_expected_interface() -> None:
    server = uvicorn.Server(uvicorn.Config(answer_nothing))
    assert (server.started, server.should_exit) == (False, False)
    assert "sockets" in inspect.signature(server.serve).parameters
    assert hasattr(server.config, "timeout_graceful_shutdown")
    with server.capture_signals():  # `HttpServer` replaces this context manager
        pass
