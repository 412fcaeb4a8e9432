"""How long a client waits for a plan of the embedded model, and what REST and gRPC add to it.

One client, a closed loop, REST and gRPC in turns, each request with two JPEG images that the server
has never seen. See `benchmarks.transport`.
"""

from __future__ import annotations

from benchmarks.report import Figure, Report, at_most
from benchmarks.run import Run
from benchmarks.transport import measure as measure_transport

QUICK_S, SECONDS = 15.0, 60.0
PLAN_MS = 40.0
ADDED_MS = {"rest": 5.0, "grpc": 3.0}
NAMES = {"rest": "REST", "grpc": "gRPC"}
PICTURES = {"rendered": "Two-Room frames", "photographs": "photographs"}


def measure(run: Run) -> Report:
    """See the module."""
    run.say("one client, REST and gRPC in turns")
    found = measure_transport(seconds=QUICK_S if run.quick else SECONDS)

    def figure(what: str, protocol: str, pictures: str, part: str, bound: float) -> Figure:
        seen = found[f"{protocol}_{pictures}"][part]
        note = f"{PICTURES[pictures]} as JPEG; p99 {seen['p99']:.3g} ms"
        return at_most(what, seen["p50"], "ms", bound, note)

    ways = [(protocol, pictures) for protocol in NAMES for pictures in PICTURES]
    plans = (
        figure(
            f"/plan over {NAMES[protocol]}, p50",
            protocol,
            pictures,
            "client",
            PLAN_MS,
        )
        for protocol, pictures in ways
    )
    added = (
        figure(f"what {NAMES[protocol]} adds, p50", protocol, pictures, "added", ADDED_MS[protocol])
        for protocol, pictures in ways
    )
    return Report((*plans, *added), found)
