"""The gRPC server: the planner's methods, health and reflection on one port."""

import logging
from collections.abc import Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health  # type: ignore[attr-defined]
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from lewm.v1 import planner_pb2 as pb
from lewm_serve.access.keys import Keys
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from lewm_serve.transports.addresses import join, listen
from lewm_serve.transports.exchange import RequestMemory, RequestRecorder
from lewm_serve.transports.grpc.access import HEALTH_SERVICE, KeyCheck
from lewm_serve.transports.grpc.calls import INFERENCE_SERVICE, SERVICE
from lewm_serve.transports.grpc.inference_protocol import InferenceProtocolMethods
from lewm_serve.transports.grpc.methods import LibraryMethods, PlannerMethods, UnknownMethods
from lewm_serve.transports.grpc.transfers import Transfers
from lewm_serve.transports.tls import Certificates

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error
    # A robot may ping every 10 s, also without a call.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # The server notices a robot that has left the network, and drops its plan.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_concurrent_streams", 1024),  # on one connection
    # Uncompressed messages only: the library's size limit counts compressed bytes.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)

MAX_IDLE_MS = 600_000
"""A connection without a call for so long is closed. Clients open another with their next call."""

LIBRARY_LOG = "grpc._cython.cygrpc"

LIBRARY_LIMIT_FACTOR = 2
"""The library's own limit of a message is this many times the server's limit. The library refuses
larger messages with RESOURCE_EXHAUSTED, but without a code and a request id. The server refuses the
messages between the two limits, with both."""


class GrpcServer:
    """A `grpc.aio` server whose health service follows `set_ready`.

    Without keys, clients need none. Without certificates, it speaks in the clear.
    """

    def __init__(
        self,
        planner: Planner,
        settings: Settings,
        *,
        metrics: Metrics,
        memory: RequestMemory,
        recorder: RequestRecorder,
        keys: Keys | None,
        certificates: Certificates | None,
    ) -> None:
        self._certificates = certificates
        limit = settings.max_body_bytes
        self._max_connections = settings.max_connections
        self._transfers = Transfers(memory, receive_s=settings.receive_s, max_message_bytes=limit)
        logging.getLogger(LIBRARY_LOG).addFilter(_is_no_lost_answer)
        key_check = () if keys is None else (KeyCheck(keys, recorder),)
        self._server = grpc.aio.server(
            interceptors=(*key_check, LibraryMethods(self._transfers)),
            options=(
                *SERVER_OPTIONS,
                ("grpc.max_receive_message_length", LIBRARY_LIMIT_FACTOR * limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
                ("grpc.server_handshake_timeout_ms", round(1000 * settings.receive_s)),
            ),
        )
        for kind in (PlannerMethods, InferenceProtocolMethods):
            methods = kind(
                planner,
                metrics=metrics,
                memory=memory,
                recorder=recorder,
                transfers=self._transfers,
            )
            generic = grpc.method_handlers_generic_handler(kind.service, methods.handlers())
            self._server.add_generic_rpc_handlers((generic,))
        self._health = health.HealthServicer()
        add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, INFERENCE_SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME), self._server
        )
        self._server.add_generic_rpc_handlers((UnknownMethods(recorder),))
        assert pb.DESCRIPTOR.services_by_name["PlannerService"].full_name == SERVICE

    def bind(self, addresses: Sequence[str], port: int) -> int:
        """Listen on a port (0: a free one) of all addresses, and return it.

        Raises:
            OSError: the port cannot be used.
        """
        # gRPC does not say why it cannot listen. Sockets of our own find that out.
        sockets = listen(addresses, port)
        bound: int = sockets[0].getsockname()[1]
        for listener in sockets:
            listener.close()
        for address in addresses:
            target = join(address, bound)
            try:
                if self._certificates is None:
                    self._server.add_insecure_port(target)
                else:
                    credentials = self._certificates.grpc_credentials()
                    self._server.add_secure_port(target, credentials)
            except RuntimeError as error:
                raise OSError(f"cannot listen on {target}: {error}") from None
        self._transfers.port = bound
        return bound

    async def start(self) -> None:
        """Accept calls from now on. The health service says that the server is not ready."""
        await self.set_ready(False)
        await self._server.start()
        self._transfers.relieve(self._max_connections)

    async def set_ready(self, ready: bool) -> None:
        """Set what the health service says about the whole server and its services."""
        serving = health_pb2.HealthCheckResponse.SERVING
        status = serving if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", SERVICE, INFERENCE_SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Finish the calls in progress within the grace period, then close."""
        await self._server.stop(grace_s)


def _is_no_lost_answer(record: logging.LogRecord) -> bool:
    """False for the error with which the library reports that a client went away too early."""
    return "ExecuteBatchError raised in core" not in record.getMessage()
