"""The pilot: which actions are run, where the next search starts, and what follows a setback."""

from dataclasses import replace
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lewm_client import (
    FallbackReport,
    Health,
    LatentIds,
    Pilot,
    PlannerClient,
    PlannerError,
    PlanResponse,
    Setback,
    Timing,
)

FRAME, GOAL = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64, 3), np.uint8)
PLAN_ROWS = 10
STEPS = 4


class FakePlannerError(PlannerError):
    """An error with a status and a code, without a call."""

    def __init__(self, status: grpc.StatusCode, code: str = "") -> None:
        Exception.__init__(self, code)
        self.status = status
        self.code = code


UNAVAILABLE = FakePlannerError(grpc.StatusCode.UNAVAILABLE, "unavailable")


def make_plan(first_action: float, fallback: str | None = None) -> PlanResponse:
    """A plan of ten rows whose values rise from ``first_action``."""
    rows = np.arange(PLAN_ROWS, dtype=np.float32)[:, None]
    return PlanResponse(
        request_id="request",
        model="model",
        model_version="version",
        backend="torch",
        precision="float32",
        actions=(first_action + rows / 100).astype(np.float32),
        action_block=5,
        cost=None if fallback else 1.0,
        status="fallback" if fallback else "completed",
        iterations=1,
        candidates=1,
        solver={},
        seed=0,
        latent_ids=None if fallback else LatentIds(frames=("frame-id",), goal="goal-id"),
        health=Health("ok"),
        fallback=FallbackReport(fallback, "deadline") if fallback else None,
        timing_ms=Timing(queue=0, decode=0, encode=0, solve=0, total=0),
    )


class FakeClient:
    """A client that returns or raises what it is given, in this order, and records the calls."""

    def __init__(self, *results: PlanResponse | PlannerError) -> None:
        self._results = list(results)
        self.goals: list[Any] = []
        self.arguments: list[dict[str, Any]] = []

    def plan(self, _frames: Any, goal: Any, **arguments: Any) -> PlanResponse:
        self.goals.append(goal)
        self.arguments.append(arguments)
        result = self._results.pop(0)
        if isinstance(result, PlannerError):
            raise result
        return result


def make_pilot(client: FakeClient, **arguments: Any) -> Pilot:
    return Pilot(
        cast(PlannerClient, client), GOAL, **{"steps": STEPS, "timeout_s": 1.0} | arguments
    )


def test_first_steps_are_run_and_the_next_search_starts_at_the_rest() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2))
    pilot = make_pilot(client, settings={"model": "m"})
    first, second = pilot.step([FRAME]), pilot.step([FRAME], seed=3)
    assert first.source == second.source == "plan"
    assert np.array_equal(first.actions, make_plan(0.1).actions[:STEPS])
    assert np.array_equal(second.actions, make_plan(0.2).actions[:STEPS])
    assert client.arguments[0]["warm_start"] is None
    assert np.array_equal(client.arguments[1]["warm_start"], make_plan(0.1).actions[STEPS:])
    assert (client.arguments[1]["model"], client.arguments[1]["seed"]) == ("m", 3)


def test_goal_frame_is_sent_once() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.2))
    pilot = make_pilot(client)
    pilot.step([FRAME])
    pilot.step([FRAME])
    assert client.goals[0] is GOAL
    assert client.goals[1] == "goal-id"


def test_goal_frame_is_sent_again_when_the_server_forgot_its_latent() -> None:
    unknown_latent = FakePlannerError(grpc.StatusCode.NOT_FOUND, "unknown_latent")
    client = FakeClient(make_plan(0.1), unknown_latent, make_plan(0.2))
    pilot = make_pilot(client)
    pilot.step([FRAME])
    assert pilot.step([FRAME]).source == "plan"
    assert client.goals[1] == "goal-id"
    assert client.goals[2] is GOAL
    assert 0 < client.arguments[2]["timeout_s"] <= 1.0


