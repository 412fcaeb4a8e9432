"""Goals by coordinates, and a disc on the straight way, in Two-Room.

The embedded model drives over gRPC:

- to goals 25 steps ahead (`paper`), given by the states x and y in place of a frame;
- to goals 50 steps ahead in the same room, with a disc of 20 px radius around the middle of the
  straight way, which is to be avoided or, for comparison, is not named. Start and goal are at least
  60 px from each other. A robot entered the disc if its way in the simulator did, the straight
  lines between its steps included.

Targets: 95 % of the goals, and at most 5 % of the robots in the disc. Twenty minutes.

    python -m benchmarks states
    python -m benchmarks.states [--quick]
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.report import Measurement, Report, RunOptions, at_least, at_most, run_as_program
from lewm_client import Driver, PlannerClient
from lewm_models.environments.environment import FloatArray, Simulation
from lewm_models.environments.two_room import WALL_X
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.protocol import sample_episodes
from lewm_serve.cli.closed_loop import PLAN_TIMEOUT_S, to_png
from lewm_serve.cli.local_server import local_server

EPISODES, GOAL_EPISODES, QUICK_EPISODES = 200, 500, 2
SEED = 0
RADIUS = 20.0
MIN_WAY = 60.0
"""The least distance of a goal from its start where a disc is between them."""

DISC_OFFSET, DISC_BUDGET = 50, 100
LARGER_SEARCH = {"name": "icem", "samples": 64, "iterations": 3, "elites": 8}
SEARCH_AROUND = {"name": "icem", "samples": 128, "iterations": 4, "elites": 12}
"""The search of tasks with discs."""


@dataclass(frozen=True)
class Task:
    """A way of a robot.

    Attributes:
        start: (2,) px.
        goal: (2,) px.
        seed: of its plans.
        disc: the middle of a disc (2,) to avoid; None: there is none.
    """

    start: FloatArray
    goal: FloatArray
    seed: int
    disc: FloatArray | None = None


@dataclass(frozen=True)
class Cell:
    """One kind of task, of all robots.

    Attributes:
        success: per cent of the robots that reached their goals.
        entered: per cent that entered the disc.
        announced: per cent of the plans with violations.
        steps: mean number of steps to the goal, of those that reached it.
    """

    name: str
    episodes: int
    success: float
    entered: float | None
    announced: float
    steps: float


@dataclass(frozen=True)
class Run:
    """How one robot went: its way (steps + 1, 2) px, whether it arrived, and its plans."""

    way: FloatArray
    reached: bool
    plans: int
    plans_with_violations: int


def drive(
    simulation: Simulation,
    client: PlannerClient,
    task: Task,
    *,
    avoid: bool,
    solver: Mapping[str, Any],
    steps: int,
    budget: int,
) -> Run:
    """Drive one robot, which runs ``steps`` actions of each plan."""
    simulation.reset(task.start)
    goal = {"x": float(task.goal[0]), "y": float(task.goal[1])}
    settings: dict[str, Any] = {}
    if avoid and task.disc is not None:
        centre = {"x": float(task.disc[0]), "y": float(task.disc[1])}
        settings["avoid"] = [{"centre": centre, "radius": RADIUS}]
    driver = Driver(
        client, goal, steps=steps, timeout_s=PLAN_TIMEOUT_S, solver=solver, settings=settings
    )
    seeds = np.random.default_rng((SEED, task.seed))
    way = [simulation.state()]
    plans = with_violations = 0
    while len(way) <= budget:
        move = driver.step(to_png(simulation.frame()), seed=int(seeds.integers(2**63)))
        plans += 1
        with_violations += bool(move.plan is not None and move.plan.violations)
        for action in move.actions[: budget + 1 - len(way)]:
            simulation.step(action)
            way.append(simulation.state())
            if TWO_ROOM.reached(way[-1], task.goal):
                return Run(np.stack(way), True, plans, with_violations)
    return Run(np.stack(way), False, plans, with_violations)


def enters(way: FloatArray, centre: FloatArray, radius: float = RADIUS) -> bool:
    """Whether a way (steps + 1, 2) leads through a disc, also between two of its points."""
    starts, moves = way[:-1] - centre, way[1:] - way[:-1]
    lengths = np.maximum(np.square(moves).sum(axis=1), 1e-12)
    shares = np.clip(-(starts * moves).sum(axis=1) / lengths, 0, 1)
    nearest = np.linalg.norm(starts + shares[:, None] * moves, axis=1)
    return bool(nearest.min() < radius)


def goal_tasks(count: int) -> list[Task]:
    """Goals 25 steps ahead."""
    episodes = sample_episodes(TWO_ROOM, "paper", count, SEED)
    return [
        Task(start, goal, seed)
        for seed, (start, goal) in enumerate(zip(episodes.starts, episodes.goals, strict=True))
    ]


def disc_tasks(count: int) -> list[Task]:
    """Goals 50 steps ahead in one room, with discs between them and their starts."""
    episodes = sample_episodes(TWO_ROOM, "paper", 8 * count, SEED, offset=DISC_OFFSET)
    tasks = []
    for seed, (start, goal) in enumerate(zip(episodes.starts, episodes.goals, strict=True)):
        same_room = (start[0] < WALL_X) == (goal[0] < WALL_X)
        if same_room and math.dist(start, goal) >= MIN_WAY:
            tasks.append(Task(start, goal, seed, disc=(start + goal) / 2))
    return tasks[:count]


def summarise(name: str, tasks: Sequence[Task], runs: Sequence[Run]) -> Cell:
    """Sum up the ways of all robots."""
    steps = [len(run.way) - 1 for run in runs if run.reached]
    entered = [
        enters(run.way, task.disc)
        for task, run in zip(tasks, runs, strict=True)
        if task.disc is not None
    ]
    plans = sum(run.plans for run in runs)
    return Cell(
        name=name,
        episodes=len(runs),
        success=100 * len(steps) / len(runs),
        entered=100 * float(np.mean(entered)) if entered else None,
        announced=100 * sum(run.plans_with_violations for run in runs) / plans,
        steps=float(np.mean(steps)) if steps else math.nan,
    )


def measure(options: RunOptions) -> Report:
    """See the module."""
    cells = []
    with (
        local_server() as server,
        PlannerClient(server.target) as client,
        closing(TWO_ROOM.simulation()) as simulation,
    ):

        def run_all(name: str, tasks: Sequence[Task], **settings: Any) -> None:
            runs = []
            for index, task in enumerate(tasks):
                options.show_progress(f"{name}: episode {index + 1} of {len(tasks)}")
                runs.append(drive(simulation, client, task, **settings))
            cells.append(summarise(name, tasks, runs))

        tasks = goal_tasks(QUICK_EPISODES if options.quick else GOAL_EPISODES)
        for label, solver in (("the card's search", {}), ("icem 64 × 3", LARGER_SEARCH)):
            name = f"goals 25 steps ahead, {label}"
            run_all(name, tasks, avoid=False, solver=solver, steps=25, budget=50)
        tasks = disc_tasks(QUICK_EPISODES if options.quick else EPISODES)
        for steps in (5, 25):
            for avoid in (False, True):
                name = f"disc {'avoided' if avoid else 'not named'}, {steps} actions a plan"
                run_all(
                    name,
                    tasks,
                    avoid=avoid,
                    solver=SEARCH_AROUND,
                    steps=steps,
                    budget=DISC_BUDGET,
                )
    details = {
        "seed": SEED,
        "radius_px": RADIUS,
        "least_way_px": MIN_WAY,
        "solver": SEARCH_AROUND,
        "cells": [asdict(cell) for cell in cells],
    }
    return Report(tuple(_measurements(cells)), details)


def _measurements(cells: Sequence[Cell]) -> list[Measurement]:
    measurements = []
    for cell in cells:
        note = f"{cell.episodes} episodes, {cell.steps:.1f} steps to the goal"
        measurements.append(at_least(f"{cell.name}: success", cell.success, "%", 95.0, note=note))
        if cell.entered is not None:
            what, note = f"{cell.name}: entered it", f"announced by {cell.announced:.1f} % of plans"
            measurements.append(
                at_most(what, cell.entered, "%", 5.0, note=note)
                if "avoided" in cell.name
                else Measurement(what, cell.entered, "%")
            )
    return measurements


if __name__ == "__main__":
    run_as_program(measure, __doc__)
