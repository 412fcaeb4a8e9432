"""What a report says of calls and metrics that are known."""

import json
from pathlib import Path

import pytest

from loadtests.calls import Call, LoadResult, read_result
from loadtests.report import LoadReport, summarize
from loadtests.server_metrics import durations, increases, parse
from loadtests.spec import LoadSpec

SPEC = LoadSpec(http="127.0.0.1:8000")


def call(
    kind: str = "rest plan", latency_ms: float = 10.0, code: str = "ok", **fields: bool
) -> Call:
    values = {"is_expected": code == "ok", "missed_deadline": False} | fields
    return Call(kind, 1.0, latency_ms, 0.0, code, **values)


CALLS = [
    *(call(latency_ms=latency) for latency in range(1, 101)),
    call(code="overloaded"),
    call(code="internal"),
    call(code="connection_lost"),
    call(latency_ms=2000.0, missed_deadline=True),
    call("grpc bad request", 2.0, "invalid_image", is_expected=True),
    call("grpc bad request", 2.0, "ok", is_expected=False),
]

METRICS = """\
# TYPE lewm_requests_total counter
lewm_requests_total{{code="ok",endpoint="plan",protocol="rest"}} {plans}
lewm_requests_total{{code="internal",endpoint="plan",protocol="rest"}} 2
# TYPE lewm_request_duration_seconds histogram
lewm_request_duration_seconds_bucket{{endpoint="plan",le="0.01",protocol="rest"}} {fast}
lewm_request_duration_seconds_bucket{{endpoint="plan",le="0.1",protocol="rest"}} {plans}
lewm_request_duration_seconds_bucket{{endpoint="plan",le="+Inf",protocol="rest"}} {plans}
lewm_request_duration_seconds_count{{endpoint="plan",protocol="rest"}} {plans}
lewm_request_duration_seconds_sum{{endpoint="plan",protocol="rest"}} {seconds}
# TYPE lewm_active_plans gauge
lewm_active_plans {active}
"""
BEFORE = parse(METRICS.format(plans=10, fast=10, seconds=0.05, active=0))
AFTER = parse(METRICS.format(plans=110, fast=80, seconds=2.05, active=3))


def test_calls_survive_a_file(tmp_path: Path) -> None:
    for calls in (CALLS, []):
        result = LoadResult(calls, 5.0)
        result.write(tmp_path / "result.json")
        assert read_result(tmp_path / "result.json") == result


def test_a_summary_counts_by_kind_and_code() -> None:
    bad, plans = summarize(CALLS)
    assert (bad.kind, bad.calls, bad.failed, bad.refused) == ("grpc bad request", 2, 1, 0)
    assert bad.failed_codes == {"ok": 1}
    assert (plans.kind, plans.calls) == ("rest plan", 104)
    assert (plans.failed, plans.refused, plans.missed_deadlines) == (2, 1, 1)
    assert plans.codes == {"ok": 101, "overloaded": 1, "internal": 1, "connection_lost": 1}
    assert plans.failed_codes == {"internal": 1, "connection_lost": 1}
    assert plans.max_ms == 2000


def test_percentiles() -> None:
    (plans,) = summarize([call(latency_ms=latency) for latency in range(101)])
    assert (plans.p50_ms, plans.p95_ms, plans.p99_ms) == (50, 95, 99)


def test_a_refusal_that_was_asked_for_is_none() -> None:
    assert not call(code="deadline_exceeded", is_expected=True).is_refused
    assert call(code="deadline_exceeded").is_refused


def test_the_servers_own_figures() -> None:
    (row,) = durations(BEFORE, AFTER)
    assert (row.endpoint, row.protocol, row.count) == ("plan", "rest", 100)
    assert row.mean_ms == pytest.approx(20)
    assert (row.p50_ms, row.p99_ms) == (10, 100)
    (((name, labels), growth),) = increases(BEFORE, AFTER).items()
    assert (name, growth) == ("lewm_requests_total", 100)
    assert dict(labels)["code"] == "ok"


def test_a_report_is_written_for_people_and_programs(tmp_path: Path) -> None:
    report = LoadReport.of(SPEC, LoadResult(CALLS, 12.0), BEFORE, AFTER)
    page, document = report.write(tmp_path / "new" / "folder")
    assert "**3 calls FAILED: 106 calls in 12 s, 1 refused, 1 plans after their" in page.read_text()
    assert "| rest plan | 104 | 1 | 2 | 1 |" in page.read_text()
    assert "| plan | rest | 100 | 20.0 | 10 | 100 |" in page.read_text()
    assert "| lewm_active_plans | 0 | 3 |" in page.read_text()
    values = json.loads(document.read_text())
    assert (values["calls"], values["failed"], values["refused"]) == (106, 3, 1)
    assert values["load"]["http"] == SPEC.http
    assert values["server"]["gauges_after"] == {"lewm_active_plans": 3}


def test_without_metrics_a_report_has_the_clients_alone() -> None:
    report = LoadReport.of(SPEC, LoadResult(CALLS[:3], 12.0), None, None)
    assert "server" not in report.to_json()
    assert "What the server measured" not in report.to_markdown()
    assert report.verdict.startswith("no call failed: 3 calls")
