"""Robots that ask a server for plans, each at its own pace, from a process of their own."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lewm_client import AsyncPlannerClient, PlannerError
from lewm_serve.cli.worker_processes import worker_processes

ResultT = TypeVar("ResultT")

COMPLETE = ("completed", "converged")
"""The status of a plan that got all its iterations."""

MAX_CONNECTIONS = 128
"""More robots share connections, so that the load needs few descriptors."""

CALL_TIMEOUT_S = 120.0
"""The timeout of a call that has no deadline: a dead server ends the load."""

MARGIN_S = 1.0
"""A call with a deadline is given up this long after it: the server did not answer at all."""

MIN_WARM_UP_S = 1.0
"""Plans of the first period, and of at least this long, do not count."""

MAX_UNPACED_PLANS = 100_000
"""Robots without a pace send no more plans than about this many."""

JPEG_QUALITY = 90
NUMBER_BYTES = 8


@dataclass(frozen=True)
class Outcome:
    """What became of the plans of a load.

    Attributes:
        asked: how many plans were due after the warm-up.
        in_time: how many of them got all their iterations and arrived by their deadline.
        latencies_s: the seconds of each of them that was answered, from the moment at which it was
            due.
        answered: how many plans were answered, in the warm-up too.
        seconds: how long the load took, from its beginning to the last answer.
        error: the text of one refusal or failure, if there was one.
    """

    asked: int
    in_time: int
    latencies_s: tuple[float, ...]
    answered: int
    seconds: float
    error: str | None

    @property
    def in_time_share(self) -> float:
        """The share of plans that were complete and in time."""
        return self.in_time / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class RobotLoad:
    """The plans that robots ask for.

    Attributes:
        target: the server's gRPC address.
        images: JPEG files. Each plan sends one of them as a new frame.
        solver: what differs from the card's solver settings; None: nothing.
    """

    target: str
    images: tuple[bytes, ...]
    solver: dict[str, Any] | None = None

    def paced(self, robots: int, rate_hz: float, deadline_s: float, seconds: float) -> Outcome:
        """Robots that send a plan every ``1 / rate_hz`` seconds, each at times of its own.

        A robot whose last plan is not answered when the next is due sends it afterwards. Its
        latency counts from the moment at which it was due. See `MIN_WARM_UP_S`.
        """
        return asyncio.run(self._paced(robots, 1 / rate_hz, deadline_s, seconds))

    def unpaced(self, robots: int, seconds: float) -> Outcome:
        """Robots that send the next plan as soon as the last is answered, at least one each."""
        return asyncio.run(self._unpaced(robots, seconds))

    async def _paced(
        self, robots: int, period_s: float, deadline_s: float, seconds: float
    ) -> Outcome:
        plans = _Plans(self)
        async with AsyncExitStack() as stack:
            clients = await plans.connect(stack, robots)
            began = time.perf_counter()
            counted_from = began + max(MIN_WARM_UP_S, period_s)
            end = counted_from + seconds

            async def robot(number: int) -> None:
                due = began + period_s * number / robots
                while due < end:
                    await asyncio.sleep(due - time.perf_counter())
                    await plans.ask(
                        clients[number % len(clients)],
                        due,
                        deadline_s,
                        counts=due >= counted_from,
                    )
                    due += period_s

            await asyncio.gather(*map(robot, range(robots)))
            ended = time.perf_counter()
        return plans.outcome(ended - began)

    async def _unpaced(self, robots: int, seconds: float) -> Outcome:
        plans = _Plans(self)
        async with AsyncExitStack() as stack:
            clients = await plans.connect(stack, robots)
            began = time.perf_counter()

            async def robot(number: int) -> None:
                is_first = True
                while is_first or (
                    time.perf_counter() < began + seconds and plans.asked < MAX_UNPACED_PLANS
                ):
                    await plans.ask(clients[number % len(clients)], time.perf_counter())
                    is_first = False

            await asyncio.gather(*map(robot, range(robots)))
            ended = time.perf_counter()
        return plans.outcome(ended - began)


class _Plans:
    """Sends plans and counts what becomes of them."""

    def __init__(self, load: RobotLoad) -> None:
        self._load = load
        self._goal = ""
        self.asked = 0
        self._in_time = self._answered = 0
        self._latencies_s: list[float] = []
        self._error: str | None = None

    async def connect(self, stack: AsyncExitStack, robots: int) -> list[AsyncPlannerClient]:
        """Open connections and have the goal encoded."""
        clients = [
            await stack.enter_async_context(AsyncPlannerClient(self._load.target, retries=0))
            for _ in range(min(robots, MAX_CONNECTIONS))
        ]
        goal = await clients[0].encode([_new_image(self._load.images)])
        self._goal = goal.latents[0].latent_id
        # The first call on a connection takes longer than the others.
        await asyncio.gather(*(client.models() for client in clients))
        return clients

    async def ask(
        self,
        client: AsyncPlannerClient,
        due: float,
        deadline_s: float | None = None,
        *,
        counts: bool = True,
    ) -> None:
        """Ask for a plan by the deadline, ``deadline_s`` after the moment at which it is due."""
        self.asked += counts
        left_s = None if deadline_s is None else due + deadline_s - time.perf_counter()
        if left_s is not None and left_s <= 0:
            return  # the robot was still waiting for its last plan
        try:
            answer = await client.plan(
                [_new_image(self._load.images)],
                self._goal,
                solver=self._load.solver,
                deadline_ms=None if left_s is None else 1000 * left_s,
                timeout_s=CALL_TIMEOUT_S if left_s is None else left_s + MARGIN_S,
            )
        except PlannerError as error:
            self._error = self._error or str(error)
            return
        latency_s = time.perf_counter() - due
        self._answered += 1
        if counts:
            self._latencies_s.append(latency_s)
            is_late = deadline_s is not None and latency_s > deadline_s
            self._in_time += answer.status in COMPLETE and not is_late

    def outcome(self, seconds: float) -> Outcome:
        """What became of all plans."""
        return Outcome(
            asked=self.asked,
            in_time=self._in_time,
            latencies_s=tuple(self._latencies_s),
            answered=self._answered,
            seconds=seconds,
            error=self._error,
        )


class LoadProcess:
    """Another process that puts load on a server.

    Attributes:
        pid: the process.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self.pid: int = self.run(os.getpid)

    def run(self, work: Callable[..., ResultT], /, *arguments: Any, **named: Any) -> ResultT:
        """Do some work there, such as `RobotLoad.paced`, and return its result."""
        return self._pool.submit(partial(work, *arguments, **named)).result()


@contextmanager
def load_process() -> Iterator[LoadProcess]:
    """The process, for the duration of the block."""
    with worker_processes(1) as pool:
        yield LoadProcess(pool)


_image_numbers = itertools.count()


def _new_image(images: Sequence[bytes]) -> bytes:
    """The next image. No two that this process sends have the same bytes."""
    number = next(_image_numbers)
    return numbered_jpeg(images[number % len(images)], number)


def numbered_jpeg(jpeg: bytes, number: int) -> bytes:
    """A JPEG image with a comment that holds a number below 2⁶⁴.

    It makes an image that no cache knows, at no cost for the client.
    """
    comment = b"\xff\xfe" + (2 + NUMBER_BYTES).to_bytes(2, "big")
    return jpeg[:2] + comment + number.to_bytes(NUMBER_BYTES, "big") + jpeg[2:]


def encode_picture(picture: NDArray[np.uint8], image_format: str) -> bytes:
    """A picture (H, W, 3) as a file of this format."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, image_format, quality=JPEG_QUALITY)
    return buffer.getvalue()
