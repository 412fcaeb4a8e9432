"""The gRPC server: the planner's methods, health and reflection on one port."""

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from lewm.v1 import planner_pb2 as pb
from lewm_serve.held import HeldBytes
from lewm_serve.metrics import Metrics
from lewm_serve.planner import Planner
from lewm_serve.rpc.methods import SERVICE, Methods, UnknownMethods
from lewm_serve.settings import Settings

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
    # A robot may ping every 10 s, also while it waits for nothing.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # A robot that left the network is noticed, and its plan dropped.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Only uncompressed messages: the size limit would hold for the compressed bytes only.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)
# Beyond its own limit the library refuses a message without code and request id, so that limit is
# higher than ours. What is larger still gets RESOURCE_EXHAUSTED alone.
RECEIVE_FACTOR = 2


class RpcServer:
    """A `grpc.aio` server whose health service follows `set_ready`."""

    def __init__(
        self, planner: Planner, settings: Settings, metrics: Metrics, held: HeldBytes
    ) -> None:
        limit = settings.max_body_bytes
        self._server = grpc.aio.server(
            options=(
                *OPTIONS,
                ("grpc.max_receive_message_length", RECEIVE_FACTOR * limit),
                ("grpc.max_send_message_length", limit),
            )
        )
        handlers = Methods(planner, metrics, limit, held).handlers()
        generic = grpc.method_handlers_generic_handler(SERVICE, handlers)
        self._server.add_generic_rpc_handlers((generic,))
        self._health = health.HealthServicer()
        add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, HEALTH, reflection.SERVICE_NAME), self._server
        )
        self._server.add_generic_rpc_handlers((UnknownMethods(metrics),))
        assert pb.DESCRIPTOR.services_by_name["PlannerService"].full_name == SERVICE

    def bind(self, host: str, port: int) -> int:
        """Listen on the port (0: a free one) and return it; `OSError` when it is taken."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError:
            bound = 0
        if bound == 0:
            raise OSError(f"cannot listen on {address}")
        return bound

    async def start(self) -> None:
        """Take calls from now on; not ready yet."""
        await self.set_ready(False)
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        """What the health service says of the whole server and of the planner's service."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Finish the calls being answered within the grace period, then close."""
        await self._server.stop(grace_s)
