"""The benchmark of goals by states: its tasks, and when a robot has entered a disc."""

import math

import numpy as np

from benchmarks.states import (
    MIN_WAY,
    RADIUS,
    Run,
    Task,
    disc_tasks,
    enters,
    goal_tasks,
    summarise,
)
from lewm_models.environments.two_room import WALL_X


def test_a_way_enters_a_disc_also_between_its_steps() -> None:
    centre = np.array([50.0, 50.0])
    through = np.array([[20.0, 50.0], [80.0, 50.0]])
    beside = np.array([[20.0, 71.0], [80.0, 71.0], [80.0, 50.0]])
    assert enters(through, centre)
    assert not enters(beside, centre)
    assert enters(beside, centre, radius=22.0)
    assert enters(np.array([[20.0, 20.0], [45.0, 50.0]]), centre)


def test_discs_lie_on_straight_ways_in_one_room() -> None:
    tasks = disc_tasks(20)
    assert len(tasks) == 20
    for task in tasks:
        assert task.disc is not None
        assert math.dist(task.start, task.goal) >= MIN_WAY
        assert (task.start[0] < WALL_X) == (task.goal[0] < WALL_X)
        assert enters(np.stack([task.start, task.goal]), task.disc)
        assert min(math.dist(task.disc, end) for end in (task.start, task.goal)) > RADIUS
    assert all(task.disc is None for task in goal_tasks(3))


def test_shares_are_per_cent_of_robots_and_of_plans() -> None:
    start, goal, middle = np.array([20.0, 50.0]), np.array([80.0, 50.0]), np.array([50.0, 50.0])
    task = Task(start, goal, 0, disc=middle)
    through = Run(np.stack([start, goal]), True, plans=2, plans_with_violations=1)
    stays = Run(np.stack([start, start, start]), False, plans=2, plans_with_violations=0)
    cell = summarise("both", [task, task], [through, stays])
    assert (cell.success, cell.entered, cell.announced, cell.steps) == (50.0, 50.0, 25.0, 1.0)
