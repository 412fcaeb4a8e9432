"""The planner without a transport: requests that meet, held at a place of the test's choice."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from lewm_serve import latents
from lewm_serve.api.context import RequestContext
from lewm_serve.api.requests import EncodeRequest, PlanRequest, parse
from lewm_serve.api.responses import PlanResponse
from lewm_serve.backends.torch import TorchBackend
from lewm_serve.errors import Draining
from lewm_serve.observability.metrics import Metrics
from lewm_serve.planner.planner import Planner
from lewm_serve.settings import Settings
from tests.lewm_serve.support.requests import plan
from tests.lewm_serve.support.frames import pixels
from tests.patience import PATIENCE_S, wait_until


class Held:
    """Calls to a function wait, from `hold` to `release`; `reached` once one does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached, self._open = Event(), Event()
        self._open.set()
        held: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            if not self._open.is_set():
                self.reached.set()
            assert self._open.wait(PATIENCE_S)
            return held(*arguments)

        monkeypatch.setattr(owner, name, call)

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()


@asynccontextmanager
async def planning(folder: Path, metrics: Metrics) -> AsyncIterator[Planner]:
    """A planner that is ready, with nothing chosen by measurement: two of them are compared."""
    settings = Settings(models=(folder,), threads=1, backend="torch", precision="float32")
    planner = Planner(settings, metrics)
    await planner.start()
    yield planner
    await planner.stop(PATIENCE_S)


async def ask(planner: Planner, **changes: Any) -> PlanResponse:
    """A small plan."""
    context = RequestContext("", "plan", "rest", time.monotonic())
    return await planner.plan(parse(PlanRequest, plan(**changes)), context)


async def encode(planner: Planner, seed: int) -> None:
    """One frame."""
    context = RequestContext("", "encode", "rest", time.monotonic())
    await planner.encode(parse(EncodeRequest, {"frames": [pixels(seed)]}), context)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(latents, "prepare"), (TorchBackend, "encode"), (TorchBackend, "rollout")],
    ids=["decoding", "encoding", "solving"],
)
async def test_whatever_came_in_is_finished_wherever_it_is(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    held = Held(monkeypatch, owner, name)
    async with planning(model_folder, Metrics()) as planner:
        held.hold()
        robots = [
            asyncio.create_task(ask(planner, frames=[pixels(seed, height=300)], seed=seed))
            for seed in range(12)
        ]
        assert await asyncio.to_thread(held.reached.wait, PATIENCE_S)
        stopping = asyncio.create_task(planner.stop(PATIENCE_S))
        await asyncio.sleep(0)  # not a time, a turn: it begins
        with pytest.raises(Draining):
            await ask(planner)
        assert not stopping.done()
        held.release()
        await stopping
        answers = await asyncio.gather(*robots)
    assert [answer.status for answer in answers] == ["completed"] * 12


async def test_seeded_plans_of_fresh_frames_are_the_same_in_a_crowd(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = [
        {"frames": [pixels(500 + index)], "goal": pixels(600 + index), "include": ["trajectory"]}
        for index in range(4)
    ]
    async with planning(model_folder, Metrics()) as planner:
        alone = [await ask(planner, **one) for one in mine]

    metrics, held = Metrics(), Held(monkeypatch, TorchBackend, "encode")

    def waiting() -> float:
        counts = (
            metrics.registry.get_sample_value("lewm_queued_requests", {"endpoint": endpoint})
            for endpoint in ("encode", "plan")
        )
        return sum(count or 0 for count in counts)

    async with planning(model_folder, metrics) as planner:
        held.hold()
        strangers = [asyncio.create_task(encode(planner, 1000 + index)) for index in range(12)]
        asking = [asyncio.create_task(ask(planner, **one)) for one in mine]
        await asyncio.to_thread(wait_until, lambda: waiting() == len(strangers) + len(asking))
        held.release()
        together = await asyncio.gather(*asking)
        await asyncio.gather(*strangers)
    batches = metrics.registry.get_sample_value("lewm_batch_rows_count", {"kind": "encode"})
    assert batches is not None
    assert batches < len(strangers) + len(asking)  # they shared some

    for one, same in zip(alone, together, strict=True):
        assert one.trajectory is not None
        assert same.trajectory is not None
        assert np.array_equal(one.actions, same.actions)
        assert np.array_equal(one.trajectory, same.trajectory)
        assert (one.cost, one.latent_ids) == (same.cost, same.latent_ids)
        assert (one.status, one.candidates) == (same.status, same.candidates)


async def test_a_frame_is_looked_at_while_the_engine_searches(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics, held = Metrics(), Held(monkeypatch, TorchBackend, "rollout")

    def seen() -> float:
        return sum(
            sample.value
            for metric in metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "lewm_latent_norm_count"
        )

    async with planning(model_folder, metrics) as planner:
        held.hold()
        asking = asyncio.create_task(ask(planner))
        await asyncio.to_thread(wait_until, lambda: seen() == 1)
        assert not asking.done()
        held.release()
        answer = await asking
    assert answer.health.latent_norm is not None
    assert seen() == 1  # and once only
