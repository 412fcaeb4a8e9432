"""What a server does with three times as many requests as it can answer: open loop over gRPC.

Requests to the embedded model arrive as a seeded Poisson process, from a process of their own,
with new JPEG frames and a goal that the server knows. The deadline of a call is five plan times
after the moment at which it is due; what arrives at the client by then is in time. Capacity and
plan time are measured by closed loops in the same round, before the overload. The engine has one
core, and all other processes have the other one, for capacity and overload alike. Meanwhile
`/healthz` and `/metrics` are read in turn, on new connections.

Targets: complete plans in time are at least 0.9 of the capacity, a refusal takes at most 20 ms and
the answer of a probe at most 50 ms at p99. One minute.

    python -m benchmarks.overload [--quick]
"""

from __future__ import annotations

import itertools
import statistics
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.load import Call, load_process, poisson_schedule, steady_calls, throughput
from benchmarks.processes import pin_to_cores
from benchmarks.report import (
    Measurement,
    Report,
    RunOptions,
    at_least,
    at_most,
    run_as_program,
)
from lewm_serve.cli.local_server import LocalServer, local_server

OVERLOAD_FACTOR = 3.0
DEADLINE_PLAN_TIMES = 5.0
CAPACITY_CLIENTS = 4
"""Clients of the closed loop that measures the capacity."""

ROUNDS, CLOSED_LOOP_SECONDS, OVERLOAD_SECONDS = 3, 4.0, 8.0
QUICK_ROUNDS, QUICK_CLOSED_LOOP_SECONDS, QUICK_OVERLOAD_SECONDS = 1, 1.5, 2.0
MIN_IN_TIME, MAX_REFUSAL_MS, MAX_PROBE_MS = 0.9, 20.0, 50.0
PROBE_PAUSE_S = 0.05


def measure(options: RunOptions) -> Report:
    """See the module."""
    rounds, closed_loop_s, overload_s = ROUNDS, CLOSED_LOOP_SECONDS, OVERLOAD_SECONDS
    if options.quick:
        rounds = QUICK_ROUNDS
        closed_loop_s, overload_s = QUICK_CLOSED_LOOP_SECONDS, QUICK_OVERLOAD_SECONDS
    capacities, plan_times, in_time_shares, calls_by_round = [], [], [], []
    options.show_progress("starting the server")
    probe_ms: list[float] = []
    with local_server(threads=1) as server, load_process(server.target) as load:
        load.warm_up()
        pin_to_cores(server, load.pid)
        for number in range(rounds):
            progress = f"round {number + 1} of {rounds}"
            options.show_progress(f"{progress}: capacity")
            one_client = steady_calls(load.closed_loop(1, closed_loop_s))
            capacity = throughput(steady_calls(load.closed_loop(CAPACITY_CLIENTS, closed_loop_s)))
            plan_s = statistics.median(call.latency_s for call in one_client)
            rate = OVERLOAD_FACTOR * capacity
            options.show_progress(f"{progress}: {rate:.0f} requests a second")
            due_times = poisson_schedule(rate, overload_s, seed=number)
            with probing(server, probe_ms):
                calls = load.open_loop(due_times, DEADLINE_PLAN_TIMES * plan_s)
            capacities.append(capacity)
            plan_times.append(plan_s)
            in_time_shares.append(count_in_time(calls, overload_s) / (capacity * overload_s))
            calls_by_round.append(calls)
    all_calls = [call for calls in calls_by_round for call in calls]
    refused = [call for call in all_calls if call.outcome == "overloaded"]
    completed = [call for call in all_calls if call.is_complete]
    sent_late_s = [call.sent_s - call.due_s for call in all_calls]
    return Report(
        (
            at_least(
                f"overload {OVERLOAD_FACTOR:g} times: completed in time against capacity",
                statistics.median(in_time_shares),
                "of capacity",
                bound=MIN_IN_TIME,
            ),
            at_most(
                f"overload {OVERLOAD_FACTOR:g} times: time to refuse, p99",
                _latency_ms(refused, 99),
                "ms",
                bound=MAX_REFUSAL_MS,
                note="" if refused else "nothing was refused",
            ),
            at_most(
                f"overload {OVERLOAD_FACTOR:g} times: /healthz and /metrics, p99",
                float(np.percentile(probe_ms, 99)),
                "ms",
                bound=MAX_PROBE_MS,
            ),
            Measurement("capacity", statistics.median(capacities), "plans/s"),
            Measurement(
                "deadline", 1000 * DEADLINE_PLAN_TIMES * statistics.median(plan_times), "ms"
            ),
        ),
        {
            "rounds": rounds,
            "seconds_a_round": overload_s,
            "capacity_plans_per_s": capacities,
            "plan_ms": [1000 * seconds for seconds in plan_times],
            "completed_in_time_of_capacity": in_time_shares,
            "outcomes": [dict(Counter(call.outcome for call in calls)) for calls in calls_by_round],
            "probes": len(probe_ms),
            "probe_p50_ms": float(np.percentile(probe_ms, 50)),
            "refuse_p50_ms": _latency_ms(refused, 50),
            "completed_p50_ms": _latency_ms(completed, 50),
            "completed_p99_ms": _latency_ms(completed, 99),
            "generator_late_p99_ms": 1000 * float(np.percentile(sent_late_s, 99)),
        },
    )


@contextmanager
def probing(server: LocalServer, probe_ms: list[float]) -> Iterator[None]:
    """Read `/healthz` and `/metrics` in turn during the block, and append how long each takes."""
    ended = threading.Event()

    def probe() -> None:
        for path in itertools.cycle(("/healthz", "/metrics")):
            if ended.wait(PROBE_PAUSE_S):
                return
            started = time.perf_counter()
            with urllib.request.urlopen(server.url + path, timeout=60) as answer:
                answer.read()
            probe_ms.append(1000 * (time.perf_counter() - started))

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def count_in_time(calls: Sequence[Call], seconds: float) -> int:
    """Complete plans that arrived in time and before the load ended."""
    return sum(call.is_complete and call.ended_s <= seconds for call in calls)


def _latency_ms(calls: Sequence[Call], percentile: float) -> float | None:
    if not calls:
        return None
    return 1000 * float(np.percentile([call.latency_s for call in calls], percentile))


if __name__ == "__main__":
    run_as_program(measure, __doc__)
