"""How many frames a second 64 clients get encoded, against the backend alone at its best batch.

Paper-size encoder, new JPEG frames, over gRPC. See `benchmarks.encode_throughput`.
"""

from __future__ import annotations

from benchmarks.encode_throughput import CLIENTS
from benchmarks.encode_throughput import measure as measure_throughput
from benchmarks.report import Figure, Report, at_least
from benchmarks.run import Run

OF_ALONE = 0.85


def measure(run: Run) -> Report:
    """See the module."""
    run.say(f"{CLIENTS} clients, and the backend alone before and after them")
    found = measure_throughput("edge", served_s=1.0) if run.quick else measure_throughput()
    alone = f"batches of {found['best_batch']}, {found['threads']} threads"
    return Report(
        (
            at_least(
                f"{CLIENTS} gRPC clients: frames encoded against the backend alone",
                found["ratio"],
                "times",
                OF_ALONE,
            ),
            Figure(f"{CLIENTS} clients", found["served_per_s"], "frames/s"),
            Figure("the backend alone", found["alone_per_s"], "frames/s", note=alone),
        ),
        found,
    )
