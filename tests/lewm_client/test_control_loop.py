"""The control loop in simulated time: which action each step has, and when the loop plans."""

import logging
from typing import Any, cast

import grpc
import numpy as np
import pytest

from benchmarks.simulated_time import SimulatedTime
from lewm.v1 import planner_pb2 as pb
from lewm_client import Driver, PlannerClient, PlannerError, PlanResponse, RunSummary, Setback
from lewm_client.control_loop import LatencyEstimate
from tests.lewm_client.fake_planner import (
    ACTION_BLOCK,
    UNAVAILABLE,
    FakePlannerError,
    make_plan,
)

RATE_HZ = 20
PLAN_ROWS = 10


class Planner:
    """A planner whose plans are numbered from 1: row r of plan p is the action p + r / 100.

    Args:
        latencies: the latency of each plan in periods; the last one holds for all that follow.
    """

    def __init__(self, *latencies: float, time: SimulatedTime) -> None:
        self._latencies = list(latencies)
        self._time = time
        self.errors: dict[int, PlannerError] = {}
        self.fallbacks: set[int] = set()
        self.arguments: list[dict[str, Any]] = []

    def models(self, _timeout_s: float) -> list[pb.Model]:
        model = pb.Model(name="model", default=True)
        model.card.update(
            {"action_block": ACTION_BLOCK, "history": 3, "action_low": [-1], "action_high": [50]}
        )
        return [model]

    def plan(self, frames: Any, _goal: Any, **arguments: Any) -> PlanResponse:
        self.arguments.append({"frames": frames, **arguments})
        number = len(self.arguments)
        self._time.latency_s = self._latencies[min(number, len(self._latencies)) - 1] / RATE_HZ
        if number in self.errors:
            raise self.errors[number]
        return make_plan(number, fallback="hold" if number in self.fallbacks else None)


class Loop:
    """A control loop of a robot that runs so many steps; frames have the number of their step."""

    def __init__(self, *latencies: float, steps: int, plan_steps: int = ACTION_BLOCK) -> None:
        self.time = SimulatedTime()
        self.planner = Planner(*latencies, time=self.time)
        self.actions: list[float] = []
        self.times: list[float] = []
        self._steps = steps
        self._plan_steps = plan_steps

    def run(self, **arguments: Any) -> RunSummary:
        driver = Driver(
            cast(PlannerClient, self.planner),
            "0" * 32,
            steps=self._plan_steps,
            timeout_s=1.0,
            **arguments,
        )
        return driver.run(
            observe=lambda: np.array([len(self.actions)], np.float32),
            act=self.act,
            until=lambda: len(self.actions) == self._steps,
            rate_hz=RATE_HZ,
            clock=self.time,
            executor=self.time,
        )

    def act(self, action: Any) -> None:
        (value,) = action
        self.actions.append(round(float(value), 2))
        self.times.append(round(self.time.time() * RATE_HZ, 6))


def rows(plan: int, first: int, end: int) -> list[float]:
    """The actions of a plan from one row to another."""
    return [round(plan + row / 100, 2) for row in range(first, end)]


def column(*values: float) -> Any:
    """Actions (R, 1)."""
    return pytest.approx(np.array(values, np.float32)[:, None])


def frame_number(arguments: dict[str, Any]) -> int:
    return int(arguments["frames"][-1][0])


def test_the_next_plan_follows_the_committed_actions() -> None:
    loop = Loop(2, steps=15)
    summary = loop.run()
    # The robot stands still until the first plan is there.
    assert loop.times == [2 + step for step in range(15)]
    assert loop.actions == rows(1, 0, 5) + rows(2, 0, 5) + rows(3, 0, 5)
    first, second, third, *_ = loop.planner.arguments
    assert [frame_number(arguments) for arguments in (first, second, third)] == [0, 0, 5]
    assert first["committed_actions"] is None
    assert second["committed_actions"] == column(*rows(1, 0, 5))
    assert second["warm_start"] == column(*rows(1, 5, 10))
    assert third["committed_actions"] == column(*rows(2, 0, 5))
    assert summary.waited == 2
    assert summary.steps == {"plan": 15, "fallback": 0, "local": 0}
    assert (summary.late, summary.errors) == (0, 0)


def test_long_latencies_commit_more_blocks() -> None:
    loop = Loop(6, steps=30)
    summary = loop.run()
    assert loop.actions == rows(1, 0, 10) + rows(2, 0, 10) + rows(3, 0, 10)
    assert loop.planner.arguments[1]["committed_actions"] == column(*rows(1, 0, 10))
    assert summary.late == 0


