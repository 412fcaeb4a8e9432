"""One client's work does not harm the others, and what was slow once is not refused for ever."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lewm_serve.api.fields import parse
from lewm_serve.api.requests import EncodeRequest, Frame
from lewm_serve.engine.latency_model import LatencyModel
from lewm_serve.errors import DeadlineExceeded
from lewm_serve.frames.latent_source import expected_decode_s
from tests.lewm_serve.support.frames import LATENT_DIM, image, latent
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner
from tests.patience import PATIENCE_S

LONG_SOLVER = {"name": "cem", "samples": 64, "iterations": 200, "elites": 4, "horizon": 2}


def frames_of(*frames: dict[str, Any]) -> Sequence[Frame]:
    return parse(EncodeRequest, {"frames": list(frames)}).frames


def model_of(running: RunningPlanner) -> Any:
    return running.planner._loaded_model(None)


async def test_large_frames_say_nothing_of_small_ones(model_folder: Path) -> None:
    async with running_planner(model_folder) as running:
        latency = model_of(running).latency
        small = frames_of(image("JPEG", 1))
        nominal_s = expected_decode_s(small, latency)
        await running.encode(*(image("JPEG", seed, height=1024) for seed in range(4)))
        large_s = expected_decode_s(frames_of(image("JPEG", 1, height=1024)), latency)
        # The running correction may be off by what other processes do to this machine.
        assert expected_decode_s(small, latency) <= large_s / 32
        assert 0 < nominal_s < 0.001


async def test_a_model_that_was_measured_too_slow_is_measured_anew(model_folder: Path) -> None:
    """As after a start on a machine that was busy then."""
    async with running_planner(model_folder) as running:
        latency: LatencyModel = model_of(running).latency
        latency._curve = [(8, 1000.0), (512, 1000.0)]
        latency._frame_s = 1000.0
        latency._corrections.clear()
        with pytest.raises(DeadlineExceeded):
            await running.plan(deadline_ms=5000)

        async def admitted() -> None:
            while True:
                try:
                    await running.plan(deadline_ms=5000)
                    return
                except DeadlineExceeded:
                    await asyncio.sleep(0.1)

        await asyncio.wait_for(admitted(), PATIENCE_S)


async def test_a_short_plan_does_not_wait_for_a_long_one(model_folder: Path) -> None:
    async with running_planner(model_folder) as running:
        long = asyncio.create_task(running.plan_of("hog", solver=LONG_SOLVER, priority=9))
        await asyncio.sleep(0)
        for seed in range(3):
            answer = await running.plan(seed=seed, deadline_ms=PATIENCE_S * 1000)
            assert answer.status == "completed"
        assert not long.done()
        assert (await long).status == "completed"


async def test_made_up_latents_do_not_drop_those_of_frames(model_folder: Path) -> None:
    async with running_planner(model_folder) as running:
        running.planner._cache._sent._entries = 50
        running.planner._cache._memory._entries = 50
        (kept,) = (await running.encode(image("PNG", 7))).latents
        for index in range(10):
            values = np.random.default_rng(index).normal(size=(20, LATENT_DIM))
            await running.encode(*({"latent": row.tolist()} for row in values), client="hog")
        again = await running.plan(goal={"latent_id": kept.latent_id}, frames=[latent()])
        assert again.status == "completed"
