"""What a transport knows about a request besides its content."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import dataclass

from lewm_serve.constants import Endpoint, Protocol

PRINTABLE = re.compile(r"[\x20-\x7e]{1,128}")
"""Header values that are safe to repeat in logs and headers."""


@dataclass(frozen=True)
class RequestContext:
    """Where a request came from, and until when its answer is useful.

    ``received`` and ``deadline`` are readings of `time.monotonic()` in seconds. ``deadline`` is
    that of the transport: a gRPC call's deadline, less the time that the answer needs to travel.
    """

    request_id: str
    endpoint: Endpoint
    protocol: Protocol
    received: float
    deadline: float | None = None
    traceparent: str | None = None

    def earliest_deadline(self, deadline_ms: float | None = None) -> float:
        """The transport's deadline or the request's own, whichever is earlier.

        ``deadline_ms`` counts from ``received``. Infinity where there is no deadline.
        """
        of_transport = math.inf if self.deadline is None else self.deadline
        of_request = math.inf if deadline_ms is None else self.received + deadline_ms / 1000
        return min(of_transport, of_request)


def printable_or_none(header: str | None) -> str | None:
    """The header's value if it has 1 to 128 printable ASCII characters, else None."""
    return header if header is not None and PRINTABLE.fullmatch(header) else None


def request_id_from(header: str | None) -> str:
    """The client's own request id, or a new one if it sent none that can be used."""
    return printable_or_none(header) or uuid.uuid4().hex
