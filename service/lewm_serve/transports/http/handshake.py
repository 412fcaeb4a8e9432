"""A TLS connection until its handshake is complete. Only then is it an HTTP connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]

from lewm_serve.observability.logging import log
from lewm_serve.transports.http.connections import ConnectionSlots
from lewm_serve.transports.tls import Certificates


class HandshakeProtocol(asyncio.Protocol):
    """Takes a new connection, and passes it on when the client is known to speak TLS.

    uvicorn and the event loop could do the handshake themselves. But the connection would not be
    counted until its end, and a client that connects and sends nothing costs memory.

    Args:
        certificates: those of the server.
        slots: for connections whose handshake is not complete. If there are too many, the oldest
            is closed.
        timeout_s: the longest time for a handshake, and for the end of an encrypted connection.
        make_protocol: makes the HTTP protocol, of uvicorn's arguments.
        options: these arguments.
    """

    def __init__(
        self,
        *,
        certificates: Certificates,
        slots: ConnectionSlots,
        timeout_s: float,
        make_protocol: Callable[..., asyncio.Protocol],
        **options: Any,
    ) -> None:
        self._certificates = certificates
        self._slots = slots
        self._timeout_s = timeout_s
        self._protocol = make_protocol(**options)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the handshake, if there are not too many others."""
        self._transport = transport
        if not self._slots.take(self):
            transport.abort()
            return
        # `loop.start_tls` is a coroutine: it would miss what the client sends before it runs.
        loop = asyncio.get_running_loop()
        complete = loop.create_future()
        complete.add_done_callback(self._on_handshake_complete)
        encrypted = SSLProtocol(
            loop,
            self._protocol,
            self._certificates.context(),
            complete,
            server_side=True,
            ssl_handshake_timeout=self._timeout_s,
            ssl_shutdown_timeout=self._timeout_s,
        )
        transport.set_protocol(encrypted)
        encrypted.connection_made(transport)

    def evict(self) -> None:
        """Close the connection at once for a new one."""
        self._transport.abort()

    def _on_handshake_complete(self, complete: asyncio.Future[None]) -> None:
        self._slots.release(self)
        if (error := complete.exception()) is not None:
            log.debug("TLS handshake failed", error=str(error))
