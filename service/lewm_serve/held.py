"""The bytes of requests that the server holds at once, of both transports together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lewm_serve.errors import Overloaded

RETRY_S = 1.0


class HeldBytes:
    """Counts what requests hold until they are answered, up to a limit. Lives on the event loop.

    A body of JSON takes about four times its bytes while it is read: as text, as a document, as
    arrays.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0

    @contextmanager
    def request(self) -> Iterator[HeldRequest]:
        """One request, whose bytes count until the end of the block."""
        held = HeldRequest(self)
        try:
            yield held
        finally:
            self.total -= held.size


class HeldRequest:
    """What one request holds."""

    def __init__(self, all_requests: HeldBytes) -> None:
        self._all = all_requests
        self.size = 0

    def add(self, size: int) -> None:
        """Count bytes that arrived.

        Raises:
            Overloaded: with them the server would hold more than its limit.
        """
        if self._all.total + size > self._all.limit:
            detail = f"requests of {self._all.total} bytes are being held; try again"
            raise Overloaded(RETRY_S, detail)
        self.size += size
        self._all.total += size
