"""A clock that only work moves, a backend whose work takes a known time, and jobs for both."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lewm_models.card import SolverDefaults
from lewm_serve.backends.backend import goal_costs
from lewm_serve.engine.admission import QueuedRequest
from lewm_serve.engine.jobs import EncodeJob, PlanJob, PredictJob
from lewm_serve.engine.latency_model import LatencyModel, Shape
from lewm_serve.solvers.cem import CEM
from lewm_serve.solvers.gradient import Gradient
from lewm_serve.solvers.solver import Problem, Solver

WIDTH = 3
"""Of latents, and of an action block, which a roll-out gives back as its latents."""

FIXED_S, ROW_S, FRAME_S = 0.001, 0.0001, 0.002


class FakeClock:
    """Seconds that pass when told to; what is to happen meanwhile happens at its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def pass_by(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.skip()
        self.now = end

    def skip(self) -> bool:
        """Go to the next event; False if there is none."""
        if not self._events:
            return False
        time, _, event = heapq.heappop(self._events)
        self.now = max(self.now, time)
        event()
        return True


@dataclass
class FakeBackend:
    """FrameLatents are the frames' first pixels; a roll-out stays where its candidates point.

    Each call takes its time on the clock and is noted in ``log``: the plans in it by the first
    number of their latents. White frames, and plans whose number is in ``poison``, fail.
    """

    clock: FakeClock
    device: str = "fake"
    gain: bool = False
    noise: list[float] = field(default_factory=lambda: [1.0])
    poison: frozenset[float] = frozenset()
    log: list[tuple[str, tuple[float, ...]]] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)
    name: str = "fake"
    precision: str = "float32"
    encode_precision: str = "float32"

    def encode(self, frames: Tensor) -> Tensor:
        self.log.append(("encode", tuple(frames[:, 0, 0, 0].tolist())))
        self.clock.pass_by(FRAME_S * len(frames))
        if (frames == 255).any():
            raise RuntimeError("white frame")
        return frames[:, 0, 0].float()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        plans, samples, horizon, _ = candidates.shape
        tags = tuple(latents[:, 0, 0].tolist())
        self.log.append(("rollout", tags))
        self.shapes.append((plans, samples))
        self.clock.pass_by(self.seconds(plans * samples, horizon))
        if self.poison.intersection(tags):
            raise RuntimeError("poisoned")
        return candidates

    def expect(self, latents: Tensor, past_actions: Tensor) -> Tensor:
        return past_actions[:, -1]

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.log.append(("gradients", (candidates.shape[1],)))
        self.clock.pass_by(self.seconds(candidates.shape[1], candidates.shape[2]))
        last = 2 * (candidates[..., -1:, :] - goals[:, None, None])
        gradients = torch.cat([torch.zeros_like(candidates[..., 1:, :]), last], dim=-2)
        return goal_costs(candidates, goals), gradients

    def seconds(self, rows: int, horizon: int) -> float:
        """What a roll-out takes, with the next of the noise; up to 256 rows are free with gain."""
        self.noise.append(self.noise.pop(0))
        counted = max(256, rows) if self.gain else rows
        return horizon * (FIXED_S + ROW_S * counted) * self.noise[-1]

    def warm_up(self) -> None: ...

    def rolled_out(self) -> list[float]:
        """The plans of all roll-outs, in order."""
        return [tag for kind, tags in self.log if kind == "rollout" for tag in tags]


def pace_of(knee: int = 0, clock: FakeClock | None = None) -> LatencyModel:
    """What `FakeBackend` takes."""
    flat = FIXED_S + ROW_S * 256
    sloping = [(1, FIXED_S + ROW_S), (10_000, FIXED_S + ROW_S * 10_000)]
    curve = [(1, flat), (256, flat)] if knee else sloping
    return LatencyModel(curve, FRAME_S, knee, FakeClock() if clock is None else clock)


def cem(samples: int = 8, iterations: int = 3, horizon: int = 2, seed: int = 1) -> CEM:
    """A search for actions of zero."""
    settings = SolverDefaults(samples=samples, iterations=iterations, elites=2, horizon=horizon)
    bound, start = torch.ones(WIDTH), torch.full((horizon, WIDTH), 0.5)
    return CEM(settings, Problem(-bound, bound, start, action_dim=WIDTH), seed)


def gradient(samples: int, iterations: int, horizon: int = 2) -> Gradient:
    """Gradient descent to actions of zero."""
    settings = SolverDefaults("gradient", samples, iterations, horizon=horizon)
    bound, start = torch.ones(WIDTH), torch.full((horizon, WIDTH), 0.5)
    return Gradient(settings, Problem(-bound, bound, start, action_dim=WIDTH), seed=1)


def ticket(
    pace: LatencyModel,
    solver: Solver,
    arrival: float = 0.0,
    deadline: float = math.inf,
    priority: int = 5,
    frames: int = 0,
    least: int | None = None,
) -> QueuedRequest:
    """The ticket of a plan."""
    return QueuedRequest(
        pace,
        arrival,
        deadline=deadline,
        priority=priority,
        frames=frames,
        rows=solver.workload(),
        shape=Shape(solver.settings.horizon),
        least=least,
    )


def plan(
    backend: FakeBackend,
    pace: LatencyModel,
    tag: float,
    solver: Solver | None = None,
    arrival: float = 0.0,
    deadline: float = math.inf,
    priority: int = 5,
) -> PlanJob:
    """A plan that the log calls ``tag``."""
    solver = cem() if solver is None else solver
    held = ticket(pace, solver, arrival, deadline, priority)
    held.promise(len(held.rows))
    latents, past, goal = torch.full((1, WIDTH), tag), torch.empty(0, WIDTH), torch.zeros(WIDTH)
    return PlanJob(backend, held, solver, latents, past, goal)


def predict(backend: FakeBackend, pace: LatencyModel, tag: float, candidates: Tensor) -> PredictJob:
    """A prediction that the log calls ``tag``."""
    shape = Shape(candidates.shape[1])
    held = QueuedRequest(pace, 0.0, rows=(len(candidates),), shape=shape)
    latents, past = torch.full((1, WIDTH), tag), torch.empty(0, WIDTH)
    return PredictJob(backend, held, latents, past, candidates)


def encode(backend: FakeBackend, pace: LatencyModel, value: int, count: int = 1) -> EncodeJob:
    """Frames that are all of one value."""
    frames = torch.full((count, 2, 2, WIDTH), value, dtype=torch.uint8)
    return EncodeJob(backend, pace, frames)
