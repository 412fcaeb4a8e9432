"""Work for the engine, cut into steps between which other work may come first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from lewm_serve.backends.backend import Backend, goal_costs
from lewm_serve.engine.ticket import Ticket
from lewm_serve.planning.solver import Solver


class DeadlinePassed(Exception):
    """The deadline came before one iteration could be done."""


@dataclass(frozen=True)
class PlanOutcome:
    """How a search ended: z-scored ``actions`` (T, A), the ``cost`` of exactly these, seconds.

    ``expected`` is `Job.expected`.
    """

    actions: Tensor
    cost: float
    status: Literal["completed", "converged", "deadline"]
    iterations: int
    candidates: int
    trajectory: Tensor | None
    expected: Tensor | None
    queue_s: float
    solve_s: float


@dataclass(frozen=True)
class Prediction:
    """Predicted latents (S, T, D), and seconds; ``expected`` is `Job.expected`."""

    latents: Tensor
    expected: Tensor | None
    queue_s: float
    solve_s: float


class Job(ABC):
    """One request's roll-outs from ``latents`` (H, D) after ``past_actions`` (H − 1, A).

    The engine calls `prepare`, rolls `candidates` out, alone or packed with those of others, and
    hands the predicted latents to `take`, until ``finished``. ``future`` is answered once, with
    `result`; cancelling it drops the job. Times are readings of the engine's clock.
    """

    packs = True
    """Whether its roll-outs may be packed with those of others."""

    def __init__(
        self, backend: Backend, ticket: Ticket, latents: Tensor, past_actions: Tensor
    ) -> None:
        self.backend = backend
        self.ticket = ticket
        self.latents = latents
        self.past_actions = past_actions
        self.chunks: deque[Tensor] = deque()
        self.submitted = 0.0
        self.started: float | None = None
        self.finished = False
        self.future: Future[Any] = Future()

    @property
    def candidates(self) -> Tensor:
        """What is to be rolled out next (S, T, A)."""
        return self.chunks[0]

    @property
    def rows(self) -> int:
        """How many candidates are to be rolled out next."""
        return len(self.chunks[0])

    @cached_property
    def expected(self) -> Tensor | None:
        """The newest latent (D,) as predicted from those before it, None where there are none.

        Computed once: at the end of a search that nobody guards, since there it is remembered.
        """
        if len(self.latents) == 1:
            return None
        return self.backend.expect(self.latents.unsqueeze(0), self.past_actions.unsqueeze(0))[0]

    @abstractmethod
    def prepare(self, now: float) -> bool:
        """Have the next candidates at hand; False where no time is left for them."""

    def step(self) -> None:
        """Roll the next candidates out alone, and take what they lead to."""
        self.take(rollout(self.backend, self.latents, self.past_actions, self.candidates))

    @abstractmethod
    def take(self, predicted: Tensor) -> None:
        """Take the predicted latents (S, T, D) of the next candidates, and move on."""

    @abstractmethod
    def result(self, now: float) -> object:
        """The answer as it stands: final after the last step, the best so far at the deadline.

        Raises:
            DeadlinePassed: there is none yet.
        """

    def _chunked(self, candidates: Tensor) -> deque[Tensor]:
        """Candidates (S, T, A) in parts that hold the engine up for a moment only.

        The parts follow from the shape alone: a plan's figures must not depend on the hour.
        """
        return deque(torch.split(candidates, self.ticket.step_rows))

    def _left_s(self) -> float:
        """Seconds that rolling all the candidates at hand out is expected to take."""
        return self.ticket.pace.estimate(sum(map(len, self.chunks)), self.ticket.shape)

    def _seconds(self, now: float) -> tuple[float, float]:
        """Seconds in the queue before the first step, and since then."""
        started = now if self.started is None else self.started
        return started - self.submitted, now - started


class PredictJob(Job):
    """One roll-out of ``candidates`` (S, T, A)."""

    def __init__(
        self,
        backend: Backend,
        ticket: Ticket,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
    ) -> None:
        super().__init__(backend, ticket, latents, past_actions)
        self.chunks = self._chunked(candidates)
        self.predicted: list[Tensor] = []

    def prepare(self, now: float) -> bool:
        """See `Job.prepare`."""
        return now + self._left_s() <= self.ticket.deadline

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        self.chunks.popleft()
        self.predicted.append(predicted)
        self.finished = not self.chunks

    def result(self, now: float) -> Prediction:
        """See `Job.result`."""
        if self.chunks:
            raise DeadlinePassed
        return Prediction(torch.cat(self.predicted), self.expected, *self._seconds(now))


class PlanJob(Job):
    """One search towards ``goal`` (D,): ask, roll out, tell, until done.

    What a candidate costs is said by `goal_costs`. ``guard`` is told `Job.expected`, where there is
    one, before the first iteration: if it raises, the job ends with that.
    """

    def __init__(
        self,
        backend: Backend,
        ticket: Ticket,
        solver: Solver,
        latents: Tensor,
        past_actions: Tensor,
        goal: Tensor,
        with_trajectory: bool = False,
        guard: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__(backend, ticket, latents, past_actions)
        self.solver = solver
        self.guard = guard
        self.packs = not solver.needs_gradients
        self.goal = goal
        self.with_trajectory = with_trajectory
        self.asked: Tensor | None = None
        self.costs: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def prepare(self, now: float) -> bool:
        """See `Job.prepare`: what is not expected to end in time is not begun, nor gone on with."""
        guard, self.guard = self.guard, None
        if guard is not None and self.expected is not None:
            guard(self.expected)
        if self.asked is None:
            self.asked = self.solver.ask()
            self.chunks = self._chunked(self.asked)
        needed_s = self._left_s()
        if self.with_trajectory:
            needed_s += self.ticket.pace.estimate(1, self.ticket.shape)
        return now + needed_s <= self.ticket.deadline

    def step(self) -> None:
        """See `Job.step`; with gradients, where the solver needs them."""
        if not self.solver.needs_gradients:
            return super().step()
        inputs = (self.latents, self.past_actions, self.candidates, self.goal)
        costs, gradients = self.backend.gradients(*(part.unsqueeze(0) for part in inputs))
        self.gradients.append(gradients[0])
        self._score(costs[0])

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        self._score(goal_costs(predicted, self.goal))

    def _score(self, costs: Tensor) -> None:
        """Keep the next candidates' costs (S,); once all are scored, tell the solver."""
        self.chunks.popleft()
        self.costs.append(costs)
        if self.chunks:
            return
        assert self.asked is not None
        gradients = torch.cat(self.gradients) if self.gradients else None
        self.solver.tell(self.asked, torch.cat(self.costs), gradients)
        self.asked, self.costs, self.gradients = None, [], []
        self.ticket.done += 1
        self.finished = self.solver.done

    def result(self, now: float) -> PlanOutcome:
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
            self.expected,
            *self._seconds(now),
        )


def rollout(backend: Backend, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
    """Roll out for one plan: (H, D), (H − 1, A), (S, T, A) → (S, T, D)."""
    parts = (part.unsqueeze(0) for part in (latents, past_actions, candidates))
    return backend.rollout(*parts)[0]
