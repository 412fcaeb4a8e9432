"""What Ray Serve adds to a plan of the embedded model, over REST and gRPC.

One client asks three servers, in random turns, for a plan with two JPEG images that none has seen
before: one replica behind Ray's proxies, `lewm serve`, and `lewm serve` with its engine in a
thread, as in the replica. All run ONNX in float32 on one thread. Each server is idle while another
one plans.

What a server adds is what the client waits beyond the model's work: its total − encode − solve.
What Ray adds is the difference to `lewm serve` in the same round. Three minutes.

    python -m benchmarks.ray_overhead [--quick]

It needs `pip install 'lewm-serve[ray]'`. All traffic goes to 127.0.0.1.
"""

from __future__ import annotations

import random
import time
from contextlib import ExitStack, closing
from itertools import product

import grpc
import numpy as np

from benchmarks.clients import RestClient, new_jpegs, two_room_pictures
from benchmarks.ray_cluster import Options, local_cluster
from benchmarks.report import Measurement, Report, RunOptions, run_as_program
from benchmarks.transport import (
    PROTOCOL_NAMES,
    WARM_UP_REQUESTS,
    RequestPlan,
    Timing,
    plans_over_grpc,
    plans_over_rest,
    summarise,
    timed_plan,
)
from lewm_serve.cli.local_server import LocalServer, local_server

SECONDS, QUICK_SECONDS = 180.0, 10.0
SETTINGS: Options = {"backend": "onnx", "precision": "float32", "threads": 1}
RAY, PROCESS, THREAD = "Ray", "lewm serve", "lewm serve, engine in a thread"
Kind = tuple[str, str]
"""A server and a protocol."""


def measure(options: RunOptions) -> Report:
    """See the module."""
    options.show_progress("starting Ray and two servers")
    timings = measure_timings(QUICK_SECONDS if options.quick else SECONDS)
    details = {
        f"{server}, {protocol}": summarise(plans) for (server, protocol), plans in timings.items()
    }
    measurements = [
        _measurement(f"/plan over {name} by {server}", timings[server, protocol], "client")
        for protocol, name in PROTOCOL_NAMES.items()
        for server in (RAY, PROCESS, THREAD)
    ]
    for protocol, name in PROTOCOL_NAMES.items():
        for server in (PROCESS, THREAD):
            pairs = zip(timings[RAY, protocol], timings[server, protocol], strict=True)
            added = [{"added": ray["added"] - plain["added"]} for ray, plain in pairs]
            what = f"what Ray adds over {name} to {server}"
            measurements.append(_measurement(what, added, "added"))
    return Report(tuple(measurements), details)


def measure_timings(seconds: float) -> dict[Kind, list[Timing]]:
    """The timings of the plans of each server over each protocol, one for each round."""
    images = new_jpegs(two_room_pictures())
    with ExitStack() as opened:
        cluster = opened.enter_context(local_cluster())
        cluster.deploy(args=SETTINGS, deployment={"num_replicas": 1})
        servers = {
            RAY: LocalServer(cluster.http_port, cluster.grpc_port, (), 0),
            PROCESS: opened.enter_context(local_server(**SETTINGS)),
            THREAD: opened.enter_context(local_server(**SETTINGS, engine="thread")),
        }
        clients: dict[Kind, RequestPlan] = {}
        for name, server in servers.items():
            channel = opened.enter_context(grpc.insecure_channel(server.target))
            rest = opened.enter_context(closing(RestClient(server)))
            clients[name, "grpc"] = plans_over_grpc(channel)
            clients[name, "rest"] = plans_over_rest(rest)
        timings: dict[Kind, list[Timing]] = {kind: [] for kind in product(servers, PROTOCOL_NAMES)}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            order = random.sample(list(timings), len(timings))
            for kind in order:
                timings[kind].append(timed_plan(clients[kind], next(images), next(images)))
    return {kind: plans[WARM_UP_REQUESTS:] for kind, plans in timings.items()}


def _measurement(what: str, timings: list[dict[str, float]], part: str) -> Measurement:
    p50, p99 = np.percentile([timing[part] for timing in timings], (50, 99))
    return Measurement(f"{what}, p50", float(p50), "ms", note=f"p99 {p99:.3g} ms")


if __name__ == "__main__":
    run_as_program(measure, __doc__)
