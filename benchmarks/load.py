"""Load on a server: many gRPC clients in a process of their own.

The latency of a call counts from the moment at which it was due. In an open loop that moment is
fixed beforehand, so a delayed client cannot hide how long others would have waited (coordinated
omission).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TypeVar, cast

import grpc
import numpy as np

from benchmarks.clients import new_jpegs, two_room_pictures
from lewm.v1 import planner_pb2 as pb
from lewm.v1.planner_pb2_grpc import PlannerServiceStub
from lewm_serve.cli.robot_load import COMPLETE
from lewm_serve.cli.worker_processes import worker_processes

ResultT = TypeVar("ResultT")

MIN_CALLS_PER_CLIENT = 3
"""A client of a closed loop makes at least this many calls, however slow they are."""

CALL_TIMEOUT_S = 120.0
"""The timeout of a call without a deadline: far longer than a plan, so that a dead server ends the
benchmark."""


@dataclass(frozen=True)
class Call:
    """One call of Plan. Times are seconds since the load began.

    Attributes:
        due_s: when it should be sent.
        sent_s: when it was sent.
        ended_s: when it ended.
        outcome: the status of the plan, or the service's error code, or `late` if the client's
            own deadline ended the call.
    """

    due_s: float
    sent_s: float
    ended_s: float
    outcome: str

    @property
    def latency_s(self) -> float:
        """Seconds from the moment at which it was due to its end."""
        return self.ended_s - self.due_s

    @property
    def is_complete(self) -> bool:
        """Whether the plan got all its iterations, in time."""
        return self.outcome in COMPLETE


def poisson_schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Times (s) at which independent clients send, on average ``rate`` per second."""
    generator = np.random.default_rng(seed)
    mean_count = rate * seconds
    # Ten standard deviations above the mean are always enough.
    gaps = generator.exponential(1 / rate, int(mean_count + 10 * mean_count**0.5 + 10))
    times = np.cumsum(gaps)
    return [float(moment) for moment in times[times < seconds]]


def steady_calls(calls: Sequence[Call]) -> list[Call]:
    """The calls of a closed loop that were due after the first answer.

    From then on as many calls are in the queue as there are clients.

    Raises:
        RuntimeError: a call failed, so latency and throughput would not be those of plans.
    """
    if failed := Counter(call.outcome for call in calls if not call.is_complete):
        raise RuntimeError(f"plans failed under a closed loop: {dict(failed)}")
    first_answer = min(call.ended_s for call in calls)
    return [call for call in calls if call.due_s >= first_answer]


def throughput(calls: Sequence[Call]) -> float:
    """Plans per second, from the first answer to the last."""
    ends = sorted(call.ended_s for call in calls)
    return (len(ends) - 1) / (ends[-1] - ends[0])


class LoadProcess:
    """Puts load on the gRPC server at ``target`` from another process, one load at a time."""

    def __init__(self, pool: ProcessPoolExecutor, target: str) -> None:
        self._pool = pool
        self._target = target

    def closed_loop(self, clients: int, seconds: float) -> list[Call]:
        """Clients that send the next request when the last one is answered."""
        return self._run(partial(_closed_loop, self._target, clients, seconds))

    def open_loop(self, due_times: Sequence[float], deadline_s: float) -> list[Call]:
        """Requests at these times (s), whatever happens to earlier ones, each with a deadline."""
        return self._run(partial(_open_loop, self._target, tuple(due_times), deadline_s))

    @property
    def pid(self) -> int:
        """The process."""
        return self._run(os.getpid)

    def warm_up(self) -> None:
        """Make the first calls of a connection, which are slower than later ones."""
        self.closed_loop(2, 1.0)

    def _run(self, work: Callable[[], ResultT]) -> ResultT:
        return self._pool.submit(work).result()


@contextmanager
def load_process(target: str) -> Iterator[LoadProcess]:
    """The process, for the duration of the block."""
    with worker_processes(1) as pool:
        yield LoadProcess(pool, target)


def _closed_loop(target: str, clients: int, seconds: float) -> list[Call]:
    return asyncio.run(_run_closed_loop(target, clients, seconds))


def _open_loop(target: str, due_times: Sequence[float], deadline_s: float) -> list[Call]:
    return asyncio.run(_run_open_loop(target, due_times, deadline_s))


async def _run_closed_loop(target: str, clients: int, seconds: float) -> list[Call]:
    async with grpc.aio.insecure_channel(target) as channel:
        robots = await _Robots.connect(channel)
        end = robots.began + seconds

        async def client() -> list[Call]:
            calls: list[Call] = []
            while (now := time.perf_counter()) < end or len(calls) < MIN_CALLS_PER_CLIENT:
                calls.append(await robots.plan(now, CALL_TIMEOUT_S))
            return calls

        calls_by_client = await asyncio.gather(*(client() for _ in range(clients)))
        return [call for calls in calls_by_client for call in calls]


async def _run_open_loop(target: str, due_times: Sequence[float], deadline_s: float) -> list[Call]:
    async with grpc.aio.insecure_channel(target) as channel:
        robots = await _Robots.connect(channel)

        async def client(due_time: float) -> Call:
            due = robots.began + due_time
            await asyncio.sleep(due - time.perf_counter())
            return await robots.plan(due, deadline_s)

        return list(await asyncio.gather(*map(client, due_times)))


@cache
def _frames() -> Iterator[bytes]:
    """The frames of this process: no load sends one that an earlier load has sent."""
    return new_jpegs(two_room_pictures())


class _Robots:
    """Robots with the same goal, which the server knows. Each request has a new frame.

    Attributes:
        began: when the load began, a reading of `time.perf_counter`.
    """

    def __init__(self, stub: PlannerServiceStub, goal_id: str) -> None:
        self._stub = stub
        self._goal = pb.Frame(latent_id=goal_id)
        self.began = time.perf_counter()

    @classmethod
    async def connect(cls, channel: grpc.aio.Channel) -> _Robots:
        """Have the goal encoded and begin the load."""
        stub = PlannerServiceStub(channel)  # type: ignore[no-untyped-call]
        goal = pb.EncodeRequest(frames=[pb.Frame(image=next(_frames()))])
        encoded = await stub.Encode(goal, timeout=CALL_TIMEOUT_S)
        return cls(stub, encoded.latents[0].latent_id)

    async def plan(self, due: float, deadline_s: float) -> Call:
        """Ask for a plan that is to arrive ``deadline_s`` after the moment ``due``."""
        request = pb.PlanRequest(frames=[pb.Frame(image=next(_frames()))], goal=self._goal)
        sent = time.perf_counter()
        timeout_s = max(0.0, due + deadline_s - sent)
        try:
            answer = await self._stub.Plan(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            outcome = _error_code(error)
        else:
            outcome = answer.status
        ended = time.perf_counter()
        return Call(
            due_s=due - self.began,
            sent_s=sent - self.began,
            ended_s=ended - self.began,
            outcome=outcome,
        )


def _error_code(error: grpc.aio.AioRpcError) -> str:
    metadata = dict(cast(Iterable[tuple[str, str]], error.trailing_metadata() or ()))
    if "code" in metadata:
        return metadata["code"]
    is_late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return "late" if is_late else error.code().name.lower()
