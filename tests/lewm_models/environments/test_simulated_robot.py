"""A simulated robot in a process of its own, driven by lines of JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lewm_models.environments import two_room
from lewm_models.environments.simulated_robot import TASKS
from lewm_models.environments.two_room_environment import TWO_ROOM
from tests.patience import PATIENCE_S


class Robot:
    """The process, and what it has said of itself at first."""

    def __init__(self, *arguments: str) -> None:
        module = "lewm_models.environments.simulated_robot"
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.about, self.goals = self.answer()

    def answer(self) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        assert self.process.stdout is not None
        about = json.loads(self.process.stdout.readline())
        data = self.process.stdout.read(math.prod(about["shape"]))
        return about, np.frombuffer(data, np.uint8).reshape(about["shape"])

    def do(self, **command: Any) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        status = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    robot = Robot("two-room", "3")
    yield robot
    assert robot.end() == 0


def test_it_says_what_it_is_and_shows_goals(robot: Robot) -> None:
    assert robot.about["name"] == "two-room"
    assert robot.about["action_dim"] == 2
    assert robot.about["takes_points"]
    assert robot.about["budget"] == 150
    assert "black" in robot.about["faults"]
    assert robot.about["state_names"] == ["x", "y"]
    assert robot.goals.shape == (TASKS, 224, 224, 3)
    assert len({goal.tobytes() for goal in robot.goals}) == TASKS


def test_it_goes_where_its_actions_lead_until_it_is_there(robot: Robot) -> None:
    about, frames = robot.do(do="task", number=1)
    assert frames.shape[0] == 2  # what the camera shows, and the goal
    assert (frames[1] == robot.goals[1]).all()
    assert not about["reached"]
    assert not TWO_ROOM.reached(np.array(about["state"]), np.array(about["goal_state"]))
    start = np.array(about["state"])
    about, frames = robot.do(do="step", action=[0.0, 1.0])
    assert frames.shape[0] == 1
    moved = np.array(about["state"]) - start
    assert abs(moved[0]) < 1e-5
    x, y = (start + moved) / (two_room.IMAGE_SIZE - 1)
    about, frames = robot.do(do="goal", x=x, y=y)
    assert about["reached"]
    assert about["goal_state"] == pytest.approx(about["state"], abs=1e-4)
    assert (frames[0] == frames[1]).all()


def test_faults_are_those_of_the_camera_and_not_of_the_goal(robot: Robot) -> None:
    robot.do(do="task", number=0)
    _, (seen,) = robot.do(do="fault", name="black")
    assert (seen == 0).all()
    _, (seen, goal) = robot.do(do="task", number=2)
    assert (seen == 0).all()
    assert (goal == robot.goals[2]).all()
    _, (seen,) = robot.do(do="fault", name="")
    assert (seen > 0).any()


def test_wrong_commands_are_answered_and_change_nothing(robot: Robot) -> None:
    before, _ = robot.do(do="look")
    for command in (
        {"do": "fly"},
        {"do": "task", "number": TASKS},
        {"do": "task", "number": "one"},
        {"do": "fault", "name": "rust"},
        {"do": "step"},
    ):
        about, frames = robot.do(**command)
        assert "unknown command" in about["error"]
        assert frames.size == 0
    assert robot.do(do="look")[0] == before


def test_an_environment_that_is_not_there_is_named() -> None:
    robot = Robot("chess", "0")
    assert "chess" in robot.about["error"]
    assert robot.end() == 0


def test_a_point_of_the_picture_is_the_nearest_possible_state() -> None:
    size = two_room.IMAGE_SIZE - 1
    free = TWO_ROOM.state_at(50 / size, 100 / size)
    assert free is not None
    assert np.allclose(free, [50, 100], atol=1e-4)
    corner = TWO_ROOM.state_at(0.0, 1.0)
    assert corner is not None
    assert np.allclose(corner, [two_room.REACH_MIN, two_room.REACH_MAX])
    for x, side in ((110, two_room.WALL_LEFT), (114, two_room.WALL_RIGHT)):
        beside = TWO_ROOM.state_at(x / size, 150 / size)
        assert beside is not None
        assert np.allclose(beside, [side, 150], atol=1e-4)
    door = TWO_ROOM.state_at(112 / size, two_room.DOOR_Y / size)
    assert door is not None
    assert np.allclose(door, [112, two_room.DOOR_Y], atol=1e-4)
