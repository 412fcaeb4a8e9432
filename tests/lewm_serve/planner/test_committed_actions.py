"""Plans that start after actions which the robot still executes."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lewm_models import checkpoint
from lewm_serve.api.fields import parse
from lewm_serve.api.requests import Frame
from lewm_serve.api.responses import PlanResponse
from tests.lewm_serve.support.frames import ACTION_BLOCK, ACTION_DIM, pixels
from tests.lewm_serve.support.random_model import write_random_model
from tests.lewm_serve.support.requests import SMALL_SOLVER
from tests.lewm_serve.support.running_planner import RunningPlanner, running_planner

Rows = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a learned distance, so that answers hold the distance at the plan's start."""
    return write_random_model(tmp_path_factory.mktemp("models") / "random", distance=True)


def action_rows(blocks: int, seed: int) -> Rows:
    shape = (blocks * ACTION_BLOCK, ACTION_DIM)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def request_of(frames: int, committed: int, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A plan from some frames with some committed blocks, whose answer holds the trajectory."""
    return {
        "frames": [pixels(seed + index) for index in range(frames)],
        "past_actions": action_rows(frames - 1, seed),
        "committed_actions": action_rows(committed, seed + 1),
        "goal": pixels(9),
        "solver": {"name": "icem", **SMALL_SOLVER},
        "include": ["trajectory"],
        **fields,
    }


def imagined(folder: Path, request: dict[str, Any], answer: PlanResponse) -> tuple[Rows, Rows]:
    """The latents after the committed actions and after the plan, as the reference computes them.

    The committed actions and the plan are one candidate of `LeWM.rollout`.
    """
    loaded = checkpoint.load(folder)
    mean, std = (
        np.array(values, np.float32) for values in (loaded.card.action_mean, loaded.card.action_std)
    )

    def blocks(*rows: Rows) -> torch.Tensor:
        zscored = (np.concatenate(rows) - mean) / std
        return torch.from_numpy(zscored.reshape(-1, ACTION_BLOCK * ACTION_DIM)).unsqueeze(0)

    frames = [parse(Frame, frame).pixels for frame in request["frames"]]
    past, committed = request["past_actions"], request["committed_actions"]
    with torch.inference_mode():
        latents = loaded.model.encode(torch.from_numpy(np.stack(frames)))  # type: ignore[arg-type]
        candidates = blocks(committed, answer.actions)
        predicted = loaded.model.rollout(latents, blocks(past)[0], candidates)[0].numpy()
    count = len(committed) // ACTION_BLOCK
    newest = latents.numpy()[-1:] if count == 0 else predicted[:count]
    return newest, predicted[count:]


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("committed", [1, 2, 4])
async def test_a_plan_starts_where_the_committed_actions_lead(
    folder: Path, frames: int, committed: int
) -> None:
    request = request_of(frames, committed)
    async with running_planner(folder) as running:
        answer = await running.plan(**request)
    before, after = imagined(folder, request, answer)
    assert answer.trajectory == pytest.approx(after, abs=1e-4)
    distance, loaded = answer.distance, checkpoint.load(folder)
    assert distance is not None
    assert loaded.distance is not None
    ends = torch.from_numpy(np.stack([before[-1], after[-1]]))
    goal = parse(Frame, pixels(9)).pixels
    assert goal is not None
    with torch.inference_mode():
        goal_latent = loaded.model.encode(torch.from_numpy(goal[None].copy()))[0]
        steps = ACTION_BLOCK * loaded.distance(ends, goal_latent)
    assert [distance.start, distance.end] == pytest.approx(steps.tolist(), rel=1e-3)


async def test_committed_actions_change_neither_health_nor_surprise(folder: Path) -> None:
    request = request_of(frames=2, committed=2)
    async with running_planner(folder) as running:
        answer = await running.plan(**request)
        without = await running.plan(**request | {"committed_actions": []})
    assert answer.health == without.health
    assert answer.actions.shape == without.actions.shape
    assert not np.array_equal(answer.actions, without.actions)


async def test_in_a_crowd_a_plan_is_the_same_as_alone(folder: Path) -> None:
    """Plans with different contexts wait at once; those of one context may share a batch."""
    requests = [
        request_of(frames, committed, seed=10 * frames + committed)
        for frames in (1, 2, 3)
        for committed in (0, 1, 2)
    ]

    async def answers(running: RunningPlanner, *, at_once: bool) -> list[PlanResponse]:
        running.planner._loaded_model(None).latency.max_batched_rows = 256 if at_once else 0
        waiting = (running.plan(**request) for request in requests)
        return await asyncio.gather(*waiting) if at_once else [await plan for plan in waiting]

    async with running_planner(folder) as running:
        crowd = await answers(running, at_once=True)
        alone = await answers(running, at_once=False)
    for one, other in zip(crowd, alone, strict=True):
        assert one.actions == pytest.approx(other.actions, abs=1e-4)
        assert one.trajectory == pytest.approx(other.trajectory, abs=1e-3)
