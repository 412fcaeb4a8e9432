"""The engine's thread: it sleeps, works, stops and dies in the open."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor

from lewm_serve.engine.engine import Engine, EngineStopped
from lewm_serve.engine.jobs import PlanOutcome
from lewm_serve.engine.scheduler import Scheduler
from tests.lewm_serve.engine.fakes import FakeBackend, FakeClock, pace_of, plan
from tests.patience import PATIENCE_S


class GatedBackend(FakeBackend):
    """Holds the engine up inside a roll-out while the gate is closed."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.gate, self.running = threading.Event(), threading.Event()
        self.gate.set()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        self.running.set()
        assert self.gate.wait(PATIENCE_S)
        return super().rollout(latents, past_actions, candidates)


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend()


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def engine(backend: GatedBackend, scheduler: Scheduler) -> Iterator[Engine]:
    engine = Engine(scheduler)
    engine.start()
    yield engine
    backend.gate.set()
    engine.stop(PATIENCE_S)


def hold(engine: Engine, backend: GatedBackend) -> Future[PlanOutcome]:
    """Keep the engine inside a plan's first iteration until the gate is opened."""
    backend.gate.clear()
    future = engine.submit(plan(backend, pace_of(), -1))
    assert backend.running.wait(PATIENCE_S)
    return future


def test_it_wakes_for_what_comes(engine: Engine, backend: GatedBackend) -> None:
    frames = torch.full((2, 2, 2, 3), 7, dtype=torch.uint8)
    for _ in range(2):
        assert torch.equal(
            engine.encode(backend, pace_of(), frames).result(PATIENCE_S), torch.full((2, 3), 7.0)
        )
        assert engine.submit(plan(backend, pace_of(), 1)).result(PATIENCE_S).status == "completed"


def test_stopping_finishes_what_was_submitted_and_refuses_the_rest(
    engine: Engine, backend: GatedBackend
) -> None:
    future = engine.submit(plan(backend, pace_of(), 1))
    engine.stop(PATIENCE_S)
    assert future.result(0).status == "completed"
    with pytest.raises(EngineStopped):
        engine.submit(plan(backend, pace_of(), 2))


def test_what_outlasts_the_grace_period_is_told_so(engine: Engine, backend: GatedBackend) -> None:
    held = hold(engine, backend)
    engine.stop(0)
    with pytest.raises(EngineStopped):
        held.result(0)


def test_a_cancelled_plan_costs_at_most_one_more_iteration(
    engine: Engine, backend: GatedBackend
) -> None:
    held = hold(engine, backend)
    assert held.cancel()
    backend.gate.set()
    assert engine.submit(plan(backend, pace_of(), 2)).result(PATIENCE_S).status == "completed"
    assert backend.rolled_out().count(-1) == 1


def test_a_dead_thread_is_told_and_leaves_nobody_waiting(
    engine: Engine, scheduler: Scheduler, backend: GatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise SystemExit

    held = hold(engine, backend)
    monkeypatch.setattr(scheduler, "turn", die)
    waiting = engine.submit(plan(backend, pace_of(), 2))
    backend.gate.set()
    for future in (held, waiting):
        with pytest.raises(EngineStopped):
            future.result(PATIENCE_S)
    assert engine.failed
    with pytest.raises(EngineStopped):
        engine.submit(plan(backend, pace_of(), 3))
