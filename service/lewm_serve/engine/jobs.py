"""The work of the engine, divided into steps between which other work may come first.

Axes: H context frames, S candidates, T horizon in action blocks, D latent_dim, A one action block.
Latents are float32, actions are z-scored. Times are readings of the engine's clock in seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.backends.backend import Backend
from lewm_serve.engine.admission import DeadlinePassed, QueuedRequest
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.objectives.latent_distance import latent_distance
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import Problem, Solver


@dataclass(eq=False)
class EncodeJob:
    """Frames (N, size, size, 3) uint8 to encode. ``latents`` holds those encoded so far."""

    backend: Backend
    latency: LatencyModel
    frames: Tensor
    request: QueuedRequest | None = None
    future: Future[Tensor] = field(default_factory=Future)
    latents: list[Tensor] = field(default_factory=list)
    encoded: int = 0

    @property
    def finished(self) -> bool:
        """Whether all frames are encoded."""
        return self.encoded == len(self.frames)

    def next_frames(self, count: int) -> Tensor:
        """The next frames, at most ``count``."""
        return self.frames[self.encoded : self.encoded + count]

    def take(self, latents: Tensor) -> None:
        """Keep the latents of the next frames."""
        self.latents.append(latents)
        self.encoded += len(latents)

    def result(self) -> Tensor:
        """The latents (N, D) of a finished job."""
        return torch.cat(self.latents)


@dataclass(frozen=True)
class Search:
    """A search that is to be done: the settings of its solver, its search space and its seed."""

    settings: SolverDefaults
    problem: Problem
    seed: int


@dataclass(frozen=True)
class PlanOutcome:
    """How a search ended.

    Attributes:
        status: ``anomalous``: nothing was searched, because the surprise exceeds its limit.
        actions: the best actions (T, A); None if nothing was searched.
        cost: the cost of exactly these actions.
        iterations: completed iterations.
        candidates: scored candidates.
        trajectory: the predicted latents (T, D) of the actions, if the job was to give them.
        surprise: the distance between the newest context latent and its one-step prediction; None
            with one context frame.
        queue_s: seconds in the queue before the first step.
        solve_s: seconds since then.
    """

    status: Literal["completed", "converged", "deadline", "anomalous"]
    actions: Tensor | None
    cost: float | None
    iterations: int
    candidates: int
    trajectory: Tensor | None
    surprise: float | None
    queue_s: float
    solve_s: float


@dataclass(frozen=True)
class Prediction:
    """Predicted latents (S, T, D). The other attributes are those of `PlanOutcome`."""

    latents: Tensor
    surprise: float | None
    queue_s: float
    solve_s: float


class Job(ABC):
    """The roll-outs of one request from ``latents`` (H, D) after ``past_actions`` (H − 1, A).

    The engine calls `prepare` and `start_step`, rolls out `candidates`, alone or in a batch with
    those of other jobs, and passes the predicted latents to `take`, until the job is ``finished``.
    Then it sets ``future`` to `result`. Cancelling the future drops the job. After it is submitted,
    only the engine's thread touches a job, except for its future.
    """

    can_be_batched = True
    """Whether its roll-outs may be batched with those of other jobs."""

    anomalous = False
    """Whether it ended before its first step, because the surprise exceeds its limit."""

    def __init__(
        self, backend: Backend, request: QueuedRequest, latents: Tensor, past_actions: Tensor
    ) -> None:
        self.backend = backend
        self.request = request
        self.latents = latents
        self.past_actions = past_actions
        self.parts: deque[Tensor] = deque()
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.started_rows = 0
        self.finished = False
        self.future: Future[Any] = Future()

    @property
    def candidates(self) -> Tensor:
        """The candidates (S, T, A) to roll out next."""
        return self.parts[0]

    @property
    def rows(self) -> int:
        """The number of candidates to roll out next."""
        return len(self.parts[0])

    @cached_property
    def surprise(self) -> float | None:
        """See `PlanOutcome`. It is nearly free after a roll-out of the same context."""
        if len(self.latents) == 1:
            return None
        latents, past_actions = self.latents.unsqueeze(0), self.past_actions.unsqueeze(0)
        predicted = self.backend.predict_newest(latents, past_actions)[0]
        distance: float = torch.linalg.vector_norm(self.latents[-1] - predicted).item()
        return distance

    @abstractmethod
    def prepare(self, now: float) -> bool:
        """Provide the next candidates. False: the job has to end, as `result` says."""

    def start_step(self, now: float) -> None:
        """Count the next candidates as started, for the forecasts of admission."""
        if self.started_at is None:
            self.started_at = now
        iteration_rows = self.started_rows + sum(map(len, self.parts))
        self.started_rows += self.rows
        part = self.started_rows / iteration_rows
        self.request.started_iterations = self.request.completed_iterations + part

    def step(self) -> None:
        """Roll out the next candidates alone and take the result."""
        self.take(roll_out(self.backend, self.latents, self.past_actions, self.candidates))

    @abstractmethod
    def take(self, predicted: Tensor) -> None:
        """Take the predicted latents (S, T, D) of the next candidates and advance."""

    @abstractmethod
    def result(self, now: float) -> object:
        """The answer as it stands: final after the last step, the best so far at the deadline.

        Raises:
            DeadlinePassed: there is none yet.
        """

    def _split(self, candidates: Tensor) -> deque[Tensor]:
        """Candidates (S, T, A) in parts that hold up other work for a moment only.

        The parts depend on the shape alone, so that a plan does not depend on what else runs.
        """
        return deque(torch.split(candidates, self.request.step_rows))

    def _expected_s(self) -> float:
        """Expected seconds to roll out all candidates at hand."""
        rows = sum(map(len, self.parts))
        return self.request.latency.rollout_s(rows, self.request.shape)

    def _queue_and_solve_s(self, now: float) -> tuple[float, float]:
        started_at = now if self.started_at is None else self.started_at
        return started_at - self.submitted_at, now - started_at


class PredictJob(Job):
    """One roll-out of ``candidates`` (S, T, A)."""

    def __init__(
        self,
        backend: Backend,
        request: QueuedRequest,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
    ) -> None:
        super().__init__(backend, request, latents, past_actions)
        self.parts = self._split(candidates)
        self.predicted: list[Tensor] = []

    def prepare(self, now: float) -> bool:
        """See `Job.prepare`."""
        return now + self._expected_s() <= self.request.deadline

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        self.parts.popleft()
        self.predicted.append(predicted)
        if not self.parts:
            self.request.completed_iterations = 1
            self.finished = True

    def result(self, now: float) -> Prediction:
        """See `Job.result`."""
        if self.parts:
            raise DeadlinePassed
        queue_s, solve_s = self._queue_and_solve_s(now)
        return Prediction(
            latents=torch.cat(self.predicted),
            surprise=self.surprise,
            queue_s=queue_s,
            solve_s=solve_s,
        )


class PlanJob(Job):
    """One search for actions that lead to ``goal`` (D,): ask, roll out, tell, until it is done.

    Args:
        backend: what runs the model.
        request: its place in the queue.
        latents: the context latents (H, D).
        past_actions: the action blocks (H − 1, A) between them.
        goal: the goal's latent (D,).
        search: what is searched.
        with_trajectory: whether the outcome holds the trajectory.
        max_surprise: the search does not start if the surprise exceeds this.
    """

    def __init__(
        self,
        backend: Backend,
        request: QueuedRequest,
        latents: Tensor,
        past_actions: Tensor,
        *,
        goal: Tensor,
        search: Search,
        with_trajectory: bool = False,
        max_surprise: float | None = None,
    ) -> None:
        super().__init__(backend, request, latents, past_actions)
        self.goal = goal
        self.search = search
        self.with_trajectory = with_trajectory
        self.max_surprise = max_surprise
        self.can_be_batched = not SOLVERS[search.settings.name].needs_gradients
        self.asked: Tensor | None = None
        self.costs: list[Tensor] = []
        self.gradients: list[Tensor] = []

    @cached_property
    def solver(self) -> Solver:
        """The solver. It is made when the search starts, because some allocate a lot."""
        search = self.search
        return SOLVERS[search.settings.name](search.settings, search.problem, search.seed)

    def prepare(self, now: float) -> bool:
        """See `Job.prepare`. An iteration that is not expected to end in time is not started."""
        if self.max_surprise is not None and self.surprise is not None:
            self.anomalous = not self.surprise <= self.max_surprise  # also for NaN
            if self.anomalous:
                return False
        if self.asked is None:
            self.asked = self.solver.ask()
            self.parts = self._split(self.asked)
        needed_s = self._expected_s()
        if self.with_trajectory:
            needed_s += self.request.latency.rollout_s(1, self.request.shape)
        return now + needed_s <= self.request.deadline

    def step(self) -> None:
        """See `Job.step`. Solvers that need gradients get them."""
        if not self.solver.needs_gradients:
            return super().step()
        costs, gradients = self.backend.gradients(
            self.latents.unsqueeze(0),
            self.past_actions.unsqueeze(0),
            self.candidates.unsqueeze(0),
            self.goal.unsqueeze(0),
        )
        self.gradients.append(gradients[0])
        self._take_costs(costs[0])

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        self._take_costs(latent_distance(predicted, self.goal))

    def _take_costs(self, costs: Tensor) -> None:
        """Keep the costs (S,) of the next candidates. When all are known, tell the solver."""
        self.parts.popleft()
        self.costs.append(costs)
        if self.parts:
            return
        assert self.asked is not None
        gradients = torch.cat(self.gradients) if self.gradients else None
        self.solver.tell(self.asked, torch.cat(self.costs), gradients)
        self.asked, self.costs, self.gradients = None, [], []
        self.started_rows = 0
        self.request.completed_iterations += 1
        self.finished = self.solver.done

    def result(self, now: float) -> PlanOutcome:
        """See `Job.result`."""
        queue_s, solve_s = self._queue_and_solve_s(now)
        if self.anomalous:
            return PlanOutcome(
                status="anomalous",
                actions=None,
                cost=None,
                iterations=0,
                candidates=0,
                trajectory=None,
                surprise=self.surprise,
                queue_s=queue_s,
                solve_s=solve_s,
            )
        best = self.solver.best
        if best is None:
            raise DeadlinePassed
        trajectory = None
        if self.with_trajectory:
            actions = best.actions.unsqueeze(0)
            trajectory = roll_out(self.backend, self.latents, self.past_actions, actions)[0]
        return PlanOutcome(
            status=self._status(),
            actions=best.actions,
            cost=best.cost,
            iterations=self.solver.iterations,
            candidates=self.solver.candidates,
            trajectory=trajectory,
            surprise=self.surprise,
            queue_s=queue_s,
            solve_s=solve_s,
        )

    def _status(self) -> Literal["completed", "converged", "deadline"]:
        if not self.solver.done:
            return "deadline"
        return "converged" if self.solver.converged else "completed"


def roll_out(backend: Backend, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
    """Roll out for one plan: (H, D), (H − 1, A) and (S, T, A) → (S, T, D)."""
    predicted = backend.rollout(
        latents.unsqueeze(0), past_actions.unsqueeze(0), candidates.unsqueeze(0)
    )
    return predicted[0]
