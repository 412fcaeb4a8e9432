"""Whether one client with large plans makes the plans of others late.

Eight clients send plans of new 64 px frames over REST, five times a second each, each with a key of
its own. Then a ninth client with a key sends the largest plans that the server admits, one after
another, at the same priority and with the same deadlines. Rounds with and without it alternate. The
benchmark reports the 99th percentile of the eight clients' latencies, and which share of their
plans is complete.

Targets: with the ninth client, the latency is at most twice as long as without it, and the share is
at least 0.99 times as large. Two minutes.

    python -m benchmarks.fairness [--rounds N] [--deadline-ms MS]

All traffic goes to 127.0.0.1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attacks import small_plan
from lewm_serve.access.keys_file import changed_keys, new_key
from lewm_serve.cli.local_server import HOST, LocalServer, local_server
from lewm_serve.cli.robot_load import COMPLETE

CLIENTS = 8
PERIOD_S = 0.2
ROUND_S = 8.0
MAX_RATIO, MIN_COMPLETE = 2.0, 0.99
LARGE_SOLVER = {"samples": 512, "iterations": 200, "horizon": 5, "tolerance": 0}
QUIET, CROWDED = "eight clients", "with a ninth"


class Client:
    """A client with a key and a connection of its own."""

    def __init__(self, server: LocalServer, key: str) -> None:
        self._connection = http.client.HTTPConnection(HOST, server.http_port, timeout=120)
        self._headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}

    def plan(self, document: dict[str, Any]) -> tuple[int, bool, float]:
        """Send a plan request.

        Returns the status, whether the plan is complete, and the seconds until the answer.
        """
        body = json.dumps(document)
        started = time.monotonic()
        self._connection.request("POST", "/plan", body, self._headers)
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        is_complete = response.status == 200 and answer["status"] in COMPLETE
        return response.status, is_complete, time.monotonic() - started


def drive(
    server: LocalServer, keys: list[str], fields: dict[str, Any], seed: int, results: Any
) -> None:
    """Send the plans of the ordinary clients for one round, in a process of its own."""
    latencies: list[float] = []
    incomplete: list[int] = []

    def run(number: int) -> None:
        client, generator = Client(server, keys[number]), random.Random(seed + number)
        end = time.monotonic() + ROUND_S
        due = time.monotonic() + PERIOD_S * generator.random()
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            document = small_plan(generator.randrange(1 << 30), **fields)
            status, is_complete, seconds = client.plan(document)
            if is_complete:
                latencies.append(seconds)
            else:
                incomplete.append(status)
            due = max(due + PERIOD_S, time.monotonic())

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put((latencies, incomplete))


def crowd(server: LocalServer, key: str, fields: dict[str, Any], stop: Any) -> None:
    """Send the largest plans that the server admits, in a process of its own."""
    client, solver, seed = Client(server, key), dict(LARGE_SOLVER), 1 << 31
    while not stop.is_set():
        seed += 1
        status, _, _ = client.plan(small_plan(seed, solver=solver, **fields))
        if status == 422:
            solver["iterations"] = max(1, int(solver["iterations"] * 0.7))


def main() -> int:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--deadline-ms", type=float)
    arguments = parser.parse_args()
    fields = {} if arguments.deadline_ms is None else {"deadline_ms": arguments.deadline_ms}
    context = multiprocessing.get_context("spawn")
    latencies: dict[str, list[float]] = {QUIET: [], CROWDED: []}
    incomplete: dict[str, list[int]] = {QUIET: [], CROWDED: []}
    with tempfile.TemporaryDirectory(prefix="lewm-fairness-") as folder:
        file, keys = Path(folder, "keys"), []
        with changed_keys(file) as entries:
            for number in range(CLIENTS + 1):
                key, entry = new_key(f"client-{number}", ["infer"])
                keys.append(key)
                entries.append(entry)
        with local_server(keys_file=file, log_level="error") as server:
            for number in range(2 * arguments.rounds):
                name = (QUIET, CROWDED)[number % 2]
                stop, results = context.Event(), context.Queue()
                ninth = context.Process(target=crowd, args=(server, keys[-1], fields, stop))
                if name == CROWDED:
                    ninth.start()
                    time.sleep(2)
                robots = context.Process(
                    target=drive, args=(server, keys, fields, 1000 * number, results)
                )
                robots.start()
                of_round, incomplete_of_round = results.get(timeout=600)
                robots.join()
                stop.set()
                if name == CROWDED:
                    ninth.join()
                latencies[name] += of_round
                incomplete[name] += incomplete_of_round
    p99 = {name: float(np.percentile(values, 99)) for name, values in latencies.items()}
    complete = {
        name: len(values) / (len(values) + len(incomplete[name]))
        for name, values in latencies.items()
    }
    for name, values in latencies.items():
        print(
            f"{name:14} complete {complete[name]:.3f}  p50 {1000 * np.median(values):7.1f} ms"
            f"  p99 {1000 * p99[name]:7.1f} ms  others {dict(Counter(incomplete[name]))}"
        )
    ratio, complete_ratio = p99[CROWDED] / p99[QUIET], complete[CROWDED] / complete[QUIET]
    print(f"ratio of the 99th percentiles: {ratio:.2f}, at most {MAX_RATIO}")
    print(f"ratio of the complete shares: {complete_ratio:.3f}, at least {MIN_COMPLETE}")
    return int(ratio > MAX_RATIO or complete_ratio < MIN_COMPLETE)


if __name__ == "__main__":
    sys.exit(main())