def test_as_many_actions_of_a_plan_run_as_the_caller_says() -> None:
    loop = Loop(2, steps=30, plan_steps=10)
    loop.run()
    assert loop.actions == rows(1, 0, 10) + rows(2, 0, 10) + rows(3, 0, 10)
    # Asked for one block before it starts, from the newest frame.
    assert frame_number(loop.planner.arguments[1]) == 5
    assert loop.planner.arguments[1]["committed_actions"] == column(*rows(1, 5, 10))


def test_more_actions_than_a_plan_has_are_the_whole_plan() -> None:
    loop = Loop(2, steps=20, plan_steps=1000)
    loop.run()
    assert loop.actions == rows(1, 0, 10) + rows(2, 0, 10)


def test_an_answer_without_latency_waits_for_no_period() -> None:
    loop = Loop(0, steps=10)
    assert loop.run().waited == 0
    assert loop.actions == rows(1, 0, 5) + rows(2, 0, 5)


def test_a_late_plan_begins_at_the_row_of_now(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(2, 8, 2, steps=15)
    with caplog.at_level(logging.WARNING):
        summary = loop.run()
    # Plan 2 was to begin at step 5. It is there at step 8: until then, the rest of plan 1.
    assert loop.actions == rows(1, 0, 8) + rows(2, 3, 10)
    assert summary.late == 1
    (message,) = caplog.messages
    assert message == (
        "the plan for step 5 is late: it took 8 periods of 50 ms, expected at most 5"
    )


def test_the_local_fallback_acts_when_the_old_plan_is_at_its_end() -> None:
    setbacks: list[Setback] = []

    def brake(setback: Setback) -> list[list[float]]:
        setbacks.append(setback)
        return [[99.0]]

    loop = Loop(2, 13, 2, steps=20)
    summary = loop.run(local=brake)
    # Plan 2 was to begin at step 5, and arrives at step 13.
    assert loop.actions == rows(1, 0, 10) + [99.0] * 3 + rows(2, 8, 10) + [99.0] * 5
    assert summary.steps == {"plan": 12, "fallback": 0, "local": 8}
    assert [len(setback.rest) for setback in setbacks] == [0] * 10
    assert setbacks[0].error.code == "overdue"
    assert setbacks[0].error.temporary


def test_committed_actions_of_the_local_fallback_are_clipped_to_the_models_bounds() -> None:
    loop = Loop(2, 13, 2, steps=20)
    loop.run(local=lambda _setback: [[99.0]])
    committed = loop.planner.arguments[2]["committed_actions"]
    assert committed == column(*[50.0] * 5)
    assert len(loop.planner.arguments[2]["frames"]) == 1


def test_a_plan_that_is_too_late_for_all_its_rows_is_dropped() -> None:
    loop = Loop(2, 16, 2, steps=30)
    summary = loop.run(local=lambda _setback: [[0.0]])
    assert loop.actions[10:20] == [0.0] * 10
    assert loop.actions[20:25] == [0.0] * 5  # committed while plan 3 is computed
    assert loop.actions[25:] == rows(3, 0, 5)
    assert summary.late == 1


def test_errors_are_survived_and_the_next_plan_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = Loop(2, steps=25)
    loop.planner.errors = {2: UNAVAILABLE, 3: UNAVAILABLE}
    with caplog.at_level(logging.WARNING):
        summary = loop.run(local=lambda _setback: [[-1.0]])
    # Asked for at steps 0, 5 and 10.
    assert loop.actions == rows(1, 0, 10) + [-1.0] * 5 + rows(4, 0, 5) + rows(5, 0, 5)
    assert summary.errors == 2
    assert "no plan for step 5: unavailable" in caplog.text


def test_the_local_fallback_gets_the_error_and_the_rest_of_the_last_plan() -> None:
    setbacks: list[Setback] = []
    loop = Loop(2, steps=15)
    loop.planner.errors = dict.fromkeys(range(2, 9), UNAVAILABLE)

    def hold(setback: Setback) -> list[list[float]]:
        setbacks.append(setback)
        return [[0.0]] * 5

    loop.run(local=hold)
    (setback,) = setbacks
    assert setback.error is UNAVAILABLE
    assert setback.frame == 10
    assert len(setback.rest) == 0


def test_without_a_local_fallback_the_loop_ends_with_the_plan() -> None:
    loop = Loop(2, steps=100)
    loop.planner.errors = dict.fromkeys(range(2, 20), UNAVAILABLE)
    with pytest.raises(PlannerError) as caught:
        loop.run()
    assert caught.value is UNAVAILABLE
    assert loop.actions == rows(1, 0, 10)


@pytest.mark.parametrize("number", [1, 2])
def test_the_error_of_a_wrong_request_is_raised(number: int) -> None:
    loop = Loop(2, steps=100)
    wrong = FakePlannerError(grpc.StatusCode.INVALID_ARGUMENT, "shape_mismatch")
    loop.planner.errors = {number: wrong}
    with pytest.raises(PlannerError) as caught:
        loop.run(local=lambda _setback: [[0.0]])
    assert caught.value is wrong


def test_actions_of_the_servers_fallback_are_run_and_end_the_history() -> None:
    loop = Loop(2, steps=25)
    loop.planner.fallbacks = {3}
    summary = loop.run(history=3)
    assert loop.actions == [action for plan in range(1, 6) for action in rows(plan, 0, 5)]
    assert summary.steps == {"plan": 20, "fallback": 5, "local": 0}
    frames = [[int(frame[0]) for frame in a["frames"]] for a in loop.planner.arguments]
    # The robot runs the fallback's actions from step 10 to 15.
    assert frames == [[0], [0], [0, 5], [0, 5, 10], [15], [15, 20]]
    past_actions = loop.planner.arguments[3]["past_actions"]
    assert past_actions == column(*rows(1, 0, 5), *rows(2, 0, 5))
    # The search does not start at a fallback's actions, but at what is left of the last plan.
    assert loop.planner.arguments[3]["warm_start"] is None
    assert loop.planner.arguments[2]["warm_start"] == column(*rows(2, 5, 10))


def test_the_robot_may_stop_before_the_first_plan() -> None:
    loop = Loop(1000, steps=0)
    summary = loop.run()
    assert loop.actions == []
    assert summary.plans == 0


@pytest.mark.parametrize("actions", [[], [0.0], [[0.0, 0.0]]], ids=str)
def test_local_actions_of_a_wrong_shape_are_refused(actions: Any) -> None:
    loop = Loop(2, 100, steps=100)
    with pytest.raises(ValueError, match=r"local: expected actions \(R, 1\)"):
        loop.run(local=lambda _setback: actions)


def test_a_history_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ValueError, match="history: expected at most 3, got 4"):
        Loop(2, steps=1).run(history=4)


