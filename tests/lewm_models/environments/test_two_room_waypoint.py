"""The classical controller, in the environment it was written for."""

import numpy as np
import pytest
import torch

from lewm_models.environments import two_room
from lewm_models.environments.two_room_waypoint import WaypointController

ENOUGH = 120
"""Rows that lead from any corner to any other: 2 · 98 + 2 · 182 pixels, by less than 5 a step."""


def test_it_reaches_every_goal_and_touches_no_wall() -> None:
    generator = torch.Generator().manual_seed(0)
    positions = two_room.sample_positions(300, generator).clamp(
        two_room.REACH_MIN, two_room.REACH_MAX
    )
    goals = two_room.sample_goals(300, generator)
    controller = WaypointController()
    states = torch.cat([positions, goals], dim=1).numpy()
    actions = torch.from_numpy(np.stack([controller.actions(state, ENOUGH) for state in states]))
    assert float(torch.linalg.vector_norm(actions, dim=-1).max()) <= 1 + 1e-6
    for step in range(ENOUGH):
        free = positions + two_room.SPEED * actions[:, step]
        positions = two_room.move(positions, actions[:, step])
        assert torch.allclose(positions, free, atol=1e-3)  # nothing pushed it elsewhere
    assert float(two_room.distance(positions, goals).max()) < 0.01
    assert not actions[:, -1].any()


def test_nearby_in_the_same_room_it_goes_straight() -> None:
    actions = WaypointController().actions(np.array([99.5, 180, 60, 180], np.float32), 8)
    assert np.array_equal(actions[:7], np.array([[-1, 0]] * 7, np.float32))
    assert actions[7] == pytest.approx([-0.9, 0])


@pytest.mark.parametrize("state", [[-1, 5, 5, 5], [5, 5, 5, 224]])
def test_a_point_outside_the_image_is_refused(state: list[float]) -> None:
    with pytest.raises(ValueError, match="within"):
        WaypointController().actions(np.array(state, np.float32), 5)
