"""The engine with a backend that records what it is asked to run, in which order."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait

import pytest
import torch
from torch import Tensor

from models.card import SolverDefaults
from service.backends.backend import goal_costs
from service.engine.encodes import BATCH_ROWS
from service.engine.engine import Engine, EngineStopped
from service.engine.jobs import STEP_LIMIT, DeadlinePassed, PlanJob, PlanOutcome, PredictJob
from service.engine.pace import Pace
from service.planning.solver import Problem
from service.planning.solvers import make_solver


class RecordingBackend:
    """Latents are the frames' first pixels; a roll-out stays where its candidates point.

    ``gate`` holds the engine up until it is opened; ``log`` says what ran.
    """

    name, device, precision = "recording", "cpu", "float32"

    def __init__(self) -> None:
        self.log: list[object] = []
        self.pause_s = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()

    def encode(self, frames: Tensor) -> Tensor:
        self._pass("encode", len(frames))
        if (frames == 255).any():
            raise RuntimeError("white frame")
        return frames[:, 0, 0].float()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        self._pass("rollout", float(latents[0, 0, 0]))
        return candidates

    def gradients(
        self, latents: Tensor, past_actions: Tensor, candidates: Tensor, goals: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._pass("gradients", candidates.shape[1])
        apart = candidates[..., -1:, :] - goals[:, None, None]
        gradients = torch.cat([torch.zeros_like(candidates[..., 1:, :]), 2 * apart], dim=-2)
        return goal_costs(candidates, goals), gradients

    def warm_up(self) -> None: ...

    def _pass(self, *entry: object) -> None:
        self.log.append(entry)
        self.running.set()
        time.sleep(self.pause_s)
        assert self.gate.wait(10)

    def hold(self) -> None:
        self.running.clear()
        self.gate.clear()

    def release(self) -> None:
        self.gate.set()


@pytest.fixture
def backend() -> RecordingBackend:
    return RecordingBackend()


@pytest.fixture
def engine(backend: RecordingBackend) -> Iterator[Engine]:
    engine = Engine()
    engine.start()
    yield engine
    backend.release()
    engine.stop(5)


def frames(value: int, count: int = 1) -> Tensor:
    return torch.full((count, 2, 2, 3), value, dtype=torch.uint8)


def plan(
    backend: RecordingBackend,
    tag: float = 0,
    priority: int = 5,
    deadline_in: float | None = None,
    iterations: int = 3,
    samples: int = 8,
    each_s: float = 0.0,
    name: str = "cem",
) -> PlanJob:
    settings = SolverDefaults(name, samples, iterations, elites=2, horizon=2)
    bound = torch.ones(3)
    problem = Problem(-bound, bound, torch.zeros(2, 3), action_dim=3)
    solver = make_solver(settings, problem, seed=1)
    deadline = None if deadline_in is None else time.monotonic() + deadline_in
    latents, past = torch.full((1, 3), float(tag)), torch.empty(0, 3)
    goal, pace = torch.zeros(3), Pace(fixed_s=0.0, each_s=each_s)
    return PlanJob(backend, pace, solver, latents, past, goal, priority, deadline, False)


def answer(future: Future[PlanOutcome]) -> PlanOutcome:
    return future.result(timeout=5)


def hold_with_a_plan(engine: Engine, backend: RecordingBackend) -> Future[PlanOutcome]:
    """Keep the engine busy inside a plan's first iteration until `release`."""
    backend.hold()
    future = engine.submit(plan(backend, tag=-1, priority=0))
    assert backend.running.wait(5)
    return future


def test_waiting_encodes_run_as_one_batch_and_each_gets_its_own(
    engine: Engine, backend: RecordingBackend
) -> None:
    hold_with_a_plan(engine, backend)
    futures = [engine.encode(backend, frames(value, count=value)) for value in (1, 2, 3)]
    backend.release()
    for value, future in zip((1, 2, 3), futures, strict=True):
        assert torch.equal(future.result(5), torch.full((value, 3), float(value)))
    assert ("encode", 6) in backend.log


def test_encodes_do_not_wait_for_a_whole_plan(engine: Engine, backend: RecordingBackend) -> None:
    planning = hold_with_a_plan(engine, backend)
    encoding = engine.encode(backend, frames(1))
    backend.release()
    encoding.result(5)
    answer(planning)
    assert backend.log.index(("encode", 1)) == 1


def test_one_bad_item_of_a_batch_fails_alone(engine: Engine, backend: RecordingBackend) -> None:
    hold_with_a_plan(engine, backend)
    good, bad, other = (engine.encode(backend, frames(value)) for value in (1, 255, 2))
    backend.release()
    assert torch.equal(good.result(5), torch.ones(1, 3))
    assert torch.equal(other.result(5), torch.full((1, 3), 2.0))
    with pytest.raises(RuntimeError, match="white frame"):
        bad.result(5)


def test_the_more_urgent_plan_goes_first(engine: Engine, backend: RecordingBackend) -> None:
    first = hold_with_a_plan(engine, backend)
    jobs = [
        plan(backend, tag=1, priority=5),
        plan(backend, tag=2, priority=5),
        plan(backend, tag=3, priority=5, deadline_in=60),
        plan(backend, tag=4, priority=9),
    ]
    futures: list[Future[PlanOutcome]] = [engine.submit(job) for job in jobs]
    backend.release()
    wait([first, *futures], timeout=5)
    order = list(dict.fromkeys(entry[1] for entry in backend.log))  # type: ignore[index]
    assert order == [-1, 4, 3, 1, 2]


