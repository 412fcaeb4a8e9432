"""The receding horizon: what is run, what is searched on from, and who acts when nobody answers."""

import subprocess
import sys
from dataclasses import replace
from typing import Any, cast

import grpc
import numpy as np
import pytest

from lewm_client import Pilot, PlannerClient, PlannerError, PlanResponse, Setback
from lewm_client.answers import FallbackReport, Health, LatentIds, Timing
from tests.lewm_serve.process import ROOT

FRAME, GOAL = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64, 3), np.uint8)


class Refusal(PlannerError):
    """An error as the server would tell it."""

    def __init__(self, status: grpc.StatusCode, code: str = "") -> None:
        Exception.__init__(self, code)
        self.status, self.code = status, code


UNAVAILABLE = Refusal(grpc.StatusCode.UNAVAILABLE, "unavailable")
Given = PlanResponse | PlannerError


def plan(value: float, fallback: str | None = None) -> PlanResponse:
    """A plan of ten rows, which rise from a value."""
    actions = (np.arange(10)[:, None] / 100 + value).astype(np.float32)
    report = FallbackReport(fallback, "deadline") if fallback else None
    ids = None if fallback else LatentIds(("f",), "goal-id")
    nothing = ("", "", "", "", "")
    status = "fallback" if fallback else "completed"
    return PlanResponse(
        *nothing, actions, 5, 1.0, cast(Any, status), 1, 1, {}, 0, ids, Health("ok"), report,
        Timing(0, 0, 0, 0, 0),
    )  # fmt: skip


class Script:
    """A client that answers what it was told to, and keeps what it was asked."""

    def __init__(self, *given: Given) -> None:
        self.given = list(given)
        self.goals: list[Any] = []
        self.asked: list[dict[str, Any]] = []

    def plan(self, _frames: Any, goal: Any, **asked: Any) -> PlanResponse:
        self.goals.append(goal)
        self.asked.append(asked)
        answer = self.given.pop(0)
        if isinstance(answer, PlannerError):
            raise answer
        return answer


def pilot(script: Script, **settings: Any) -> Pilot:
    return Pilot(cast(PlannerClient, script), GOAL, **{"steps": 4, "timeout_s": 1.0} | settings)


def test_the_first_steps_are_run_and_the_rest_is_where_the_next_search_begins() -> None:
    script = Script(plan(0.1), plan(0.2))
    robot = pilot(script, settings={"model": "m"})
    first, second = robot.step([FRAME]), robot.step([FRAME], seed=3)
    assert np.array_equal(first.actions, plan(0.1).actions[:4])
    assert np.array_equal(second.actions, plan(0.2).actions[:4])
    assert (first.source, script.asked[0]["warm_start"]) == ("plan", None)
    assert np.array_equal(script.asked[1]["warm_start"], plan(0.1).actions[4:])
    assert (script.asked[1]["model"], script.asked[1]["seed"]) == ("m", 3)
    assert script.goals[1] == "goal-id"


def test_the_servers_fallback_is_run_while_the_good_plan_goes_by() -> None:
    script = Script(plan(0.1), plan(0.5, "tail"), plan(0.2))
    robot = pilot(script, fallback="tail")
    moves = [robot.step([FRAME], state=[1.0]) for _ in range(3)]
    assert [move.source for move in moves] == ["plan", "fallback", "plan"]
    assert [asked["fallback"]["controller"] for asked in script.asked] == ["hold", "tail", "tail"]
    assert np.array_equal(script.asked[2]["warm_start"], plan(0.1).actions[8:])
    assert script.goals[2] == "goal-id"


def test_a_plan_from_an_anomalous_frame_is_no_good_plan() -> None:
    doubtful = replace(plan(0.5), health=Health("anomalous"))
    script = Script(doubtful, plan(0.1), doubtful, plan(0.2))
    robot = pilot(script)
    moves = [robot.step([FRAME]) for _ in range(4)]
    assert {move.source for move in moves} == {"plan"}
    assert np.array_equal(moves[2].actions, doubtful.actions[:4])  # the caller decides
    assert [asked["warm_start"] is None for asked in script.asked[:2]] == [True, True]
    assert np.array_equal(script.asked[2]["warm_start"], plan(0.1).actions[4:])
    assert np.array_equal(script.asked[3]["warm_start"], plan(0.1).actions[8:])


@pytest.mark.parametrize(
    "status",
    [
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
    ],
)
def test_without_an_answer_the_last_good_plan_is_run_to_its_end(status: Any) -> None:
    silence = Refusal(status)
    robot = pilot(Script(plan(0.1), *[silence] * 3))
    robot.step([FRAME])
    second, third = robot.step([FRAME]), robot.step([FRAME])
    assert (second.source, second.plan, second.error) == ("local", None, silence)
    assert np.array_equal(second.actions, plan(0.1).actions[4:8])
    assert np.array_equal(third.actions, plan(0.1).actions[8:])
    with pytest.raises(PlannerError):
        robot.step([FRAME])


def test_a_local_fallback_decides_by_what_there_is() -> None:
    seen: list[Setback] = []

    def stop(setback: Setback) -> list[list[float]]:
        seen.append(setback)
        return [[0.0]] * 6

    robot = pilot(Script(plan(0.1), UNAVAILABLE, UNAVAILABLE), local=stop)
    robot.step([FRAME])
    moves = [robot.step([FRAME], state=[7.0]) for _ in range(2)]
    assert [move.actions.tolist() for move in moves] == [[[0.0]] * 4] * 2
    assert [len(setback.rest) for setback in seen] == [6, 2]
    assert (seen[0].error, seen[0].state) == (UNAVAILABLE, [7.0])


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(grpc.StatusCode.INVALID_ARGUMENT),
        Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "body_too_large"),
    ],
    ids=lambda refusal: refusal.status.name,
)
def test_a_request_that_is_wrong_is_nobodys_emergency(refusal: Refusal) -> None:
    robot = pilot(Script(plan(0.1), refusal))
    robot.step([FRAME])
    with pytest.raises(PlannerError):
        robot.step([FRAME])


def test_a_goal_the_server_forgot_is_sent_again() -> None:
    forgot = Refusal(grpc.StatusCode.NOT_FOUND, "unknown_latent")
    script = Script(plan(0.1), forgot, plan(0.2))
    robot = pilot(script)
    robot.step([FRAME])
    assert robot.step([FRAME]).source == "plan"
    assert script.goals[1] == "goal-id"
    assert script.goals[2] is GOAL
    assert 0 < script.asked[2]["timeout_s"] <= 1.0


def test_a_server_that_never_answers_stops_no_robot(silent: str) -> None:
    with PlannerClient(silent) as client:
        robot = Pilot(client, GOAL, steps=2, timeout_s=0.3, local=lambda _: [[0.0, 0.0]])
        moves = [robot.step([FRAME]) for _ in range(2)]
    assert [(move.source, move.actions.tolist()) for move in moves] == [("local", [[0.0, 0.0]])] * 2


def test_the_package_needs_little() -> None:
    """Robots with the client alone have neither the server's packages nor a web stack."""
    program = "import sys, lewm_client; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, cwd=ROOT, text=True, check=True
    )
    unwanted = {"service", "models", "torch", "PIL", "pydantic", "fastapi", "orjson"}
    assert not unwanted & set(result.stdout.split())
