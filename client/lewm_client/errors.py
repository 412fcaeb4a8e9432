"""The error that a call raises when it gets no response."""

from __future__ import annotations

import grpc

TEMPORARY_STATUSES = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)
"""Statuses that say nothing against the request itself."""

PERMANENT_CODES = ("body_too_large",)
"""Codes of requests that fail every time, although their status is a temporary one."""


class PlannerError(Exception):
    """The server refused the request, or could not be reached.

    Attributes:
        status: the gRPC status.
        code: the server's code for programs (`invalid_image`, `overloaded`, …). If the server sent
            none, the gRPC status in lower case (`unavailable`, `deadline_exceeded`, …).
        detail: a sentence for people. It names the field, the value and what was expected.
        request_id: the request's id in the server's log, empty if the server sent none.
        retry_after_s: seconds after which the server expects to accept the request; None if it did
            not say.
    """

    def __init__(self, error: grpc.Call) -> None:
        trailing = dict(error.trailing_metadata() or ())
        self.status = error.code()
        self.detail = error.details() or ""
        self.code = str(trailing.get("code", self.status.name.lower()))
        self.request_id = str(trailing.get("request_id", ""))
        after_ms = trailing.get("retry-after-ms")
        self.retry_after_s = None if after_ms is None else float(after_ms) / 1000
        super().__init__(f"{self.code}: {self.detail}")

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later. If not, the request itself is wrong."""
        return self.status in TEMPORARY_STATUSES and self.code not in PERMANENT_CODES
