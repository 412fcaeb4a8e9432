"""The waypoint controller in Two-Room."""

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.environments.two_room_waypoint import WaypointController

MAX_STEPS = 120
"""Enough from any corner to any other: 2 · 98 + 2 · 182 pixels at almost 5 pixels per step."""


def test_every_goal_is_reached_without_touching_a_wall() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = two_room.sample_positions(300, generator).clamp(
        two_room.REACH_MIN, two_room.REACH_MAX
    )
    goals = two_room.sample_goals(300, generator)
    controller = WaypointController()
    states = torch.cat([positions, goals], dim=1).numpy()
    actions = torch.from_numpy(np.stack([controller.actions(state, MAX_STEPS) for state in states]))
    assert float(torch.linalg.vector_norm(actions, dim=-1).max()) <= 1 + 1e-6
    for step in range(MAX_STEPS):
        without_walls = positions + two_room.SPEED * actions[:, step]
        positions = two_room.move(positions, actions[:, step])
        assert torch.allclose(positions, without_walls, atol=1e-3)
    assert float(two_room.distance(positions, goals).max()) < 0.01
    assert not actions[:, -1].any()


def test_a_goal_in_the_same_room_is_approached_straight() -> None:
    actions = WaypointController().actions(np.array([99.5, 180, 60, 180], np.float32), 8)
    assert np.array_equal(actions[:7], np.array([[-1, 0]] * 7, np.float32))
    assert actions[7] == pytest.approx([-0.9, 0])


@pytest.mark.parametrize("state", [[-1, 5, 5, 5], [5, 5, 5, 224]])
def test_a_point_outside_the_image_is_refused(state: list[float]) -> None:
    with pytest.raises(ValueError, match="within"):
        WaypointController().actions(np.array(state, np.float32), 5)
