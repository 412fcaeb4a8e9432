"""The one line and the one count that every answered request leaves behind."""

import time

from service.context import RequestContext
from service.logs import log
from service.metrics import OK, Metrics
from service.responses import EncodeResponse, PlanResponse, PredictResponse

Response = EncodeResponse | PredictResponse | PlanResponse


def record(
    metrics: Metrics,
    context: RequestContext,
    *,
    status: int | str,
    code: str = OK,
    response: Response | None = None,
) -> None:
    """Count a request and log it, without anything of its content."""
    duration = time.monotonic() - context.received
    metrics.requests_total.labels(context.endpoint, context.protocol, code).inc()
    metrics.request_duration.labels(context.endpoint, context.protocol).observe(duration)
    line: dict[str, object] = {
        "request_id": context.request_id,
        "endpoint": context.endpoint,
        "protocol": context.protocol,
        "code": code,
        "status": status,
        "duration_ms": round(1000 * duration, 3),
    }
    if response is not None:
        timing = vars(response.timing_ms)
        line["model"] = response.model
        line["timing_ms"] = {stage: round(spent, 3) for stage, spent in timing.items()}
    if context.traceparent is not None:
        line["traceparent"] = context.traceparent
    log.info("request", **line)
