"""A receiver of traces by OTLP over HTTP, that decodes what it gets."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.patience import wait_until


@dataclass(frozen=True)
class ReceivedSpan:
    """One span, with the attributes of the process that sent it."""

    span: Span
    attributes: dict[str, Any]
    resource: dict[str, Any]

    @property
    def trace_id(self) -> str:
        """The trace's id in hexadecimal digits."""
        return self.span.trace_id.hex()


class TraceReceiver(ThreadingHTTPServer):
    """Listens on a free port.

    Args:
        is_stuck: whether it takes requests and never answers them.

    Attributes:
        paths: the paths to which traces were sent.
        headers: the headers of the newest request.
    """

    daemon_threads = True

    def __init__(self, *, is_stuck: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.paths: set[str] = set()
        self.headers: dict[str, str] = {}
        self.received: list[ReceivedSpan] = []
        self.was_asked = threading.Event()
        self.may_answer = threading.Event()
        if not is_stuck:
            self.may_answer.set()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        """Its address, as the server's setting expects it."""
        return f"http://127.0.0.1:{self.server_port}"

    def wait_request(self, request_id: str) -> tuple[ReceivedSpan, dict[str, ReceivedSpan]]:
        """Wait for a request's own span. It, and its children by name, which come before it."""
        found: list[ReceivedSpan] = []

        def has_come() -> bool:
            found[:] = [
                span
                for span in tuple(self.received)
                if span.attributes.get("lewm.request_id") == request_id
            ]
            return bool(found)

        wait_until(has_come, f"the span of {request_id}")
        (whole,) = found
        children = [
            span for span in self.received if span.span.parent_span_id == whole.span.span_id
        ]
        assert len({child.span.name for child in children}) == len(children)
        return whole, {child.span.name: child for child in children}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.may_answer.set()
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: TraceReceiver

    def do_POST(self) -> None:
        """Take spans."""
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.was_asked.set()
        self.server.may_answer.wait()
        self.server.paths.add(self.path)
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.received += _spans(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not print each request."""


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        resource = _values(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(span, _values(span.attributes), resource)


def _values(attributes: Any) -> dict[str, Any]:
    def value_of(value: AnyValue) -> Any:
        kind = value.WhichOneof("value")
        assert kind is not None
        return getattr(value, kind)

    pairs: list[KeyValue] = list(attributes)
    return {pair.key: value_of(pair.value) for pair in pairs}
