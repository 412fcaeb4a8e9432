"""The engine's thread: it sleeps, works, stops, and its death is seen."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future

import pytest
import torch
from torch import Tensor

from lewm_serve.engine.engine import Engine, EngineStopped
from lewm_serve.engine.jobs import PlanJob, PlanOutcome
from lewm_serve.engine.scheduler import Batch, Scheduler
from tests.lewm_serve.engine.fakes import (
    FakeBackend,
    FakeClock,
    encode_job,
    latency_model,
    plan_job,
    search,
)
from tests.patience import PATIENCE_S


class GatedBackend(FakeBackend):
    """Holds the engine in a roll-out while the gate is closed."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.gate, self.in_rollout = threading.Event(), threading.Event()
        self.gate.set()

    def rollout(self, latents: Tensor, past_actions: Tensor, candidates: Tensor) -> Tensor:
        self.in_rollout.set()
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


def plan(backend: FakeBackend, tag: float) -> PlanJob:
    """A plan of four roll-outs."""
    return plan_job(backend, latency_model(), tag, search())


def hold(engine: Engine, backend: GatedBackend) -> Future[PlanOutcome]:
    """Keep the engine in the first roll-out of a plan until the gate is opened."""
    backend.gate.clear()
    future = engine.submit(plan(backend, -1))
    assert backend.in_rollout.wait(PATIENCE_S)
    return future


def test_it_wakes_for_new_work(engine: Engine, backend: GatedBackend) -> None:
    for _ in range(2):
        encoded = engine.submit(encode_job(backend, latency_model(), 7, count=2))
        assert torch.equal(encoded.result(PATIENCE_S), torch.full((2, 3), 7.0))
        assert engine.submit(plan(backend, 1)).result(PATIENCE_S).status == "completed"


def test_batches_are_drained_once(engine: Engine, backend: GatedBackend) -> None:
    engine.submit(encode_job(backend, latency_model(), 7, count=2)).result(PATIENCE_S)
    assert list(engine.take_batches()) == [Batch("encode", 2)]
    assert list(engine.take_batches()) == []


def test_stopping_finishes_submitted_work_and_refuses_more(
    engine: Engine, backend: GatedBackend
) -> None:
    future = engine.submit(plan(backend, 1))
    engine.stop(PATIENCE_S)
    assert future.result(0).status == "completed"
    assert not engine.failed
    with pytest.raises(EngineStopped):
        engine.submit(plan(backend, 2))


def test_work_that_outlasts_the_grace_period_is_abandoned(
    engine: Engine, backend: GatedBackend
) -> None:
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
    assert engine.submit(plan(backend, 2)).result(PATIENCE_S).status == "completed"
    assert backend.rolled_out().count(-1) == 1


def test_a_dead_thread_leaves_no_one_waiting(
    engine: Engine, scheduler: Scheduler, backend: GatedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die() -> None:
        raise SystemExit

    assert not engine.failed
    assert not engine.failure.cancel()  # whoever waits for it cannot hide it from others
    held = hold(engine, backend)
    monkeypatch.setattr(scheduler, "run_turn", die)
    waiting = engine.submit(plan(backend, 2))
    backend.gate.set()
    for future in (held, waiting):
        with pytest.raises(EngineStopped):
            future.result(PATIENCE_S)
    assert engine.failure.result(PATIENCE_S) is None
    assert engine.failed
    with pytest.raises(EngineStopped):
        engine.submit(plan(backend, 3))
