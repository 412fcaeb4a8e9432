"""The driver: which actions are run, where the next search starts, and what follows a setback."""

from dataclasses import replace
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lewm_client import (
    Driver,
    Health,
    PlannerClient,
    PlannerError,
    PlanResponse,
    Setback,
)
from tests.lewm_client.fake_planner import (
    ACTION_BLOCK,
    UNAVAILABLE,
    FakePlannerError,
    make_plan,
)

FRAME, GOAL = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64, 3), np.uint8)
STEPS = 4


class FakeClient:
    """A client that returns or raises what it is given, in this order, and records the calls."""

    def __init__(self, *results: PlanResponse | PlannerError) -> None:
        self._results = list(results)
        self.frames: list[list[Any]] = []
        self.goals: list[Any] = []
        self.arguments: list[dict[str, Any]] = []

    def plan(self, frames: Any, goal: Any, **arguments: Any) -> PlanResponse:
        self.frames.append(list(frames))
        self.goals.append(goal)
        self.arguments.append(arguments)
        result = self._results.pop(0)
        if isinstance(result, PlannerError):
            raise result
        return result


def make_driver(client: FakeClient, **arguments: Any) -> Driver:
    return Driver(
        cast(PlannerClient, client), GOAL, **{"steps": STEPS, "timeout_s": 1.0} | arguments
    )


def test_first_steps_are_run_and_the_next_search_starts_at_the_rest() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2))
    driver = make_driver(client, settings={"model": "m"})
    first, second = driver.step(FRAME), driver.step(FRAME, seed=3)
    assert first.source == second.source == "plan"
    assert np.array_equal(first.actions, make_plan(0.1).actions[:STEPS])
    assert np.array_equal(second.actions, make_plan(0.2).actions[:STEPS])
    assert client.arguments[0]["warm_start"] is None
    assert np.array_equal(client.arguments[1]["warm_start"], make_plan(0.1).actions[STEPS:])
    assert (client.arguments[1]["model"], client.arguments[1]["seed"]) == ("m", 3)


def test_goal_frame_is_sent_once() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2))
    driver = make_driver(client)
    driver.step(FRAME)
    driver.step(FRAME)
    assert client.goals[0] is GOAL
    assert client.goals[1] == "goal-id"


def test_a_goal_by_states_is_sent_with_each_plan() -> None:
    plan = make_plan(0.1)
    assert plan.latent_ids is not None
    by_states = replace(plan, latent_ids=replace(plan.latent_ids, goal=""))
    client = FakeClient(by_states, by_states)
    goal = {"x": 40.0}
    driver = Driver(cast(PlannerClient, client), goal, steps=STEPS, timeout_s=1.0)
    for _ in range(2):
        driver.step(FRAME)
    assert client.goals == [goal, goal]


def test_goal_frame_is_sent_again_when_the_server_forgot_its_latent() -> None:
    unknown_latent = FakePlannerError(grpc.StatusCode.NOT_FOUND, "unknown_latent")
    client = FakeClient(make_plan(0.1), unknown_latent, make_plan(0.2))
    driver = make_driver(client)
    driver.step(FRAME)
    assert driver.step(FRAME).source == "plan"
    assert client.goals[1] == "goal-id"
    assert client.goals[2] is GOAL
    assert 0 < client.arguments[2]["timeout_s"] <= 1.0


def test_rest_of_the_plan_advances_while_the_servers_fallback_acts() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.5, fallback="tail"), make_plan(0.2))
    driver = make_driver(client, fallback="tail")
    moves = [driver.step(FRAME, state=[1.0]) for _ in range(3)]
    assert [move.source for move in moves] == ["plan", "fallback", "plan"]
    assert np.array_equal(moves[1].actions, make_plan(0.5).actions[:STEPS])
    assert [arguments["fallback"] for arguments in client.arguments] == [
        {"controller": controller, "state": [1.0]} for controller in ("hold", "tail", "tail")
    ]
    assert np.array_equal(client.arguments[2]["warm_start"], make_plan(0.1).actions[2 * STEPS :])
    assert client.goals[2] == "goal-id"


