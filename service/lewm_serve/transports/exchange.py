"""One request in any transport: its work, its memory, its log line, metrics and spans."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from lewm_serve.api.requests import RequestContext
from lewm_serve.api.responses import EncodeResponse, PlanResponse, PredictResponse
from lewm_serve.constants import OK_CODE
from lewm_serve.errors import Cancelled, Draining, Failed, Loading, Overloaded, Restarting
from lewm_serve.observability.logging import log
from lewm_serve.observability.metrics import Metrics
from lewm_serve.observability.traceparent import TraceParent, parse_traceparent
from lewm_serve.planner.planner import Planner

if TYPE_CHECKING:
    from lewm_serve.observability.recent_requests import RecentRequests
    from lewm_serve.observability.tracing import RequestTracer

Response = EncodeResponse | PredictResponse | PlanResponse

T = TypeVar("T")

LARGE_DOCUMENT_BYTES = 256 * 1024
"""Larger documents are read and written in a thread. On the event loop they would delay all other
requests."""

MEMORY_RETRY_AFTER_S = 1.0
"""`Retry-After` when the requests in progress take all the memory that they may."""


@dataclass
class Exchange:
    """What is known so far of a request and its answer.

    Attributes:
        context: where the request came from.
        operation: what it called, as attributes of OpenTelemetry's semantic conventions.
        model: the model that it names, as `Planner.log_label` gives it.
        code: how it ended: ``ok`` or the code of an error.
        response: the answer, if it was not refused.
        awaits_body: whether the request has a body that has not been read.
        is_recorded: False for the head that starts a WebSocket. Its messages are recorded.
        started: when its head arrived, a reading of `time.monotonic()` in seconds.
    """

    context: RequestContext
    operation: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    code: str = OK_CODE
    response: Response | None = None
    awaits_body: bool = False
    is_recorded: bool = True
    started: float = field(default_factory=time.monotonic)

    def mark_received(self) -> RequestContext:
        """Restart the clock of deadlines and durations, so that the upload does not count."""
        self.awaits_body = False
        self.context = replace(self.context, received=time.monotonic())
        return self.context


def exchange_of(scope: MutableMapping[str, Any]) -> Exchange:
    """The exchange that the middleware started for an HTTP request, by the request's scope."""
    exchange = scope["lewm.exchange"]
    assert isinstance(exchange, Exchange)
    return exchange


class RequestRecorder:
    """Counts requests, writes their lines of the access log, and makes their spans.

    Args:
        metrics: where requests are counted.
        tracer: what makes spans. None: there are none.
        recent: what keeps the last requests. None: nothing does.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracer: RequestTracer | None = None,
        recent: RecentRequests | None = None,
    ) -> None:
        self._metrics = metrics
        self._tracer = tracer
        self._recent = recent

    def record(self, exchange: Exchange, status: int | str) -> None:
        """Record a request that has ended, without any of its content."""
        context = exchange.context
        ended = time.monotonic()
        duration_s = ended - context.received
        metrics, code = self._metrics, exchange.code
        metrics.requests_total.labels(context.endpoint, context.protocol, code).inc()
        metrics.request_duration.labels(context.endpoint, context.protocol).observe(duration_s)
        line: dict[str, object] = {
            "request_id": context.request_id,
            "endpoint": context.endpoint,
            "protocol": context.protocol,
            "code": code,
            "status": status,
            "duration_ms": round(1000 * duration_s, 3),
        }
        if exchange.model is not None:
            line["model"] = exchange.model
        if context.key is not None:
            line["key"] = context.key
        if context.robot is not None:
            line["robot"] = context.robot
        if exchange.response is not None:
            line |= _response_fields(exchange.response)
        if self._recent is not None:
            self._recent.add(line, ended)
        parent: TraceParent | None = None
        if context.traceparent is not None:
            line["traceparent"] = context.traceparent
            parent = parse_traceparent(context.traceparent)
        trace_id = None if parent is None else parent.trace_id
        if self._tracer is not None:
            from lewm_serve.transports.spans import trace_exchange

            trace_id = trace_exchange(
                self._tracer, exchange, status, line=line, parent=parent, ended=ended
            )
        if trace_id is not None:
            line["trace_id"] = trace_id
        log.info("request", **line)


def _response_fields(response: Response) -> dict[str, object]:
    """What the log line of an answer has beside that of a refusal."""
    timing = vars(response.timing_ms)
    fields: dict[str, object] = {
        "health": response.health.status,
        "timing_ms": {stage: round(milliseconds, 3) for stage, milliseconds in timing.items()},
    }
    if isinstance(response, PlanResponse):
        fields["plan_status"] = response.status
        if response.fallback is not None:
            fields["fallback"] = vars(response.fallback)
    return fields


class RequestMemory:
    """Counts the received bytes of all requests in progress and of large answers, up to a limit.

    The memory that they take is larger: about four times the size of a JSON body while it is read,
    as text, as a document and as arrays. Used only from the event loop.

    Attributes:
        limit: the most bytes.
        total: the bytes that were received.
        incomplete: the bytes of gRPC messages that are being received, as they were last measured.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.incomplete = 0

    @contextmanager
    def reserve(self) -> Iterator[MemoryReservation]:
        """The memory of one request, until the end of the block."""
        reservation = MemoryReservation(self)
        try:
            yield reservation
        finally:
            reservation.release()


class MemoryReservation:
    """The bytes of one request."""

    def __init__(self, memory: RequestMemory) -> None:
        self._memory = memory
        self.size = 0

    def add(self, size: int) -> None:
        """Count bytes.

        Raises:
            Overloaded: the server would hold more than its limit.
        """
        held = self._memory.total + self._memory.incomplete
        # If nothing else is held, a single large answer is possible.
        if held and held + size > self._memory.limit:
            detail = f"the requests in progress hold {held} bytes; try again"
            raise Overloaded(MEMORY_RETRY_AFTER_S, detail)
        self.size += size
        self._memory.total += size

    def release(self) -> None:
        """Count the bytes no longer."""
        self._memory.total -= self.size
        self.size = 0


async def in_thread_if_large(size: int, work: Callable[[], T]) -> T:
    """The result of the work, in a thread if the document is large. A thread takes time to wake."""
    return await asyncio.to_thread(work) if size > LARGE_DOCUMENT_BYTES else work()


async def cancel_when_gone(wait_gone: Callable[[], Awaitable[object]], work: Awaitable[T]) -> T:
    """The result of the work. If the client goes away first, the work is cancelled.

    Args:
        wait_gone: waits until the client goes away.
        work: what is done for the client.

    Raises:
        Cancelled: the client went away.
    """
    working = asyncio.current_task()
    assert working is not None
    has_gone = False

    async def watch() -> None:
        nonlocal has_gone
        await wait_gone()
        has_gone = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if not has_gone:
            raise
        working.uncancel()
        raise Cancelled from None
    finally:
        watching.cancel()


def check_accepts(planner: Planner) -> None:
    """Refuse a request before its body is read.

    Without an engine, a plan may still get its fallback: then the planner decides.

    Raises:
        Loading, Draining: the planner takes no requests.
    """
    match planner.state:
        case "loading":
            raise Loading
        case "draining":
            raise Draining


def check_ready(planner: Planner) -> None:
    """Refuse unless clients should send their requests to this server.

    Raises:
        Loading, Restarting, Draining, Failed: they should not.
    """
    match planner.state:
        case "loading":
            raise Loading
        case "restarting":
            raise Restarting(planner.retry_after_s)
        case "leaving" | "draining":
            raise Draining
        case "failed":
            raise Failed
