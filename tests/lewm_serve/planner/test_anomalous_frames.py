"""What is known to be anomalous is not searched on, and not waited for."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import pytest_asyncio

from lewm_models.card import Calibration
from lewm_models.checkpoint import load, write_card
from lewm_serve.api.context import RequestContext
from lewm_serve.api.requests import EncodeRequest, parse
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from tests.lewm_serve.support.requests import SOLVER
from tests.lewm_serve.support.random_model import MODEL_NAME, write_random_model
from tests.lewm_serve.support.frames import ACTION_BLOCK, latent, rows
from tests.lewm_serve.support.running_planner import HOLD, ask, figure, planning
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALIBRATION = Calibration(
    frames=100,
    norm_mean=1.0,
    norm_std=1.0,
    zscore_limit=20.0,
    surprise_limit=1e-3,  # nothing that this model of random weights expects comes so close
    sigreg_window=4,
    sigreg_limit=-1.0,  # SIGReg is beyond it, once there is any
)
NEAR, FAR = latent(0.1), latent(10.0)
STEP: dict[str, Any] = {"frames": [NEAR, latent(0.2)], "past_actions": rows(ACTION_BLOCK), "goal": NEAR}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Planner, Metrics]]:
    folder = write_random_model(tmp_path_factory.mktemp("calibrated") / MODEL_NAME)
    write_card(folder, replace(load(folder).card, calibration=CALIBRATION))
    async with planning(folder) as both:
        yield both


class Searches:
    """The searches' roll-outs: how many there were, and when they may go on."""

    def __init__(self) -> None:
        self.count = 0
        self.may_go_on = Event()


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Searches]:
    """Searches are held up in their first roll-out; what is expected of the next frame is not."""
    work, searches = TorchBackend.rollout, Searches()

    def rollout(backend: Any, latents: Any, past: Any, candidates: Any) -> Any:
        if candidates.shape[1] > 1:
            searches.count += 1
            assert searches.may_go_on.wait(PATIENCE_S)
        return work(backend, latents, past, candidates)

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "rollout", rollout)
        yield searches
        searches.may_go_on.set()


def counts(metrics: Metrics) -> dict[str, float]:
    """How often what should be counted once was counted."""
    model = {"model": MODEL_NAME}
    return {
        "frames": figure(metrics, "lewm_latent_norm_count", **model),
        "norm": figure(metrics, "lewm_anomalies_total", kind="norm", **model),
        "surprise": figure(metrics, "lewm_anomalies_total", kind="surprise", **model),
        "anomalous": figure(metrics, "lewm_health_total", status="anomalous", **model),
        "surprises": figure(metrics, "lewm_surprise_count", **model),
        "fallbacks": figure(
            metrics, "lewm_fallbacks_total", controller="hold", reason="anomalous", **model
        ),
        "searches": figure(metrics, "lewm_plan_iterations_count"),
    }


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - value for name, value in before.items() if after[name] != value}


@pytest.mark.parametrize(
    ("frames", "goal", "reason"),
    [([FAR], NEAR, "frames[0]: latent norm"), ([NEAR], FAR, "goal: latent norm")],
    ids=["frame", "goal"],
)
async def test_frames_or_goal_beyond_a_limit_are_not_searched_on(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch,
    frames: Any, goal: Any, reason: str,
) -> None:  # fmt: skip
    before = counts(metrics)
    with held(monkeypatch) as searches:
        answer = await ask(planner, frames=frames, goal=goal, fallback=HOLD)
    assert searches.count == 0
    assert (answer.status, answer.iterations, answer.candidates) == ("fallback", 0, 0)
    assert answer.fallback is not None
    assert (answer.fallback.controller, answer.fallback.reason) == ("hold", "anomalous")
    assert answer.health.status == "anomalous"
    assert answer.health.reasons[0].startswith(reason)
    assert answer.latent_ids is not None
    assert growth(before, counts(metrics)) == {
        "frames": 1, "norm": 1, "anomalous": 1, "fallbacks": 1,
    }  # fmt: skip


async def test_a_step_beyond_a_limit_has_its_search_dropped(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = counts(metrics)
    with held(monkeypatch) as searches:
        lengthy = SOLVER | {"iterations": 50}
        answer = await ask(planner, **STEP, solver=lengthy, fallback=HOLD)  # while it is held up
        searches.may_go_on.set()
        assert (await ask(planner, **STEP)).status == "completed"
        assert searches.count == SOLVER["iterations"]  # those of the plan before
    assert answer.fallback is not None
    assert answer.fallback.reason == "anomalous"
    assert answer.health.surprise is not None
    assert [reason.partition(":")[0] for reason in answer.health.reasons] == ["frames[1]"]
    once = {"frames": 2, "surprise": 1, "anomalous": 1, "surprises": 1}
    twice = {name: 2.0 * count for name, count in once.items()}
    assert growth(before, counts(metrics)) == {**twice, "fallbacks": 1, "searches": 1}


async def test_without_a_fallback_the_plan_comes_with_its_health(planner: Planner) -> None:
    answer = await ask(planner, frames=[FAR], goal=NEAR)
    assert (answer.status, answer.fallback) == ("completed", None)
    assert answer.health.status == "anomalous"


async def test_a_tail_is_run_from_its_beginning(planner: Planner) -> None:
    warm = rows(5)
    answer = await ask(
        planner, frames=[FAR], goal=NEAR, fallback={"controller": "tail"}, warm_start=warm,
        include=["trajectory"],
    )  # fmt: skip
    assert (answer.actions[:5].tolist(), answer.trajectory, answer.cost) == (warm, None, None)


async def test_what_is_not_anomalous_is_planned(planner: Planner, metrics: Metrics) -> None:
    context = RequestContext("r2", "encode", "rest", time.monotonic())
    await planner.encode(parse(EncodeRequest, {"frames": [latent(0.1)] * 200}), context)
    before = counts(metrics)
    answer = await ask(planner, frames=[NEAR], goal=NEAR, fallback=HOLD)
    assert (answer.status, answer.fallback, answer.health.status) == ("completed", None, "degraded")
    assert growth(before, counts(metrics)) == {"frames": 1, "searches": 1}


async def test_what_was_seen_is_counted_once_where_the_search_fails(
    planner: Planner, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(TorchBackend, "rollout", fail)
    for frames in ([FAR], [NEAR, FAR]):
        before = counts(metrics)
        with pytest.raises(MemoryError):
            await ask(planner, frames=frames, past_actions=rows(ACTION_BLOCK)[: ACTION_BLOCK * len(frames[1:])])
        grown = growth(before, counts(metrics))
        assert grown == {"frames": len(frames), "norm": 1, "anomalous": 1}