@pytest.mark.parametrize("fallback", ["tail", {"controller": "tail"}])
def test_model_solver_and_fallback_reach_the_planner(fallback: Any) -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2))
    driver = make_driver(client, model="arm", solver={"horizon": 1}, fallback=fallback)
    driver.step(FRAME)
    driver.step(FRAME)
    first, second = client.arguments
    assert (first["model"], first["solver"]) == ("arm", {"horizon": 1})
    assert [first["fallback"], second["fallback"]] == [
        {"controller": "hold"},
        {"controller": "tail"},
    ]


def test_a_state_joins_any_form_of_fallback() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.1))
    for fallback in (
        {"fallback": {"controller": "waypoint"}},
        {"settings": {"fallback": "waypoint"}},
    ):
        make_driver(client, **fallback).step(FRAME, state=[1.0])
    expected = {"controller": "waypoint", "state": [1.0]}
    assert [arguments["fallback"] for arguments in client.arguments] == [expected] * 2


def test_next_search_does_not_start_at_an_anomalous_plan() -> None:
    anomalous_plan = replace(make_plan(0.5), health=Health("anomalous"))
    client = FakeClient(anomalous_plan, make_plan(0.1), anomalous_plan, make_plan(0.2))
    driver = make_driver(client)
    moves = [driver.step(FRAME) for _ in range(4)]
    assert [move.source for move in moves] == ["plan"] * 4
    assert np.array_equal(moves[2].actions, anomalous_plan.actions[:STEPS])
    warm_starts = [arguments["warm_start"] for arguments in client.arguments]
    assert warm_starts[:2] == [None, None]
    assert np.array_equal(warm_starts[2], make_plan(0.1).actions[STEPS:])
    assert np.array_equal(warm_starts[3], make_plan(0.1).actions[2 * STEPS :])


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    ],
    ids=lambda status: status.name,
)
def test_without_a_response_the_last_good_plan_is_run_to_its_end(status: grpc.StatusCode) -> None:
    error = FakePlannerError(status)
    driver = make_driver(FakeClient(make_plan(0.1), error, error, error))
    driver.step(FRAME)
    second, third = driver.step(FRAME), driver.step(FRAME)
    assert (second.source, second.plan, second.error) == ("local", None, error)
    assert np.array_equal(second.actions, make_plan(0.1).actions[STEPS : 2 * STEPS])
    assert np.array_equal(third.actions, make_plan(0.1).actions[2 * STEPS :])
    with pytest.raises(PlannerError) as caught:
        driver.step(FRAME)
    assert caught.value is error


def test_local_fallback_gets_the_setback() -> None:
    setbacks: list[Setback] = []

    def stop(setback: Setback) -> list[list[float]]:
        setbacks.append(setback)
        return [[0.0]] * 6

    driver = make_driver(FakeClient(make_plan(0.1), UNAVAILABLE, UNAVAILABLE), local=stop)
    driver.step(FRAME)
    moves = [driver.step(FRAME, state=[7.0]) for _ in range(2)]
    assert [move.actions.tolist() for move in moves] == [[[0.0]] * STEPS] * 2
    assert [len(setback.rest) for setback in setbacks] == [6, 2]
    assert (setbacks[0].error, setbacks[0].state) == (UNAVAILABLE, [7.0])
    assert setbacks[0].frame is FRAME


@pytest.mark.parametrize("actions", [[], [0.0, 0.0]], ids=["none", "one axis"])
def test_local_actions_of_a_wrong_shape_are_refused(actions: list[float]) -> None:
    driver = make_driver(FakeClient(UNAVAILABLE), local=lambda _setback: actions)
    with pytest.raises(ValueError, match=r"local: expected actions \(R, action_dim\)"):
        driver.step(FRAME)


