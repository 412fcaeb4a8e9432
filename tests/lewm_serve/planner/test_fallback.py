"""When a fallback answers, and when it does not: the planner without a transport."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count, product
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import pytest_asyncio

from lewm_serve.backends.torch import TorchBackend
from lewm_serve.engine.admission import Admission, QueueTooLong
from lewm_serve.errors import DeadlineExceeded, Failed, InvalidRequest, Overloaded
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.fallback import REASONS
from lewm_serve.planner.planner import Planner
from lewm_serve.registry.registry import LoadedModel
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.running_planner import HOLD, ask, figure, planning
from tests.patience import PATIENCE_S, wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(model_folder: Path) -> AsyncIterator[tuple[Planner, Metrics]]:
    async with planning(model_folder) as both:
        yield both


def counted(metrics: Metrics, reason: str, controller: str = "hold") -> float:
    labels = {"model": MODEL_NAME, "controller": controller, "reason": reason}
    return figure(metrics, "lewm_fallbacks_total", **labels)


def unseen(name: str) -> dict[str, Any]:
    """A frame that no other test encodes."""
    return {"frames": [pixels({"encode": 801, "rollout": 802}[name])]}


async def test_every_reason_is_counted_from_0(planner: Planner, metrics: Metrics) -> None:
    counts = [counted(metrics, *pair) for pair in product(REASONS, ["hold", "tail"])]
    assert counts == [0] * 6


@pytest.mark.parametrize("name", ["encode", "rollout"])
async def test_an_engine_that_fails(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    before = counted(metrics, "engine_failure")
    monkeypatch.setattr(TorchBackend, name, fail)
    answer = await ask(planner, fallback=HOLD, **unseen(name))
    with pytest.raises(MemoryError):
        await ask(planner, **unseen(name))
    assert answer.fallback is not None
    assert answer.fallback.reason == "engine_failure"
    assert not answer.actions.any()
    seen = name == "rollout"  # the frames were latents by then
    assert (answer.latent_ids is not None, answer.health.status != "unknown") == (seen, seen)
    assert counted(metrics, "engine_failure") == before + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_is_dead(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        """Ends a thread."""

    def die(*_: object) -> None:
        raise Death

    async with planning(model_folder) as (planner, metrics):
        assert figure(metrics, "lewm_engine_up") == 1
        monkeypatch.setattr(TorchBackend, "encode", die)
        first = await ask(planner, fallback=HOLD)
        await asyncio.to_thread(wait_until, lambda: planner.state == "failed")
        later = await ask(planner, fallback=HOLD)
        assert figure(metrics, "lewm_engine_up") == 0
        with pytest.raises(Failed):
            await ask(planner)
        with pytest.raises(InvalidRequest):
            await ask(planner, fallback={"controller": "who"})
    reports = [first.fallback, later.fallback]
    assert [report and report.reason for report in reports] == ["engine_failure"] * 2


@pytest.mark.parametrize(
    ("name", "step"), [("encode", 1), ("rollout", 1), ("rollout", 2)], ids=["encode", "1st", "2nd"]
)
async def test_the_deadline_of_a_stuck_engine(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    """The answer comes while the engine is held up: it does not wait for what it is late for."""
    reached, let_go, steps = Event(), Event(), count(1)
    work = getattr(TorchBackend, name)

    def stuck(*arguments: Any) -> Any:
        if next(steps) == step:
            reached.set()
            assert let_go.wait(PATIENCE_S)
        return work(*arguments)

    monkeypatch.setattr(TorchBackend, name, stuck)
    before = counted(metrics, "deadline")
    frames = [pixels(len(name) + step + 900)]
    answer = await ask(planner, fallback=HOLD, deadline_ms=2000, frames=frames)
    assert reached.is_set()
    let_go.set()
    assert (await ask(planner, fallback=HOLD)).fallback is None  # and all goes on
    assert answer.fallback is not None
    assert answer.fallback.reason == "deadline"
    assert counted(metrics, "deadline") == before + 1


async def test_a_hopeless_deadline(planner: Planner) -> None:
    answer = await ask(planner, fallback=HOLD, deadline_ms=1e-6)
    with pytest.raises(DeadlineExceeded):
        await ask(planner, deadline_ms=1e-6)
    assert answer.fallback is not None
    assert (answer.fallback.reason, answer.health.status) == ("deadline", "unknown")


async def test_overload_and_bad_input_stay_what_they_are(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="square"):
        await ask(planner, frames=[pixels(0, 10, 20)], fallback=HOLD)

    def refuse(*_: object) -> None:
        raise QueueTooLong("the queue is full", 1.0)

    monkeypatch.setattr(Admission, "admit", refuse)
    with pytest.raises(Overloaded):
        await ask(planner, fallback=HOLD)


async def test_a_client_that_goes_away_takes_its_plan_with_it(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, let_go = Event(), Event()
    work = TorchBackend.rollout

    def held(*arguments: Any) -> Any:
        reached.set()
        assert let_go.wait(PATIENCE_S)
        return work(*arguments)

    monkeypatch.setattr(TorchBackend, "rollout", held)
    asking = asyncio.create_task(ask(planner, fallback=HOLD))
    assert await asyncio.to_thread(reached.wait, PATIENCE_S)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    let_go.set()
    assert (await ask(planner)).status == "completed"  # the engine is free again


class Broken:
    """A controller that never knows what to do."""

    state: tuple[str, ...] = ("x",)

    def actions(self, state: Any, rows: int) -> Any:
        raise ZeroDivisionError


async def test_a_broken_controller_fails_those_alone_who_need_it(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serving(*arguments: Any, **options: Any) -> LoadedModel:
        model = served(*arguments, **options)
        return replace(model, controllers={"broken": Broken()})

    served = planner._serving
    monkeypatch.setattr(planner, "_serving", serving)
    wanted = {"controller": "broken", "state": [1.0]}
    before = figure(metrics, "lewm_plan_status_total", status="fallback")
    assert (await ask(planner, fallback=wanted)).status == "completed"
    with pytest.raises(RuntimeError, match="controller broken failed"):
        await ask(planner, fallback=wanted, deadline_ms=1e-6)
    assert figure(metrics, "lewm_plan_status_total", status="fallback") == before
