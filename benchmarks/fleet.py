"""How many servers carry 10,000 robots, and who should answer which: the scheduler in simulation.

Each simulated server is the real admission and the real scheduler of `lewm_serve.engine`, under a
clock that only work advances. Work takes as long as measured here before: an encode and a search of
the embedded model in this process, and what the protocols of a real server use for a plan. Robots
plan at a fixed rate, each at times of its own. Every plan has a new frame, and its deadline is the
robot's next plan. After some plans a robot has a new goal. A server encodes a goal whose latent it
does not have, unless it finds it in Redis.

Compared are ways to choose the server of a plan:

- ``random``: any server.
- ``robot``: the robot's own server.
- ``two``: of two servers at random, the one that is expected to finish first.
- ``all``: of all servers, the one that is expected to finish first.

The last two know how much each server had to do some time ago: 0, or the age that is given.

Ten minutes.

    python -m benchmarks.fleet [--quick]
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.in_process import SearchLoop, load_like_server
from benchmarks.report import Measurement, Report, RunOptions, run_as_program
from lewm_models import checkpoint
from lewm_serve.cli.capacity_run import pictures_of
from lewm_serve.cli.local_server import local_server
from lewm_serve.cli.process_usage import processor_s
from lewm_serve.cli.robot_load import RobotLoad, load_process
from lewm_serve.engine.admission import Admission, DeadlinePassed, QueueTooLong
from lewm_serve.engine.jobs import EncodeJob, Job
from lewm_serve.engine.latency_model import LatencyModel, Measurements, RolloutShape
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.engine.scheduler import Scheduler
from lewm_serve.settings import Settings
from lewm_serve.solvers import SOLVERS

ROBOTS, RATE_HZ, PLANS_A_GOAL = 10_000, 2.0, 20
QUICK_ROBOTS = 100
SECONDS, WARM_UP_S = 1.0, 1.0
LOADS = (0.7, 0.9)
"""The shares of their capacity that servers are asked for."""

STALE_S = 0.5
MEASURED_PLANS, QUICK_MEASURED_PLANS = 200, 5
PROTOCOL_ROBOTS, PROTOCOL_SECONDS, QUICK_PROTOCOL_SECONDS = 20, 10.0, 1.0

NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Costs:
    """Seconds of work, as measured.

    Attributes:
        frame_s: the engine encodes a frame.
        iteration_s: the engine rolls out and scores each iteration's candidates.
        protocols_s: the first process reads a request, decodes its frame and writes the answer.
        horizon: the horizon of the search.
        candidates: the candidates of each iteration.
    """

    frame_s: float
    iteration_s: tuple[float, ...]
    protocols_s: float
    horizon: int
    candidates: tuple[int, ...]

    @property
    def engine_s(self) -> float:
        """The engine's time for a plan whose goal is known."""
        return self.frame_s + sum(self.iteration_s)

    @property
    def plan_s(self) -> float:
        """What a plan takes of the stage that is busier: the engine or the protocols."""
        return max(self.engine_s, self.protocols_s)


@dataclass(frozen=True)
class Policy:
    """How the server of a plan is chosen.

    Attributes:
        name: ``random``, ``robot``, ``two`` or ``all``.
        redis: whether servers share latents.
        age_s: how old the knowledge of what servers have to do is.
    """

    name: str
    redis: bool = False
    age_s: float = 0.0

    def __str__(self) -> str:
        age = f", known {self.age_s:g} s late" if self.age_s else ""
        return f"{self.name}{age}{', Redis' if self.redis else ''}"


POLICIES = (
    Policy("random"),
    Policy("random", redis=True),
    Policy("robot"),
    Policy("two", redis=True, age_s=STALE_S),
    Policy("all", redis=True),
    Policy("all", redis=True, age_s=STALE_S),
)


@dataclass
class Plan:
    """A plan that a robot asks for. Times are seconds of the simulation."""

    robot: int
    goal: int
    due: float
    deadline: float
    counts: bool
    outcome: str = "unanswered"
    latency_s: float = 0.0


