"""Traces: the spans that a real receiver gets from a real server, over both protocols."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from lewm.v1 import planner_pb2 as pb
from lewm_client import PlannerClient, frame
from lewm_serve.observability.tracing import RequestTracer, Stage
from lewm_serve.server import Server
from lewm_serve.service import StartError
from lewm_serve.settings import SettingsError, load_settings
from tests.lewm_serve.support.drivers import raw_call
from tests.lewm_serve.support.frames import picture
from tests.lewm_serve.support.random_model import MODEL_NAME
from tests.lewm_serve.support.requests import HOLD, SMALL_SOLVER, plan
from tests.lewm_serve.support.server_process import ServerProcess
from tests.lewm_serve.support.trace_receiver import ReceivedSpan, TraceReceiver
from tests.patience import PATIENCE_S

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"
SEND_OFTEN = {"OTEL_BSP_SCHEDULE_DELAY": "50"}  # milliseconds
NEVER_GIVE_UP = {"OTEL_EXPORTER_OTLP_TIMEOUT": "3600"}  # seconds
STAGES = ("receive", "decode", "encode", "queue", "solve", "answer")


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    """A receiver that works."""
    with TraceReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Path, receiver: TraceReceiver
) -> Iterator[ServerProcess]:
    """A server that sends its traces to the receiver."""
    log = tmp_path_factory.mktemp("traced") / "log.jsonl"
    flags = ("--models", str(model_folder), "--otlp-endpoint", receiver.url)
    environment = SEND_OFTEN | {
        "OTEL_SERVICE_NAME": "arm-planner",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20secret",
    }
    with ServerProcess(log, *flags, **environment) as server:
        yield server.wait_ready()


def send_rest(server: ServerProcess, request: dict[str, Any], **headers: str) -> str:
    """Send a plan over REST, and return its request id."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.post(f"{server.url}/plan", json=request, headers=named, timeout=PATIENCE_S)
    request_id: str = response.headers["x-request-id"]
    return request_id


def send_grpc(server: ServerProcess, **metadata: str) -> str:
    """Send the same plan over gRPC, and return its request id."""
    message = pb.PlanRequest(
        frames=[frame(picture(0))], goal=frame(picture(1)), solver=pb.SolverSettings(**SMALL_SOLVER)
    )
    named = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with PlannerClient(server.target) as client:
        answer: pb.PlanResponse = client.stub.Plan(message, metadata=named, timeout=PATIENCE_S)
    return answer.request_id


def check_stages(whole: ReceivedSpan, stages: dict[str, ReceivedSpan]) -> None:
    """The stages follow each other within the request, and belong to its trace."""
    spans = [stages[name].span for name in STAGES]
    assert set(stages) == set(STAGES)
    moment = whole.span.start_time_unix_nano
    for span in spans:
        assert span.trace_id == whole.span.trace_id
        assert span.kind == Span.SPAN_KIND_INTERNAL
        rounding_ns = 10_000
        assert moment - rounding_ns <= span.start_time_unix_nano <= span.end_time_unix_nano
        moment = span.end_time_unix_nano
    assert moment == whole.span.end_time_unix_nano


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_a_plan_is_a_span_of_the_clients_trace(
    traced: ServerProcess, receiver: TraceReceiver, protocol: str
) -> None:
    context = {"traceparent": SAMPLED, "lewm_robot": "arm 7"}
    if protocol == "rest":
        request_id = send_rest(traced, plan(), **context)
    else:
        request_id = send_grpc(traced, **context)
    whole, stages = receiver.wait_request(request_id)
    assert (whole.trace_id, whole.span.parent_span_id.hex()) == (TRACE, SPAN)
    assert whole.span.kind == Span.SPAN_KIND_SERVER
    assert whole.span.status.code == Status.STATUS_CODE_UNSET
    (line,) = traced.wait_logged(request_id)
    assert (line["trace_id"], line["traceparent"], line["robot"]) == (TRACE, SAMPLED, "arm 7")
    by_protocol: dict[str, Any] = {
        "rest": {
            "http.request.method": "POST",
            "http.route": "/plan",
            "url.path": "/plan",
            "url.scheme": "http",
            "http.response.status_code": 200,
        },
        "grpc": {
            "rpc.system.name": "grpc",
            "rpc.method": "lewm.v1.PlannerService/Plan",
            "rpc.response.status_code": "OK",
        },
    }
    names = {"rest": "POST /plan", "grpc": "lewm.v1.PlannerService/Plan"}
    assert whole.span.name == names[protocol]
    assert whole.attributes == by_protocol[protocol] | {
        "lewm.request_id": request_id,
        "lewm.endpoint": "plan",
        "lewm.protocol": protocol,
        "lewm.code": "ok",
        "lewm.model": MODEL_NAME,
        "lewm.robot": "arm 7",
        "lewm.health": "uncalibrated",
        "lewm.plan_status": "completed",
    }
    check_stages(whole, stages)
    for name in ("queue", "decode", "encode", "solve"):
        span = stages[name].span
        milliseconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert milliseconds == pytest.approx(line["timing_ms"][name], abs=0.002)
    assert stages["solve"].attributes == {
        "lewm.solver": "cem",
        "lewm.iterations": 2,
        "lewm.candidates": 33,  # the mean of the last iteration too
    }


