"""The users of a load, for Locust.

Importing this module replaces blocking calls of the whole process by those of gevent, so only the
load's own process imports it.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from gevent.pool import Pool
from locust import User, constant_pacing, task

from benchmarks.clients import Document, image_document
from benchmarks.load import poisson_schedule
from lewm.v1 import planner_pb2 as pb
from lewm_client import frame
from lewm_serve.cli.robot_load import numbered_jpeg
from loadtests.bad_requests import bad_grpc_requests, bad_rest_requests
from loadtests.calls import Call
from loadtests.clients import (
    CALL_TIMEOUT_S,
    OK,
    GrpcClient,
    ModelShape,
    PlanningClient,
    RestClient,
    Target,
    plan_document,
)
from loadtests.frames import Walk
from loadtests.spec import LoadSpec

MAX_ARRIVALS_IN_FLIGHT = 1000
"""Beyond this, arrivals wait. Their latency counts from the moment at which they were due."""

MAX_IDLE_S = 30.0
"""A connection that was idle for longer is not used again, because the server may close it."""

CLIENT_PERIOD_S = 1.0
"""A bad or leaving client sends at most one request in this time."""

MAX_STAY_S = 0.1
"""A leaving client stays at most this long."""
LONG_SEARCH: Document = {"samples": 128, "iterations": 20}
"""The search of a plan that nobody waits for."""
LEFT = "left"

SLOW_VALUES = 50_000
"""Values in the answer of a slow reader: about a megabyte."""


@dataclass
class LoadRun:
    """What the users of a load share: the frames, the budget of requests, and the calls."""

    spec: LoadSpec
    target: Target
    model: ModelShape
    walks: list[Walk]
    calls: list[Call] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    spent: Event = field(default_factory=Event)
    requests: int = 0
    _image_number: Iterator[int] = field(
        default_factory=lambda: itertools.count(random.SystemRandom().getrandbits(63))
    )

    def new_image(self, walk: Walk, step: int) -> bytes:
        """The frame of a walk at a step, as bytes that no server has seen."""
        return numbered_jpeg(walk[step % len(walk)], next(self._image_number))

    def take_request(self) -> bool:
        """Take one request from the budget. False: there is none left, and the load ends."""
        if self.requests >= self.spec.requests:
            self.spent.set()
            return False
        self.requests += 1
        return True

    def call(
        self,
        kind: str,
        send: Callable[[], str],
        *,
        expected: str = OK,
        due: float | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        """Make a call and keep it.

        Args:
            kind: the kind of call.
            send: sends the request and returns the code of the answer.
            expected: the code that it must be.
            due: when it should be sent, a reading of `time.perf_counter`; None: now.
            deadline_ms: the deadline of a plan.
        """
        sent = time.perf_counter()
        due = sent if due is None else due
        try:
            code = send()
        except Exception as error:  # a fault of the load itself; the report shows it
            code = f"client: {type(error).__name__}: {error}"
        ended = time.perf_counter()
        latency_ms = 1000 * (ended - due)
        self.calls.append(
            Call(
                kind=kind,
                ended_s=ended - self.started,
                latency_ms=latency_ms,
                late_ms=1000 * (sent - due),
                code=code,
                is_expected=code == expected,
                missed_deadline=deadline_ms is not None and code == OK and latency_ms > deadline_ms,
            )
        )


class LoadUser(User):
    """A user of one protocol. `user_classes` sets what it shares with the others."""

    abstract = True
    load: ClassVar[LoadRun]
    protocol: ClassVar[str]
    client: PlanningClient

    def on_start(self) -> None:
        """Connect."""
        self.client = self.load.target.connect(self.protocol)
        self.walk = random.choice(self.load.walks)
        self.step = random.randrange(len(self.walk))

    def on_stop(self) -> None:
        """Disconnect."""
        self.client.close()

    def new_image(self) -> bytes:
        """The next frame of the walk."""
        self.step += 1
        return self.load.new_image(self.walk, self.step)

    @property
    def goal(self) -> bytes:
        """The last frame of the walk."""
        return self.walk[-1]


class Robot(LoadUser):
    """Walks and asks for plans in a closed loop. Some of its requests only encode or predict."""

    abstract = True

    def wait_time(self) -> float:
        """At most ``robot_hz`` requests a second."""
        return self._pacing(self)

    def on_start(self) -> None:
        """Connect, at a moment of its own."""
        super().on_start()
        period_s = 1 / self.load.spec.robot_hz
        self._pacing = constant_pacing(period_s)
        gevent.sleep(random.uniform(0, period_s))

    @task(8)
    def plan(self) -> None:
        """Ask for a plan."""
        if not self.load.take_request():
            return
        deadline_ms, image = self.load.spec.deadline_ms, self.new_image()
        self.load.call(
            f"{self.protocol} plan",
            lambda: self.client.plan(image, self.goal, deadline_ms),
            deadline_ms=deadline_ms,
        )

    @task(1)
    def encode(self) -> None:
        """Encode a frame."""
        if not self.load.take_request():
            return
        image = self.new_image()
        self.load.call(f"{self.protocol} encode", lambda: self.client.encode(image))

    @task(1)
    def predict(self) -> None:
        """Predict one action block."""
        if not self.load.take_request():
            return
        image, actions = self.new_image(), self.load.model.mean_actions
        self.load.call(f"{self.protocol} predict", lambda: self.client.predict(image, actions))


class Arrivals(LoadUser):
    """Robots of an open loop: their plans are due at random moments, whatever happens to others."""

    abstract = True
    rate: ClassVar[float]
    seed: ClassVar[int]

    def on_start(self) -> None:
        """Draw the moments."""
        super().on_start()
        times = poisson_schedule(self.rate, self.load.spec.seconds, seed=self.seed)
        begin = time.perf_counter()
        self._due = (begin + moment for moment in times)
        self._next_due = next(self._due, None)
        self._in_flight = Pool(MAX_ARRIVALS_IN_FLIGHT)
        self._idle = [(self.client, begin)]

    def wait_time(self) -> float:
        """Until the next plan is due."""
        if self._next_due is None:
            return self.load.spec.seconds
        return max(0.0, self._next_due - time.perf_counter())

    @task
    def arrive(self) -> None:
        """Send the plan that is due, and do not wait for it."""
        if self._next_due is None or self._next_due > time.perf_counter():
            return
        if not self.load.take_request():
            return
        due, self._next_due = self._next_due, next(self._due, None)
        self._in_flight.spawn(self._plan, due)

    def on_stop(self) -> None:
        """Wait for the plans in flight."""
        self._in_flight.join(CALL_TIMEOUT_S)
        for client, _ in self._idle:
            client.close()

    def _plan(self, due: float) -> None:
        deadline_ms, image = self.load.spec.deadline_ms, self.new_image()
        client = self._take_client()
        try:
            self.load.call(
                f"{self.protocol} plan, open loop",
                lambda: client.plan(image, self.goal, deadline_ms),
                due=due,
                deadline_ms=deadline_ms,
            )
        finally:
            self._idle.append((client, time.perf_counter()))

    def _take_client(self) -> PlanningClient:
        """The connection that was used last, or a new one: each carries one plan at a time."""
        while self._idle:
            client, since = self._idle.pop()
            if time.perf_counter() - since < MAX_IDLE_S:
                return client
            client.close()
        return self.load.target.connect(self.protocol)


class BadClient(LoadUser):
    """Sends requests that the server must refuse."""

    abstract = True
    wait_time = constant_pacing(CLIENT_PERIOD_S)

    def on_start(self) -> None:
        """Prepare the requests."""
        super().on_start()
        if isinstance(self.client, RestClient):
            self._requests = bad_rest_requests(self.client, self.new_image())
        else:
            assert isinstance(self.client, GrpcClient)
            self._requests = bad_grpc_requests(self.client, self.new_image())

    @task
    def send(self) -> None:
        """Send the next one."""
        if not self.load.take_request():
            return
        send, expected = next(self._requests)
        self.load.call(f"{self.protocol} bad request", send, expected=expected)


class LeavingClient(LoadUser):
    """Asks for a long plan and goes away, each time from a connection of its own."""

    abstract = True
    wait_time = constant_pacing(CLIENT_PERIOD_S)

    def on_start(self) -> None:
        """Choose a walk."""
        super().on_start()
        self.client.close()

    @task
    def leave(self) -> None:
        """Ask and go."""
        if not self.load.take_request():
            return
        self.load.call(f"{self.protocol} client leaves", self._ask_and_leave, expected=LEFT)

    def _ask_and_leave(self) -> str:
        image, stay_s = self.new_image(), random.uniform(0, MAX_STAY_S)
        if self.protocol == "rest":
            document = plan_document(image, self.goal, solver=LONG_SEARCH)
            self.load.target.connect_rest().ask_and_leave("/plan", document, stay_s)
        else:
            request = pb.PlanRequest(
                frames=[frame(image)],
                goal=frame(self.goal),
                solver=pb.SolverSettings(**LONG_SEARCH),
            )
            self.load.target.connect_grpc().ask_and_leave(request, stay_s)
        return LEFT


class SlowReader(LoadUser):
    """Takes seconds to read a large answer over REST."""

    abstract = True
    wait_time = constant_pacing(CLIENT_PERIOD_S)

    @task
    def read(self) -> None:
        """Ask for many predictions and read them in pieces."""
        if not self.load.take_request():
            return
        self.load.call("rest slow reader", self._read)

    def _read(self) -> str:
        model = self.load.model
        candidates = [model.mean_actions] * max(1, SLOW_VALUES // model.latent_dim)
        frames = [image_document(self.new_image())]
        document = {"frames": frames, "candidates": candidates}
        return self.load.target.connect_rest().read_slowly("/predict", document)


def user_classes(load: LoadRun) -> list[type[User]]:
    """The classes of a load's users, each with its number of users."""
    spec = load.spec
    counts = {
        Robot: spec.robots,
        Arrivals: len(spec.protocols) if spec.arrivals_per_s else 0,
        BadClient: spec.bad_clients,
        LeavingClient: spec.leaving_clients,
    }
    classes: list[type[User]] = []
    for kind, count in counts.items():
        for number, protocol in enumerate(spec.protocols):
            share = len(range(number, count, len(spec.protocols)))
            values: dict[str, Any] = {"protocol": protocol, "fixed_count": share, "load": load}
            if kind is Arrivals:
                values["rate"] = spec.arrivals_per_s / len(spec.protocols)
                values["seed"] = spec.seed + number  # the protocols' arrivals are independent
            if share:
                classes.append(type(f"{kind.__name__}_{protocol}", (kind,), values))
    if spec.slow_readers:
        values = {"protocol": "rest", "fixed_count": spec.slow_readers, "load": load}
        classes.append(type("SlowReader_rest", (SlowReader,), values))
    return classes
