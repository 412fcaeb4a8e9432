"""A robot that never stands still, against one that stops to plan, at three latencies.

A robot in Two-Room runs 20 actions a second. Both kinds plan with the embedded model and its own
search, from the newest frame:

- `stops`: `Driver.step`. The robot stands still while it waits for a plan.
- `moves`: `Driver.run`. The next plan is computed while the robot runs the last one.

Both run 5 or 25 actions of each plan, or more where the latency is longer. The plans come from a
real server over gRPC. Time is simulated and counted in control periods: a plan takes the injected
latency, whatever the machine needs for it. So the results do not depend on the machine. Goals are
in the other room (`cross-room`), within 150 actions.

Target: no period without an action after the first plan. Twenty minutes.

    python -m benchmarks moving_robot
    python -m benchmarks.moving_robot [--quick]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from benchmarks.report import Measurement, Report, RunOptions, at_most, run_as_program
from benchmarks.simulated_time import SimulatedTime
from lewm_client import Driver, PlannerClient, PlanResponse
from lewm_models.environments.environment import FloatArray, Simulation
from lewm_models.environments.two_room_environment import CROSS_ROOM, TWO_ROOM
from lewm_models.evaluation.protocol import Episodes, sample_episodes
from lewm_serve.cli.closed_loop import PLAN_TIMEOUT_S
from lewm_serve.cli.local_server import local_server

RATE_HZ = 20
LATENCIES_MS = (0, 100, 300)
EPISODES, QUICK_EPISODES = 200, 2
SEED = 0
STEPS = (5, 25)
"""How many actions of each plan are run."""


@dataclass(frozen=True)
class Run:
    """How one episode went.

    Attributes:
        reached: whether the robot reached the goal within the budget of actions.
        actions: how many actions it ran.
        plans: how many plans it got.
        periods: how many control periods passed, those in which it stood still included.
        gaps: periods without an action after the first action.
    """

    reached: bool
    actions: int
    plans: int
    periods: int
    gaps: int


class SeededClient:
    """A client whose plans have the seeds of `lewm evaluate`, for one episode."""

    def __init__(self, client: PlannerClient, index: int) -> None:
        self._client = client
        self._seeds = np.random.default_rng((SEED, index))
        self.models = client.models

    def plan(self, *args: Any, **kwargs: Any) -> PlanResponse:
        """A plan with the next seed."""
        return self._client.plan(*args, **kwargs | {"seed": int(self._seeds.integers(2**63))})


class World:
    """One episode of Two-Room: what the robot sees, what it does, and whether it is done."""

    def __init__(self, simulation: Simulation, episodes: Episodes, index: int) -> None:
        self._episodes = episodes
        self._index = index
        self._simulation = simulation
        self._goal = episodes.goals[index]
        simulation.reset(self._goal)
        self.goal_frame = simulation.frame()
        simulation.reset(episodes.starts[index])
        self.observe = simulation.frame
        self.actions = 0
        self.reached = False

    def act(self, action: FloatArray) -> None:
        """Run one action."""
        self._simulation.step(action)
        self.actions += 1
        self.reached = TWO_ROOM.reached(self._simulation.state(), self._goal)

    def is_over(self) -> bool:
        """Whether the goal is reached or the budget is spent."""
        return self.reached or self.actions == self._episodes.budget

    def driver(self, client: PlannerClient, steps: int) -> Driver:
        """A driver to the goal."""
        seeded = cast(PlannerClient, SeededClient(client, self._index))
        return Driver(seeded, self.goal_frame, steps=steps, timeout_s=PLAN_TIMEOUT_S)


def run_stopping(world: World, client: PlannerClient, steps: int) -> Run:
    """Drive with `Driver.step` and no latency; `with_latency` adds it."""
    driver, plans = world.driver(client, steps), 0
    while not world.is_over():
        plans += 1
        for action in driver.step(world.observe()).actions:
            if not world.is_over():
                world.act(action)
    return Run(world.reached, world.actions, plans=plans, periods=world.actions, gaps=0)


def with_latency(run: Run, latency_s: float) -> Run:
    """The same run when each plan takes a latency: the robot stands still and sees the same."""
    wait = math.ceil(latency_s * RATE_HZ)
    return Run(
        run.reached,
        run.actions,
        plans=run.plans,
        periods=run.periods + run.plans * wait,
        gaps=max(0, run.plans - 1) * wait,
    )


def run_moving(world: World, client: PlannerClient, steps: int, latency_s: float) -> Run:
    """Drive with `Driver.run` in simulated time."""
    time = SimulatedTime(latency_s)
    times: list[float] = []

    def act(action: FloatArray) -> None:
        times.append(time.time())
        world.act(action)

    summary = world.driver(client, steps).run(
        observe=world.observe,
        act=act,
        until=world.is_over,
        rate_hz=RATE_HZ,
        clock=time,
        executor=time,
    )
    moving = round((times[-1] - times[0]) * RATE_HZ) + 1
    return Run(
        world.reached,
        world.actions,
        plans=summary.plans,
        periods=summary.waited + moving,
        gaps=moving - world.actions,
    )


@dataclass(frozen=True)
class Cell:
    """One kind of robot at one latency, over all episodes.

    Attributes:
        success: per cent of the episodes that reached the goal.
        seconds: mean time from the first request to the goal, of those that reached it.
        seconds_median: the median of the same times.
        actions: mean number of actions to the goal.
        gaps: periods without an action after the first one, of all episodes together.
        plans_per_s: plans that one robot asks for in a second.
    """

    robot: str
    latency_ms: int
    success: float
    seconds: float
    seconds_median: float
    actions: float
    gaps: int
    plans_per_s: float


def summarise(robot: str, latency_ms: int, runs: Sequence[Run]) -> Cell:
    """Sum up the episodes."""
    reached = [run for run in runs if run.reached]
    seconds = [run.periods / RATE_HZ for run in reached]
    return Cell(
        robot=robot,
        latency_ms=latency_ms,
        success=100 * len(reached) / len(runs),
        seconds=statistics.fmean(seconds) if seconds else math.nan,
        seconds_median=statistics.median(seconds) if seconds else math.nan,
        actions=statistics.fmean(run.actions for run in reached) if reached else math.nan,
        gaps=sum(run.gaps for run in runs),
        plans_per_s=RATE_HZ * sum(run.plans for run in runs) / sum(run.periods for run in runs),
    )


def measure(options: RunOptions) -> Report:
    """See the module."""
    count = QUICK_EPISODES if options.quick else EPISODES
    episodes = sample_episodes(TWO_ROOM, CROSS_ROOM, count, SEED)
    cells: list[Cell] = []
    with (
        local_server() as server,
        PlannerClient(server.target) as client,
        closing(TWO_ROOM.simulation()) as simulation,
    ):

        def all_episodes(name: str, drive: Callable[[World], Run]) -> list[Run]:
            runs = []
            for index in range(count):
                options.show_progress(f"{name}: episode {index + 1} of {count}")
                runs.append(drive(World(simulation, episodes, index)))
            return runs

        for steps in STEPS:
            name = f"stops, {steps} actions a plan"
            runs = all_episodes(name, partial(run_stopping, client=client, steps=steps))
            for latency_ms in LATENCIES_MS:
                delayed = [with_latency(run, latency_ms / 1000) for run in runs]
                cells.append(summarise(name, latency_ms, delayed))
        for steps in STEPS:
            name = f"moves, {steps} actions a plan"
            for latency_ms in LATENCIES_MS:
                drive = partial(run_moving, client=client, steps=steps, latency_s=latency_ms / 1000)
                runs = all_episodes(f"{name}, {latency_ms} ms", drive)
                cells.append(summarise(name, latency_ms, runs))
    return Report(tuple(_measurements(cells)), _details(cells, count, episodes))


def _measurements(cells: Sequence[Cell]) -> list[Measurement]:
    measurements = []
    for cell in sorted(cells, key=lambda cell: cell.latency_ms):
        what, note = f"{cell.latency_ms} ms, {cell.robot}", f"{cell.seconds:.2f} s to the goal"
        measurements.append(Measurement(f"{what}: success", cell.success, "%", note=note))
    gaps = sum(cell.gaps for cell in cells if cell.robot.startswith("moves"))
    measurements.append(at_most("moving robots: periods without an action", gaps, "", bound=0))
    return measurements


def _details(cells: Sequence[Cell], count: int, episodes: Episodes) -> dict[str, Any]:
    return {
        "rate_hz": RATE_HZ,
        "episodes": count,
        "protocol": episodes.protocol,
        "budget": episodes.budget,
        "seed": SEED,
        "cells": [asdict(cell) for cell in cells],
    }


if __name__ == "__main__":
    run_as_program(measure, __doc__)