def test_a_plan_stops_at_its_deadline_with_its_best(
    engine: Engine, backend: RecordingBackend
) -> None:
    backend.pause_s = 0.01
    outcome = answer(engine.submit(plan(backend, deadline_in=0.1, iterations=1000)))
    assert outcome.status == "deadline"
    assert 1 <= outcome.iterations < 20
    assert outcome.cost < torch.inf


def test_a_plan_without_an_iteration_before_its_deadline_has_no_answer(
    engine: Engine, backend: RecordingBackend
) -> None:
    hold_with_a_plan(engine, backend)
    late = engine.submit(plan(backend, deadline_in=0.05))
    time.sleep(0.1)
    backend.release()
    with pytest.raises(DeadlinePassed):
        late.result(5)


def test_a_cancelled_plan_costs_at_most_one_more_iteration(
    engine: Engine, backend: RecordingBackend
) -> None:
    future = hold_with_a_plan(engine, backend)
    assert future.cancel()
    backend.release()
    assert answer(engine.submit(plan(backend, tag=2))).status == "completed"
    assert backend.log.count(("rollout", -1.0)) == 1


def test_stopping_finishes_what_was_admitted_and_refuses_the_rest(
    engine: Engine, backend: RecordingBackend
) -> None:
    future = engine.submit(plan(backend))
    engine.stop(5)
    assert answer(future).status == "completed"
    with pytest.raises(EngineStopped):
        engine.submit(plan(backend))


def test_what_outlasts_the_grace_period_is_told_so(backend: RecordingBackend) -> None:
    engine = Engine()
    engine.start()
    future = hold_with_a_plan(engine, backend)
    engine.stop(0.05)
    with pytest.raises(EngineStopped):
        future.result(1)
    backend.release()


def test_a_failing_job_fails_alone(engine: Engine, backend: RecordingBackend) -> None:
    job = plan(backend)
    job.goal = torch.zeros(4)
    with pytest.raises(RuntimeError):
        engine.submit(job).result(5)
    assert answer(engine.submit(plan(backend))).status == "completed"


def test_a_dead_thread_is_told_and_leaves_nobody_waiting(
    engine: Engine, backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = hold_with_a_plan(engine, backend)
    monkeypatch.setattr(engine, "_run_encodes", lambda: (_ for _ in ()).throw(SystemExit))
    waiting = engine.submit(plan(backend))
    backend.release()
    for future in (held, waiting):
        with pytest.raises(EngineStopped):
            future.result(5)
    assert engine.failed
    with pytest.raises(EngineStopped):
        engine.encode(backend, frames(1))


def test_a_plan_that_cannot_be_in_time_is_not_begun(
    engine: Engine, backend: RecordingBackend
) -> None:
    with pytest.raises(DeadlinePassed):
        engine.submit(plan(backend, deadline_in=0.2, each_s=0.1)).result(5)
    assert backend.log == []


def test_a_large_iteration_lets_a_more_urgent_plan_through(
    engine: Engine, backend: RecordingBackend
) -> None:
    rows = STEP_LIMIT // 2
    backend.hold()
    large = engine.submit(plan(backend, tag=1, priority=0, iterations=1, samples=3 * rows))
    assert backend.running.wait(5)
    urgent = engine.submit(plan(backend, tag=2, priority=9))
    backend.release()
    answer(urgent)
    answer(large)
    order = [entry[1] for entry in backend.log]  # type: ignore[index]
    assert order[:2] == [1, 2]
    assert order.count(1) == 3 + 1  # three chunks, and the mean


def test_a_few_frames_do_not_wait_for_very_many(engine: Engine, backend: RecordingBackend) -> None:
    hold_with_a_plan(engine, backend)
    many = engine.encode(backend, frames(1, count=10 * BATCH_ROWS))
    few = engine.encode(backend, frames(2, count=2))
    backend.release()
    assert torch.equal(few.result(5), torch.full((2, 3), 2.0))
    assert torch.equal(many.result(5), torch.ones(10 * BATCH_ROWS, 3))
    assert ("encode", BATCH_ROWS // 2 + 2) in backend.log


def test_a_gradient_plan_asks_for_gradients_in_parts(
    engine: Engine, backend: RecordingBackend
) -> None:
    samples = STEP_LIMIT // 2 + 10
    job = plan(backend, iterations=30, samples=samples, name="gradient")
    job.goal = torch.full((3,), 0.5)
    outcome = answer(engine.submit(job))
    assert outcome.cost == pytest.approx(0, abs=1e-3)
    assert (outcome.iterations, outcome.candidates) == (30, 30 * samples)
    assert backend.log == 30 * [("gradients", samples - 10), ("gradients", 10)]


def test_a_prediction_is_one_step(engine: Engine, backend: RecordingBackend) -> None:
    candidates = torch.rand(4, 2, 3)
    job = PredictJob(backend, torch.zeros(1, 3), torch.empty(0, 3), candidates, None)
    assert torch.equal(engine.submit(job).result(5).latents, candidates)


def test_a_cancelled_encode_is_not_run(engine: Engine, backend: RecordingBackend) -> None:
    hold_with_a_plan(engine, backend)
    future = engine.encode(backend, frames(1))
    future.cancel()
    backend.release()
    answer(engine.submit(plan(backend)))
    assert not any(entry[0] == "encode" for entry in backend.log)  # type: ignore[index]
    with pytest.raises(CancelledError):
        future.result(0)
