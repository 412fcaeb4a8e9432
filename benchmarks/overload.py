"""Three times as many requests as the server can answer, each with a deadline: an open loop.

Poisson arrivals (seeded) over gRPC from a process of their own, new JPEG frames, a goal that the
server knows. A call's deadline is five plan times after the moment at which it should be sent, so
what counts as in time is what arrived at the client in time. Capacity and plan time are measured in
the same run, before each overload, by closed loops.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

import numpy as np

from benchmarks.closed_loop import steady, throughput, warm_up
from benchmarks.load import Call, load_process, poisson_schedule
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.run import Run
from lewm_serve.cli.local_server import local_server

OVERLOAD = 3.0
PLAN_TIMES = 5.0
SATURATING = 4
"""Clients of the closed loop that measures capacity."""

ROUNDS, CLOSED_S, OPEN_S = 3, 4.0, 8.0
QUICK_ROUNDS, QUICK_CLOSED_S, QUICK_OPEN_S = 1, 1.5, 2.0
IN_TIME, REFUSE_MS = 0.8, 50.0


def measure(run: Run) -> Report:
    """See the module."""
    rounds, closed_s, open_s = (
        (QUICK_ROUNDS, QUICK_CLOSED_S, QUICK_OPEN_S) if run.quick else (ROUNDS, CLOSED_S, OPEN_S)
    )
    capacities, plan_times, shares, calls = [], [], [], []
    run.say("starting the server")
    with local_server() as server, load_process(server.target) as load:
        warm_up(load)
        for number in range(rounds):
            run.say(f"round {number + 1} of {rounds}: capacity")
            alone = steady(load.closed(1, closed_s))
            capacity = throughput(steady(load.closed(SATURATING, closed_s)))
            plan_s = statistics.median(call.latency_s for call in alone)
            run.say(f"round {number + 1} of {rounds}: {OVERLOAD * capacity:.0f} requests a second")
            moments = poisson_schedule(OVERLOAD * capacity, open_s, seed=number)
            overloaded = load.open(moments, PLAN_TIMES * plan_s)
            capacities.append(capacity)
            plan_times.append(plan_s)
            shares.append(in_time(overloaded, open_s) / (capacity * open_s))
            calls.append(overloaded)
    everything = [call for part in calls for call in part]
    refused = [call for call in everything if call.outcome == "overloaded"]
    whole = [call for call in everything if call.whole]
    refuse_p99 = _percentile_ms(refused, 99)
    return Report(
        (
            at_least(
                f"overload {OVERLOAD:g} times: completed in time against capacity",
                statistics.median(shares),
                "of capacity",
                IN_TIME,
            ),
            at_most(
                f"overload {OVERLOAD:g} times: time to refuse, p99",
                refuse_p99,
                "ms",
                REFUSE_MS,
                "" if refused else "nothing was refused",
            ),
            Figure("capacity", statistics.median(capacities), "plans/s"),
            Figure("deadline", 1000 * PLAN_TIMES * statistics.median(plan_times), "ms"),
        ),
        {
            "rounds": rounds,
            "seconds_a_round": open_s,
            "capacity_plans_per_s": capacities,
            "plan_ms": [1000 * seconds for seconds in plan_times],
            "completed_in_time_of_capacity": shares,
            "outcomes": [dict(Counter(call.outcome for call in part)) for part in calls],
            "refuse_p50_ms": _percentile_ms(refused, 50),
            "completed_p50_ms": _percentile_ms(whole, 50),
            "completed_p99_ms": _percentile_ms(whole, 99),
            "generator_late_p99_ms": 1000
            * float(np.percentile([call.sent_s - call.wanted_s for call in everything], 99)),
        },
    )


def in_time(calls: Sequence[Call], seconds: float) -> int:
    """Whole plans that arrived in time, and before the load ended."""
    return sum(call.whole and call.ended_s <= seconds for call in calls)


def _percentile_ms(calls: Sequence[Call], percent: float) -> float | None:
    if not calls:
        return None
    return 1000 * float(np.percentile([call.latency_s for call in calls], percent))
