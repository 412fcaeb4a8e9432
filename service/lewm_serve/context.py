"""Where a request came from and until when its answer is of use."""

import math
import re
import uuid
from dataclasses import dataclass
from typing import Literal

Endpoint = Literal["encode", "predict", "plan", "models", "other"]
Protocol = Literal["rest", "grpc"]


@dataclass(frozen=True)
class RequestContext:
    """What a transport knows about a request besides its content.

    `received` and `deadline` are readings of `time.monotonic()` in seconds. `deadline` is the
    transport's own (a gRPC call's, less a margin for the way back); a plan's `deadline_ms` counts
    from `received`, and the earlier of the two holds.
    """

    request_id: str
    endpoint: Endpoint
    protocol: Protocol
    received: float
    deadline: float | None = None
    traceparent: str | None = None

    def until(self, deadline_ms: float | None = None) -> float:
        """The earlier of the transport's and the request's own deadline; infinitely far without."""
        transport = math.inf if self.deadline is None else self.deadline
        own = math.inf if deadline_ms is None else self.received + deadline_ms / 1000
        return min(transport, own)


def plain(header: str | None) -> str | None:
    """A header's value where it is 1 to 128 printable characters, fit for logs and headers."""
    fit = header is not None and re.fullmatch(r"[\x20-\x7e]{1,128}", header)
    return header if fit else None


def request_id_of(received: str | None) -> str:
    """The client's own request id where it is plain, else a new one."""
    return plain(received) or uuid.uuid4().hex
