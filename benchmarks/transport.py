"""What REST and gRPC add to a plan: one client, closed loop, both protocols in turn.

`added` is what the client waits beyond the model's work: its total − encode − solve. It holds the
client's library, the way there and back, parsing, naming and decoding the frames, waiting for the
engine, and the answer. Each request carries two JPEG images that the server has never seen, in turn
of the embedded model's environment and as hard to decode as a photograph. The client's clock runs
from the images to the parsed answer.

    python -m benchmarks.transport
"""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from itertools import product
from typing import Any

import grpc
import numpy as np

from benchmarks.frames import fresh, jpeg, photographs, rendered
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_serve.cli.local_server import HOST, local_server

SECONDS = 25.0
WARM_UP = 3
"""Requests of each kind that do not count."""
STAGES = ("queue", "decode", "encode", "solve", "total")

PARTS = (*STAGES, "client", "added", "wire", "other")
"""`wire` is outside the server's clock, `other` inside it but in none of its stages."""

Timing = dict[str, float]
Ask = Callable[[bytes, bytes], Timing]


def measure(seconds: float = SECONDS, **settings: Any) -> dict[str, Any]:
    """Milliseconds a request by protocol and pictures; ``settings`` are the server's."""
    pictures = {"rendered": rendered(), "photographs": photographs()}
    frames = {name: fresh([jpeg(picture) for picture in some]) for name, some in pictures.items()}
    with (
        local_server(**settings) as server,
        grpc.insecure_channel(server.target) as channel,
        closing(http.client.HTTPConnection(HOST, server.http_port, timeout=60)) as connection,
    ):
        protocols = {"rest": _rest(connection), "grpc": _grpc(channel)}
        ways = list(product(protocols, frames))
        seen: dict[tuple[str, str], list[Timing]] = {way: [] for way in ways}
        end = time.perf_counter() + seconds
        rounds = 0
        while time.perf_counter() < end or rounds <= WARM_UP:
            rounds += 1
            for protocol, name in ways:
                frame, goal = next(frames[name]), next(frames[name])
                seen[protocol, name].append(_timed(protocols[protocol], frame, goal))
    return {
        f"{protocol}_{name}": _summary(seen[protocol, name][WARM_UP:]) for protocol, name in ways
    }


def _rest(connection: http.client.HTTPConnection) -> Ask:
    def ask(frame: bytes, goal: bytes) -> Timing:
        document = {"frames": [{"image": _text(frame)}], "goal": {"image": _text(goal)}}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/plan", json.dumps(document), headers)
        answer = json.loads(connection.getresponse().read())
        timing: Timing = answer["timing_ms"]
        return timing

    return ask


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _grpc(channel: grpc.Channel) -> Ask:
    stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]

    def ask(frame: bytes, goal: bytes) -> Timing:
        request = pb.PlanRequest(frames=[pb.Frame(image=frame)], goal=pb.Frame(image=goal))
        timing = stub.Plan(request, timeout=60).timing_ms
        return {stage: getattr(timing, stage) for stage in STAGES}

    return ask


def _timed(ask: Ask, frame: bytes, goal: bytes) -> Timing:
    started = time.perf_counter()
    timing = ask(frame, goal)
    client = 1000 * (time.perf_counter() - started)
    accounted = sum(timing[stage] for stage in ("queue", "decode", "encode", "solve"))
    return timing | {
        "client": client,
        "added": client - timing["encode"] - timing["solve"],
        "wire": client - timing["total"],
        "other": timing["total"] - accounted,
    }


def _summary(timings: list[Timing]) -> dict[str, Any]:
    """p50 and p99 of each part."""
    parts = {part: np.percentile([t[part] for t in timings], (50, 99)) for part in PARTS}
    return {"requests": len(timings)} | {
        part: {"p50": round(float(p50), 2), "p99": round(float(p99), 2)}
        for part, (p50, p99) in parts.items()
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
