"""The benchmarks by name. What one needs is imported when it runs."""

from __future__ import annotations

import importlib
from typing import cast

from benchmarks.report import Report
from benchmarks.run import Run

BENCHMARKS = {
    "plan_speed": "one plan of the paper's size against a plain roll-out and the arithmetic floor",
    "embedded_plan": "/plan of the embedded model over REST and gRPC, and what they add",
    "encodes": "frames encoded for 64 gRPC clients against the backend alone",
    "closed_loop": "8 clients against one: throughput, and latency against a perfect queue",
    "overload": "3 times as many requests as can be answered: in time, and time to refuse",
    "cache": "what the cache saves and costs, in process, by Redis, and with a Redis that is hurt",
    "solvers": "the default solver against CEM 300 × 30 on the same 500 episodes (half an hour)",
    "dino_wm": "LeWM against DINO-WM's shapes: tokens a frame and time a plan",
    "gpu_plan": "plans on a GPU: one, 8 and 32 clients",
    "startup": "time to ready, first and second start",
    "profile": "where the time of a plan goes",
}


def run_benchmark(name: str, run: Run) -> Report:
    """Run one; what it raises is its own."""
    module = importlib.import_module(f"benchmarks.{name}")
    return cast(Report, module.measure(run))
