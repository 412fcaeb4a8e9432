"""Traces: one span for each request, with its stages as children, sent by OTLP over HTTP.

The spans of a request are made at its end, from the times that its answer holds. So a request in
progress does no work for them. A thread of OpenTelemetry sends them. Whatever the receiver does,
requests do not wait: spans that find no room in the queue are dropped.

This module needs the extra `tracing`. Only a server with `LEWM_OTLP_ENDPOINT` imports it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_trace_id,
    set_span_in_context,
)

from lewm_serve.observability.traceparent import TraceParent

SERVICE_NAME = "lewm-serve"
TRACES_PATH = "/v1/traces"

EXPORTER_LOG = "opentelemetry.exporter"

Attributes = Mapping[str, str | int | float]


@dataclass(frozen=True)
class Stage:
    """A part of a request: readings of `time.monotonic()` in seconds."""

    name: str
    started: float
    ended: float
    attributes: Attributes = field(default_factory=dict)


class RequestTracer:
    """Makes the spans of requests, and sends them to a receiver.

    OpenTelemetry reads the variables `OTEL_…` for all but the receiver's address: for example
    `OTEL_SERVICE_NAME`, `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`.

    Args:
        endpoint: the address of the receiver, without `/v1/traces`.
    """

    def __init__(self, endpoint: str) -> None:
        attributes = {"service.name": SERVICE_NAME, "service.version": version("lewm-serve")}
        resource = Resource.create({**attributes, **OTELResourceDetector().detect().attributes})
        # Not the global provider, for which FastAPI would make spans too.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lewm_serve", attributes["service.version"])
        # One line for each failure, and none for each of its attempts.
        for module in (f"{EXPORTER_LOG}.otlp.proto.http.trace_exporter", f"{EXPORTER_LOG}.otlp"):
            logging.getLogger(module).setLevel(logging.ERROR)

    def trace(
        self, whole: Stage, stages: list[Stage], *, parent: TraceParent | None, is_error: bool
    ) -> str | None:
        """Make the span of a request and of its stages.

        Args:
            whole: the request.
            stages: its parts.
            parent: the client's span. None: the request starts a trace.
            is_error: whether the request failed by a fault of the server.

        Returns:
            The trace's id: 32 hexadecimal digits. None if OpenTelemetry is disabled.
        """
        # Spans have the time of the system's clock, which may have been set meanwhile.
        offset_s = time.time() - time.monotonic()

        def wall_ns(reading: float) -> int:
            return int(1e9 * (reading + offset_s))

        span = self._tracer.start_span(
            whole.name,
            context=_context_of(parent),
            kind=SpanKind.SERVER,
            attributes=whole.attributes,
            start_time=wall_ns(whole.started),
        )
        if span.is_recording():
            context = set_span_in_context(span)
            for stage in stages:
                child = self._tracer.start_span(
                    stage.name,
                    context=context,
                    attributes=stage.attributes,
                    start_time=wall_ns(stage.started),
                )
                child.end(wall_ns(stage.ended))
            if is_error:
                span.set_status(StatusCode.ERROR)
            span.end(wall_ns(whole.ended))
        span_context = span.get_span_context()
        return format_trace_id(span_context.trace_id) if span_context.is_valid else None

    def close(self, timeout_s: float) -> None:
        """Send what is left, for a limited time."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(timeout_s)


def _context_of(parent: TraceParent | None) -> Context:
    if parent is None:
        return Context()
    span_context = SpanContext(
        trace_id=int(parent.trace_id, 16),
        span_id=int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
    )
    return set_span_in_context(NonRecordingSpan(span_context), Context())
