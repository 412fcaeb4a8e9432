"""What a robot in a closed loop sends with each plan."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lewm_client import LatentIds, PlannerClient, PlanResponse
from lewm_models.environments.two_room_environment import TWO_ROOM
from lewm_serve.cli.closed_loop import RemotePlanner, find_model, input_states
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.server_process import ServerProcess

QUICK_SOLVER = {"samples": 4, "iterations": 1, "elites": 2}
FRAME, GOAL = (np.full((224, 224, 3), grey, np.uint8) for grey in (50, 200))


class RecordingClient(PlannerClient):
    """A client that records its plans.

    With ``wrong_latent_ids`` it returns latent ids that the server does not know.
    """

    def __init__(self, target: str, *, wrong_latent_ids: bool = False) -> None:
        super().__init__(target)
        self.wrong_latent_ids = wrong_latent_ids
        self.frames: list[Any] = []
        self.goals: list[Any] = []
        self.warm_starts: list[Any] = []
        self.plans: list[PlanResponse] = []

    def plan(self, frames: Any, goal: Any, **settings: Any) -> PlanResponse:
        self.frames.append(frames)
        self.goals.append(goal)
        self.warm_starts.append(settings["warm_start"])
        plan = super().plan(frames, goal, **settings)
        self.plans.append(plan)
        if self.wrong_latent_ids:
            return replace(plan, latent_ids=LatentIds((), "0" * 32))
        return plan


def test_the_goal_is_sent_once_and_each_plan_starts_where_the_last_ended(
    server: ServerProcess,
) -> None:
    with RecordingClient(server.target) as client:
        planner = RemotePlanner(client, 10, model=MODEL_NAME, solver=QUICK_SOLVER)
        first, seconds = planner(FRAME, GOAL, 1)
        second, _ = planner(FRAME, GOAL, 2)
    assert first.shape == second.shape == (10, 2)
    assert seconds > 0
    assert isinstance(client.goals[0], bytes)
    assert isinstance(client.goals[1], str)
    assert client.warm_starts[0] is None
    assert np.array_equal(first, client.plans[0].actions[:10])
    assert np.array_equal(client.warm_starts[1], client.plans[0].actions[10:])


def test_without_a_rest_of_the_last_plan_there_is_no_warm_start(server: ServerProcess) -> None:
    with RecordingClient(server.target) as client:
        planner = RemotePlanner(client, 25, solver=QUICK_SOLVER)
        first, again = (planner(FRAME, GOAL, 1)[0] for _ in range(2))
    assert client.warm_starts == [None, None]
    assert np.array_equal(first, again)


def test_a_goal_that_the_server_does_not_know_is_sent_again(server: ServerProcess) -> None:
    with RecordingClient(server.target, wrong_latent_ids=True) as client:
        planner = RemotePlanner(client, 25, solver=QUICK_SOLVER)
        planner(FRAME, GOAL, 1)
        planner(FRAME, GOAL, 1)
    assert [type(goal) for goal in client.goals] == [bytes, str, bytes]


def test_the_model_is_found_by_name_or_by_default(server: ServerProcess) -> None:
    with PlannerClient(server.target) as client:
        assert find_model(client, None, TWO_ROOM) == find_model(client, MODEL_NAME, TWO_ROOM)
        with pytest.raises(ValueError, match=f"no model other.*{MODEL_NAME}"):
            find_model(client, "other", TWO_ROOM)


def test_a_model_that_takes_states_gets_those_of_robot_and_goal(
    states_server: ServerProcess,
) -> None:
    with RecordingClient(states_server.target) as client:
        model = find_model(client, None, TWO_ROOM)
        assert input_states(model, TWO_ROOM) == [0, 1]
        planner = RemotePlanner(client, 25, solver=QUICK_SOLVER, inputs=[1, 0])
        planner.tell_goal(np.array([7.0, 8.0]))
        planner.tell_state(np.array([1.0, 2.0]))
        planner(FRAME, GOAL, 1)
        planner.tell_state(np.array([3.0, 4.0]))
        planner(FRAME, GOAL, 2)
    goal, goal_vector = client.goals[0]
    assert isinstance(goal, bytes)
    assert goal_vector.tolist() == [8.0, 7.0]
    vectors = [frames[-1][1].tolist() for frames in client.frames]
    assert vectors == [[2.0, 1.0], [4.0, 3.0]]


def test_states_that_an_environment_lacks_are_named(states_server: ServerProcess) -> None:
    with PlannerClient(states_server.target) as client:
        model = find_model(client, None, TWO_ROOM)
    card = {**model.card, "state_input": {"names": ["x", "angle"]}}
    with pytest.raises(ValueError, match=r"takes the state angle, .* x, y; --hide-states drives"):
        input_states(replace(model, card=card), TWO_ROOM)
    without = {name: value for name, value in model.card.items() if name != "state_input"}
    assert input_states(replace(model, card=without), TWO_ROOM) == []
