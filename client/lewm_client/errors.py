"""What a call can end in besides an answer."""

from __future__ import annotations

import grpc


class PlannerError(Exception):
    """What the server, or the way to it, refused.

    `code` is the service's own (`invalid_image`, `overloaded`, …), or the gRPC status in lower
    case where the server did not answer. `retry_after_s` is None where no retry is promised.
    """

    def __init__(self, error: grpc.Call) -> None:
        trailing = dict(error.trailing_metadata() or ())
        self.status = error.code()
        self.detail = error.details() or ""
        self.code = str(trailing.get("code", self.status.name.lower()))
        self.request_id = str(trailing.get("request_id", ""))
        after = trailing.get("retry-after-ms")
        self.retry_after_s = None if after is None else float(after) / 1000
        super().__init__(f"{self.code}: {self.detail}")

    @property
    def temporary(self) -> bool:
        """Whether the same request may be answered another time: the request is not at fault."""
        return self.status in TEMPORARY and self.code not in ITS_OWN_FAULT


TEMPORARY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
)

ITS_OWN_FAULT = ("body_too_large",)
"""What shares a status with those, and would be refused another time as well."""
