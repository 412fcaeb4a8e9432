"""Robots that stop and robots that move: how time is counted."""

from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.moving_robot import Run, World, run_moving, run_stopping, summarise, with_latency
from benchmarks.simulated_time import SimulatedTime
from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, PlanResponse
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_models.evaluation.protocol import Episodes
from tests.lewm_client.fake_planner import make_plan

STOPPING = Run(reached=True, actions=20, plans=4, periods=20, gaps=0)
LOST = Run(reached=False, actions=150, plans=30, periods=150, gaps=0)
STEPS_TO_GOAL = 8


class DownwardPlanner:
    """A planner whose plans go straight down at full speed."""

    def models(self, _timeout_s: float) -> list[pb.Model]:
        model = pb.Model(name="model", default=True)
        model.card.update(
            {"action_block": 5, "history": 3, "action_low": [-1, -1], "action_high": [1, 1]}
        )
        return [model]

    def plan(self, *_args: Any, **_kwargs: Any) -> PlanResponse:
        return replace(make_plan(0), actions=np.tile(np.array([[0, 1]], np.float32), (10, 1)))


CLIENT = cast(PlannerClient, DownwardPlanner())
EPISODES = Episodes(
    environment=TWO_ROOM,
    protocol="test",
    starts=np.array([[50, 50]], np.float32),
    goals=np.array([[50, 50 + 5 * STEPS_TO_GOAL + 15]], np.float32),
    budget=50,
    plan_steps=5,
    offset=None,
)


@pytest.mark.parametrize(("latency_s", "waited"), [(0.0, 0), (0.1, 2), (0.3, 6)])
def test_a_moving_robot_waits_for_the_first_plan_only(latency_s: float, waited: int) -> None:
    with closing(TWO_ROOM.simulation()) as simulation:
        run = run_moving(World(simulation, EPISODES, 0), CLIENT, steps=5, latency_s=latency_s)
    assert (run.reached, run.actions, run.gaps) == (True, STEPS_TO_GOAL, 0)
    assert run.periods == waited + STEPS_TO_GOAL


def test_a_stopping_robot_waits_for_every_plan() -> None:
    with closing(TWO_ROOM.simulation()) as simulation:
        run = run_stopping(World(simulation, EPISODES, 0), CLIENT, steps=5)
    assert (run.reached, run.actions, run.plans) == (True, STEPS_TO_GOAL, 2)
    assert with_latency(run, 0.0) == run
    delayed = with_latency(run, 0.3)
    assert (delayed.periods, delayed.gaps) == (STEPS_TO_GOAL + 2 * 6, 6)


def test_a_summary_speaks_of_the_episodes_that_reached_the_goal() -> None:
    cell = summarise("stops", 100, [with_latency(STOPPING, 0.1), with_latency(LOST, 0.1)])
    assert (cell.success, cell.seconds, cell.actions) == (50.0, 28 / 20, 20)
    assert cell.gaps == 2 * (3 + 29)
    assert cell.plans_per_s == pytest.approx(20 * 34 / (28 + 210))


def test_simulated_calls_end_after_their_latency() -> None:
    time = SimulatedTime(0.1)
    answer, failure = time.submit(divmod, 7, 2), time.submit(divmod, 7, 0)
    time.sleep(0.05)
    assert not answer.done()
    time.sleep(0.05)
    assert answer.result(0) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        failure.result(0)
    time.latency_s = 0.0
    assert time.submit(abs, -1).done()
