"""The spans of a request, from what is known at its end.

An answer says how long each stage took. The stages follow each other up to the end of the
planner's work, so their starts are computed backwards from there. What is before them is the
reading, the validation and the admission of the request.
"""

from collections.abc import Mapping
from typing import Any

from lewm_serve.api.responses import PlanResponse
from lewm_serve.observability.traceparent import TraceParent
from lewm_serve.observability.tracing import RequestTracer, Stage
from lewm_serve.transports.exchange import Exchange

TIMED_STAGES = ("solve", "queue", "encode", "decode")
"""The stages whose times an answer holds, the last one first."""

LOGGED_ATTRIBUTES = (
    "request_id",
    "endpoint",
    "protocol",
    "code",
    "model",
    "robot",
    "health",
    "plan_status",
)
"""The fields of the log line that are attributes too: `lewm.request_id` and so on."""

SERVER_FAULTS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE")
"""The statuses of gRPC with which a server's span counts as failed. The others are errors of the
client."""


def trace_exchange(
    tracer: RequestTracer,
    exchange: Exchange,
    status: int | str,
    *,
    line: Mapping[str, Any],
    parent: TraceParent | None,
    ended: float,
) -> str | None:
    """Make the spans of a request that has ended.

    Args:
        tracer: what makes the spans.
        exchange: the request.
        status: its HTTP or gRPC status.
        line: its line of the access log.
        parent: the client's span.
        ended: when it ended, a reading of `time.monotonic()` in seconds.

    Returns:
        The trace's id, or None if OpenTelemetry is disabled.
    """
    operation = exchange.operation
    attributes: dict[str, str | int] = {**operation}
    attributes |= {f"lewm.{name}": line[name] for name in LOGGED_ATTRIBUTES if name in line}
    for name, value in line.get("fallback", {}).items():
        attributes[f"lewm.fallback.{name}"] = value
    if isinstance(status, int):
        attributes["http.response.status_code"] = status
        is_error = status >= 500
    else:
        attributes["rpc.response.status_code"] = status
        is_error = status in SERVER_FAULTS
    if is_error:
        attributes["error.type"] = exchange.code
    started = min(exchange.started, exchange.context.received)
    whole = Stage(_name(operation), started, ended, attributes)
    return tracer.trace(whole, _stages(exchange, ended), parent=parent, is_error=is_error)


def _name(operation: Mapping[str, str]) -> str:
    """A name of few values: the method of gRPC, or the method and the route of HTTP."""
    if "rpc.method" in operation:
        return operation["rpc.method"]
    method = operation.get("http.request.method", "_OTHER").replace("_OTHER", "HTTP")
    return f"{method} {operation['http.route']}" if "http.route" in operation else method


def _stages(exchange: Exchange, ended: float) -> list[Stage]:
    received, response = exchange.context.received, exchange.response
    stages = []
    if exchange.started < received:
        stages.append(Stage("receive", exchange.started, received))
    if response is None:
        return stages
    planned = received + response.timing_ms.total / 1000
    stage_ended = planned
    for name in TIMED_STAGES:
        seconds = getattr(response.timing_ms, name) / 1000
        if seconds > 0:
            attributes = _search_attributes(response) if name == "solve" else {}
            stages.append(Stage(name, stage_ended - seconds, stage_ended, attributes))
        stage_ended -= seconds
    stages.append(Stage("answer", planned, ended))
    return sorted(stages, key=lambda stage: stage.started)


def _search_attributes(response: object) -> dict[str, str | int]:
    if not isinstance(response, PlanResponse):
        return {}
    return {
        "lewm.solver": response.solver["name"],
        "lewm.iterations": response.iterations,
        "lewm.candidates": response.candidates,
    }
