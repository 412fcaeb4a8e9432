"""The HTTP server: uvicorn inside a loop that somebody else runs and stops."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from lewm_serve.metrics import Metrics
from lewm_serve.rest.protocol import BoundedHttpProtocol
from lewm_serve.settings import Settings

KEEP_ALIVE_S = 75  # longer than the idle timeout of common load balancers
BACKLOG = 2048


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process's own lifecycle."""
        yield


class RestServer:
    """An ASGI application on a port."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        protocol: Any = partial(BoundedHttpProtocol, bounds=settings, metrics=metrics)
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
        self._server = _Uvicorn(config)
        self._socket: socket.socket | None = None
        self._serving: asyncio.Task[None] | None = None

    def bind(self, host: str, port: int) -> int:
        """Listen on the port (0: a free one) and return it; `OSError` when it is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        bound: int = self._socket.getsockname()[1]
        return bound

    async def start(self) -> None:
        """Take requests from now on."""
        assert self._socket is not None, "bind first"
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)

    async def stop(self, grace_s: float) -> None:
        """Finish the requests being answered within the grace period, then close."""
        if self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._serving