def test_an_unknown_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"no model arm, the server has \['model'\]"):
        Loop(2, steps=1).run(model="arm")


def test_a_version_of_a_model_is_asked_for() -> None:
    loop = Loop(2, steps=1)
    loop.run(model="model@0123456789abcdef")
    assert loop.planner.arguments[0]["model"] == "model@0123456789abcdef"


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, np.inf, np.nan])
def test_a_rate_must_be_a_number_above_zero(rate_hz: float) -> None:
    driver = Driver(cast(PlannerClient, None), "0" * 32, steps=1, timeout_s=1.0)
    with pytest.raises(ValueError, match="rate_hz must be a finite number above 0"):
        driver.run(observe=bytes, act=print, until=bool, rate_hz=rate_hz)


def test_a_step_that_takes_too_long_moves_the_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop(2, steps=10)

    def slow_act(action: Any) -> None:
        act(action)
        if len(loop.actions) == 3:
            loop.time.sleep(2.5 / RATE_HZ)

    act, loop.act = loop.act, slow_act  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        loop.run()
    assert np.diff(loop.times).round(6).tolist() == [1, 1, 2.5, 1, 1, 1, 1, 1, 1]
    assert "step 3 is 75 ms late" in caplog.text


def test_the_expected_latency_is_a_high_quantile_with_a_margin() -> None:
    estimate = LatencyEstimate()
    for latency in [2] * 19 + [9]:
        estimate.add(latency)
    assert estimate.steps == 3
    for latency in [9, 9]:
        estimate.add(latency)
    assert estimate.steps == 10


def test_any_latencies_leave_no_step_without_an_action() -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        latencies = generator.choice([0, 1, 3, 6, 12, 30], size=40)
        loop = Loop(*latencies.tolist(), steps=60, plan_steps=int(generator.integers(1, 12)))
        failing = generator.choice(40, size=10)
        loop.planner.errors = {int(number) + 2: UNAVAILABLE for number in failing}
        summary = loop.run(local=lambda _setback: [[0.0]] * 3, history=3)
        assert loop.times == [summary.waited + step for step in range(60)]
        assert sum(summary.steps.values()) == 60
        check_requests(loop)


def check_requests(loop: Loop) -> None:
    """All requests hold what the robot did and was going to do."""
    for arguments in loop.planner.arguments[1:]:
        now = frame_number(arguments)
        assert now % ACTION_BLOCK == 0
        frames = [int(frame[0]) for frame in arguments["frames"]]
        assert frames == list(range(frames[0], now + 1, ACTION_BLOCK))
        past = loop.actions[frames[0] : now]
        assert arguments["past_actions"] == (column(*past) if past else None)
        committed = arguments["committed_actions"]
        assert len(committed) % ACTION_BLOCK == 0
        following = loop.actions[now : now + len(committed)]
        assert committed[: len(following)] == column(*following)
