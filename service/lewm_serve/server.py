"""The life of the server: listen, load, serve, drain, stop.

The ports are open before the models are loaded, so that the start is visible from outside: until
the planner is ready, requests get `loading`. After SIGTERM or SIGINT, a server that is ready

1. leaves: for the drain lag it says that it is not ready and still takes requests, so that load
   balancers have time to send them elsewhere;
2. drains: new requests get `draining`, and those in progress are finished within the grace period;
3. stops.

A second signal ends the process at once. So does the first one before the ports are open: see
`signals`.

SIGHUP reads the model folders again.

A signal acts first and is logged afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
from collections.abc import Sequence

import uvloop

from lewm_serve.observability.logging import LineWriter, log
from lewm_serve.registry.registry import ModelLoadError
from lewm_serve.service import Service, StartError
from lewm_serve.settings import Settings, SettingsError
from lewm_serve.signals import (
    IGNORED_SIGNALS,
    RELOAD_SIGNAL,
    STOP_SIGNALS,
    exit_process,
    log_ignored_signal,
)
from lewm_serve.transports.addresses import are_loopback, resolve
from lewm_serve.transports.grpc.server import GrpcServer
from lewm_serve.transports.http.server import HttpServer
from lewm_serve.transports.tls import Certificates, TlsError, load_certificates
from lewm_serve.workers.process import EngineProcesses
from lewm_serve.workers.worker import Worker

FLUSH_S = 2.0
"""The time to send answers that are ready when the server stops."""

SECOND_SIGNAL_FLUSH_S = 0.1
"""The time to write the last lines of the log when a second signal ends the server."""

STDOUT = 1


NOT_PROTECTED = (
    "LEWM_HOST (--host) is {host}, so other machines reach this server, and anyone there could use "
    "it. Set LEWM_KEYS_FILE to a file of `lewm keys add`; or, for certificates of clients, "
    "LEWM_TLS_CERT, LEWM_TLS_KEY and LEWM_TLS_CLIENT_CA; or LEWM_INSECURE=1 if everything that "
    "reaches it may use it"
)


class Server:
    """Both transports with one planner.

    Args:
        settings: the server's settings.
        workers: see `Planner`.

    Raises:
        SettingsError: a setting is missing that another one needs.
        StartError: the keys file or the certificates cannot be used, or traces are wanted, but
            OpenTelemetry is not installed or not usable.
    """

    def __init__(self, settings: Settings, workers: Sequence[Worker] = ()) -> None:
        self.settings = settings
        certificates = _read_certificates(settings)
        self.service = service = Service(settings, workers)
        self.planner = service.planner
        self.http = HttpServer(service.app, settings, service.recorder, certificates)
        self.monitoring: HttpServer | None = None
        if settings.metrics_port is not None:
            # Orchestrators have no certificate.
            without_clients = settings.model_copy(update={"tls_client_ca": None})
            certificates_of_server = _read_certificates(without_clients)
            self.monitoring = HttpServer(
                service.monitoring, settings, service.recorder, certificates_of_server
            )
        self.grpc = GrpcServer(
            self.planner,
            settings,
            metrics=service.metrics,
            memory=service.memory,
            recorder=service.recorder,
            keys=service.keys,
            certificates=certificates,
        )
        self._stopping = asyncio.Event()
        self._reloading: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Serve until a signal asks to stop.

        Raises:
            SettingsError: other machines would reach the server without a check of who they are.
            StartError: the server cannot start.
        """
        try:
            addresses = await resolve(self.settings.host)
            self._check_reachable(addresses)
            http_port = self.http.bind(addresses, self.settings.http_port)
            grpc_port = self.grpc.bind(addresses, self.settings.grpc_port)
            ports = {"http_port": http_port, "grpc_port": grpc_port}
            if self.monitoring is not None and self.settings.metrics_port is not None:
                ports["metrics_port"] = self.monitoring.bind(addresses, self.settings.metrics_port)
        except OSError as error:
            raise StartError(str(error)) from None
        self._handle_signals()
        await self.http.start()
        if self.monitoring is not None:
            await self.monitoring.start()
        await self.grpc.start()
        log.info("listening", **ports)
        try:
            if await self._load():
                self._announce(ports)
                await self._serve()
        finally:
            await self._stop()

    def _check_reachable(self, addresses: list[str]) -> None:
        """Refuse to serve other machines without a check of who they are.

        Raises:
            SettingsError: that is what the settings ask for.
        """
        settings = self.settings
        self.service.is_local = are_loopback(addresses)
        if self.service.is_local:
            return
        # The port for monitoring asks for keys alone.
        asks_for_certificates = settings.tls_client_ca is not None and self.monitoring is None
        if settings.keys_file is None and not asks_for_certificates:
            if not settings.insecure:
                raise SettingsError(NOT_PROTECTED.format(host=settings.host))
            log.warning(
                "reachable from other machines, without authentication", addresses=addresses
            )
        elif settings.tls_cert is None:
            log.warning(
                "keys travel unencrypted: set LEWM_TLS_CERT and LEWM_TLS_KEY, or put a "
                "proxy that encrypts between clients and this server",
                addresses=addresses,
            )

    async def _load(self) -> bool:
        """Start the planner. False if a signal asks to stop meanwhile."""
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
        await self.grpc.set_ready(True)
        return True

    def _announce(self, ports: dict[str, int]) -> None:
        models = [model.name for model in self.planner.describe_models().models]
        ready = {"event": "ready", **ports, "models": models}
        # What reads standard output may have stopped reading.
        LineWriter(STDOUT).write(json.dumps(ready) + "\n")
        log.info("ready", **ports, models=models)

    async def _serve(self) -> None:
        """Wait for a signal."""
        stopping = asyncio.create_task(self._stopping.wait())
        failing = asyncio.create_task(self.planner.wait_failed())
        following = asyncio.create_task(self._follow_engine())
        await stopping
        following.cancel()
        await self._leave(failing)
        failing.cancel()

    async def _follow_engine(self) -> None:
        """Let the gRPC health service say whether the engine runs."""
        while True:
            await self.planner.wait_engine(up=False)
            await self.grpc.set_ready(False)
            await self.planner.wait_engine(up=True)
            await self.grpc.set_ready(True)

    async def _leave(self, failing: asyncio.Task[None]) -> None:
        """Be unready and serve for the drain lag, or until the engine fails."""
        lag_s = self.settings.drain_lag_s
        if not lag_s:
            return
        self.planner.leave()
        self.http.leave()
        await self.grpc.set_ready(False)
        log.info("leaving", drain_lag_s=lag_s)
        await asyncio.wait((failing,), timeout=lag_s)

    async def _stop(self) -> None:
        self.planner.drain()
        self.http.drain()
        await self.grpc.set_ready(False)
        log.info("draining", grace_s=self.settings.grace_s)
        await self.planner.stop(self.settings.grace_s)
        await asyncio.gather(self.http.stop(FLUSH_S), self.grpc.stop(FLUSH_S))
        if self.monitoring is not None:
            self.monitoring.drain()
            await self.monitoring.stop(FLUSH_S)
        await self.service.close()
        log.info("stopped")

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._on_stop_signal, number)
        for number in IGNORED_SIGNALS:
            loop.add_signal_handler(number, log_ignored_signal, number)
        loop.add_signal_handler(RELOAD_SIGNAL, self._on_reload_signal)

    def _on_stop_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            exit_process(128 + number, SECOND_SIGNAL_FLUSH_S)
        self._stopping.set()
        log.info("stopping", signal=number.name)

    def _on_reload_signal(self) -> None:
        if self.planner.state == "ready":
            self._reloading = asyncio.create_task(self._reload_models())
        else:
            log_ignored_signal(RELOAD_SIGNAL)

    async def _reload_models(self) -> None:
        """Read the model folders again. The log has what became of each model."""
        with contextlib.suppress(Exception):  # logged where it was raised, or the server stops
            await self.planner.reload_models()


def _read_certificates(settings: Settings) -> Certificates | None:
    try:
        return load_certificates(settings)
    except TlsError as error:
        raise StartError(str(error)) from None


def _raise_limit_of_open_files() -> None:
    """Each connection is an open file, and the usual limit is lower than it has to be."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(settings: Settings) -> None:
    """Run the server until a signal stops it."""
    _raise_limit_of_open_files()
    processes = EngineProcesses(settings) if settings.engine == "process" else None

    async def main() -> None:
        workers = [] if processes is None else processes.workers()
        await Server(settings, workers).run()
        exit_process(0)

    uvloop.run(main())
