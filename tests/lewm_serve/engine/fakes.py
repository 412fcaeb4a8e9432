"""A clock that only work advances, a backend whose work takes a known time, and jobs for both."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lewm_models.card import SolverConfig
from lewm_serve.backends.backend import DeviceRollouts
from lewm_serve.engine.admission import DeadlinePassed
from lewm_serve.engine.jobs import EncodeJob, Job, PlanJob, PlanOutcome, PredictJob, Search
from lewm_serve.engine.latency_model import LatencyModel, RolloutShape
from lewm_serve.engine.queued_request import Client, QueuedRequest
from lewm_serve.objectives import Objective
from lewm_serve.objectives.latent import LATENT
from lewm_serve.solvers import SOLVERS
from lewm_serve.solvers.solver import SearchSpace

WIDTH = 3
"""The width of latents and of action blocks: a roll-out returns its candidates as its latents."""

STEP_S, ROW_S, FRAME_S = 0.001, 0.0001, 0.002
"""Seconds of one step of a roll-out, of each row in it, and of one encoded frame."""

FREE_ROWS = 256
"""Where batching pays, roll-outs of up to this many rows take equally long."""


class FakeClock:
    """Its seconds pass only in `advance` and `skip`. Events happen at their times meanwhile.

    Attributes:
        now: the time.
        worked_s: seconds that passed in `advance`.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.worked_s = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Schedule an event."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.worked_s += seconds
        while self._events and self._events[0][0] <= end:
            self.skip()
        self.now = end

    def skip(self) -> bool:
        """Go to the next event. False if there is none."""
        if not self._events:
            return False
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        event()
        return True