def test_the_resource_and_the_headers_follow_the_standard_variables(
    traced: ServerProcess, receiver: TraceReceiver
) -> None:
    whole, _ = receiver.wait_request(send_rest(traced, plan()))
    assert receiver.paths == {"/v1/traces"}
    assert receiver.headers["authorization"] == "Bearer secret"
    assert whole.resource["service.name"] == "arm-planner"
    assert whole.resource["deployment.environment.name"] == "test"
    assert whole.resource["service.version"]
    assert "secret" not in traced.errors()


def test_a_request_without_a_trace_starts_one(
    traced: ServerProcess, receiver: TraceReceiver
) -> None:
    ids = [
        send_rest(traced, plan()),
        send_rest(traced, plan(), traceparent="00-no"),
        send_grpc(traced),
    ]
    traces = set()
    for request_id in ids:
        whole, _ = receiver.wait_request(request_id)
        (line,) = traced.wait_logged(request_id)
        assert line["trace_id"] == whole.trace_id
        assert not whole.span.parent_span_id
        traces.add(whole.trace_id)
    assert len(traces) == 3


def test_the_client_decides_whether_its_trace_is_kept(
    traced: ServerProcess, receiver: TraceReceiver
) -> None:
    unwanted = send_rest(traced, plan(), traceparent=NOT_SAMPLED)
    receiver.wait_request(send_rest(traced, plan()))  # sent later, so the first would be there
    (line,) = traced.wait_logged(unwanted)
    assert line["trace_id"] == TRACE
    assert unwanted not in {span.attributes.get("lewm.request_id") for span in receiver.received}


@pytest.mark.parametrize(
    ("changes", "status", "error"),
    [
        ({"goal": {}}, 422, None),
        ({"model": "nobody"}, 404, None),
        ({"deadline_ms": 1e-6}, 504, "deadline_exceeded"),
    ],
)
def test_only_faults_of_the_server_are_errors(
    traced: ServerProcess,
    receiver: TraceReceiver,
    changes: dict[str, Any],
    status: int,
    error: str | None,
) -> None:
    whole, stages = receiver.wait_request(send_rest(traced, plan(**changes)))
    assert whole.attributes["http.response.status_code"] == status
    assert (whole.span.status.code == Status.STATUS_CODE_ERROR) == (error is not None)
    assert whole.attributes.get("error.type") == error
    assert set(stages) == {"receive"}


def test_a_fallback_shows_its_reason(traced: ServerProcess, receiver: TraceReceiver) -> None:
    request_id = send_rest(traced, plan(deadline_ms=1e-6, fallback=HOLD))
    whole, stages = receiver.wait_request(request_id)
    assert whole.attributes["lewm.plan_status"] == "fallback"
    assert whole.attributes["lewm.fallback.controller"] == "hold"
    assert whole.attributes["lewm.fallback.reason"] == "deadline"
    assert set(stages) == {"receive", "answer"}


def test_names_of_spans_do_not_grow_with_what_clients_call(
    traced: ServerProcess, receiver: TraceReceiver
) -> None:
    unknown = uuid4().hex
    calls = (("GET", f"/{unknown}"), ("PROPFIND", "/plan"), ("GET", f"/v1/models/{MODEL_NAME}"))
    names = []
    for method, path in calls:
        response = httpx.request(method, f"{traced.url}{path}", timeout=PATIENCE_S)
        whole, _ = receiver.wait_request(response.headers["x-request-id"])
        assert whole.attributes["url.path"] == path
        names.append(whole.span.name)
    assert names == ["GET", "HTTP /plan", "GET /models/{name}"]
    with PlannerClient(traced.target) as client, pytest.raises(grpc.RpcError):
        raw_call(client, f"/{unknown}/Plan")(b"", metadata=(("x-request-id", unknown),))
    whole, _ = receiver.wait_request(unknown)
    assert (whole.span.name, whole.attributes["lewm.code"]) == ("_OTHER", "unknown_route")


