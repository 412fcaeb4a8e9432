"""Requests that meet in a planner, held up where a test wants it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from lewm_serve.backends.torch import TorchBackend
from lewm_serve.errors import Draining
from lewm_serve.frames import latent_source
from tests.lewm_serve.support.frames import pixels
from tests.lewm_serve.support.running_planner import running_planner
from tests.patience import PATIENCE_S, wait_until


class Gate:
    """Calls to a function wait while the gate is closed. ``reached`` is set once one waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached, self._open = Event(), Event()
        self._open.set()
        function: Callable[..., Any] = getattr(owner, name)

        def gated(*arguments: Any, **options: Any) -> Any:
            if not self._open.is_set():
                self.reached.set()
            assert self._open.wait(PATIENCE_S)
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, gated)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(latent_source, "frame_from_pixels"), (TorchBackend, "encode"), (TorchBackend, "rollout")],
    ids=["decoding", "encoding", "searching"],
)
async def test_admitted_plans_are_finished_at_every_stage(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    gate = Gate(monkeypatch, owner, name)
    async with running_planner(model_folder) as running:
        gate.close()
        plans = [
            asyncio.create_task(running.plan(frames=[pixels(seed, height=300)], seed=seed))
            for seed in range(12)
        ]
        assert await asyncio.to_thread(gate.reached.wait, PATIENCE_S)
        stopping = asyncio.create_task(running.planner.stop(PATIENCE_S))
        await asyncio.sleep(0)  # the task starts
        with pytest.raises(Draining):
            await running.plan()
        assert not stopping.done()
        gate.open()
        await stopping
        answers = await asyncio.gather(*plans)
    assert [answer.status for answer in answers] == ["completed"] * 12


async def test_seeded_plans_are_the_same_alone_and_among_others(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their new frames are encoded in batches with those of other requests."""
    requests = [
        {"frames": [pixels(500 + index)], "goal": pixels(600 + index), "include": ["trajectory"]}
        for index in range(4)
    ]
    async with running_planner(model_folder) as running:
        alone = [await running.plan(**request) for request in requests]

    gate = Gate(monkeypatch, TorchBackend, "encode")
    async with running_planner(model_folder) as running:

        def queued() -> float:
            return sum(
                running.metric("lewm_queued_requests", endpoint=endpoint)
                for endpoint in ("encode", "plan")
            )

        gate.close()
        others = [asyncio.create_task(running.encode(pixels(1000 + index))) for index in range(12)]
        plans = [asyncio.create_task(running.plan(**request)) for request in requests]
        await asyncio.to_thread(wait_until, lambda: queued() == len(others) + len(plans))
        gate.open()
        together = await asyncio.gather(*plans)
        await asyncio.gather(*others)
        batches = running.metric("lewm_batch_rows_count", kind="encode")
    assert batches < len(others) + len(plans)

    for one, same in zip(alone, together, strict=True):
        assert one.trajectory is not None
        assert same.trajectory is not None
        assert np.array_equal(one.actions, same.actions)
        assert np.array_equal(one.trajectory, same.trajectory)
        assert (one.cost, one.latent_ids) == (same.cost, same.latent_ids)
        assert (one.status, one.candidates) == (same.status, same.candidates)


async def test_the_health_of_one_frame_is_assessed_while_the_engine_searches(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, TorchBackend, "rollout")
    async with running_planner(model_folder) as running:

        def assessed_frames() -> float:
            return sum(
                sample.value
                for metric in running.metrics.registry.collect()
                for sample in metric.samples
                if sample.name == "lewm_latent_norm_count"
            )

        gate.close()
        plan = asyncio.create_task(running.plan())
        await asyncio.to_thread(wait_until, lambda: assessed_frames() == 1)
        assert not plan.done()
        gate.open()
        answer = await plan
        assert assessed_frames() == 1  # and only once
    assert answer.health.latent_norm is not None
