"""Work for the engine, cut into steps between which other work may come first."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from service.backends.backend import Backend, goal_costs
from service.engine.pace import Pace
from service.planning.solver import Solver

STEP_LIMIT = 2560
"""Candidates times steps of one roll-out: 512 candidates over a horizon of 5."""

GRADIENT_COST = 2.5
"""Roll-outs that take as long as one with its gradients does, as measured on a CPU."""


class DeadlinePassed(Exception):
    """The deadline came before one iteration could be done."""


@dataclass(frozen=True)
class PlanOutcome:
    """How a search ended: z-scored ``actions`` (T, A), the ``cost`` of exactly these, seconds."""

    actions: Tensor
    cost: float
    status: Literal["completed", "converged", "deadline"]
    iterations: int
    candidates: int
    trajectory: Tensor | None
    queue_s: float
    solve_s: float


@dataclass(frozen=True)
class Prediction:
    """Predicted latents (S, T, D), and seconds."""

    latents: Tensor
    queue_s: float
    solve_s: float


class Job(ABC):
    """One request's work. ``future`` is answered once; cancelling it drops the job.

    Times are readings of ``time.monotonic()``; a missing deadline is infinitely far.
    """

    def __init__(self, backend: Backend, priority: int = 5, deadline: float | None = None) -> None:
        self.backend = backend
        self.priority = priority
        self.deadline = math.inf if deadline is None else deadline
        self.arrival = time.monotonic()
        self.started: float | None = None
        self.finished = False
        self.future: Future[Any] = Future()

    @property
    def urgency(self) -> tuple[int, float, float]:
        """Smaller goes first: priority, then the earliest deadline, then arrival."""
        return -self.priority, self.deadline, self.arrival

    def run(self) -> int:
        """Do one step, see `step`."""
        if self.started is None:
            self.started = time.monotonic()
        return self.step()

    @abstractmethod
    def step(self) -> int:
        """Roll some candidates out and say how many; set ``finished`` at the last step."""

    @abstractmethod
    def result(self) -> object:
        """The answer as it stands: final after the last step, the best so far at the deadline.

        Raises:
            DeadlinePassed: there is none yet.
        """

    def _seconds(self) -> tuple[float, float]:
        """Seconds in the queue before the first step, and since then."""
        now = time.monotonic()
        started = now if self.started is None else self.started
        return started - self.arrival, now - started


class PredictJob(Job):
    """One roll-out: ``latents`` (H, D), ``past_actions`` (H − 1, A), ``candidates`` (S, T, A)."""

    def __init__(
        self,
        backend: Backend,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        deadline: float | None,
    ) -> None:
        super().__init__(backend, deadline=deadline)
        self.latents = latents
        self.past_actions = past_actions
        self.chunks = deque(chunked(candidates))
        self.predicted: list[Tensor] = []

    def step(self) -> int:
        """Roll one chunk out."""
        chunk = self.chunks.popleft()
        self.predicted.append(rollout(self.backend, self.latents, self.past_actions, chunk))
        self.finished = not self.chunks
        return len(chunk)

    def result(self) -> Prediction:
        """See `Job.result`."""
        if self.chunks:
            raise DeadlinePassed
        return Prediction(torch.cat(self.predicted), *self._seconds())


class PlanJob(Job):
    """One search towards ``goal`` (D,) from ``latents`` (H, D): ask, roll out, tell, until done.

    What a candidate costs is said by `goal_costs`.
    """

    def __init__(
        self,
        backend: Backend,
        pace: Pace,
        solver: Solver,
        latents: Tensor,
        past_actions: Tensor,
        goal: Tensor,
        priority: int,
        deadline: float | None,
        with_trajectory: bool,
    ) -> None:
        super().__init__(backend, priority, deadline)
        self.pace = pace
        self.solver = solver
        self.latents = latents
        self.past_actions = past_actions
        self.goal = goal
        self.with_trajectory = with_trajectory
        self.candidates: Tensor | None = None
        self.chunks: deque[Tensor] = deque()
        self.costs: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def step(self) -> int:
        """Score one chunk of the iteration's candidates; at its last one, tell the solver.

        An iteration that is not expected to end before the deadline is not begun.
        """
        if self.candidates is None:
            self.candidates = self.solver.ask()
            samples, horizon, _ = self.candidates.shape
            expected_s = self.pace.estimate(samples, horizon)
            if self.solver.needs_gradients:
                expected_s *= GRADIENT_COST
            if time.monotonic() + expected_s > self.deadline:
                self.finished = True
                return 0
            self.chunks = deque(chunked(self.candidates))
        chunk = self.chunks.popleft()
        if self.solver.needs_gradients:
            self._differentiate(chunk)
        else:
            self._score(chunk)
        if not self.chunks:
            gradients = torch.cat(self.gradients) if self.gradients else None
            self.solver.tell(self.candidates, torch.cat(self.costs), gradients)
            self.candidates, self.costs, self.gradients = None, [], []
            self.finished = self.solver.done
        return len(chunk)

    def _score(self, chunk: Tensor) -> None:
        start = time.monotonic()
        predicted = rollout(self.backend, self.latents, self.past_actions, chunk)
        self.pace.observe(len(chunk), chunk.shape[1], time.monotonic() - start)
        self.costs.append(goal_costs(predicted, self.goal))

    def _differentiate(self, chunk: Tensor) -> None:
        inputs = (self.latents, self.past_actions, chunk, self.goal)
        costs, gradients = self.backend.gradients(*(part.unsqueeze(0) for part in inputs))
        self.costs.append(costs[0])
        self.gradients.append(gradients[0])

    def result(self) -> PlanOutcome:
        """See `Job.result`."""
        best = self.solver.best
        if best is None:
            raise DeadlinePassed
        trajectory = None
        if self.with_trajectory:
            one = best.actions.unsqueeze(0)
            trajectory = rollout(self.backend, self.latents, self.past_actions, one)[0]
        ended: Literal["completed", "converged"] = (
            "converged" if self.solver.converged else "completed"
        )
        return PlanOutcome(
            best.actions,
            best.cost,
            ended if self.solver.done else "deadline",
            self.solver.iterations,
            self.solver.candidates,
            trajectory,
            *self._seconds(),
        )


def rollout(backend: Backend, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
    """Roll out for one plan: (H, D), (H − 1, A), (S, T, A) → (S, T, D)."""
    parts = (part.unsqueeze(0) for part in (latents, past_actions, candidates))
    return backend.rollout(*parts)[0]


def chunked(candidates: Tensor) -> tuple[Tensor, ...]:
    """Candidates (S, T, A) in parts that hold the engine up for a moment only.

    The parts follow from the shape alone: a plan's figures must not depend on the hour.
    """
    rows = max(1, STEP_LIMIT // candidates.shape[1])
    return torch.split(candidates, rows)
