"""Clients that put a server under load, from a process of their own.

What a client sees is measured from the moment at which it wanted to send (for an open loop, that
is fixed beforehand), so a client that is held up cannot hide how long others would have waited
(coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar, cast

import grpc
import numpy as np

from benchmarks.frames import fresh, jpeg, rendered
from benchmarks.workers import worker_processes
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub

R = TypeVar("R")
LEAST = 3
"""Plans of each client of a closed loop, however slow they are."""

PATIENCE_S = 120.0
"""When no deadline is set: far longer than any plan, so that a dead server ends the benchmark."""


@dataclass(frozen=True)
class Call:
    """One request: seconds since the load began, and how it ended.

    ``outcome`` is the plan's status, or the service's error code, or `late` where the client's own
    deadline ended the call.
    """

    wanted_s: float
    sent_s: float
    ended_s: float
    outcome: str

    @property
    def latency_s(self) -> float:
        """How long the client waited."""
        return self.ended_s - self.wanted_s

    @property
    def whole(self) -> bool:
        """Whether the plan got all the iterations it asked for, in time."""
        return self.outcome in ("completed", "converged")


def poisson_schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Moments (s) at which independent clients send, ``rate`` a second on average."""
    generator = np.random.default_rng(seed)
    expected = rate * seconds
    # Ten deviations more than expected are always enough.
    gaps = generator.exponential(1 / rate, int(expected + 10 * expected**0.5 + 10))
    moments = np.cumsum(gaps)
    return [float(moment) for moment in moments[moments < seconds]]


class LoadProcess:
    """Runs load against the gRPC server at ``target``, one at a time, in another process."""

    def __init__(self, pool: ProcessPoolExecutor, target: str) -> None:
        self._pool = pool
        self._target = target

    def closed(self, clients: int, seconds: float) -> list[Call]:
        """Clients that send the next request when the last one is answered."""
        return self._run(partial(_closed, self._target, clients, seconds))

    def open(self, moments: Sequence[float], deadline_s: float) -> list[Call]:
        """Requests at these moments, whatever became of those before, each with a deadline."""
        return self._run(partial(_open, self._target, tuple(moments), deadline_s))

    def _run(self, work: Callable[[], R]) -> R:
        return self._pool.submit(work).result()


@contextmanager
def load_process(target: str) -> Iterator[LoadProcess]:
    """The process, for as long as it is needed."""
    with worker_processes(1) as pool:
        yield LoadProcess(pool, target)


def _closed(target: str, clients: int, seconds: float) -> list[Call]:
    return asyncio.run(_run_closed(target, clients, seconds))


def _open(target: str, moments: Sequence[float], deadline_s: float) -> list[Call]:
    return asyncio.run(_run_open(target, moments, deadline_s))


async def _run_closed(target: str, clients: int, seconds: float) -> list[Call]:
    async with grpc.aio.insecure_channel(target) as channel:
        robots = await _Robots.connect(channel)

        async def client() -> list[Call]:
            calls: list[Call] = []
            while (now := time.perf_counter()) < robots.began + seconds or len(calls) < LEAST:
                calls.append(await robots.plan(now, PATIENCE_S))
            return calls

        each = await asyncio.gather(*(client() for _ in range(clients)))
        return [call for calls in each for call in calls]


async def _run_open(target: str, moments: Sequence[float], deadline_s: float) -> list[Call]:
    async with grpc.aio.insecure_channel(target) as channel:
        robots = await _Robots.connect(channel)

        async def client(moment: float) -> Call:
            wanted = robots.began + moment
            await asyncio.sleep(wanted - time.perf_counter())
            return await robots.plan(wanted, deadline_s)

        return list(await asyncio.gather(*map(client, moments)))


@cache
def _frames() -> Iterator[bytes]:
    """This process's frames: what one load has sent is not new in the next."""
    return fresh([jpeg(picture) for picture in rendered()])


class _Robots:
    """Many robots with one goal, which the server knows; each request has a new frame."""

    def __init__(self, stub: PlannerServiceStub, goal: str) -> None:
        self._stub = stub
        self._goal = pb.Frame(latent_id=goal)
        self.began = time.perf_counter()

    @classmethod
    async def connect(cls, channel: grpc.aio.Channel) -> _Robots:
        """Have the goal encoded; the load begins."""
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        goal = pb.EncodeRequest(frames=[pb.Frame(image=next(_frames()))])
        encoded = await stub.Encode(goal, timeout=PATIENCE_S)
        return cls(stub, encoded.latents[0].latent_id)

    async def plan(self, wanted: float, deadline_s: float) -> Call:
        """Plan, to be answered ``deadline_s`` after the moment ``wanted``."""
        request = pb.PlanRequest(frames=[pb.Frame(image=next(_frames()))], goal=self._goal)
        sent = time.perf_counter()
        left = max(0.0, wanted + deadline_s - sent)
        try:
            answer = await self._stub.Plan(request, timeout=left)
        except grpc.aio.AioRpcError as error:
            outcome = _error_code(error)
        else:
            outcome = answer.status
        ended = time.perf_counter()
        return Call(wanted - self.began, sent - self.began, ended - self.began, outcome)


def _error_code(error: grpc.aio.AioRpcError) -> str:
    trailing = dict(cast(Iterable[tuple[str, str]], error.trailing_metadata() or ()))
    if "code" in trailing:
        return trailing["code"]
    late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return "late" if late else error.code().name.lower()
