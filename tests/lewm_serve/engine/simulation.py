"""Robots, admission and scheduler under one clock that only work moves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from lewm_serve.engine.admission import Admission, QueueTooLong
from lewm_serve.engine.jobs import DeadlinePassed, EncodeJob, PlanJob, PlanOutcome
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.scheduler import Scheduler
from tests.lewm_serve.engine.fakes import WIDTH, FakeBackend, FakeClock, cem, pace_of, ticket


@dataclass
class Ask:
    """What a robot wants, and what became of it; times are the clock's."""

    deadline_s: float = math.inf
    priority: int = 5
    samples: int = 8
    iterations: int = 5
    frames: int = 0
    least: int | None = None
    arrival: float = 0.0
    need: int | None = None
    answers: list[Any] = field(default_factory=list)
    answered: float = math.nan

    @property
    def deadline(self) -> float:
        return self.arrival + self.deadline_s

    @property
    def admitted(self) -> bool:
        return self.need is not None

    @property
    def outcome(self) -> Any:
        (answer,) = self.answers
        return answer

    @property
    def in_time(self) -> bool:
        """Whether the whole plan came back before its deadline."""
        outcome = self.outcome
        done = isinstance(outcome, PlanOutcome) and outcome.status == "completed"
        return done and self.answered <= self.deadline


class Simulation:
    """A server without threads: requests are admitted, encoded, solved and answered."""

    def __init__(self, knee: int = 0, limit: int = 1000) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock, gain=knee > 0)
        self.pace: LatencyModel = pace_of(knee, self.clock)
        self.scheduler = Scheduler(self.clock)
        self.admission = Admission(limit, self.clock, lambda: self.scheduler.free_at)
        self.asks: dict[float, Ask] = {}
        self._tags = itertools.count(1)
        self._futures: dict[int, Future[Any]] = {}

    def arrive(self, ask: Ask, answered: Callable[[], None] = lambda: None) -> None:
        """A request comes in now; ``answered`` is called when it leaves."""
        tag = float(next(self._tags))
        self.asks[tag] = ask
        ask.arrival = self.clock.now
        solver = cem(ask.samples, ask.iterations, seed=int(tag))
        held = ticket(
            self.pace, solver, ask.arrival, ask.deadline, ask.priority, ask.frames, ask.least
        )

        def leave(answer: object) -> None:
            ask.answers.append(answer)
            ask.answered = self.clock.now
            answered()

        def left(future: Future[PlanOutcome]) -> None:
            self.admission.leave(held)
            leave("cancelled" if future.cancelled() else future.exception() or future.result())

        def submit(future: Future[Any]) -> None:
            if future.cancelled() or future.exception():
                left(future)
                return
            held.frames = 0
            latents, past = torch.full((1, WIDTH), tag), torch.empty(0, WIDTH)
            job = PlanJob(self.backend, held, solver, latents, past, torch.zeros(WIDTH))
            self._futures[id(ask)] = job.future
            job.future.add_done_callback(left)
            self.scheduler.submit(job)

        try:
            self.admission.admit(held)
        except (QueueTooLong, DeadlinePassed) as refused:
            leave(refused)
            return
        ask.need = held.need
        if not ask.frames:
            ready: Future[Any] = Future()
            ready.set_result(None)
            submit(ready)
            return
        frames = torch.zeros(ask.frames, 2, 2, WIDTH, dtype=torch.uint8)
        encoding = EncodeJob(self.backend, self.pace, frames)
        self._futures[id(ask)] = encoding.future
        encoding.future.add_done_callback(submit)
        self.scheduler.submit(encoding)

    def cancel(self, ask: Ask) -> None:
        """The client goes away."""
        if id(ask) in self._futures:
            self._futures[id(ask)].cancel()

    def run(self, until: float = math.inf) -> None:
        """Serve until nothing is left to come, or the time is up."""
        while self.clock.now < until:
            if not self.scheduler.idle:
                self.scheduler.turn()
            elif not self.clock.skip():
                return
