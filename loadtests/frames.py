"""The camera frames of robots that walk through Two-Room."""

from __future__ import annotations

from lewm_models.environments import two_room
from lewm_models.environments.two_room_policy import evaluation_generator, simulate_trajectories
from lewm_serve.cli.robot_load import encode_picture

WALKS = 8
FRAMES_PER_WALK = 24
STEPS_PER_FRAME = 5
"""Steps of the environment between two frames: an action block."""

Walk = list[bytes]
"""The JPEG images of one robot, the goal last."""


def walks(seed: int) -> list[Walk]:
    """Simulate the walks and encode their frames, 224 px squares."""
    steps = STEPS_PER_FRAME * FRAMES_PER_WALK
    positions, _ = simulate_trajectories(WALKS, steps, evaluation_generator(seed))
    return [
        [encode_picture(picture, "JPEG") for picture in two_room.render(walk).numpy()]
        for walk in positions[::STEPS_PER_FRAME].unbind(dim=1)
    ]
