"""Work for the engine, cut into steps between which other work may come first."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from service.backends.backend import Backend
from service.planning.solver import Solver


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
        self.future: Future[Any] = Future()

    @property
    def urgency(self) -> tuple[int, float, float]:
        """Smaller goes first: priority, then the earliest deadline, then arrival."""
        return -self.priority, self.deadline, self.arrival

    def run(self) -> bool:
        """Do one step; True when the future is due to be answered."""
        if self.started is None:
            self.started = time.monotonic()
        return self.step()

    @abstractmethod
    def step(self) -> bool:
        """The step itself."""

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
        self.inputs = latents, past_actions, candidates
        self.predicted: Tensor | None = None

    def step(self) -> bool:
        """Roll out."""
        self.predicted = self.backend.rollout(*self.inputs)
        return True

    def result(self) -> Prediction:
        """See `Job.result`."""
        if self.predicted is None:
            raise DeadlinePassed
        return Prediction(self.predicted, *self._seconds())


class PlanJob(Job):
    """One search towards ``goal`` (D,) from ``latents`` (H, D), one solver iteration a step.

    The cost is the sum of squared differences between the last predicted latent and the goal's.
    """

    def __init__(
        self,
        backend: Backend,
        solver: Solver,
        latents: Tensor,
        past_actions: Tensor,
        goal: Tensor,
        priority: int,
        deadline: float | None,
        with_trajectory: bool,
    ) -> None:
        super().__init__(backend, priority, deadline)
        self.solver = solver
        self.latents = latents
        self.past_actions = past_actions
        self.goal = goal
        self.with_trajectory = with_trajectory
        self._step_s = 0.0

    def step(self) -> bool:
        """One iteration; done when the solver is, or when another would outlast the deadline."""
        start = time.monotonic()
        candidates = self.solver.ask()
        predicted = self.backend.rollout(self.latents, self.past_actions, candidates)
        self.solver.tell(candidates, (predicted[:, -1] - self.goal).square().sum(dim=-1))
        now = time.monotonic()
        self._step_s = now - start
        return self.solver.done or now + self._step_s > self.deadline

    def result(self) -> PlanOutcome:
        """See `Job.result`."""
        best = self.solver.best
        if best is None:
            raise DeadlinePassed
        trajectory = None
        if self.with_trajectory:
            one = best.actions.unsqueeze(0)
            trajectory = self.backend.rollout(self.latents, self.past_actions, one)[0]
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


@dataclass(frozen=True)
class EncodeJob:
    """Frames (N, size, size, 3) uint8 to be encoded with whatever else waits."""

    backend: Backend
    frames: Tensor
    future: Future[Tensor]

    @staticmethod
    def run_together(jobs: list[EncodeJob]) -> list[Tensor]:
        """Encode the frames of jobs of one backend as one batch; latents (N, D) for each job."""
        latents = jobs[0].backend.encode(torch.cat([job.frames for job in jobs]))
        return list(torch.split(latents, [len(job.frames) for job in jobs]))
