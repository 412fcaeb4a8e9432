"""Requests that the server must refuse, and the code of each answer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.clients import Document
from lewm.v1 import planner_pb2 as pb
from lewm_client import frame
from loadtests.clients import (
    CALL_TIMEOUT_S,
    JSON_HEADERS,
    GrpcClient,
    RestClient,
    grpc_code,
    plan_document,
)

NO_IMAGE = b"this is no image"
HUGE_BODY_BYTES = 1 << 40

BadRequest = tuple[Callable[[], str], str]
"""Sends the request and returns the code of the answer; and the code that it must be."""


def bad_rest_requests(client: RestClient, image: bytes) -> Iterator[BadRequest]:
    """Bad requests over REST in turn, without end.

    Args:
        client: sends them.
        image: a good frame.
    """
    good = plan_document(image, image)

    def plan(**fields: object) -> Callable[[], str]:
        return lambda: client.post("/plan", good | fields)

    def raw(method: str, path: str, body: bytes, headers: Document) -> Callable[[], str]:
        return lambda: client.send(method, path, body, headers)

    without_goal = json.dumps({"frames": good["frames"]}).encode()
    huge = JSON_HEADERS | {"content-length": str(HUGE_BODY_BYTES)}
    requests = (
        (raw("POST", "/plan", b'{"frames": [', JSON_HEADERS), "malformed_json"),
        (raw("POST", "/plan", without_goal, JSON_HEADERS), "missing_field"),
        (raw("POST", "/plan", b"frames", {"content-type": "text/plain"}), "unsupported_media_type"),
        (raw("POST", "/plan", b"", huge), "body_too_large"),
        (raw("GET", "/plan", b"", {}), "method_not_allowed"),
        (raw("GET", "/no/such/route", b"", {}), "unknown_route"),
        (plan(colour="red"), "unknown_field"),
        (plan(frames=[{"image": "AAAA"}]), "invalid_image"),
        (plan(frames=[{"latent": [0.5, 0.5, 0.5]}]), "shape_mismatch"),
        (plan(frames=[{"latent_id": "nobody"}]), "unknown_latent"),
        (plan(model="nobody"), "unknown_model"),
        (plan(solver={"name": "guess"}), "unknown_solver"),
        (plan(solver={"samples": 0}), "out_of_range"),
        (plan(seed="seven"), "wrong_type"),
    )
    return itertools.cycle(requests)


def bad_grpc_requests(client: GrpcClient, image: bytes) -> Iterator[BadRequest]:
    """Bad requests over gRPC in turn, without end; see `bad_rest_requests`."""
    good = frame(image)
    call = client.planner.channel.unary_unary("/lewm.v1.PlannerService/Plan")  # type: ignore[call-arg]

    def raw(data: bytes) -> Callable[[], str]:
        def send() -> object:
            return call(data, timeout=CALL_TIMEOUT_S, metadata=client.planner.metadata)

        return lambda: grpc_code(send)

    def plan(**fields: object) -> Callable[[], str]:
        request = pb.PlanRequest(**{"frames": [good], "goal": good} | fields)  # type: ignore[arg-type]
        return raw(request.SerializeToString())

    requests = (
        (raw(b"\xff\xff\xff"), "malformed_message"),
        (plan(goal=None), "missing_field"),
        (plan(frames=[pb.Frame(image=NO_IMAGE)]), "invalid_image"),
        (plan(frames=[frame(np.full(3, 0.5, np.float32))]), "shape_mismatch"),
        (plan(frames=[pb.Frame(latent_id="nobody")]), "unknown_latent"),
        (plan(model="nobody"), "unknown_model"),
        (plan(solver=pb.SolverSettings(name="guess")), "unknown_solver"),
        (plan(solver=pb.SolverSettings(samples=0)), "out_of_range"),
    )
    return itertools.cycle(requests)
