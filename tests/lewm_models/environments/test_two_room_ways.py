"""Shortest ways in Two-Room, by hand and against what agents achieve."""

import math
from itertools import pairwise

import numpy as np
import pytest

from lewm_models.environments.two_room import DOOR_BOTTOM, DOOR_TOP, WALL_LEFT, WALL_RIGHT
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.environments.two_room_waypoint import WaypointController
from lewm_models.environments.two_room_ways import shortest_way, travelled


def length(*points: tuple[float, float]) -> float:
    return sum(math.dist(a, b) for a, b in pairwise(points))


@pytest.mark.parametrize(
    ("start", "goal", "corners"),
    [
        ((30, 30), (90, 180), []),  # one room
        ((30, 49), (180, 60), []),  # straight through the door
        ((30, 180), (190, 180), [(WALL_LEFT, DOOR_BOTTOM), (WALL_RIGHT, DOOR_BOTTOM)]),
        ((190, 25), (60, 25), [(WALL_RIGHT, DOOR_TOP), (WALL_LEFT, DOOR_TOP)]),
        ((99, 30), (110, 40), [(WALL_LEFT, DOOR_TOP)]),  # into the door
    ],
)
def test_ways_by_hand(
    start: tuple[float, float], goal: tuple[float, float], corners: list[tuple[float, float]]
) -> None:
    by_hand = length(start, *corners, goal)
    assert shortest_way(start, goal) == pytest.approx(by_hand)
    assert shortest_way(goal, start) == pytest.approx(by_hand)
    last = math.dist(corners[-1] if corners else start, goal)
    near = min(last, 5.0)
    assert shortest_way(start, goal, radius=near) == pytest.approx(by_hand - near)


def test_a_disc_around_a_goal_is_nearer_than_its_centre() -> None:
    assert shortest_way((50, 100), (50, 110), radius=16) == 0
    # The disc around a goal behind the door's post reaches into the door.
    way = shortest_way((60, 49), (126, 68), radius=16)
    assert way < shortest_way((60, 49), (126, 68)) - 15
    assert way == pytest.approx(length((60, 49), (126, 68)) - 16)


def test_no_agent_is_clearly_shorter_and_the_waypoint_controller_is_near() -> None:
    controller, simulation = WaypointController(), TWO_ROOM.simulation()
    pairs = TWO_ROOM.draw_pairs("cross-room", 5)
    detours = []
    starts, goals = (part[:60] for part in next(pairs))
    for start, goal in zip(starts, goals, strict=True):
        simulation.reset(start)
        states = [simulation.state()]
        while not TWO_ROOM.reached(states[-1], goal):
            action = controller.actions(np.concatenate([states[-1], goal]), 1)[0]
            simulation.step(action)
            states.append(simulation.state())
        detour = TWO_ROOM.detour(np.stack(states), goal)
        assert detour is not None
        detours.append(detour)
    assert min(detours) > 0.97
    assert 1.0 < np.median(detours) < 1.25


def test_only_the_way_outside_the_disc_counts() -> None:
    path = [(0.0, 0.0), (10.0, 0.0), (30.0, 0.0)]
    assert travelled(path, (35.0, 0.0), radius=15) == pytest.approx(20)
    assert travelled(path[:2], (20.0, 0.0), radius=10) == pytest.approx(10)