def test_probes_have_no_spans(traced: ServerProcess, receiver: TraceReceiver) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        assert traced.get(path).status_code == 200
    receiver.wait_request(send_rest(traced, plan()))
    paths = {span.attributes.get("url.path") for span in receiver.received}
    assert not paths & {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"}


def test_a_stuck_receiver_delays_neither_requests_nor_the_end(
    tmp_path: Path, model_folder: Path
) -> None:
    with TraceReceiver(is_stuck=True) as stuck:
        # Spans are sent at the end only. Without a limit, the end would wait for an hour.
        environment = {"OTEL_BSP_SCHEDULE_DELAY": "3600000"} | NEVER_GIVE_UP
        flags = ("--models", str(model_folder))
        log = tmp_path / "log.jsonl"
        with ServerProcess(log, *flags, LEWM_OTLP_ENDPOINT=stuck.url, **environment) as server:
            request_id = send_grpc(server.wait_ready())
            (line,) = server.wait_logged(request_id)
            assert line["code"] == "ok"
            assert server.stop() == 0
        assert stuck.was_asked.is_set()
        assert not stuck.received


REQUEST = Stage("POST /plan", 1.0, 2.0, {"lewm.request_id": "r"})


@pytest.fixture
def quiet_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent in batches of 8, from a queue of 16."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")


@pytest.mark.usefixtures("quiet_exporter")
def test_the_last_spans_are_sent_when_the_tracer_closes() -> None:
    with TraceReceiver() as receiver:
        tracer = RequestTracer(f"{receiver.url}/")
        trace_id = tracer.trace(REQUEST, [], parent=None, is_error=True)
        tracer.close(PATIENCE_S)
        (span,) = receiver.received
    assert span.trace_id == trace_id
    assert span.span.status.code == Status.STATUS_CODE_ERROR
    assert span.span.end_time_unix_nano - span.span.start_time_unix_nano == pytest.approx(1e9)
    assert span.resource["service.name"] == "lewm-serve"
    assert receiver.paths == {"/v1/traces"}


@pytest.mark.usefixtures("quiet_exporter")
@pytest.mark.parametrize("receiver_is", ["down", "stuck"])
def test_spans_without_room_are_dropped(receiver_is: str, caplog: pytest.LogCaptureFixture) -> None:
    with TraceReceiver(is_stuck=True) as stuck, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # takes no connections
        down_url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        tracer = RequestTracer(stuck.url if receiver_is == "stuck" else down_url)
        for _ in range(100):
            assert tracer.trace(REQUEST, [], parent=None, is_error=False)
        tracer.close(timeout_s=0.1)
        stuck.may_answer.set()
    # One line says that spans are dropped. None is about each span or each attempt.
    assert len(caplog.records) <= 3, caplog.text


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318", "https://otel.example.org/a/b"])
def test_usable_addresses_of_a_receiver(endpoint: str) -> None:
    assert load_settings(otlp_endpoint=endpoint).otlp_endpoint == endpoint


@pytest.mark.parametrize(
    "endpoint",
    ["127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:b", "http://a?b", "http://u:secret@a"],
)
def test_bad_addresses_are_refused_and_not_shown(endpoint: str) -> None:
    message = r"LEWM_OTLP_ENDPOINT \(--otlp-endpoint\) is set: expected http:// or https://"
    with pytest.raises(SettingsError, match=message) as caught:
        load_settings(otlp_endpoint=endpoint)
    assert "secret" not in str(caught.value)


def test_a_server_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, RequestTracer.__module__)
    message = r"--otlp-endpoint\) is http://a, .* pip install 'lewm-serve\[tracing\]'"
    with pytest.raises(StartError, match=message):
        Server(load_settings(otlp_endpoint="http://a"))


def test_a_variable_of_opentelemetry_is_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0")
    with pytest.raises(StartError, match=r"cannot use a variable OTEL_…: max_export_batch_size"):
        Server(load_settings(otlp_endpoint="http://a"))


def test_without_tracing_the_log_has_the_clients_trace(server: ServerProcess) -> None:
    for traceparent, trace_id in ((SAMPLED, TRACE), (NOT_SAMPLED, TRACE), ("00-no", None)):
        request_id = send_rest(server, plan(), traceparent=traceparent)
        (line,) = server.wait_logged(request_id)
        assert (line["traceparent"], line.get("trace_id")) == (traceparent, trace_id)
    (line,) = server.wait_logged(send_rest(server, plan()))
    assert not {"trace_id", "traceparent", "robot"} & line.keys()
