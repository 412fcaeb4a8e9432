"""A plan that lasts as long as a test needs it to, however fast the machine is."""

from __future__ import annotations  # gRPC's types are generic for the type checker only

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, frame
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import wait_until

ENDLESS_SOLVER: dict[str, Any] = {"name": "cem", "samples": 4096, "iterations": 200, "horizon": 20}
"""Hours of work on a slow machine, in steps that are as short as those of other plans."""


@contextmanager
def endless_plan(
    server: ServerProcess, request_id: str = "endless"
) -> Iterator[grpc.Future[pb.PlanResponse]]:
    """Keep the engine of an idle server busy with a plan of the highest priority.

    Plans of other clients run in between, because clients take turns. For a queue that stands
    still, see `ServerProcess.paused_engine`. The search has started when the block is entered. It
    ends when its client goes away: at the end of the block, or earlier by `cancel`.
    """
    with PlannerClient(server.target) as client:
        request = pb.PlanRequest(
            frames=[frame(picture(0))],
            goal=frame(picture(1)),
            solver=pb.SolverSettings(**ENDLESS_SOLVER),
            priority=9,
        )
        call = client.stub.Plan.future(request, metadata=(("x-request-id", request_id),))
        wait_until(lambda: call.done() or server.metric("lewm_active_plans") == 1)
        assert not call.done(), call
        yield call
