"""Plans with a fallback whose frames are anomalous: they are not searched, and not waited for."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import pytest_asyncio

from lewm_models.card import Calibration
from lewm_models.checkpoint import load, write_card
from lewm_serve.backends.torch import TorchBackend
from tests.lewm_serve.support.frames import ACTION_BLOCK, latent
from tests.lewm_serve.support.random_model import MODEL_NAME, write_random_model
from tests.lewm_serve.support.requests import HOLD, SMALL_SOLVER, rows
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALIBRATION = Calibration(
    frames=100,
    norm_mean=1.0,
    norm_std=1.0,
    zscore_limit=20.0,
    surprise_limit=1e-3,  # no one-step prediction of random weights comes so close
    sigreg_window=4,
    sigreg_limit=1e-9,  # every SIGReg exceeds it
)
USUAL, UNUSUAL = latent(0.1), latent(10.0)
SURPRISING: dict[str, Any] = {
    "frames": [USUAL, latent(0.2)],
    "past_actions": rows(ACTION_BLOCK),
    "goal": USUAL,
}
"""The fields of a plan whose newest frame surprises."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningPlanner]:
    folder = write_random_model(tmp_path_factory.mktemp("calibrated") / MODEL_NAME)
    write_card(folder, replace(load(folder).card, calibration=CALIBRATION))
    async with running_planner(folder) as running:
        yield running


class SearchRollouts:
    """The roll-outs of searches: how many there were, and when they may go on."""

    def __init__(self) -> None:
        self.count = 0
        self.may_go_on = Event()


@contextmanager
def held_searches(monkeypatch: pytest.MonkeyPatch) -> Iterator[SearchRollouts]:
    """Hold up searches in their first roll-out, but not one-step predictions."""
    rollout, searches = TorchBackend.rollout, SearchRollouts()

    def held(backend: Any, latents: Any, past_actions: Any, candidates: Any) -> Any:
        if candidates.shape[1] > 1:
            searches.count += 1
            assert searches.may_go_on.wait(PATIENCE_S)
        return rollout(backend, latents, past_actions, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "rollout", held)
        yield searches
        searches.may_go_on.set()


def counts(running: RunningPlanner) -> dict[str, float]:
    """The counters that a plan may increase."""
    model = {"model": MODEL_NAME}
    fallback = {"controller": "hold", "reason": "anomalous"}
    return {
        "frames": running.metric("lewm_latent_norm_count", **model),
        "norm": running.metric("lewm_anomalies_total", kind="norm", **model),
        "surprise": running.metric("lewm_anomalies_total", kind="surprise", **model),
        "anomalous": running.metric("lewm_health_total", status="anomalous", **model),
        "surprises": running.metric("lewm_surprise_count", **model),
        "fallbacks": running.metric("lewm_fallbacks_total", **fallback, **model),
        "searches": running.metric("lewm_plan_iterations_count"),
    }


def increases(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - value for name, value in before.items() if after[name] != value}


@pytest.mark.parametrize(
    ("frames", "goal", "reason"),
    [
        ([UNUSUAL], USUAL, "frames[0]: latent norm"),
        ([USUAL], UNUSUAL, "goal: latent norm"),
    ],
    ids=["frame", "goal"],
)
async def test_unusual_frames_or_goals_are_not_searched(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch, frames: Any, goal: Any, reason: str
) -> None:
    before = counts(running)
    with held_searches(monkeypatch) as searches:
        answer = await running.plan(frames=frames, goal=goal, fallback=HOLD)
    assert searches.count == 0
    assert (answer.status, answer.iterations, answer.candidates) == ("fallback", 0, 0)
    assert answer.fallback is not None
    assert (answer.fallback.controller, answer.fallback.reason) == ("hold", "anomalous")
    assert answer.health.status == "anomalous"
    assert answer.health.reasons[0].startswith(reason)
    assert answer.latent_ids is not None
    assert increases(before, counts(running)) == {
        "frames": 1,
        "norm": 1,
        "anomalous": 1,
        "fallbacks": 1,
    }


async def test_a_surprising_frame_ends_the_search_before_it_starts(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counts(running)
    with held_searches(monkeypatch) as searches:
        long_solver = SMALL_SOLVER | {"iterations": 50}
        answer = await running.plan(**SURPRISING, solver=long_solver, fallback=HOLD)
        searches.may_go_on.set()
        assert (await running.plan(**SURPRISING)).status == "completed"
        assert searches.count == SMALL_SOLVER["iterations"]  # those of the second plan
    assert answer.fallback is not None
    assert answer.fallback.reason == "anomalous"
    assert answer.health.surprise is not None
    assert [reason.partition(":")[0] for reason in answer.health.reasons] == ["frames[1]"]
    once = {"frames": 2, "surprise": 1, "anomalous": 1, "surprises": 1}
    twice = {name: 2.0 * count for name, count in once.items()}
    assert increases(before, counts(running)) == {**twice, "fallbacks": 1, "searches": 1}


async def test_without_a_fallback_anomalous_frames_are_searched(running: RunningPlanner) -> None:
    answer = await running.plan(frames=[UNUSUAL], goal=USUAL)
    assert (answer.status, answer.fallback) == ("completed", None)
    assert answer.health.status == "anomalous"


async def test_the_tail_starts_with_the_warm_start(running: RunningPlanner) -> None:
    warm_start = rows(5)
    answer = await running.plan(
        frames=[UNUSUAL],
        goal=USUAL,
        fallback={"controller": "tail"},
        warm_start=warm_start,
        include=["trajectory"],
    )
    assert answer.actions[:5].tolist() == warm_start
    assert (answer.trajectory, answer.cost) == (None, None)


async def test_degraded_health_does_not_call_the_fallback(running: RunningPlanner) -> None:
    await running.encode(*[latent(0.1)] * 200)
    before = counts(running)
    answer = await running.plan(frames=[USUAL], goal=USUAL, fallback=HOLD)
    assert (answer.status, answer.fallback, answer.health.status) == ("completed", None, "degraded")
    assert increases(before, counts(running)) == {"frames": 1, "searches": 1}


async def test_the_frames_of_a_failing_search_are_counted_once(
    running: RunningPlanner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(TorchBackend, "rollout", fail)
    for frames in ([UNUSUAL], [USUAL, UNUSUAL]):
        before = counts(running)
        past_actions = rows(ACTION_BLOCK * (len(frames) - 1))
        with pytest.raises(MemoryError):
            await running.plan(frames=frames, past_actions=past_actions)
        increased = increases(before, counts(running))
        assert increased == {"frames": len(frames), "norm": 1, "anomalous": 1}
