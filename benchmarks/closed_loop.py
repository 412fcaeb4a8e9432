"""What eight robots get from a server, compared with one robot alone: closed loop over gRPC.

One client and eight clients take turns with the embedded model, from a process of their own, with
new JPEG frames and a goal that the server knows. A perfect first-come queue answers each of eight
clients after eight service times. The service time is the mean latency of one client in the same
round. Calls that were due before the first answer are left out, because the queue was not full.

Targets: eight clients have at least the throughput of one, and a mean latency of at most 1.1 times
that of a perfect queue. One minute.

    python -m benchmarks.closed_loop [--quick]
"""

from __future__ import annotations

import statistics
from collections import Counter

from benchmarks.comparison import median_ratio
from benchmarks.load import Call, load_process, steady_calls, throughput
from benchmarks.report import (
    Measurement,
    Report,
    RunOptions,
    at_least,
    at_most,
    run_as_program,
)
from lewm_serve.cli.local_server import local_server

CLIENTS = 8
ROUNDS, ROUND_SECONDS = 4, 6.0
QUICK_ROUNDS, QUICK_ROUND_SECONDS = 1, 1.5
MIN_THROUGHPUT_RATIO, MAX_QUEUE_RATIO = 1.0, 1.1


def measure(options: RunOptions) -> Report:
    """See the module."""
    rounds, seconds = (
        (QUICK_ROUNDS, QUICK_ROUND_SECONDS) if options.quick else (ROUNDS, ROUND_SECONDS)
    )
    calls: dict[int, list[list[Call]]] = {1: [], CLIENTS: []}
    options.show_progress("starting the server")
    with local_server() as server, load_process(server.target) as load:
        load.warm_up()
        for number in range(rounds):
            for clients, calls_by_round in calls.items():
                options.show_progress(f"round {number + 1} of {rounds}: {clients} clients")
                calls_by_round.append(load.closed_loop(clients, seconds))
    steady = {
        clients: [steady_calls(one_round) for one_round in calls_by_round]
        for clients, calls_by_round in calls.items()
    }
    latencies = {
        clients: [statistics.mean(call.latency_s for call in one_round) for one_round in by_round]
        for clients, by_round in steady.items()
    }
    rates = {
        clients: [throughput(one_round) for one_round in by_round]
        for clients, by_round in steady.items()
    }
    perfect_queue = [CLIENTS * latency for latency in latencies[1]]
    return Report(
        (
            at_least(
                f"{CLIENTS} clients: throughput against one client",
                median_ratio(rates[CLIENTS], rates[1]),
                "times",
                bound=MIN_THROUGHPUT_RATIO,
            ),
            at_most(
                f"{CLIENTS} clients: mean latency against a perfect queue",
                median_ratio(latencies[CLIENTS], perfect_queue),
                "times",
                bound=MAX_QUEUE_RATIO,
            ),
            Measurement("one client", statistics.median(rates[1]), "plans/s"),
            Measurement(f"{CLIENTS} clients", statistics.median(rates[CLIENTS]), "plans/s"),
        ),
        {
            "rounds": rounds,
            "seconds_a_round": seconds,
            "mean_latency_ms": {
                clients: [1000 * latency for latency in by_round]
                for clients, by_round in latencies.items()
            },
            "plans_per_s": rates,
            "outcomes": {
                clients: dict(Counter(call.outcome for one_round in by_round for call in one_round))
                for clients, by_round in calls.items()
            },
        },
    )


if __name__ == "__main__":
    run_as_program(measure, __doc__)
