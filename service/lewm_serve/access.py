"""A request being answered, and the one line and the one count that it leaves behind."""

import time
from dataclasses import dataclass, replace

from lewm_serve.context import RequestContext
from lewm_serve.logs import log
from lewm_serve.metrics import OK, Metrics
from lewm_serve.responses import EncodeResponse, PlanResponse, PredictResponse

Response = EncodeResponse | PredictResponse | PlanResponse


@dataclass
class Exchange:
    """What is known so far: ``model`` as `Planner.label` has it, None where none was read."""

    context: RequestContext
    model: str | None = None
    code: str = OK
    response: Response | None = None

    def arrived(self) -> RequestContext:
        """The context from now on: deadlines and durations do not count the upload."""
        self.context = replace(self.context, received=time.monotonic())
        return self.context


def record(metrics: Metrics, exchange: Exchange, status: int | str) -> None:
    """Count a request and log it, without anything of its content."""
    context = exchange.context
    duration = time.monotonic() - context.received
    metrics.requests_total.labels(context.endpoint, context.protocol, exchange.code).inc()
    metrics.request_duration.labels(context.endpoint, context.protocol).observe(duration)
    line: dict[str, object] = {
        "request_id": context.request_id,
        "endpoint": context.endpoint,
        "protocol": context.protocol,
        "code": exchange.code,
        "status": status,
        "duration_ms": round(1000 * duration, 3),
    }
    if exchange.model is not None:
        line["model"] = exchange.model
    if exchange.response is not None:
        line |= _told(exchange.response)
    if context.traceparent is not None:
        line["traceparent"] = context.traceparent
    log.info("request", **line)


def _told(response: Response) -> dict[str, object]:
    """What an answer's line says beyond a refusal's."""
    timing = vars(response.timing_ms)
    told: dict[str, object] = {
        "health": response.health.status,
        "timing_ms": {stage: round(spent, 3) for stage, spent in timing.items()},
    }
    if isinstance(response, PlanResponse):
        told["plan_status"] = response.status
        if response.fallback is not None:
            told["fallback"] = vars(response.fallback)
    return told