def test_rest_of_the_plan_advances_while_the_servers_fallback_acts() -> None:
    client = FakeClient(make_plan(0.1), make_plan(0.5, fallback="tail"), make_plan(0.2))
    pilot = make_pilot(client, fallback="tail")
    moves = [pilot.step([FRAME], state=[1.0]) for _ in range(3)]
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
    pilot = make_pilot(client, model="arm", solver={"horizon": 1}, fallback=fallback)
    pilot.step([FRAME])
    pilot.step([FRAME])
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
        make_pilot(client, **fallback).step([FRAME], state=[1.0])
    expected = {"controller": "waypoint", "state": [1.0]}
    assert [arguments["fallback"] for arguments in client.arguments] == [expected] * 2


def test_next_search_does_not_start_at_an_anomalous_plan() -> None:
    anomalous_plan = replace(make_plan(0.5), health=Health("anomalous"))
    client = FakeClient(anomalous_plan, make_plan(0.1), anomalous_plan, make_plan(0.2))
    pilot = make_pilot(client)
    moves = [pilot.step([FRAME]) for _ in range(4)]
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
    pilot = make_pilot(FakeClient(make_plan(0.1), error, error, error))
    pilot.step([FRAME])
    second, third = pilot.step([FRAME]), pilot.step([FRAME])
    assert (second.source, second.plan, second.error) == ("local", None, error)
    assert np.array_equal(second.actions, make_plan(0.1).actions[STEPS : 2 * STEPS])
    assert np.array_equal(third.actions, make_plan(0.1).actions[2 * STEPS :])
    with pytest.raises(PlannerError) as caught:
        pilot.step([FRAME])
    assert caught.value is error


def test_local_fallback_gets_the_setback() -> None:
    setbacks: list[Setback] = []

    def stop(setback: Setback) -> list[list[float]]:
        setbacks.append(setback)
        return [[0.0]] * 6

    pilot = make_pilot(FakeClient(make_plan(0.1), UNAVAILABLE, UNAVAILABLE), local=stop)
    pilot.step([FRAME])
    moves = [pilot.step([FRAME], state=[7.0]) for _ in range(2)]
    assert [move.actions.tolist() for move in moves] == [[[0.0]] * STEPS] * 2
    assert [len(setback.rest) for setback in setbacks] == [6, 2]
    assert (setbacks[0].error, setbacks[0].state) == (UNAVAILABLE, [7.0])
    assert setbacks[0].frames[0] is FRAME


@pytest.mark.parametrize("actions", [[], [0.0, 0.0]], ids=["none", "one axis"])
def test_local_actions_of_a_wrong_shape_are_refused(actions: list[float]) -> None:
    pilot = make_pilot(FakeClient(UNAVAILABLE), local=lambda _setback: actions)
    with pytest.raises(ValueError, match=r"local: expected actions \(R, action_dim\)"):
        pilot.step([FRAME])


@pytest.mark.parametrize(
    "error",
    [
        FakePlannerError(grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch"),
        FakePlannerError(grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large"),
    ],
    ids=lambda error: error.code,
)
def test_error_of_a_wrong_request_is_raised(error: FakePlannerError) -> None:
    pilot = make_pilot(FakeClient(make_plan(0.1), error))
    pilot.step([FRAME])
    with pytest.raises(PlannerError) as caught:
        pilot.step([FRAME])
    assert caught.value is error


def test_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        make_pilot(FakeClient(), steps=0)


def test_local_fallback_acts_when_the_server_never_answers(silent_target: str) -> None:
    with PlannerClient(silent_target) as client:
        pilot = Pilot(client, GOAL, steps=2, timeout_s=0.3, local=lambda _setback: [[0.0, 0.0]])
        moves = [pilot.step([FRAME]) for _ in range(2)]
    assert [(move.source, move.actions.tolist()) for move in moves] == [("local", [[0.0, 0.0]])] * 2