@dataclass
class FakeBackend:
    """A frame's latent is its first pixel. A roll-out returns its candidates.

    Attributes:
        clock: advances by the duration of each call.
        batching_pays: whether roll-outs of up to `FREE_ROWS` rows take equally long.
        noise: factors on the durations of roll-outs, used in turn.
        failing_tags: roll-outs of these plans fail. White frames fail too.
        calls: the kind of each call, and the first number of each plan's latents (its tag).
        shapes: plans and samples of each roll-out.
    """

    clock: FakeClock
    device: str = "fake"
    batching_pays: bool = False
    noise: list[float] = field(default_factory=lambda: [1.0])
    failing_tags: frozenset[float] = frozenset()
    calls: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    states: list[Tensor | None] = field(default_factory=list)
    name: str = "fake"
    precision: str = "float32"
    encode_precision: str = "float32"
    rows_are_independent: bool = True
    device_rollouts: DeviceRollouts | None = None

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        self.calls.append(("encode", tuple(frames[:, 0, 0, 0].tolist())))
        self.states.append(states)
        self.clock.advance(FRAME_S * len(frames))
        if (frames == 255).any():
            raise RuntimeError("white frame")
        return frames[:, 0, 0].float()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        plans, samples, horizon, _ = candidates.shape
        tags = tuple(latents[:, 0, 0].tolist())
        self.calls.append(("rollout", tags))
        self.shapes.append((plans, samples))
        self.clock.advance(self.rollout_s(plans * samples, horizon))
        if self.failing_tags.intersection(tags):
            raise RuntimeError("failing plan")
        return candidates

    def predict_newest(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        return past_actions[:, -1]

    def gradients(
        self,
        latents: Tensor,
        past_actions: Tensor,
        candidates: Tensor,
        *,
        goals: Tensor,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        _, samples, horizon, _ = candidates.shape
        self.calls.append(("gradients", (samples,)))
        self.clock.advance(self.rollout_s(samples, horizon))
        last = 2 * (candidates[..., -1:, :] - goals[:, None, None])
        gradients = torch.cat([torch.zeros_like(candidates[..., 1:, :]), last], dim=-2)
        return objective(candidates, goals), gradients

    def rollout_s(self, rows: int, horizon: int) -> float:
        """The duration of a roll-out, with the next factor of the noise."""
        self.noise.append(self.noise.pop(0))
        counted_rows = max(FREE_ROWS, rows) if self.batching_pays else rows
        return horizon * (STEP_S + ROW_S * counted_rows) * self.noise[-1]

    def warm_up(self) -> None: ...

    def rolled_out(self) -> list[float]:
        """The tags of all roll-outs in their order."""
        return [tag for kind, tags in self.calls if kind == "rollout" for tag in tags]


def latency_model(max_batched_rows: int = 0, clock: FakeClock | None = None) -> LatencyModel:
    """The true durations of `FakeBackend`. Batching pays if it may batch rows."""
    free_s = STEP_S + ROW_S * FREE_ROWS
    few_rows = [(1, free_s), (FREE_ROWS, free_s)] if max_batched_rows else [(1, STEP_S + ROW_S)]
    return LatencyModel(
        curve=[*few_rows, (10_000, STEP_S + ROW_S * 10_000)],
        encode_s=FRAME_S,
        max_batched_rows=max_batched_rows,
        clock=FakeClock() if clock is None else clock,
    )


def search(
    name: str = "cem", *, samples: int = 8, iterations: int = 3, horizon: int = 2, seed: int = 1
) -> Search:
    """A search for actions of zero. It starts at 0.5."""
    settings = SolverConfig(name, samples, iterations, elites=2, horizon=horizon)
    bound = torch.ones(WIDTH)
    start = torch.full((horizon, WIDTH), 0.5)
    space = SearchSpace(-bound, bound, start, action_dim=WIDTH)
    return Search(settings, space, seed, objective=LATENT)


def queued_plan(
    latency: LatencyModel,
    search: Search,
    *,
    arrival: float = 0.0,
    deadline: float = math.inf,
    priority: int = 5,
    client: Client | None = None,
    frames_to_encode: int = 0,
    decode_s: float = 0.0,
    min_iterations: int | None = None,
    search_bytes: int = 0,
) -> QueuedRequest:
    """A plan's place in the queue."""
    settings = search.solver_settings
    return QueuedRequest(
        latency,
        arrival,
        deadline=deadline,
        priority=priority,
        client=client,
        frames_to_encode=frames_to_encode,
        decode_s=decode_s,
        candidates_per_iteration=SOLVERS[settings.name].candidates_per_ask(settings),
        shape=RolloutShape(settings.horizon),
        min_iterations=min_iterations,
        search_bytes=search_bytes,
    )


def plan_job(
    backend: FakeBackend,
    latency: LatencyModel,
    tag: float,
    search: Search,
    *,
    arrival: float = 0.0,
    deadline: float = math.inf,
    priority: int = 5,
    client: Client | None = None,
) -> PlanJob:
    """A plan that the backend's calls name by ``tag``. All its iterations are guaranteed."""
    queued = queued_plan(
        latency, search, arrival=arrival, deadline=deadline, priority=priority, client=client
    )
    queued.expect(len(queued.candidates_per_iteration))
    return PlanJob(
        backend=backend,
        queued=queued,
        latents=torch.full((1, WIDTH), tag),
        past_actions=torch.empty(0, WIDTH),
        goal=torch.zeros(WIDTH),
        search=search,
    )


class TimedJob(Job):
    """A plan that searches nothing: each iteration only takes its time. So long loads are fast."""

    def __init__(self, backend: FakeBackend, queued: QueuedRequest) -> None:
        nothing = torch.empty(0, WIDTH)
        super().__init__(backend, queued, latents=nothing, past_actions=nothing)
        self._fake = backend
        self._left = list(reversed(queued.candidates_per_iteration))
        self._rows = 0

    @property
    def candidate_count(self) -> int:
        return min(self._rows, self.queued.max_part_size)

    def next_candidates_in_time(self, now: float) -> bool:
        self._rows = self._rows or self._left[-1]
        expected_s = self.queued.latency.rollout_s(self._rows, self.queued.shape)
        return now + expected_s <= self.queued.deadline

    def start_part(self, now: float) -> None:
        self.started_at = now if self.started_at is None else self.started_at
        rows_after = self._rows - self.candidate_count
        self.queued.started_iterations = (
            self.queued.completed_iterations + 1 - rows_after / self._left[-1]
        )

    def run_part(self) -> None:
        count = self.candidate_count
        self._fake.clock.advance(self._fake.rollout_s(count, self.queued.shape.horizon))
        self._rows -= count
        if self._rows == 0:
            self._left.pop()
            self.queued.completed_iterations += 1
            self.finished = not self._left

    def take(self, predicted: Tensor) -> None:
        raise NotImplementedError

    def result(self, now: float) -> PlanOutcome:
        if not self.queued.completed_iterations:
            raise DeadlinePassed
        queue_s, solve_s = self._queue_and_solve_s(now)
        return PlanOutcome(
            status="deadline" if self._left else "completed",
            actions=None,
            cost=None,
            iterations=self.queued.completed_iterations,
            scored_candidates=0,
            trajectory=None,
            distances=None,
            states=None,
            surprise=None,
            queue_s=queue_s,
            solve_s=solve_s,
        )


def predict_job(
    backend: FakeBackend, latency: LatencyModel, tag: float, candidates: Tensor
) -> PredictJob:
    """A prediction that the backend's calls name by ``tag``."""
    shape = RolloutShape(horizon=candidates.shape[1])
    return PredictJob(
        backend=backend,
        queued=QueuedRequest(
            latency, 0.0, candidates_per_iteration=(len(candidates),), shape=shape
        ),
        latents=torch.full((1, WIDTH), tag),
        past_actions=torch.empty(0, WIDTH),
        candidates=candidates,
    )


def encode_job(
    backend: FakeBackend, latency: LatencyModel, value: int, count: int = 1
) -> EncodeJob:
    """Frames whose pixels all have one value."""
    frames = torch.full((count, 2, 2, WIDTH), value, dtype=torch.uint8)
    queued = QueuedRequest(latency, 0.0, frames_to_encode=count)
    return EncodeJob(backend, frames, queued)
