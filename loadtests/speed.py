"""How fast a server plans, compared with another one on the same machine.

The servers take turns, plan by plan. So whatever else the machine does slows both down alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.clients import new_jpegs, two_room_pictures
from loadtests.clients import OK, RestClient
from loadtests.spec import Address

DEADLINE_MS = 60_000.0
FIRST_PLANS = 20
"""Plans of each server that are not compared: connections open, and caches fill."""


@dataclass(frozen=True)
class Comparison:
    """Latencies of plans by two servers that took turns, in milliseconds."""

    first_ms: Sequence[float]
    second_ms: Sequence[float]

    def ratio(self, percentile: float) -> float:
        """The first server's latency at a percentile relative to the second server's."""
        first, second = (
            float(np.percentile(values, percentile)) for values in (self.first_ms, self.second_ms)
        )
        return first / second


def compare(first: Address, second: Address, plans: int) -> Comparison:
    """Ask both servers for the same plans in turns, over REST.

    Raises:
        RuntimeError: a plan failed.
    """
    clients = RestClient(first), RestClient(second)
    images = new_jpegs(two_room_pictures())
    goal = next(images)
    times: tuple[list[float], list[float]] = [], []
    for number, image in enumerate(itertools.islice(images, FIRST_PLANS + plans)):
        # Each server is the first of the pair every other time.
        for index in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            code = clients[index].plan(image, goal, DEADLINE_MS)
            if code != OK:
                raise RuntimeError(f"a plan ended with {code}")
            times[index].append(1000 * (time.perf_counter() - started))
    for client in clients:
        client.close()
    return Comparison(times[0][FIRST_PLANS:], times[1][FIRST_PLANS:])