@pytest.mark.parametrize(
    "error",
    [
        FakePlannerError(grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch"),
        FakePlannerError(grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large"),
    ],
    ids=lambda error: error.code,
)
def test_error_of_a_wrong_request_is_raised(error: FakePlannerError) -> None:
    driver = make_driver(FakeClient(make_plan(0.1), error))
    driver.step(FRAME)
    with pytest.raises(PlannerError) as caught:
        driver.step(FRAME)
    assert caught.value is error


@pytest.mark.parametrize("name", ["steps", "history"])
def test_steps_and_history_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make_driver(FakeClient(), **{name: 0})


def numbers_of(frames: list[Any]) -> list[int]:
    """The frames by the value of their pixels."""
    return [int(frame[0, 0, 0]) for frame in frames]


def numbered_frames(count: int) -> list[Any]:
    return [np.full((8, 8, 3), number, np.uint8) for number in range(count)]


def test_one_frame_by_default() -> None:
    client = FakeClient(*[make_plan(0.1)] * 3)
    driver = make_driver(client, steps=ACTION_BLOCK)
    for frame in numbered_frames(3):
        driver.step(frame)
    assert [numbers_of(frames) for frames in client.frames] == [[0], [1], [2]]
    assert [arguments["past_actions"] for arguments in client.arguments] == [None] * 3


def test_history_holds_the_frames_and_the_actions_between_them() -> None:
    plans = [make_plan(value) for value in (0.1, 0.2, 0.3, 0.4)]
    client = FakeClient(*plans)
    driver = make_driver(client, steps=ACTION_BLOCK, history=3)
    for frame in numbered_frames(4):
        driver.step(frame)
    assert [numbers_of(frames) for frames in client.frames] == [[0], [0, 1], [0, 1, 2], [1, 2, 3]]
    past_actions = [arguments["past_actions"] for arguments in client.arguments]
    first, second, third = (plan.actions[:ACTION_BLOCK] for plan in plans[:3])
    assert past_actions[0] is None
    assert np.array_equal(past_actions[1], first)
    assert np.array_equal(past_actions[2], np.concatenate([first, second]))
    assert np.array_equal(past_actions[3], np.concatenate([second, third]))


def test_frames_that_are_not_one_action_block_apart_are_no_history() -> None:
    client = FakeClient(*[make_plan(0.1)] * 2)
    driver = make_driver(client, steps=2 * ACTION_BLOCK, history=3)
    for frame in numbered_frames(2):
        driver.step(frame)
    assert [numbers_of(frames) for frames in client.frames] == [[0], [1]]
    assert client.arguments[1]["past_actions"] is None


@pytest.mark.parametrize("setback", [UNAVAILABLE, make_plan(0.5, fallback="hold")], ids=type)
def test_history_begins_again_after_actions_that_are_not_of_a_plan(setback: Any) -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2), setback, make_plan(0.3), make_plan(0.4))
    local = [[9.0]] * ACTION_BLOCK
    driver = make_driver(client, steps=ACTION_BLOCK, history=3, local=lambda _setback: local)
    for frame in numbered_frames(5):
        driver.step(frame)
    assert [numbers_of(frames) for frames in client.frames] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [3],
        [3, 4],
    ]
    assert np.array_equal(
        client.arguments[4]["past_actions"], make_plan(0.3).actions[:ACTION_BLOCK]
    )


def test_local_fallback_acts_when_the_server_never_answers(silent_target: str) -> None:
    with PlannerClient(silent_target) as client:
        driver = Driver(client, GOAL, steps=2, timeout_s=0.3, local=lambda _setback: [[0.0, 0.0]])
        moves = [driver.step(FRAME) for _ in range(2)]
    assert [(move.source, move.actions.tolist()) for move in moves] == [("local", [[0.0, 0.0]])] * 2
