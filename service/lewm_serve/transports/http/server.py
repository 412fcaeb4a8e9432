"""The HTTP server: uvicorn on an event loop that `lewm_serve.server` runs and stops."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from lewm_serve.settings import Settings
from lewm_serve.transports.addresses import listen
from lewm_serve.transports.exchange import RequestRecorder
from lewm_serve.transports.http.connections import MIN_WAITING_S, Connections, ConnectionSlots
from lewm_serve.transports.http.handshake import HandshakeProtocol
from lewm_serve.transports.http.protocol import BoundedHttpProtocol
from lewm_serve.transports.tls import Certificates

KEEP_ALIVE_S = 75
"""Longer than the idle timeout of common load balancers."""


class _UvicornServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `lewm_serve.server`."""
        yield


class HttpServer:
    """An ASGI application on a port. Without certificates, it speaks in the clear."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        recorder: RequestRecorder,
        certificates: Certificates | None,
    ) -> None:
        self._connections = Connections(settings.max_connections)
        protocol: Any = partial(
            BoundedHttpProtocol,
            settings=settings,
            recorder=recorder,
            connections=self._connections,
        )
        if certificates is not None:
            protocol = partial(
                HandshakeProtocol,
                certificates=certificates,
                slots=ConnectionSlots(settings.max_connections, MIN_WAITING_S),
                timeout_s=settings.receive_s,
                make_protocol=protocol,
            )
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._server = _UvicornServer(config)
        self._sockets: list[socket.socket] = []
        self._serving: asyncio.Task[None] | None = None

    def bind(self, addresses: Sequence[str], port: int) -> int:
        """Listen on a port (0: a free one) of all addresses, and return it.

        Raises:
            OSError: the port cannot be used.
        """
        self._sockets = listen(addresses, port)
        bound: int = self._sockets[0].getsockname()[1]
        return bound

    async def start(self) -> None:
        """Accept requests from now on."""
        assert self._sockets, "bind first"
        self._serving = asyncio.create_task(self._server.serve(self._sockets))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)

    def leave(self) -> None:
        """Close each connection after its next answer."""
        self._connections.closing = True
        for connection in self._open_connections():
            connection.close_after_answer()

    def drain(self) -> None:
        """Close idle connections, and the others after their next answer."""
        self.leave()
        for connection in self._open_connections():
            connection.close_if_idle()

    def _open_connections(self) -> list[BoundedHttpProtocol]:
        connections: Any = self._server.server_state.connections
        return list(connections)

    async def stop(self, grace_s: float) -> None:
        """Finish the requests in progress within the grace period, then close."""
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._serving
