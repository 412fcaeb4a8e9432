"""What Ray's proxies run: the methods of gRPC, and the choice of a replica.

The proxies load neither the models nor PyTorch, so this module imports little of the server.
"""

from __future__ import annotations

import pickle
import random

import grpc
import grpc.aio
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from lewm.v1 import planner_pb2
from lewm_serve.ray_serve.affinity import order_for
from lewm_serve.transports.grpc.inference import open_inference_pb2

ROBOT_HEADER = "lewm-robot"
"""The header, or the metadata, with the robot's name."""

SERVICES = (
    planner_pb2.DESCRIPTOR.services_by_name["PlannerService"],
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
)
METHOD_NAMES = tuple(method.name for service in SERVICES for method in service.methods)
"""Ray calls the replica's method of the same name, without the name of the service."""


def add_services(_servicer: object, server: grpc.aio.Server) -> None:
    """Let a proxy pass on the calls of all services, as bytes; for `grpc_servicer_functions`."""
    for service in SERVICES:
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(_replaced_by_ray)
            for method in service.methods
        }
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))


def _replaced_by_ray(message: bytes, _context: grpc.ServicerContext) -> bytes:
    raise NotImplementedError


class RobotRouter(RequestRouter):
    """Sends the requests of one robot to one replica, because that one has the robot's latents.

    By rendezvous hashing: if a replica goes, only its robots move, and a new one takes an equal
    share of all robots. If the robot's replica is full, the next one in the robot's order gets the
    request. A request without a robot's name goes to the less busy one of two.
    """

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The replicas to ask, in this order. Of several in one list, Ray asks the least busy."""
        robot = None
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # while all replicas are full
            robot = robot_of(pending_request)
        if robot is None:
            return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[replicas[replica_id]] for replica_id in order_for(robot, replicas)]


def robot_of(request: PendingRequest) -> str | None:
    """The name of the robot that a request comes from; None if it has none."""
    metadata = request.metadata
    if metadata.is_grpc_request:
        return dict(metadata.grpc_context.invocation_metadata()).get(ROBOT_HEADER)
    if metadata.is_http_request:
        # The proxy has pickled the request for the replica.
        headers = dict(pickle.loads(request.args[0]).asgi_scope["headers"])
        name = headers.get(ROBOT_HEADER.encode())
        return None if name is None else name.decode("latin-1")
    return None
