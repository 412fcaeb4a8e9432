"""The work of the engine, divided into parts between which other work may come first.

Axes: H context frames, S candidates, T horizon in action blocks, D latent_dim, A one action block.
Latents are float32, actions are z-scored. Times are readings of the engine's clock in seconds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.backends.backend import Backend
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.engine.trace import SearchTrace, TraceRecorder
from lewm_serve.objectives import ROWS_PER_CALL, Objective
from lewm_serve.objectives.distance import DistanceObjective
from lewm_serve.objectives.states import StateObjective, StatePath
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import ScoredSequence, SearchSpace, Solver, without_nan

SHORT_PARTS, MIN_PART_SIZE = 4, ROWS_PER_CALL
"""A short part has a fourth of the candidates. With less than 32, a roll-out is not efficient."""


@dataclass(eq=False)
class EncodeJob:
    """Frames (N, size, size, 3) uint8 to encode. ``latents`` holds those encoded so far.

    ``states`` (N, X) are those of the frames, for a model with a state input; None for others.
    """

    backend: Backend
    frames: Tensor
    queued: QueuedRequest
    states: Tensor | None = None
    future: Future[Tensor] = field(default_factory=Future)
    latents: list[Tensor] = field(default_factory=list)
    encoded: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return EncodeJob, (self.backend, self.frames, self.queued, self.states)

    @property
    def finished(self) -> bool:
        """Whether all frames are encoded."""
        return self.encoded == len(self.frames)

    def next_frames(self, count: int) -> tuple[Tensor, Tensor | None]:
        """The next frames, at most ``count``, and their states."""
        rows = slice(self.encoded, self.encoded + count)
        return self.frames[rows], None if self.states is None else self.states[rows]

    def take(self, latents: Tensor) -> None:
        """Keep the latents of the next frames."""
        self.latents.append(latents)
        self.encoded += len(latents)

    def result(self) -> Tensor:
        """The latents (N, D) of a finished job."""
        return torch.cat(self.latents)


@dataclass(frozen=True)
class Search:
    """What a job searches.

    Attributes:
        solver_settings: the settings of its solver.
        search_space: its search space.
        seed: its seed.
        objective: what its candidates cost.
        distance: what the outcome measures its start and its end with; None measures nothing.
        starts_at_proposal: whether the search starts at the actions that the distance proposes, if
            it does, and not at the start of the search space.
    """

    solver_settings: SolverConfig
    search_space: SearchSpace
    seed: int
    objective: Objective
    distance: DistanceObjective | None = None
    starts_at_proposal: bool = False


@dataclass(frozen=True)
class GoalDistances:
    """The learned distance to the goal before and after the best actions, in action blocks."""

    start: float
    end: float


@dataclass(frozen=True)
class PlanOutcome:
    """How a search ended.

    Attributes:
        status: ``anomalous``: nothing was searched, because the surprise exceeds its limit.
        actions: the best actions (T, A); None if nothing was searched.
        cost: the cost of exactly these actions.
        iterations: the number of completed iterations.
        scored_candidates: the number of scored candidates.
        trajectory: the predicted latents (T, D) of the actions, if the job was to give them.
        distances: how far the goal is; None if the search measures no distance.
        states: the states on the way; None if the search has to do with none.
        surprise: the distance between the newest context latent and its one-step prediction; None
            with one context frame.
        queue_s: seconds in the queue before the first part was started.
        solve_s: seconds since then.
        trace: what the search did, if the job was to record it.
    """

    status: Literal["completed", "converged", "deadline", "anomalous"]
    actions: Tensor | None
    cost: float | None
    iterations: int
    scored_candidates: int
    trajectory: Tensor | None
    distances: GoalDistances | None
    states: StatePath | None
    surprise: float | None
    queue_s: float
    solve_s: float
    trace: SearchTrace | None = None


@dataclass(frozen=True)
class Prediction:
    """Predicted latents (S, T, D). The other attributes are those of `PlanOutcome`."""

    latents: Tensor
    surprise: float | None
    queue_s: float
    solve_s: float


class Job(ABC):
    """The roll-outs of one request from ``latents`` (H, D) after ``past_actions`` (H − 1, A).

    The candidates of an iteration are rolled out in one or more parts. Until the job is
    ``finished``, the engine

    1. calls `next_candidates_in_time`;
    2. calls `start_part`;
    3. calls `run_part`; or, for several jobs in one batch, rolls out their `candidates` and passes
       the predicted latents to `take`.

    Then it sets ``future`` to `result`. Cancelling the future drops the job. After it is submitted,
    only the engine touches a job, except for its future.

    Attributes:
        queued: its place in the queue.
        parts: the candidates of this iteration that are not rolled out yet, in order.
        started_candidates: how many candidates of this iteration are started or done.
        submitted_at: when the engine got it.
        started_at: when its first part was started.
        finished: whether all its work is done.
    """

    can_be_batched = True
    """Whether its roll-outs may be batched with those of other jobs."""

    batch_key: Hashable = None
    """Only jobs with the same key may share a batch."""

    short_parts = False
    """Whether the next iteration is rolled out in short parts, since urgent requests may come."""

    anomalous = False
    """Whether it ended before its first roll-out, because the surprise exceeds its limit."""

    def __init__(
        self, backend: Backend, queued: QueuedRequest, *, latents: Tensor, past_actions: Tensor
    ) -> None:
        self.backend = backend
        self.queued = queued
        self.latents = latents
        self.past_actions = past_actions
        self.parts: deque[Tensor] = deque()
        self.submitted_at = 0.0
        self.started_at: float | None = None
        self.started_candidates = 0
        self.finished = False
        self.future: Future[Any] = Future()

    def __reduce__(self) -> tuple[Any, ...]:
        """How another process makes the job. That is possible until the job starts."""
        return _make_job, (type(self), self.arguments())

    def arguments(self) -> dict[str, Any]:
        """The arguments that make the job."""
        return {
            "backend": self.backend,
            "queued": self.queued,
            "latents": self.latents,
            "past_actions": self.past_actions,
        }

    @property
    def candidates(self) -> Tensor:
        """The candidates (S, T, A) to roll out next."""
        return self.parts[0]

    @property
    def candidate_count(self) -> int:
        """The number of candidates to roll out next."""
        return len(self.parts[0])

    @cached_property
    def surprise(self) -> float | None:
        """See `PlanOutcome`. The first access runs a one-step prediction.

        The prediction is nearly free if the backend has rolled out from the same context before.
        """
        if len(self.latents) == 1:
            return None
        latents, past_actions = self.latents.unsqueeze(0), self.past_actions.unsqueeze(0)
        predicted = self.backend.predict_newest(latents, past_actions)[0]
        distance: float = torch.linalg.vector_norm(self.latents[-1] - predicted).item()
        return distance

    @abstractmethod
    def next_candidates_in_time(self, now: float) -> bool:
        """Make the next candidates. False: the job cannot go on, and `result` has its end."""

    def start_part(self, now: float) -> None:
        """Count the next candidates as started, for the forecasts of admission."""
        if self.started_at is None:
            self.started_at = now
        iteration_candidates = self.started_candidates + sum(map(len, self.parts))
        self.started_candidates += self.candidate_count
        started_share = self.started_candidates / iteration_candidates
        self.queued.started_iterations = self.queued.completed_iterations + started_share

    def run_part(self) -> None:
        """Roll out the next candidates alone and take the result."""
        self.take(self._roll_out(self.candidates))

    @abstractmethod
    def take(self, predicted: Tensor) -> None:
        """Take the predicted latents (S, T, D) of the next candidates and advance."""

    def parts_in_turn(self, now: float, part_s: float) -> int:
        """How many parts that take ``part_s`` may run before other work has its turn again."""
        return 1

    @abstractmethod
    def result(self, now: float) -> object:
        """The result of the work so far: final after the last part, otherwise the best so far.

        Raises:
            DeadlinePassed: there is none yet.
        """

    def _roll_out(self, candidates: Tensor) -> Tensor:
        """Roll out candidates (S, T, A) from the job's context → (S, T, D)."""
        return roll_out_one_plan(
            self.backend,
            latents=self.latents,
            past_actions=self.past_actions,
            candidates=candidates,
        )

    def _split(self, candidates: Tensor) -> deque[Tensor]:
        """Candidates (S, T, A) in parts, so that other work does not wait long.

        On backends whose rows are not independent, the parts depend on the shape alone. On others
        they end at multiples of `ROWS_PER_CALL`. So a plan does not depend on what else runs.
        """
        size = self.queued.max_part_size
        if self.backend.rows_are_independent:
            if self.short_parts:
                size = min(size, max(MIN_PART_SIZE, size // SHORT_PARTS))
            if size > ROWS_PER_CALL:
                size -= size % ROWS_PER_CALL
        return deque(torch.split(candidates, size))

    def _in_time(self, now: float, further_s: float = 0.0) -> bool:
        """Whether the rest of this iteration, and ``further_s``, are expected to end in time."""
        expected_s = self.queued.latency.rollout_s(self._rows_left(), self.queued.shape)
        return now + expected_s + further_s <= self.queued.deadline

    def _rows_left(self) -> int:
        """How many candidates of this iteration are not rolled out yet."""
        return sum(map(len, self.parts))

    def _queue_and_solve_s(self, now: float) -> tuple[float, float]:
        started_at = now if self.started_at is None else self.started_at
        return started_at - self.submitted_at, now - started_at


class SearchProgress(NamedTuple):
    """How far a search is; see `Solver` for the attributes."""

    best: ScoredSequence | None
    iterations: int
    scored_candidates: int
    converged: bool
    done: bool


class PredictJob(Job):
    """One roll-out of ``candidates`` (S, T, A)."""

    def __init__(
        self,
        backend: Backend,
        queued: QueuedRequest,
        *,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
    ) -> None:
        super().__init__(backend, queued, latents=latents, past_actions=past_actions)
        self.parts = self._split(candidates)
        self.predicted: list[Tensor] = []

    def arguments(self) -> dict[str, Any]:
        """See `Job.arguments`."""
        return super().arguments() | {"candidates": torch.cat(list(self.parts))}

    def next_candidates_in_time(self, now: float) -> bool:
        """See `Job.next_candidates_in_time`."""
        return self._in_time(now)

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        self.parts.popleft()
        self.predicted.append(predicted)
        if not self.parts:
            self.queued.completed_iterations = 1
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


class ProbeJob(PredictJob):
    """A roll-out that nobody waits for: the latency model observes how long it takes.

    With an ``objective``, the candidates are scored too.
    """

    def __init__(
        self,
        backend: Backend,
        queued: QueuedRequest,
        *,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        objective: Objective | None,
    ) -> None:
        super().__init__(
            backend, queued, latents=latents, past_actions=past_actions, candidates=candidates
        )
        self.objective = objective

    def arguments(self) -> dict[str, Any]:
        """See `Job.arguments`."""
        return super().arguments() | {"objective": self.objective}

    def run_part(self) -> None:
        """See `Job.run_part`."""
        if self.objective is None or not self.queued.shape.gradients:
            return super().run_part()
        self.backend.gradients(
            self.latents.unsqueeze(0),
            self.past_actions.unsqueeze(0),
            self.candidates.unsqueeze(0),
            goals=self.latents[-1:],
            objective=self.objective,
        )
        super().take(torch.empty(0))

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        if self.objective is not None:
            self.objective(predicted, self.latents[-1])
        super().take(predicted)


class PlanJob(Job):
    """One search for actions that lead to ``goal``: ask, roll out, tell, until it is done.

    Args:
        backend: what runs the model.
        queued: its place in the queue.
        latents: the context latents (H, D).
        past_actions: the action blocks (H − 1, A) between them.
        committed_actions: the action blocks (C, A) that are executed before the plan.
        goal: the goal's latent (D,); empty if the objective has a goal by states.
        search: what is searched.
        with_trajectory: whether the outcome holds the trajectory.
        max_surprise: the search does not start if the surprise exceeds this.
        with_trace: whether the outcome holds the trace.
    """

    def __init__(
        self,
        backend: Backend,
        queued: QueuedRequest,
        *,
        latents: Tensor,
        past_actions: Tensor,
        committed_actions: Tensor | None = None,
        goal: Tensor,
        search: Search,
        with_trajectory: bool = False,
        max_surprise: float | None = None,
        with_trace: bool = False,
    ) -> None:
        super().__init__(backend, queued, latents=latents, past_actions=past_actions)
        self.committed_actions = committed_actions
        self.goal = goal
        self.search = search
        self.with_trajectory = with_trajectory
        self.max_surprise = max_surprise
        self.solver_class = SOLVERS[search.solver_settings.name]
        self.can_be_batched = not self.solver_class.needs_gradients
        self.asked: Tensor | None = None
        self.costs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self.best_cost = math.inf
        self.best_path: Tensor | None = None
        self.recorder: TraceRecorder | None = None
        if with_trace:
            counts_elites = "elites" in self.solver_class.own_settings
            self.recorder = TraceRecorder(search.solver_settings, counts_elites=counts_elites)

    def arguments(self) -> dict[str, Any]:
        """See `Job.arguments`."""
        return super().arguments() | {
            "committed_actions": self.committed_actions,
            "goal": self.goal,
            "search": self.search,
            "with_trajectory": self.with_trajectory,
            "max_surprise": self.max_surprise,
            "with_trace": self.recorder is not None,
        }

    @cached_property
    def solver(self) -> Solver:
        """The solver. It is made when the search starts, because some allocate a lot."""
        search = self.search
        return self.solver_class(search.solver_settings, self.start_space(), search.seed)

    def start_space(self) -> SearchSpace:
        """The search space, which starts at the proposed actions if it shall."""
        search, space = self.search, self.search.search_space
        if search.starts_at_proposal and search.distance is not None:
            proposed = search.distance.propose(self.latents[-1], self.goal)
            if proposed is not None:
                space = space.starting_with(proposed)
        return space

    @cached_property
    def objective(self) -> Objective:
        """What candidates cost. It is made when the search starts, as the solver."""
        objective = self.search.objective
        if isinstance(objective, StateObjective):
            return objective.starting_at(self.latents[-1])
        return objective

    def next_candidates_in_time(self, now: float) -> bool:
        """See `Job.next_candidates_in_time`.

        False if the surprise exceeds its limit, or if the iteration is not expected to end in time.
        """
        if self.max_surprise is not None and self.surprise is not None:
            self.anomalous = not self.surprise <= self.max_surprise  # also for NaN
            if self.anomalous:
                return False
        self._commit()
        self._make_candidates(now)
        trajectory_s = 0.0
        if self.with_trajectory:
            trajectory_s = self.queued.latency.rollout_s(1, self.queued.shape)
        return self._in_time(now, trajectory_s)

    def _make_candidates(self, now: float) -> None:
        """Make the candidates of the next iteration, unless they wait already."""
        if self.asked is None:
            self.asked = self.solver.ask()
            self.parts = self._split(self.asked)
            if self.recorder is not None:
                self.recorder.begin(now)

    def _commit(self) -> None:
        """Make the predicted latents after the committed actions the newest of the context."""
        if self.committed_actions is None:
            return
        _ = self.surprise  # of the frames: it is computed once, and not of predicted latents
        predicted = self._roll_out(self.committed_actions.unsqueeze(0))[0]
        latents = torch.cat([self.latents, predicted])
        actions = torch.cat([self.past_actions, self.committed_actions])
        context = self.queued.shape.context
        self.latents = latents[len(latents) - context :]
        self.past_actions = actions[len(actions) - (context - 1) :]
        self.committed_actions = None

    def run_part(self) -> None:
        """See `Job.run_part`. Solvers that need gradients get them."""
        if not self.solver.needs_gradients:
            return super().run_part()
        costs, gradients = self.backend.gradients(
            self.latents.unsqueeze(0),
            self.past_actions.unsqueeze(0),
            self.candidates.unsqueeze(0),
            goals=self.goal.unsqueeze(0),
            objective=self.objective,
        )
        self.gradients.append(gradients[0])
        self._take_costs(costs[0])

    def take(self, predicted: Tensor) -> None:
        """See `Job.take`."""
        objective = self.objective
        costs = objective(predicted, self.goal)
        if self.search.distance is not None or isinstance(objective, StateObjective):
            self._keep_best_path(predicted, costs)
        self._take_costs(costs)

    def _keep_best_path(self, predicted: Tensor, costs: Tensor) -> None:
        """Keep the latents (T, D) of the best candidate so far, which is the solver's best too."""
        costs_without_nan = without_nan(costs)
        lowest = int(costs_without_nan.argmin())
        cost = float(costs_without_nan[lowest])
        if cost < self.best_cost:
            self.best_cost, self.best_path = cost, predicted[lowest].clone()

    def _take_costs(self, costs: Tensor) -> None:
        """Keep the costs (S,) of the next candidates. When all are known, tell the solver."""
        self.parts.popleft()
        self.costs.append(costs)
        if self.parts:
            return
        assert self.asked is not None
        gradients = torch.cat(self.gradients) if self.gradients else None
        all_costs = torch.cat(self.costs)
        if self.recorder is not None:
            self.recorder.end(self.asked, all_costs)
        self.solver.tell(self.asked, all_costs, gradients)
        self.asked, self.costs, self.gradients = None, [], []
        self.started_candidates = 0
        self.queued.completed_iterations += 1
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
                scored_candidates=0,
                trajectory=None,
                distances=None,
                states=None,
                surprise=self.surprise,
                queue_s=queue_s,
                solve_s=solve_s,
            )
        progress = self._progress()
        best = progress.best
        if best is None:
            raise DeadlinePassed
        trajectory = None
        if self.with_trajectory:
            trajectory = self._roll_out_best(best)
        return PlanOutcome(
            status=_status(progress),
            actions=best.actions,
            cost=best.cost,
            iterations=progress.iterations,
            scored_candidates=progress.scored_candidates,
            trajectory=trajectory,
            distances=self._distances(best),
            states=self._states(best),
            surprise=self.surprise,
            queue_s=queue_s,
            solve_s=solve_s,
            trace=self._trace(now),
        )

    def _progress(self) -> SearchProgress:
        """How far the search is."""
        solver = self.solver
        return SearchProgress(
            best=solver.best,
            iterations=solver.iterations,
            scored_candidates=solver.scored_candidates,
            converged=solver.converged,
            done=solver.done,
        )

    def _trace(self, now: float) -> SearchTrace | None:
        if self.recorder is None or self.started_at is None:
            return None
        return self.recorder.finish(
            self.started_at,
            now,
            iterations=self.solver.iterations,
            latents=self.latents,
            past_actions=self.past_actions,
        )

    def _roll_out_best(self, best: ScoredSequence) -> Tensor:
        """The predicted latents (T, D) of the best actions."""
        return self._roll_out(best.actions.unsqueeze(0))[0]

    def _distances(self, best: ScoredSequence) -> GoalDistances | None:
        """How far the goal is before and after the best actions."""
        if self.search.distance is None:
            return None
        start_and_end = torch.stack([self.latents[-1], self._path(best)[-1]]).unsqueeze(0)
        return GoalDistances(*self.search.distance.blocks(start_and_end, self.goal)[0].tolist())

    def _states(self, best: ScoredSequence) -> StatePath | None:
        """The states on the way of the best actions, if the search has to do with states."""
        objective = self.objective
        return objective.path(self._path(best)) if isinstance(objective, StateObjective) else None

    def _path(self, best: ScoredSequence) -> Tensor:
        """The predicted latents (T, D) of the best actions."""
        if self.best_path is None or self.best_cost != best.cost:
            # Gradients come without predicted latents. And an iteration that is not complete may
            # have a better candidate, which the solver does not know.
            return self._roll_out_best(best)
        return self.best_path


def _status(progress: SearchProgress) -> Literal["completed", "converged", "deadline"]:
    if not progress.done:
        return "deadline"
    return "converged" if progress.converged else "completed"


def _make_job(job_type: type[Job], arguments: dict[str, Any]) -> Job:
    return job_type(**arguments)


def roll_out_one_plan(
    backend: Backend, *, latents: Tensor, past_actions: Tensor, candidates: Tensor
) -> Tensor:
    """`Backend.rollout` for one plan: (H, D), (H − 1, A) and (S, T, A) → (S, T, D)."""
    predicted = backend.rollout(
        latents.unsqueeze(0), past_actions.unsqueeze(0), candidates.unsqueeze(0)
    )
    return predicted[0]
