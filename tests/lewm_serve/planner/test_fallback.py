"""Fallbacks: their actions, and when they answer instead of the search."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator
from itertools import count, product
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from lewm_serve.api.requests import Fallback
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.constants import FALLBACK_REASONS
from lewm_serve.engine.admission import Admission, DeadlinePassed, QueueTooLong
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.engine.queued_request import QueuedRequest
from lewm_serve.errors import DeadlineExceeded, Failed, InvalidRequest, Overloaded
from lewm_serve.planner.fallback import (
    ANSWER_RESERVE_S,
    ANSWER_RESERVE_SHARE,
    AnomalousFrames,
    compute_fallback,
    fallback_reason_or_raise,
    finish_in_time,
    search_deadline,
)
from lewm_serve.registry.registry import LoadedModel
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.requests import HOLD
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner
from tests.patience import PATIENCE_S

ROWS = 4


class Diagonal:
    """A controller that moves beyond the bounds. It fails for an x of 7 or 8."""

    state: tuple[str, ...] = ("x", "y")

    def actions(self, state: Any, rows: int) -> Any:
        if state[0] < 0:
            raise ValueError("x above 0")
        if state[0] == 7:
            raise KeyError("no such room")
        if state[0] == 8:
            rows += 1
        if state[0] == 9:
            return np.full((rows, 2), np.nan)
        return np.tile(state, (rows, 1))


def model(action_neutral: tuple[float, ...] | None = None) -> LoadedModel:
    """A model of which only the actions matter: two numbers within [-1, 1] and [0.5, 2]."""
    card = SimpleNamespace(
        action_low=(-1.0, 0.5),
        action_high=(1.0, 2.0),
        action_neutral=action_neutral,
        config=SimpleNamespace(action_dim=2),
    )
    unused: Any = None
    return LoadedModel(
        card=cast(Any, card),
        version="",
        backend=unused,
        latency=unused,
        action_mean=unused,
        action_std=unused,
        low=unused,
        high=unused,
        controllers={"diagonal": Diagonal()},
    )


def fallback_actions(
    name: str,
    *,
    state: list[float] | None = None,
    warm_start: list[list[float]] | None = None,
    action_neutral: tuple[float, ...] | None = None,
) -> list[list[float]]:
    """The actions that a fallback computes."""
    request = Fallback(controller=name, state=cast(Any, state))
    warm_rows = None if warm_start is None else np.array(warm_start, np.float32)
    prepared = compute_fallback(model(action_neutral), request, warm_start=warm_rows, rows=ROWS)
    assert prepared is not None
    assert prepared.controller == name
    return cast(list[list[float]], prepared.actions.tolist())


def test_none_prepares_nothing() -> None:
    assert compute_fallback(model(), Fallback(), warm_start=None, rows=ROWS) is None


def test_hold_is_the_action_nearest_to_0_or_that_of_the_card() -> None:
    assert fallback_actions("hold") == [[0.0, 0.5]] * ROWS
    assert fallback_actions("hold", action_neutral=(0.25, 1.0)) == [[0.25, 1.0]] * ROWS


def test_tail_is_the_warm_start_and_then_hold() -> None:
    warm_start = [[1.0, 1.0], [0.5, 1.5]]
    tail = fallback_actions("tail", warm_start=warm_start)
    assert tail == [*warm_start, [0.0, 0.5], [0.0, 0.5]]
    assert fallback_actions("tail", warm_start=warm_start * 2) == warm_start * 2


def test_actions_of_a_controller_stay_within_the_bounds() -> None:
    assert fallback_actions("diagonal", state=[0.5, 3.0]) == [[0.5, 2.0]] * ROWS


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (
            {"controller": "who"},
            "invalid_choice",
            "fallback.controller: received 'who', expected one of none, hold, tail, diagonal",
        ),
        (
            {"controller": "tail"},
            "missing_field",
            "warm_start: received nothing, expected what is left of the last plan: the controller "
            '"tail" runs it',
        ),
        (
            {"controller": "diagonal"},
            "missing_field",
            "fallback.state: received nothing, expected 2 numbers for diagonal: x, y",
        ),
        (
            {"controller": "diagonal", "state": [1.0]},
            "shape_mismatch",
            "fallback.state: received 1 numbers, expected 2 numbers for diagonal: x, y",
        ),
        (
            {"controller": "diagonal", "state": [-1.0, 0.0]},
            "out_of_range",
            "fallback.state: received [-1.0, 0.0], expected x above 0",
        ),
    ],
)
def test_a_wrong_fallback_is_refused_with_its_field(
    request_: dict[str, Any], code: str, detail: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        compute_fallback(model(), Fallback(**request_), warm_start=None, rows=ROWS)
    assert (caught.value.code, caught.value.detail) == (code, detail)


@pytest.mark.parametrize(
    ("x", "cause"),
    [
        (7.0, "no such room"),
        (8.0, r"returned \(5, 2\)"),
        (9.0, r"expected finite actions \(4, 2\)"),
    ],
)
def test_a_failing_controller_matters_only_when_it_is_needed(x: float, cause: str) -> None:
    request = Fallback(controller="diagonal", state=np.array([x, 0.0], np.float32))
    prepared = compute_fallback(model(), request, warm_start=None, rows=ROWS)
    assert prepared is not None
    with pytest.raises(RuntimeError, match="controller diagonal failed") as caught:
        _ = prepared.actions
    assert re.search(cause, str(caught.value.__cause__))


def test_the_search_ends_before_the_deadline_of_the_answer() -> None:
    assert search_deadline(math.inf) == math.inf
    now = time.monotonic()
    late, soon = now + 3600, now + ANSWER_RESERVE_S
    assert search_deadline(late) == late - ANSWER_RESERVE_S
    reserve = soon - search_deadline(soon)
    assert 0 < reserve <= ANSWER_RESERVE_SHARE * ANSWER_RESERVE_S
    assert search_deadline(now - 1) == now - 1


def searching(deadline_s: float, completed_iterations: int = 0) -> QueuedRequest:
    """A request whose search should end in so many seconds."""
    request = QueuedRequest(LatencyModel(), 0.0, deadline=time.monotonic() + deadline_s)
    request.completed_iterations = completed_iterations
    return request


async def endless_work() -> None:
    await asyncio.Event().wait()


async def short_work() -> str:
    await asyncio.sleep(0.01)
    return "result"


async def test_work_without_a_fallback_is_not_limited() -> None:
    assert await finish_in_time(short_work(), searching(-1.0), None) == "result"


async def test_work_in_time_gives_its_result() -> None:
    assert await finish_in_time(short_work(), searching(PATIENCE_S), math.inf) == "result"
    request = QueuedRequest(LatencyModel(), 0.0)  # without a deadline
    assert await finish_in_time(short_work(), request, math.inf) == "result"


@pytest.mark.parametrize("completed_iterations", [0, 3])
async def test_work_that_is_late_is_given_up_and_cancelled(completed_iterations: int) -> None:
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await endless_work()

    request = searching(0.01, completed_iterations)
    with pytest.raises(DeadlinePassed):
        await finish_in_time(work(), request, request.deadline + 0.02)
    assert started.is_set()
    assert len(asyncio.all_tasks()) == 1


async def test_a_search_with_iterations_gets_half_of_the_reserve() -> None:
    """It is about to answer. One without iterations is given up at the search deadline."""

    async def work_until_after_the_search_deadline(request: QueuedRequest) -> str:
        while time.monotonic() < request.deadline:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        return "result"

    request = searching(0.02, completed_iterations=1)
    work = work_until_after_the_search_deadline(request)
    assert await finish_in_time(work, request, request.deadline + PATIENCE_S) == "result"
    request = searching(0.02)
    with pytest.raises(DeadlinePassed):
        await finish_in_time(
            work_until_after_the_search_deadline(request), request, request.deadline + PATIENCE_S
        )


async def test_cancelled_work_that_fails_does_not_hide_the_deadline() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await endless_work()
        except asyncio.CancelledError:
            raise RuntimeError("failed late") from None

    request = searching(0.0)
    with pytest.raises(DeadlinePassed):
        await finish_in_time(fail_when_cancelled(), request, request.deadline)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AnomalousFrames(), "anomalous"),
        (DeadlineExceeded("late"), "deadline"),
        (Failed(), "engine_failure"),
    ],
)
def test_the_reason_of_a_fallback(error: Exception, reason: str) -> None:
    with capture_logs() as logged:
        assert fallback_reason_or_raise(error, "request-1") == reason
    assert logged == []


def test_an_unexpected_error_is_logged_and_the_fallback_answers() -> None:
    error = MemoryError("out of memory")
    with capture_logs() as logged:
        assert fallback_reason_or_raise(error, "request-1") == "engine_failure"
    (line,) = logged
    assert (line["log_level"], line["request_id"], line["exc_info"]) == (
        "error",
        "request-1",
        error,
    )


def test_no_fallback_answers_for_the_other_errors_of_the_service() -> None:
    error = Overloaded(1.0)
    with pytest.raises(Overloaded) as caught:
        fallback_reason_or_raise(error, "request-1")
    assert caught.value is error


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(model_folder: Path) -> AsyncIterator[RunningPlanner]:
    async with running_planner(model_folder) as running:
        yield running


on_module_loop = pytest.mark.asyncio(loop_scope="module")


def count_fallbacks(running: RunningPlanner, reason: str, controller: str = "hold") -> float:
    labels = {"model": MODEL_NAME, "controller": controller, "reason": reason}
    return running.metric("lewm_fallbacks_total", **labels)


@on_module_loop
async def test_every_reason_is_counted_from_0(running: RunningPlanner) -> None:
    pairs = product(FALLBACK_REASONS, ["hold", "tail"])
    assert [count_fallbacks(running, *pair) for pair in pairs] == [0] * 6


@on_module_loop
@pytest.mark.parametrize(("name", "seed"), [("encode", 801), ("rollout", 802)])
async def test_a_failing_engine(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch, name: str, seed: int
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    before = count_fallbacks(running, "engine_failure")
    monkeypatch.setattr(TorchBackend, name, fail)
    new_frames = {"frames": [pixels(seed)]}
    answer = await running.plan(fallback=HOLD, **new_frames)
    with pytest.raises(MemoryError):
        await running.plan(**new_frames)
    assert answer.fallback is not None
    assert answer.fallback.reason == "engine_failure"
    assert not answer.actions.any()
    is_encoded = name == "rollout"
    assert (answer.latent_ids is not None) == is_encoded
    assert (answer.health.status != "unknown") == is_encoded
    assert count_fallbacks(running, "engine_failure") == before + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_engine(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Death(BaseException):
        """Ends a thread."""

    def die(*_: object) -> None:
        raise Death

    async with running_planner(model_folder) as running:
        assert running.metric("lewm_engine_up", device="cpu") == 1
        failing = asyncio.create_task(running.planner.wait_failed())
        monkeypatch.setattr(TorchBackend, "encode", die)
        first = await running.plan(fallback=HOLD)
        await asyncio.wait_for(failing, PATIENCE_S)
        assert running.planner.state == "failed"
        later = await running.plan(fallback=HOLD)
        assert running.metric("lewm_engine_up", device="cpu") == 0
        with pytest.raises(Failed):
            await running.plan()
        with pytest.raises(Failed):
            running.planner.describe_models()
        with pytest.raises(InvalidRequest):
            await running.plan(fallback={"controller": "who"})
    reports = [first.fallback, later.fallback]
    assert [report and report.reason for report in reports] == ["engine_failure"] * 2


@on_module_loop
@pytest.mark.parametrize(
    ("name", "step"), [("encode", 1), ("rollout", 1), ("rollout", 2)], ids=["encode", "1st", "2nd"]
)
async def test_a_stuck_engine(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch, name: str, step: int
) -> None:
    """The fallback answers by the deadline, while the engine is still stuck."""
    is_stuck, release, steps = Event(), Event(), count(1)
    function = getattr(TorchBackend, name)

    def stick(*arguments: Any) -> Any:
        if next(steps) == step:
            is_stuck.set()
            assert release.wait(PATIENCE_S)
        return function(*arguments)

    monkeypatch.setattr(TorchBackend, name, stick)
    before = count_fallbacks(running, "deadline")
    new_frames = {"frames": [pixels(len(name) + step + 900)]}
    answer = await running.plan(fallback=HOLD, deadline_ms=2000, **new_frames)
    assert is_stuck.is_set()
    release.set()
    assert (await running.plan(fallback=HOLD)).fallback is None  # the engine goes on
    assert answer.fallback is not None
    assert answer.fallback.reason == "deadline"
    assert count_fallbacks(running, "deadline") == before + 1


@on_module_loop
async def test_a_deadline_that_cannot_be_met(running: RunningPlanner) -> None:
    answer = await running.plan(fallback=HOLD, deadline_ms=1e-6)
    with pytest.raises(DeadlineExceeded):
        await running.plan(deadline_ms=1e-6)
    assert answer.fallback is not None
    assert (answer.fallback.reason, answer.health.status) == ("deadline", "unknown")


@on_module_loop
async def test_no_fallback_answers_for_bad_frames_or_overload(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="square"):
        await running.plan(frames=[pixels(0, 10, 20)], fallback=HOLD)

    def refuse(*_: object) -> None:
        raise QueueTooLong("the queue is full", 1.0)

    monkeypatch.setattr(Admission, "admit", refuse)
    with pytest.raises(Overloaded):
        await running.plan(fallback=HOLD)


@on_module_loop
async def test_a_plan_is_dropped_when_its_client_goes_away(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_rollout, release = Event(), Event()
    rollout = TorchBackend.rollout

    def held(*arguments: Any) -> Any:
        in_rollout.set()
        assert release.wait(PATIENCE_S)
        return rollout(*arguments)

    monkeypatch.setattr(TorchBackend, "rollout", held)
    plan = asyncio.create_task(running.plan(fallback=HOLD))
    assert await asyncio.to_thread(in_rollout.wait, PATIENCE_S)
    plan.cancel()
    with pytest.raises(asyncio.CancelledError):
        await plan
    release.set()
    assert (await running.plan()).status == "completed"  # the engine is free again


class BrokenController:
    """A controller that always fails."""

    state: tuple[str, ...] = ("x",)

    def actions(self, state: Any, rows: int) -> Any:
        raise ZeroDivisionError


@on_module_loop
async def test_a_broken_controller_fails_only_requests_that_need_it(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    controllers: Any = running.planner._loaded_model(None).controllers
    monkeypatch.setitem(controllers, "broken", BrokenController())
    broken = {"controller": "broken", "state": [1.0]}
    before = running.metric("lewm_plan_status_total", status="fallback")
    assert (await running.plan(fallback=broken)).status == "completed"
    with pytest.raises(RuntimeError, match="controller broken failed"):
        await running.plan(fallback=broken, deadline_ms=1e-6)
    assert running.metric("lewm_plan_status_total", status="fallback") == before
