"""The application of Ray Serve. Each replica is a planner for one device: see docs/ray.md.

Ray's proxies listen, choose a replica, and pass the request on. The replica answers it as
`lewm serve` does, with the same planner. Its engine is a thread: if that fails, Ray replaces the
replica.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

# See lewm_serve.cli.main. The variable is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lewm_serve.errors import Failed, ServiceError
from lewm_serve.observability.logging import configure_logs, log
from lewm_serve.ray_serve.grpc_calls import Answer, GrpcCalls, RayContext
from lewm_serve.ray_serve.proxies import METHOD_NAMES, RobotRouter
from lewm_serve.ray_serve.settings import read_settings
from lewm_serve.service import Service, StartError
from lewm_serve.settings import Settings
from lewm_serve.transports.addresses import resolve
from lewm_serve.transports.http.server import HttpServer

MAX_ONGOING_REQUESTS = 64
"""Requests in one replica, where the planner orders them by their deadlines. Further ones go to
another replica, or wait in the proxy."""
MAX_QUEUED_REQUESTS = 256
"""Requests that wait in one proxy. Ray refuses further ones."""

MAX_REPLICAS_OF_NODE = 16
"""Each replica takes one port for metrics, and a replica that stops keeps its port until then."""

POLICY_VIOLATION = 1008
"""Of RFC 6455. Before a WebSocket is open, the proxy turns it into 403."""

PORTS = 1 << 16
"""The highest port of TCP, and one more."""

FLUSH_S = 1.0
"""The time to answer the last request for metrics when the replica stops."""


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application with these settings. Environment variables `LEWM_…` give the others.

    Raises:
        SettingsError: see `read_settings`.
    """
    read_settings(args)
    return Planner.bind(dict(args))


class Replica:
    """A planner for one device, with the methods that Ray calls.

    Args:
        args: see `build`.

    Raises:
        SettingsError, StartError, ModelLoadError: the replica cannot start.
    """

    async def __init__(self, args: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        settings = read_settings(args)
        cores = int(ray.get_runtime_context().get_assigned_resources().get("CPU", 0))
        if settings.threads is None and cores:
            settings = settings.model_copy(update={"threads": cores})
        configure_logs(settings)
        self._service = Service(settings)
        self._planner = self._service.planner
        self._grpc = GrpcCalls(self._service, settings)
        await self._grpc.start()
        self._monitoring = await _serve_metrics(self._service, settings)
        await self._planner.start()
        log.info("ready", models=[model.name for model in self._planner.describe_models().models])

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _behind_proxy(self._service.app)

    async def check_health(self) -> None:
        """Have the replica replaced if its engine has failed."""
        if self._planner.state == "failed":
            raise Failed

    async def reconfigure(self, _user_config: object) -> None:
        """Read the model folders again. The log has what became of each model."""
        with suppress(ServiceError):  # then the replica serves what it has
            await self._planner.reload_models()

    async def __del__(self) -> None:
        await self._planner.stop(0)
        if self._monitoring is not None:
            await self._monitoring.stop(FLUSH_S)
        await self._service.close()


def _grpc_method(name: str) -> Callable[[Replica, bytes, RayContext], Awaitable[Answer]]:
    async def method(replica: Replica, message: bytes, grpc_context: RayContext) -> Answer:
        return await replica._grpc.answer(name, message, grpc_context)

    return method


for _name in METHOD_NAMES:
    setattr(Replica, _name, _grpc_method(_name))

Planner = serve.deployment(
    name="planner",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    max_queued_requests=MAX_QUEUED_REQUESTS,
    health_check_period_s=2,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    request_router_config=RequestRouterConfig(request_router_class=RobotRouter),
)(serve.ingress()(Replica))


async def _serve_metrics(service: Service, settings: Settings) -> HttpServer | None:
    """Answer `/metrics` of this replica alone, on the first free port from `metrics_port` on.

    Raises:
        StartError: no port can be used.
    """
    if settings.metrics_port is None:
        return None
    server = HttpServer(service.monitoring, settings, service.recorder, certificates=None)
    addresses, first = await resolve(settings.host), settings.metrics_port
    for port in range(first, min(first + MAX_REPLICAS_OF_NODE, PORTS)):
        with suppress(OSError):
            bound = server.bind(addresses, port)
            await server.start()
            log.info("listening", metrics_port=bound)
            return server
    raise StartError(
        f"metrics_port: {first} and the {MAX_REPLICAS_OF_NODE - 1} next ports are in use"
    )


def _behind_proxy(app: ASGIApp) -> ASGIApp:
    """The application without what Ray's proxy does: it names requests, and cannot do openpi."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        await app(scope, receive, send_unnamed)

    return answer
