"""What eight robots get that one has alone: closed loop, clients in a process of their own.

One client and eight take turns with the embedded model over gRPC, with new JPEG frames and a goal
that the server knows. A perfect first-come queue of eight such clients answers each after eight
service times; the service time is what one client waits on average, in the same round.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence

from benchmarks.load import Call, LoadProcess, load_process
from benchmarks.report import Figure, Report, at_least, at_most
from benchmarks.run import Run
from lewm_serve.cli.local_server import local_server

CLIENTS = 8
ROUNDS, SECONDS = 4, 6.0
QUICK_ROUNDS, QUICK_SECONDS = 1, 1.5
THROUGHPUT, FROM_QUEUE = 1.0, 1.1


def measure(run: Run) -> Report:
    """See the module."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if run.quick else (ROUNDS, SECONDS)
    loads: dict[int, list[list[Call]]] = {1: [], CLIENTS: []}
    run.say("starting the server")
    with local_server() as server, load_process(server.target) as load:
        warm_up(load)
        for number in range(rounds):
            for clients, calls in loads.items():
                run.say(f"round {number + 1} of {rounds}: {clients} clients")
                calls.append(load.closed(clients, seconds))
    one, many = ([steady(calls) for calls in loads[clients]] for clients in (1, CLIENTS))
    waits = [statistics.mean(call.latency_s for call in calls) for calls in one]
    waits_many = [statistics.mean(call.latency_s for call in calls) for calls in many]
    rates = [throughput(calls) for calls in one]
    rates_many = [throughput(calls) for calls in many]
    gains = [b / a for a, b in zip(rates, rates_many, strict=True)]
    queues = [b / (CLIENTS * a) for a, b in zip(waits, waits_many, strict=True)]
    return Report(
        (
            at_least(
                f"{CLIENTS} clients: throughput against one client",
                statistics.median(gains),
                "times",
                THROUGHPUT,
            ),
            at_most(
                f"{CLIENTS} clients: mean latency against a perfect queue",
                statistics.median(queues),
                "times",
                FROM_QUEUE,
            ),
            Figure("one client", statistics.median(rates), "plans/s"),
            Figure(f"{CLIENTS} clients", statistics.median(rates_many), "plans/s"),
        ),
        {
            "rounds": rounds,
            "seconds_a_round": seconds,
            "mean_latency_ms": {
                1: [1000 * wait for wait in waits],
                CLIENTS: [1000 * wait for wait in waits_many],
            },
            "plans_per_s": {1: rates, CLIENTS: rates_many},
            "outcomes": {
                clients: dict(Counter(call.outcome for calls in parts for call in calls))
                for clients, parts in loads.items()
            },
        },
    )


def warm_up(load: LoadProcess) -> None:
    """The first calls of a connection and of a server are slower than all others."""
    load.closed(2, 1.0)


def steady(calls: Sequence[Call]) -> list[Call]:
    """The calls sent after the first answer, when as many were in the queue as there are clients.

    Raises:
        RuntimeError: a call failed, so latencies and throughput are no figures of plans.
    """
    if failed := Counter(call.outcome for call in calls if not call.whole):
        raise RuntimeError(f"plans failed under a closed loop: {dict(failed)}")
    first = min(call.ended_s for call in calls)
    return [call for call in calls if call.wanted_s >= first]


def throughput(calls: Sequence[Call]) -> float:
    """Plans a second, from the first answer to the last."""
    ends = sorted(call.ended_s for call in calls)
    return (len(ends) - 1) / (ends[-1] - ends[0])
