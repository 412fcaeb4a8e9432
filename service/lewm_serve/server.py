"""The server's life: listen, load, serve, drain, stop.

Ports are open before models are loaded, so that a start is visible from outside: until the planner
is ready, requests get `loading`. SIGTERM and SIGINT drain: new requests get `draining`, those in
flight are finished within the grace period. A second signal ends the process at once.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys

import uvloop

from lewm_serve.held import HeldBytes
from lewm_serve.logs import configure_logs, log
from lewm_serve.metrics import Metrics
from lewm_serve.planner import Planner
from lewm_serve.rest.app import create_app
from lewm_serve.rest.server import RestServer
from lewm_serve.rpc.server import RpcServer
from lewm_serve.served import ModelLoadError
from lewm_serve.settings import Settings

WATCH_S = 0.25
FLUSH_S = 2.0  # for answers that are made but not yet sent


class StartError(RuntimeError):
    """The server cannot start; the message says why."""


class Server:
    """Both transports over one planner."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        metrics = Metrics()
        self.planner = Planner(settings, metrics)
        held = HeldBytes(max(settings.max_held_bytes, settings.max_body_bytes))
        metrics.held_bytes.set_function(lambda: held.total)
        self.rest = RestServer(create_app(self.planner, settings, metrics, held), settings, metrics)
        self.rpc = RpcServer(self.planner, settings, metrics, held)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until asked to stop; `StartError` when that cannot begin."""
        self._handle_signals()
        host = self.settings.host
        try:
            http_port = self.rest.bind(host, self.settings.http_port)
            grpc_port = self.rpc.bind(host, self.settings.grpc_port)
        except OSError as error:
            raise StartError(str(error)) from None
        if not self.settings.loopback:
            log.warning("reachable from other machines, without authentication", host=host)
        await self.rest.start()
        await self.rpc.start()
        log.info("listening", http_port=http_port, grpc_port=grpc_port)
        try:
            if await self._load():
                self._announce(http_port, grpc_port)
                await self._serve()
        finally:
            await self._stop()

    async def _load(self) -> bool:
        """Start the planner; False when asked to stop meanwhile."""
        loading = asyncio.create_task(self.planner.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not loading.done():
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            return False
        try:
            loading.result()
        except ModelLoadError as error:
            raise StartError(str(error)) from None
        await self.rpc.set_ready(True)
        return True

    def _announce(self, http_port: int, grpc_port: int) -> None:
        models = [model.name for model in self.planner.models()]
        ready = {
            "event": "ready",
            "http_port": http_port,
            "grpc_port": grpc_port,
            "models": models,
        }
        print(json.dumps(ready), flush=True)
        log.info("ready", http_port=http_port, grpc_port=grpc_port, models=models)

    async def _serve(self) -> None:
        """Wait for the signal; meanwhile the health service follows the planner."""
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), WATCH_S)
            if self.planner.state == "failed":
                await self.rpc.set_ready(False)

    async def _stop(self) -> None:
        self.planner.drain()
        await self.rpc.set_ready(False)
        await self.planner.stop(self.settings.grace_s)
        await asyncio.gather(self.rest.stop(FLUSH_S), self.rpc.stop(FLUSH_S))
        log.info("stopped")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            os._exit(128 + number)
        log.info("stopping", signal=number.name, grace_s=self.settings.grace_s)
        self._stopping.set()


def serve(settings: Settings) -> None:
    """Run the server until a signal stops it."""
    configure_logs(settings)

    async def main() -> None:
        await Server(settings).run()
        # A step of the model that outlasts the grace period cannot be interrupted, and tearing
        # the interpreter down under it would abort: leave without.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    uvloop.run(main())
