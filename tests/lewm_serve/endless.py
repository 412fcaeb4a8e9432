"""A plan that lasts as long as a test needs it to, however fast the machine is."""

from __future__ import annotations  # gRPC's types are generic to the checker only

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, frame
from tests.lewm_serve.frames import picture
from tests.lewm_serve.process import ServerProcess
from tests.patience import wait_until

ENDLESS: dict[str, Any] = {"name": "cem", "samples": 4096, "iterations": 200, "horizon": 20}
"""Hours of work on a slow machine, in steps that are as short as any."""


@contextmanager
def endless_plan(
    server: ServerProcess, request_id: str = "endless"
) -> Iterator[grpc.Future[pb.PlanResponse]]:
    """Keep an idle server's engine busy with a plan that goes before all others.

    It has begun when this is entered, and ends when its client goes away: when this is left, or
    sooner by `cancel`.
    """
    with PlannerClient(server.target) as client:
        solver = pb.SolverSettings(**ENDLESS)
        frames, goal = [frame(picture(0))], frame(picture(1))
        request = pb.PlanRequest(frames=frames, goal=goal, solver=solver, priority=9)
        call = client.stub.Plan.future(request, metadata=(("x-request-id", request_id),))
        wait_until(lambda: call.done() or server.figure("lewm_active_plans") == 1)
        assert not call.done(), call
        yield call
