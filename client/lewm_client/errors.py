"""The error that a call raises when it gets no response."""

from __future__ import annotations

from typing import Any

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

NO_CONNECTION = "failed to connect"
"""How gRPC's message begins if there was no connection for the call."""

CONNECTION_PROBLEMS = (
    ("certificate has expired", "the server's certificate has expired"),
    ("certificate is not yet valid", "the server's certificate is not valid yet"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is not from a certificate authority that `tls` trusts",
    ),
    ("Hostname Verification", "the server's certificate is for another name than the target's"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS on this port"),
    ("security handshaker", "the PEM data of `tls`, `certificate` or `key` cannot be used"),
    (
        "Socket closed",
        "the server closed the connection at once; it may require TLS, or a client certificate "
        "that it trusts",
    ),
)
"""Parts of gRPC's messages about a connection that failed, and what they mean."""


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
        lost: whether the call found no server that takes requests, or lost it before the answer.
    """

    request_id = ""
    retry_after_s: float | None = None

    def __init__(self, error: grpc.Call) -> None:
        trailing = dict(error.trailing_metadata() or ())
        self.status = error.code()
        self.detail = _explain(error.details() or "")
        self.code = str(trailing.get("code", self.status.name.lower()))
        # The server never sends INTERNAL without a code. Ray does, if the planner's process ends.
        self.lost = self.status is grpc.StatusCode.UNAVAILABLE or (
            self.status is grpc.StatusCode.INTERNAL and "code" not in trailing
        )
        self.request_id = str(trailing.get("request_id", ""))
        after_ms = trailing.get("retry-after-ms")
        self.retry_after_s = None if after_ms is None else float(after_ms) / 1000
        super().__init__(f"{self.code}: {self.detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """How pickle makes the error again, for example after a call in another process."""
        return _restore, (type(self), self.args, vars(self))

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later. If not, the request itself is wrong."""
        return self.status in TEMPORARY_STATUSES and self.code not in PERMANENT_CODES


class PlanOverdue(PlannerError):
    """The robot needs its next actions now, and the plan has not arrived yet."""

    def __init__(self) -> None:
        self.status = grpc.StatusCode.DEADLINE_EXCEEDED
        self.lost = False
        self.code = "overdue"
        self.detail = "the last plan is at its end, and the next one has not arrived yet"
        Exception.__init__(self, f"{self.code}: {self.detail}")


def _explain(detail: str) -> str:
    """gRPC's message, with what it means in front if it is about a failed connection."""
    if detail.startswith(NO_CONNECTION):
        for part, meaning in CONNECTION_PROBLEMS:
            if part in detail:
                return f"{meaning} ({detail})"
    return detail


def _restore(
    kind: type[PlannerError], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> PlannerError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error
