"""The last plans: what is kept of them, and for how long."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lewm_serve.api.requests import Frame, Goal
from lewm_serve.planner import history as history_module
from lewm_serve.planner.history import PlanHistory
from tests.lewm_serve.support.frames import latent, picture, pixels
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.requests import HOLD
from tests.lewm_serve.support.running_planner import running_planner


async def test_a_plan_is_kept_with_what_makes_it_again(model_folder: Path) -> None:
    history = PlanHistory()
    async with running_planner(model_folder, history) as running:
        response = await running.plan(frames=[pixels(3)], goal=latent())
        record = history.get(1)
        assert record is not None
        assert record.response is response
        assert record.request.frames[0].pixels is not None
        assert record.latents is not None
        assert record.latents.shape == (2, 128)
        assert torch.allclose(record.latents[1], torch.full((128,), 0.1))
        assert record.trace is not None
        assert len(record.trace.iterations) == response.iterations + 1  # CEM scores the mean
        again = await running.planner.plan(record.request, record.context)
        assert (again.actions == response.actions).all()


async def test_a_fallback_is_kept_without_a_search(model_folder: Path) -> None:
    history = PlanHistory()
    async with running_planner(model_folder, history) as running:
        response = await running.plan(fallback=HOLD, deadline_ms=1e-6)
        assert response.status == "fallback"
        record = history.get(1)
        assert record is not None
        assert record.trace is None


async def test_a_goal_by_states_is_kept_with_its_trace_and_has_no_latent(tmp_path: Path) -> None:
    history = PlanHistory()
    async with running_planner(write_random_model(tmp_path / "random", probe=True), history) as r:
        response = await r.plan(frames=[pixels(3)], goal={"state": {"x": 100.0}})
        record = history.get(1)
        assert record is not None
        assert record.encoded_frames == record.request.frames
        assert record.latents is not None
        assert record.latents.shape == (1, 128)
        assert record.trace is not None
        assert len(record.trace.iterations) == response.iterations + 1
        await r.plan()
        record = history.get(2)
        assert record is not None
        assert record.encoded_frames == (*record.request.frames, record.request.goal)


async def test_pictures_of_where_candidates_lead_are_not_counted(model_folder: Path) -> None:
    history = PlanHistory()
    async with running_planner(model_folder, history) as running:
        response = await running.plan(include=["trajectory"])
        record = history.get(1)
        assert record is not None
        assert record.latents is not None
        health = running.metric("lewm_health_total", model="random", status="uncalibrated")
        model, folder = running.planner.model_and_folder("random")
        assert folder == model_folder
        predicted = await running.planner.imagine(
            model.pin,
            latents=record.latents[:-1],
            past_actions=torch.empty(0, model.card.config.block_width),
            candidates=model.to_blocks(response.actions).unsqueeze(0),
        )
        assert response.trajectory is not None
        assert torch.allclose(predicted[0], torch.tensor(response.trajectory), atol=1e-4)
        assert health == running.metric("lewm_health_total", model="random", status="uncalibrated")
        assert history.newest == 1


async def test_the_oldest_plans_are_dropped(model_folder: Path) -> None:
    async with running_planner(model_folder, history := PlanHistory(max_plans=3)) as running:
        for _ in range(5):
            await running.plan()
        assert [record.number for record in history.after(0, 10)] == [3, 4, 5]
        assert [record.number for record in history.after(3, 1)] == [5]
        assert history.get(2) is None
        found = history.find("request-1")
        assert found is not None
        assert found.number == 5
        assert history.find("another") is None
        one = history.get(3)
        assert one is not None
    limit = 2 * one.size_in_bytes
    async with running_planner(model_folder, history := PlanHistory(max_bytes=limit)) as running:
        for _ in range(4):
            await running.plan()
        assert len(history.after(0, 10)) == 2  # all of these have traces
        await running.plan(frames=[pixels(0, 1024)])
        assert [record.number for record in history.after(0, 10)] == [5]


async def test_a_plan_does_not_keep_the_rest_of_its_batch(model_folder: Path) -> None:
    batch = np.stack([picture(seed) for seed in range(3)])
    async with running_planner(model_folder, history := PlanHistory()) as running:
        await running.plan()
        first = history.get(1)
        assert first is not None
        frame = Frame.model_construct(pixels=batch[0])
        goal = Goal.model_construct(pixels=batch[1])
        request = first.request.model_copy(update={"frames": (frame,), "goal": goal})
        await running.planner.plan(request, first.context)
        record = history.get(2)
        assert record is not None
        for kept, expected in (
            (record.request.frames[0], batch[0]),
            (record.request.goal, batch[1]),
        ):
            assert kept.pixels is not None
            assert kept.pixels.base is None
            assert (kept.pixels == expected).all()
        # What is held by itself is not copied.
        await running.planner.plan(record.request, first.context)
        again = history.get(3)
        assert again is not None
        assert again.request is record.request


async def test_few_searches_a_second_are_recorded(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "TRACES_PER_S", 0.0)
    async with running_planner(model_folder, history := PlanHistory()) as running:
        for _ in range(6):
            await running.plan()
        traced = [record.trace is not None for record in history.after(0, 10)]
        assert traced == [True] * 4 + [False] * 2
        history.expect("request-1", replay_of=2)
        await running.plan()
        history.forget("request-1")
        await running.plan()
        expected, next_one = history.after(6, 2)
        assert expected.trace is not None
        assert expected.replay_of == 2
        assert next_one.trace is None
        assert next_one.replay_of is None
