"""The table of the last requests, by robot."""

import time
from typing import Any

import pytest

from lewm_serve.observability import recent_requests
from lewm_serve.observability.recent_requests import RecentRequests, summarise


def line(**changes: Any) -> dict[str, Any]:
    """A line of the access log."""
    usual = {"endpoint": "plan", "protocol": "rest", "code": "ok", "duration_ms": 10.0}
    return usual | {"robot": "arm", "health": "ok", "plan_status": "completed"} | changes


@pytest.mark.parametrize(
    ("durations_ms", "p50_ms", "p95_ms"),
    [
        ([7.0], 7, 7),
        ([2780.0, 116.0], 116, 2780),
        ([1.0, 2.0, 3.0], 2, 3),
        ([float(value) for value in range(1, 21)], 10, 19),
    ],
)
def test_shares_of_few_durations(durations_ms: list[float], p50_ms: float, p95_ms: float) -> None:
    recent = RecentRequests()
    for duration_ms in durations_ms:
        recent.add(line(duration_ms=duration_ms), time.monotonic())
    (arm,) = summarise(recent.newest())["robots"]
    assert (arm["p50_ms"], arm["p95_ms"]) == (p50_ms, p95_ms)


def test_robots_are_told_apart_and_counted() -> None:
    recent = RecentRequests()
    now = time.monotonic()
    for duration_ms in (10.0, 20.0, 30.0):
        recent.add(line(duration_ms=duration_ms), now)
    recent.add(line(health="anomalous", plan_status="fallback", protocol="grpc"), now)
    recent.add(line(code="overloaded", health=None, plan_status=None), now)
    recent.add(line(robot=None, key="cell-7"), now)
    recent.add(line(robot=None), now - 100)
    counted = summarise(recent.newest())
    arm, *others = counted["robots"]
    assert (arm["kind"], arm["name"]) == ("robot", "arm")
    assert arm["requests"] == 5
    assert arm["per_s"] == round(5 / 60, 2)
    assert arm["p50_ms"] == 10
    assert arm["p95_ms"] == 30
    assert arm["errors"] == {"overloaded": 1}
    assert arm["health"] == {"ok": 3, "anomalous": 1}
    assert arm["plans"] == {"completed": 3, "fallback": 1}
    assert arm["protocols"] == ["grpc", "rest"]
    assert {(other["kind"], other["name"]) for other in others} == {("key", "cell-7"), ("key", "")}
    assert counted["total"]["requests"] == 7
    (unnamed,) = (other for other in others if other["name"] == "")
    assert unnamed["per_s"] == 0
    assert unnamed["seen_s_ago"] >= 100


def test_the_table_is_bounded_and_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentRequests(most=3)
    now = time.monotonic()
    for index in range(5):
        recent.add(line(robot=f"robot-{index}"), now)
    assert [request.robot for request in recent.newest()] == ["robot-2", "robot-3", "robot-4"]
    monkeypatch.setattr(recent_requests, "MAX_SOURCES", 2)
    counted = summarise(recent.newest())
    assert len(counted["robots"]) == 2
    assert counted["unlisted"] == 1
    recent.add(line(), now - recent_requests.WINDOW_S - 1)
    assert "arm" not in [request.robot for request in recent.newest()]


def test_a_full_table_says_how_far_back_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_requests, "MAX_REQUESTS", 3)
    recent = RecentRequests(most=3)
    now = time.monotonic()
    recent.add(line(), now - 100)
    recent.add(line(), now - 1)
    assert summarise(recent.newest())["window_s"] == recent_requests.WINDOW_S
    recent.add(line(), now)
    counted = summarise(recent.newest())
    assert counted["window_s"] == pytest.approx(100, abs=20)
    assert counted["rate_window_s"] == recent_requests.RATE_WINDOW_S


def test_without_requests_there_is_nothing_to_divide_by() -> None:
    counted = summarise([])
    assert counted["robots"] == []
    assert counted["total"]["p50_ms"] is None
