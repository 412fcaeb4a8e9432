"""Robots, admission and scheduler under one clock that only work advances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from lewm_serve.engine.admission import Admission, DeadlinePassed, QueueTooLong
from lewm_serve.engine.jobs import EncodeJob, Job, PlanJob, PlanOutcome, Search
from lewm_serve.engine.queued_request import Client, QueuedRequest
from lewm_serve.engine.scheduler import Scheduler
from tests.lewm_serve.engine.fakes import (
    WIDTH,
    FakeBackend,
    FakeClock,
    TimedJob,
    latency_model,
    queued_plan,
    search,
)


@dataclass
class SimulatedPlan:
    """A plan that a robot asks for, and what became of it. Times are readings of the clock.

    Attributes:
        deadline_s: seconds from the arrival to the deadline.
        arrival: when it arrived.
        guaranteed_iterations: what it was guaranteed when it was admitted; None: it was refused.
        answers: everything that the robot got: outcomes, errors, or "cancelled".
        answered: when it got the last of them.
    """

    deadline_s: float = math.inf
    priority: int = 5
    samples: int = 8
    iterations: int = 5
    frame_count: int = 0
    min_iterations: int | None = None
    client: Client | None = None
    arrival: float = 0.0
    guaranteed_iterations: int | None = None
    answers: list[Any] = field(default_factory=list)
    answered: float = math.nan

    @property
    def deadline(self) -> float:
        return self.arrival + self.deadline_s

    @property
    def admitted(self) -> bool:
        return self.guaranteed_iterations is not None

    @property
    def answer(self) -> Any:
        """The only answer."""
        (answer,) = self.answers
        return answer

    @property
    def completed_in_time(self) -> bool:
        """Whether the complete plan came before its deadline."""
        answer = self.answer
        is_complete = isinstance(answer, PlanOutcome) and answer.status == "completed"
        return is_complete and self.answered <= self.deadline


class Simulation:
    """A server without threads: plans are admitted, encoded, searched and answered.

    Args:
        max_batched_rows: see `LatencyModel`.
        limit: see `Admission`.
        searches: whether plans are searched; otherwise see `TimedJob`.

    Attributes:
        plans: the plans that arrived, by the tags under which the backend knows them.
    """

    def __init__(
        self, max_batched_rows: int = 0, limit: int = 1000, *, searches: bool = True
    ) -> None:
        self.clock = FakeClock()
        self.backend = FakeBackend(self.clock, batching_pays=max_batched_rows > 0)
        self.latency = latency_model(max_batched_rows, self.clock)
        self.scheduler = Scheduler(self.clock)
        self.admission = Admission(limit, self.clock, lambda: self.scheduler.free_at)
        self.plans: dict[float, SimulatedPlan] = {}
        self._searches = searches
        self._tags = itertools.count(1)
        self._futures: dict[int, Future[Any]] = {}

    def arrive(self, plan: SimulatedPlan, on_answer: Callable[[], None] = lambda: None) -> None:
        """A plan arrives now. ``on_answer`` is called when it is answered."""
        tag = float(next(self._tags))
        self.plans[tag] = plan
        plan.arrival = self.clock.now
        plan_search = search(samples=plan.samples, iterations=plan.iterations, seed=int(tag))
        queued = queued_plan(
            self.latency,
            plan_search,
            arrival=plan.arrival,
            deadline=plan.deadline,
            priority=plan.priority,
            frames_to_encode=plan.frame_count,
            min_iterations=plan.min_iterations,
            client=plan.client,
        )

        def answer(content: object) -> None:
            plan.answers.append(content)
            plan.answered = self.clock.now
            on_answer()

        def leave(future: Future[Any]) -> None:
            self.admission.leave(queued)
            answer("cancelled" if future.cancelled() else future.exception() or future.result())

        def on_encoded(future: Future[Any]) -> None:
            if future.cancelled() or future.exception():
                leave(future)
            else:
                self._submit_search(plan, tag, queued, plan_search, leave)

        try:
            self.admission.admit(queued)
        except (QueueTooLong, DeadlinePassed) as refusal:
            answer(refusal)
            return
        plan.guaranteed_iterations = queued.guaranteed_iterations
        if plan.frame_count:
            frames = torch.zeros(plan.frame_count, 2, 2, WIDTH, dtype=torch.uint8)
            job = EncodeJob(self.backend, frames, queued=queued)
            self._futures[id(plan)] = job.future
            job.future.add_done_callback(on_encoded)
            self.scheduler.submit(job)
        else:
            self._submit_search(plan, tag, queued, plan_search, leave)

    def _submit_search(
        self,
        plan: SimulatedPlan,
        tag: float,
        queued: QueuedRequest,
        plan_search: Search,
        on_done: Callable[[Future[Any]], None],
    ) -> None:
        queued.frames_to_encode = 0
        job: Job = TimedJob(self.backend, queued)
        if self._searches:
            job = PlanJob(
                backend=self.backend,
                queued=queued,
                latents=torch.full((1, WIDTH), tag),
                past_actions=torch.empty(0, WIDTH),
                goal=torch.zeros(WIDTH),
                search=plan_search,
            )
        self._futures[id(plan)] = job.future
        job.future.add_done_callback(on_done)
        self.scheduler.submit(job)

    def cancel(self, plan: SimulatedPlan) -> None:
        """The robot goes away."""
        if id(plan) in self._futures:
            self._futures[id(plan)].cancel()

    def run(self, until: float = math.inf) -> None:
        """Work until no plan is left and none will arrive, or until a time."""
        while self.clock.now < until:
            if not self.scheduler.idle:
                self.scheduler.run_turn()
            elif not self.clock.skip():
                return