class Clock:
    """Seconds that only work advances. Events happen at their times, also during work."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def __call__(self) -> float:
        return self.now

    def at(self, moment: float, event: Callable[[], None]) -> None:
        """Let an event happen at a moment, or now if that has passed."""
        heapq.heappush(self._events, (moment, next(self._numbers), event))

    def advance_to(self, end: float) -> None:
        """Let time pass, with all events until then."""
        while self._events and self._events[0][0] <= end:
            self.skip()
        self.now = max(self.now, end)

    def skip(self) -> None:
        """Go to the next event. There must be one."""
        moment, _, event = heapq.heappop(self._events)
        self.now = max(self.now, moment)
        event()

    @property
    def next_event(self) -> float:
        """When the next event happens."""
        return self._events[0][0] if self._events else math.inf


class TimedBackend:
    """A backend whose encodes only take their time."""

    name, device, precision, encode_precision = "simulated", "cpu", "float32", "float32"
    rows_are_independent = True

    def __init__(self, clock: Clock, costs: Costs) -> None:
        self._clock = clock
        self._costs = costs

    def encode(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """See `Backend`."""
        self._clock.advance_to(self._clock.now + self._costs.frame_s * len(frames))
        return torch.zeros(len(frames), 1)


class TimedPlan(Job):
    """A search that only takes its time, one iteration after another."""

    def __init__(self, clock: Clock, costs: Costs, queued: QueuedRequest) -> None:
        super().__init__(None, queued, latents=NOTHING, past_actions=NOTHING)  # type: ignore[arg-type]
        self._clock = clock
        self._costs = costs

    @property
    def candidate_count(self) -> int:
        """See `Job`."""
        return self._costs.candidates[self.queued.completed_iterations]

    def next_candidates_in_time(self, now: float) -> bool:
        """See `Job`."""
        return now + self._costs.iteration_s[self.queued.completed_iterations] <= (
            self.queued.deadline
        )

    def start_part(self, now: float) -> None:
        """See `Job`."""
        self.started_at = now if self.started_at is None else self.started_at
        self.queued.started_iterations = self.queued.completed_iterations + 1

    def run_part(self) -> None:
        """See `Job`."""
        done = self.queued.completed_iterations
        self._clock.advance_to(self._clock.now + self._costs.iteration_s[done])
        self.queued.completed_iterations = done + 1
        self.finished = done + 1 == len(self._costs.iteration_s)

    def take(self, predicted: Tensor) -> None:
        """See `Job`."""
        raise NotImplementedError

    def result(self, now: float) -> str:
        """Whether the search is complete."""
        if not self.queued.completed_iterations:
            raise DeadlinePassed
        return "completed" if self.finished else "cut short"


class SimulatedServer:
    """The protocols, admission, scheduler and known goals of one server.

    Attributes:
        clock: its time, which may be ahead of the others' by one roll-out.
        waiting: plans that it has got and not answered.
        encoded: frames that it has encoded.
        worked_s: how long its engine has worked.
    """

    def __init__(self, costs: Costs, limit: int, shared_goals: set[int] | None) -> None:
        self.clock = Clock()
        self._costs = costs
        self._goals = set() if shared_goals is None else shared_goals
        search_s = sum(costs.iteration_s)
        step_s = search_s / costs.horizon / sum(costs.candidates)
        largest = max(costs.candidates)
        self._latency = LatencyModel(clock=self.clock)
        self._latency.adopt(
            Measurements(curve=((1, step_s), (largest, step_s * largest)), frame_s=costs.frame_s)
        )
        self._scheduler = Scheduler(self.clock)
        self._admission = Admission(limit, self.clock, lambda: self._scheduler.free_at)
        self._backend = TimedBackend(self.clock, costs)
        self._protocols_free_at = 0.0
        self.waiting = 0
        self.encoded = 0

    def receive(self, plan: Plan) -> None:
        """Get a plan now. The protocols need their time before the engine sees it."""
        self.waiting += 1
        ready = max(plan.due, self._protocols_free_at) + self._costs.protocols_s
        self._protocols_free_at = ready
        self.clock.at(ready, lambda: self._admit(plan))

    def run(self, until: float) -> None:
        """Work until a moment. The last roll-out may end later."""
        while self.clock.now < until:
            if not self._scheduler.idle:
                self._scheduler.run_turn()
            elif self.clock.next_event > until or self.clock.next_event == math.inf:
                return
            else:
                self.clock.skip()

    def _admit(self, plan: Plan) -> None:
        frames = 1 if plan.goal in self._goals else 2
        queued = QueuedRequest(
            self._latency,
            plan.due,
            client=self._admission.client(str(plan.robot)),
            deadline=plan.deadline,
            frames_to_encode=frames,
            candidates_per_iteration=self._costs.candidates,
            shape=RolloutShape(self._costs.horizon),
        )
        try:
            self._admission.admit(queued)
        except (QueueTooLong, DeadlinePassed):
            self._answer(plan, "refused")
            return
        images = torch.zeros(frames, 1, 1, 3, dtype=torch.uint8)
        job = EncodeJob(self._backend, images, queued=queued)  # type: ignore[arg-type]
        job.future.add_done_callback(lambda done: self._search(plan, queued, done, frames))
        self._scheduler.submit(job)

    def _search(
        self, plan: Plan, queued: QueuedRequest, encoded: Future[Tensor], frames: int
    ) -> None:
        if encoded.exception():
            self._leave(plan, queued, encoded)
            return
        self.encoded += frames
        self._goals.add(plan.goal)
        queued.mark_frames_ready()
        job = TimedPlan(self.clock, self._costs, queued)
        job.future.add_done_callback(lambda done: self._leave(plan, queued, done))
        self._scheduler.submit(job)

    def _leave(self, plan: Plan, queued: QueuedRequest, done: Future[Any]) -> None:
        self._admission.leave(queued)
        self._answer(plan, "too late" if done.exception() else str(done.result()))

    def _answer(self, plan: Plan, outcome: str) -> None:
        self.waiting -= 1
        plan.outcome, plan.latency_s = outcome, self.clock.now - plan.due


class Fleet:
    """Servers, and the policy that chooses between them."""

    def __init__(self, servers: int, costs: Costs, policy: Policy, seed: int = 0) -> None:
        shared: set[int] | None = set() if policy.redis else None
        limit: int = Settings.model_fields["max_queue"].default
        self.servers = [SimulatedServer(costs, limit, shared) for _ in range(servers)]
        self._policy = policy
        self._generator = random.Random(seed)
        self._known = [0] * servers
        self._known_at = -math.inf

    def send(self, plan: Plan) -> None:
        """Give a plan to a server at the moment at which it is due."""
        self.servers[self._choose(plan)].receive(plan)

    def _choose(self, plan: Plan) -> int:
        count = len(self.servers)
        if self._policy.name == "robot":
            return plan.robot % count
        if self._policy.name == "random":
            return self._generator.randrange(count)
        if plan.due >= self._known_at + self._policy.age_s:
            for number, server in enumerate(self.servers):
                server.run(plan.due)
                self._known[number] = server.waiting
            self._known_at = plan.due
        if self._policy.name == "two":
            candidates = self._generator.sample(range(count), min(2, count))
        else:
            # The first of equals would get all plans until it is known to be busy.
            candidates = self._generator.sample(range(count), count)
        return min(candidates, key=self._known.__getitem__)

    def finish(self) -> None:
        """Let all servers finish what they have."""
        for server in self.servers:
            server.run(math.inf)


def plans_of(robots: int, rate_hz: float, seconds: float, seed: int = 0) -> list[Plan]:
    """The plans of robots in the order in which they are due. Those of the warm-up do not count."""
    generator = np.random.default_rng(seed)
    period_s = 1 / rate_hz
    starts = generator.uniform(0, period_s, robots)
    first_goals = generator.integers(0, PLANS_A_GOAL, robots)
    plans = []
    for robot in range(robots):
        for number in itertools.count():
            due = float(starts[robot]) + number * period_s
            if due >= WARM_UP_S + seconds:
                break
            goal = robot << 16 | (int(first_goals[robot]) + number) // PLANS_A_GOAL
            plans.append(Plan(robot, goal, due, due + period_s, counts=due >= WARM_UP_S))
    return sorted(plans, key=lambda plan: plan.due)


@dataclass(frozen=True)
class Result:
    """What became of the plans of one fleet.

    Attributes:
        in_time: the share that was complete before the next plan was due.
        refused: the share that was refused.
        p50_ms, p99_ms: latencies of complete plans.
        frames_a_plan: frames that were encoded for a plan.
    """

    policy: str
    servers: int
    load: float
    in_time: float
    refused: float
    p50_ms: float
    p99_ms: float
    frames_a_plan: float
    outcomes: dict[str, int]


def simulate(
    costs: Costs, policy: Policy, *, load: float, robots: int, rate_hz: float, seconds: float
) -> Result:
    """Let a fleet answer the plans of all robots.

    Args:
        costs: how long work takes.
        policy: how servers are chosen.
        load: the share of their capacity that the servers are asked for.
        robots: how many robots there are.
        rate_hz: plans a second of a robot.
        seconds: how long they plan, after a warm-up.
    """
    servers = max(1, round(robots * rate_hz * costs.plan_s / load))
    fleet = Fleet(servers, costs, policy)
    plans = plans_of(robots, rate_hz, seconds)
    for plan in plans:
        fleet.send(plan)
    fleet.finish()
    counted = [plan for plan in plans if plan.counts]
    outcomes = Counter(plan.outcome for plan in counted)
    latencies_ms = [1000 * plan.latency_s for plan in counted if plan.outcome == "completed"]
    p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99)) if latencies_ms else (0.0, 0.0)
    return Result(
        policy=str(policy),
        servers=servers,
        load=robots * rate_hz * costs.plan_s / servers,
        in_time=sum(
            plan.outcome == "completed" and plan.due + plan.latency_s <= plan.deadline
            for plan in counted
        )
        / len(counted),
        refused=outcomes["refused"] / len(counted),
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        frames_a_plan=sum(server.encoded for server in fleet.servers) / len(plans),
        outcomes=dict(outcomes),
    )


def measure_costs(options: RunOptions) -> Costs:
    """Time the parts of a plan of the embedded model on this machine."""
    options.show_progress("timing searches")
    model = load_like_server()
    config, settings = model.card.config, model.card.solver
    latents = torch.zeros(1, config.latent_dim)
    candidates = tuple(SOLVERS[settings.name].candidates_per_ask(settings))
    seconds: list[list[float]] = []
    for seed in range(QUICK_MEASURED_PLANS if options.quick else MEASURED_PLANS):
        search = SearchLoop(model, settings, latents=latents, goal=latents[0], seed=seed)
        times = [time.perf_counter()]
        while not search.solver.done:
            search.iterate()
            times.append(time.perf_counter())
        seconds.append([end - start for start, end in itertools.pairwise(times)])
    options.show_progress("timing the protocols of a server")
    images = pictures_of(checkpoint.load(checkpoint.EMBEDDED_MODEL), None)
    load_s = QUICK_PROTOCOL_SECONDS if options.quick else PROTOCOL_SECONDS
    with local_server() as server, load_process() as process:
        load = RobotLoad(server.target, images)
        process.run(load.unpaced, 2, 1.0)
        used_s = processor_s(server.pid)
        outcome = process.run(load.unpaced, 2, load_s)
        used_s = processor_s(server.pid) - used_s
    return Costs(
        frame_s=model.latency.encode_s(1),
        iteration_s=tuple(statistics.median(times) for times in zip(*seconds, strict=True)),
        protocols_s=used_s / max(1, len(outcome.latencies_s)),
        horizon=settings.horizon,
        candidates=candidates,
    )


def measure(options: RunOptions) -> Report:
    """See the module."""
    costs = measure_costs(options)
    robots = QUICK_ROBOTS if options.quick else ROBOTS
    results = []
    for load, policy in itertools.product(LOADS, POLICIES):
        options.show_progress(f"{robots} robots, servers at {load:.0%}, {policy}")
        results.append(
            simulate(costs, policy, load=load, robots=robots, rate_hz=RATE_HZ, seconds=SECONDS)
        )
    figures = [
        Measurement(
            f"{robots:,} robots at {RATE_HZ:g} Hz, {result.servers} servers at {result.load:.0%}, "
            f"{result.policy}: complete in time",
            100 * result.in_time,
            "%",
            note=f"p50 {result.p50_ms:.0f} ms, p99 {result.p99_ms:.0f} ms, refused "
            f"{result.refused:.1%}, {result.frames_a_plan:.2f} frames encoded a plan",
        )
        for result in results
    ]
    return Report(
        (
            Measurement("engine time of a plan with a known goal", 1000 * costs.engine_s, "ms"),
            Measurement("protocols of a plan", 1000 * costs.protocols_s, "ms"),
            *figures,
        ),
        {"costs": asdict(costs), "results": [asdict(result) for result in results]},
    )


if __name__ == "__main__":
    run_as_program(measure, __doc__)
