"""Robots that call a fleet in turn over REST and gRPC, and never repeat a call."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import count
from typing import NamedTuple, Self

import numpy as np

from loadtests.clients import CALL_TIMEOUT_S, OK, GrpcClient, RestClient, grpc_code, plan_document
from tests.fleet.fleet import Fleet
from tests.lewm_serve.support.frames import encoded
from tests.lewm_serve.support.requests import SMALL_SOLVER

ROBOTS = 32
FRAMES = [encoded("PNG", seed) for seed in range(32)]


class Call(NamedTuple):
    """One call as its client saw it."""

    kind: str
    code: str
    started: float
    seconds: float


class Load:
    """Robots that call in a closed loop inside of the block."""

    def __init__(self, connect: Callable[[], tuple[RestClient, GrpcClient]]) -> None:
        self.calls: list[Call] = []
        self._stopping = threading.Event()
        self._robots = [
            threading.Thread(target=self._drive, args=(*connect(), index))
            for index in range(ROBOTS)
        ]

    @classmethod
    def through_proxies(cls, fleet: Fleet) -> Load:
        """The robots know the proxies alone."""
        return cls(lambda: (fleet.rest(), fleet.grpc()))

    def _drive(self, rest: RestClient, rpc: GrpcClient, index: int) -> None:
        goal = FRAMES[index % len(FRAMES)]
        with closing(rest), closing(rpc):
            for step in count(index):
                if self._stopping.is_set():
                    return
                frame = FRAMES[step % len(FRAMES)]
                self._call("rest plan", partial(plan_over_rest, rest, frame, goal))
                self._call("grpc plan", partial(plan_over_grpc, rpc, frame, goal))
                self._call("rest encode", partial(rest.encode, frame))
                self._call("grpc encode", partial(rpc.encode, frame))

    def _call(self, kind: str, call: Callable[[], str]) -> None:
        started = time.monotonic()
        try:
            code = call()
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
        self.calls.append(Call(kind, code, started, time.monotonic() - started))

    @property
    def failed(self) -> list[Call]:
        """The calls that did not end as they should."""
        return [call for call in self.calls if call.code != OK]

    def counts(self) -> Counter[str]:
        """How many calls there were of each kind."""
        return Counter(call.kind for call in self.calls)

    def report(self) -> str:
        """What happened, in a few lines."""
        lines = [f"{len(self.calls)} calls, {len(self.failed)} failed"]
        for kind in sorted(self.counts()):
            times = [1000 * call.seconds for call in self.calls if call.kind == kind]
            p50, p99, longest = np.quantile(times, (0.5, 0.99, 1))
            lines.append(f"{kind}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.0f} ms")
        return "\n".join([*lines, *map(str, self.failed[:20])])

    def __enter__(self) -> Self:
        for robot in self._robots:
            robot.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for robot in self._robots:
            robot.join()


def plan_over_rest(client: RestClient, frame: bytes, goal: bytes) -> str:
    """The code of the answer to a small plan. It has a deadline like a call over gRPC."""
    document = plan_document(frame, goal, solver=SMALL_SOLVER, deadline_ms=1000 * CALL_TIMEOUT_S)
    return client.post("/plan", document)


def plan_over_grpc(client: GrpcClient, frame: bytes, goal: bytes) -> str:
    """The code of the answer to a small plan."""
    return grpc_code(
        lambda: client.planner.plan([frame], goal, solver=SMALL_SOLVER, timeout_s=CALL_TIMEOUT_S)
    )
