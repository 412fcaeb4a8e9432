"""How long a client waits for a plan of the embedded model, and what REST and gRPC add to it.

One client sends the next request when the last one is answered, to a server of its own, REST and
gRPC in turns. Each request has two JPEG images that the server has never seen: frames of Two-Room,
or images as hard to decode as photographs. The client's clock runs from the images to the parsed
answer.

What a protocol adds is what the client waits beyond the model's work: its total − encode − solve.
That is the client's library, the way there and back, parsing, naming and decoding the frames,
waiting for the engine, and the answer.

Targets: a plan takes at most 40 ms at p50; REST adds at most 5 ms, gRPC at most 3 ms. One minute.

    python -m benchmarks.transport [--quick]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from itertools import product
from typing import Any

import grpc
import numpy as np

from benchmarks.clients import (
    RestClient,
    image_document,
    new_jpegs,
    photographs,
    two_room_pictures,
)
from benchmarks.report import Measurement, Report, RunOptions, at_most, run_as_program
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_serve.cli.local_server import local_server

SECONDS, QUICK_SECONDS = 60.0, 15.0
WARM_UP_REQUESTS = 3
"""Requests of each kind that are not counted."""

MAX_PLAN_MS = 40.0
MAX_ADDED_MS = {"rest": 5.0, "grpc": 3.0}
PROTOCOL_NAMES = {"rest": "REST", "grpc": "gRPC"}
PICTURE_NAMES = {"rendered": "Two-Room frames", "photographs": "photographs"}

GRPC_TIMEOUT_S = 60.0
SERVER_STAGES = ("queue", "decode", "encode", "solve", "total")
PARTS = (*SERVER_STAGES, "client", "added", "wire", "other")
"""`wire` is time outside the server's clock; `other` is inside it but in none of its stages."""

Timing = dict[str, float]
"""Milliseconds by stage."""

RequestPlan = Callable[[bytes, bytes], Timing]
"""Plans from the image of a frame to that of a goal, and returns the server's timing."""


def measure(options: RunOptions) -> Report:
    """See the module."""
    options.show_progress("one client, REST and gRPC in turns")
    details = measure_parts(QUICK_SECONDS if options.quick else SECONDS)
    kinds = list(product(PROTOCOL_NAMES, PICTURE_NAMES))

    def measurement(
        what: str, part: str, bound: float, protocol: str, pictures: str
    ) -> Measurement:
        value = details[f"{protocol}_{pictures}"][part]
        note = f"{PICTURE_NAMES[pictures]} as JPEG; p99 {value['p99']:.3g} ms"
        return at_most(what, value["p50"], "ms", bound=bound, note=note)

    plans = (
        measurement(
            f"/plan over {PROTOCOL_NAMES[protocol]}, p50",
            part="client",
            bound=MAX_PLAN_MS,
            protocol=protocol,
            pictures=pictures,
        )
        for protocol, pictures in kinds
    )
    added = (
        measurement(
            f"what {PROTOCOL_NAMES[protocol]} adds, p50",
            part="added",
            bound=MAX_ADDED_MS[protocol],
            protocol=protocol,
            pictures=pictures,
        )
        for protocol, pictures in kinds
    )
    return Report((*plans, *added), details)


def measure_parts(seconds: float, **settings: Any) -> dict[str, Any]:
    """p50 and p99 (ms) of each part of a request, by protocol and pictures.

    ``settings`` are those of the server.
    """
    images = {
        "rendered": new_jpegs(two_room_pictures()),
        "photographs": new_jpegs(photographs()),
    }
    with (
        local_server(**settings) as server,
        grpc.insecure_channel(server.target) as channel,
        closing(RestClient(server)) as client,
    ):
        protocols = {"rest": plans_over_rest(client), "grpc": plans_over_grpc(channel)}
        timings: dict[tuple[str, str], list[Timing]] = {
            kind: [] for kind in product(protocols, images)
        }
        end = time.perf_counter() + seconds
        rounds = 0
        while time.perf_counter() < end or rounds <= WARM_UP_REQUESTS:
            rounds += 1
            for (protocol, pictures), kind_timings in timings.items():
                frame, goal = next(images[pictures]), next(images[pictures])
                kind_timings.append(timed_plan(protocols[protocol], frame, goal))
    return {
        f"{protocol}_{pictures}": summarise(kind_timings[WARM_UP_REQUESTS:])
        for (protocol, pictures), kind_timings in timings.items()
    }


def plans_over_rest(client: RestClient) -> RequestPlan:
    """Plans over a connection."""

    def request_plan(frame: bytes, goal: bytes) -> Timing:
        document = {"frames": [image_document(frame)], "goal": image_document(goal)}
        _, answer = client.post("/plan", document)
        timing: Timing = answer["timing_ms"]
        return timing

    return request_plan


def plans_over_grpc(channel: grpc.Channel) -> RequestPlan:
    """Plans over a channel."""
    stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]

    def request_plan(frame: bytes, goal: bytes) -> Timing:
        request = pb.PlanRequest(frames=[pb.Frame(image=frame)], goal=pb.Frame(image=goal))
        timing = stub.Plan(request, timeout=GRPC_TIMEOUT_S).timing_ms
        return {stage: getattr(timing, stage) for stage in SERVER_STAGES}

    return request_plan


def timed_plan(request_plan: RequestPlan, frame: bytes, goal: bytes) -> Timing:
    """The timing of one plan, with the parts that only its client sees."""
    start = time.perf_counter()
    timing = request_plan(frame, goal)
    client = 1000 * (time.perf_counter() - start)
    in_stages = sum(timing[stage] for stage in ("queue", "decode", "encode", "solve"))
    return timing | {
        "client": client,
        "added": client - timing["encode"] - timing["solve"],
        "wire": client - timing["total"],
        "other": timing["total"] - in_stages,
    }


def summarise(timings: list[Timing]) -> dict[str, Any]:
    """p50 and p99 of each part, in milliseconds."""
    parts = {part: np.percentile([t[part] for t in timings], (50, 99)) for part in PARTS}
    return {"requests": len(timings)} | {
        part: {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
        for part, (p50, p99) in parts.items()
    }


if __name__ == "__main__":
    run_as_program(measure, __doc__)
