"""A planner and what its transports share: metrics, keys, memory, and the application of HTTP.

What listens is elsewhere: `server` opens ports, and `ray_serve` answers what Ray's proxies pass on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lewm_serve.access.keys import Keys
from lewm_serve.access.keys_file import KeysFileError
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.http.app import create_app
from lewm_serve.workers.worker import Worker

if TYPE_CHECKING:
    from lewm_serve.observability.tracing import RequestTracer
    from lewm_serve.transports.http.console.data import ConsoleData

TRACES_FLUSH_S = 1.0
"""The longest time that the end of the service waits for the receiver of traces."""


class StartError(RuntimeError):
    """The server cannot start. The message says why."""


class Service:
    """See the module.

    Args:
        settings: the settings.
        workers: see `Planner`.

    Attributes:
        app: what answers over HTTP.
        monitoring: what answers `/metrics`, `/healthz` and `/readyz` alone.
        is_local: whether only this machine can reach the service. The caller sets it.

    Raises:
        StartError: the keys file cannot be used, or traces are wanted, but OpenTelemetry is not
            installed or not usable.
    """

    def __init__(self, settings: Settings, workers: Sequence[Worker] = ()) -> None:
        self._tracer = _make_tracer(settings)
        self.keys = _read_keys(settings)
        console = _make_console_data(settings)
        history, recent = (console.history, console.recent) if console else (None, None)
        self.metrics = Metrics()
        self.planner = Planner(settings, self.metrics, workers, history)
        memory = RequestMemory(max(settings.max_held_bytes, settings.max_body_bytes))
        self.metrics.held_bytes.set_function(lambda: memory.total + memory.incomplete)
        self.memory = memory
        self.recorder = RequestRecorder(self.metrics, self._tracer, recent)
        self.is_local = False
        self.app, self.monitoring = create_app(
            self.planner,
            settings,
            metrics=self.metrics,
            memory=self.memory,
            recorder=self.recorder,
            keys=self.keys,
            is_local=lambda: self.is_local,
            console=console,
        )

    async def close(self) -> None:
        """Send the last traces."""
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close, TRACES_FLUSH_S)


def _read_keys(settings: Settings) -> Keys | None:
    if settings.keys_file is None:
        return None
    try:
        keys = Keys(settings.keys_file)
    except KeysFileError as error:
        raise StartError(f"LEWM_KEYS_FILE (--keys-file): {error}") from None
    if not keys:
        log.warning("there is no key in the keys file: nobody may come in")
    return keys


def _make_console_data(settings: Settings) -> ConsoleData | None:
    """What the console shows, if there is to be one."""
    if not settings.console:
        return None
    from lewm_serve.transports.http.console.data import ConsoleData

    return ConsoleData()


def _make_tracer(settings: Settings) -> RequestTracer | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        from lewm_serve.observability.tracing import RequestTracer
    except ModuleNotFoundError as error:
        raise StartError(
            f"LEWM_OTLP_ENDPOINT (--otlp-endpoint) is {settings.otlp_endpoint}, and traces need "
            f"the package of the module {error.name}: pip install 'lewm-serve[tracing]'"
        ) from None
    try:
        return RequestTracer(settings.otlp_endpoint)
    except ValueError as error:
        raise StartError(f"OpenTelemetry cannot use a variable OTEL_…: {error}") from None
