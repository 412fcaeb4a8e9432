"""What the pictures of `lewm demo` show: the right frames at the right moments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from lewm_client import PlannerClient
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.animation import MAX_FRAMES, moments
from lewm_serve.cli.closed_loop import find_model
from lewm_serve.cli.imagination import FrameMemory, WatchedRobot, remember, watch
from lewm_serve.cli.views_picture import draw_views
from tests.lewm_serve.support.server_process import ServerProcess


def shade(level: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.full((count, 8, 8, 3), level, np.uint8)


def robot(steps: int, *, reached: bool) -> WatchedRobot:
    """Its camera gets brighter with each step; of plan p it imagines shades of 100 p."""
    return WatchedRobot(
        camera=np.concatenate([shade(step, 1) for step in range(steps + 1)]),
        goal=shade(255, 1)[0],
        imagined=(shade(100, 5), shade(200, 5)),
        plan_starts=(0, 25),
        action_block=5,
        reached=reached,
    )


@pytest.mark.parametrize("last", [0, 1, 50, MAX_FRAMES - 1, MAX_FRAMES, 150, 1000])
def test_moments_start_at_0_and_end_at_the_last_step(last: int) -> None:
    steps = moments(last)
    assert (steps[0], steps[-1]) == (0, last)
    assert len(steps) <= MAX_FRAMES + 1
    assert steps == sorted(set(steps))


def test_a_memory_finds_the_nearest_frame() -> None:
    frames = np.concatenate([shade(level, 1) for level in range(4)])
    memory = FrameMemory(frames, np.array([[0, 0], [0, 4], [4, 0], [4, 4]], np.float32))
    found = memory.nearest(np.array([[3, 3], [1, 3], [0.4, 0.4]], np.float32))
    assert found[:, 0, 0, 0].tolist() == [3, 1, 0]


def test_cards_show_camera_goal_and_the_plan_of_the_moment(tmp_path: Path) -> None:
    robots = [robot(40, reached=True), robot(10, reached=False), robot(3, reached=True)]
    animation, picture = draw_views(robots, title="t", caption="c", output=tmp_path / "a.gif")
    with Image.open(animation) as opened:
        frames = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
    assert len(frames) == 41
    with Image.open(picture) as still:
        assert still.size == frames[0].shape[1::-1]

    def levels(frame: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> set[int]:
        """The grey levels that fill at least a thumbnail."""
        values, counts = np.unique(frame[..., 0], return_counts=True)
        return {int(value) for value, count in zip(values, counts, strict=True) if count > 2500}

    assert {0, 100} <= levels(frames[0])
    assert 200 not in levels(frames[24])
    assert {100, 200} <= levels(frames[25])  # the first robot has its second plan
    assert any(abs(level - 40) <= 3 for level in levels(frames[40]))


def test_watched_robots_are_drawn_as_they_drove(server: ServerProcess) -> None:
    tasks = sample_episodes(TWO_ROOM, "paper", 3, 0, plan_steps=10)
    with PlannerClient(server.target) as client:
        model = find_model(client, None, TWO_ROOM)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lewm_serve.cli.imagination.FAST_FRAMES", 60)
            memory = remember(client, TWO_ROOM, model, seed=0)
        assert len(memory.frames) == len(memory.latents) == 42
        robots, outcomes = watch(client, model, memory, tasks, [1, 2], seed=0)
        encoded = client.encode([memory.frames[7]])
    np.testing.assert_allclose(memory.latents[7], encoded.latents[0].latent, atol=1e-4)
    assert [outcome.index for outcome in outcomes] == [1, 2]
    for drawn, outcome in zip(robots, outcomes, strict=True):
        assert drawn.steps == outcome.steps
        assert drawn.plan_starts == tuple(range(0, outcome.steps, 10))
        assert [imagined.shape for imagined in drawn.imagined] == [(5, 224, 224, 3)] * len(
            outcome.plan_seconds
        )
        simulation = TWO_ROOM.simulation()
        for step in (0, outcome.steps // 2, outcome.steps):
            simulation.reset(outcome.states[step])
            assert np.array_equal(simulation.frame(), drawn.camera[step])
        simulation.reset(tasks.goals[outcome.index])
        assert np.array_equal(simulation.frame(), drawn.goal)
