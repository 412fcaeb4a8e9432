"""The door: who comes in, who is inside, and what those are told who cannot be served."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lewm_serve.context import Endpoint, RequestContext
from lewm_serve.engine.admission import Admission, Refused
from lewm_serve.engine.engine import Engine, EngineStopped
from lewm_serve.engine.jobs import DeadlinePassed
from lewm_serve.engine.ticket import Ticket
from lewm_serve.errors import DeadlineExceeded, Draining, Failed, Overloaded


class Entrance:
    """Lets requests in by their tickets, until it is closed. Lives on the event loop."""

    def __init__(self, engine: Engine, admission: Admission) -> None:
        self._engine = engine
        self._admission = admission
        self._inside: dict[Endpoint, set[Ticket]] = defaultdict(set)
        self._empty = asyncio.Event()
        self._empty.set()
        self.closed = False

    @contextmanager
    def admitted(self, ticket: Ticket, context: RequestContext) -> Iterator[None]:
        """Decide on a request before any work is done for it; it counts until it leaves.

        Raises:
            ServiceError: it may not come in, or was refused further on.
        """
        if self.closed:
            raise Draining
        try:
            self._admission.admit(ticket)
        except Refused as refused:
            raise Overloaded(refused.retry_after_s, str(refused)) from None
        except DeadlinePassed:
            raise _too_late(context) from None
        inside = self._inside[context.endpoint]
        inside.add(ticket)
        self._empty.clear()
        try:
            yield
        except EngineStopped:
            raise (Failed if self._engine.failed else Draining) from None
        except DeadlinePassed:
            raise _too_late(context) from None
        finally:
            inside.remove(ticket)
            self._admission.leave(ticket)
            if not self._admission:
                self._empty.set()

    def waiting(self, endpoint: Endpoint) -> int:
        """Requests inside that the engine has not begun to work on; encodes until they are done."""
        return sum(not ticket.begun for ticket in tuple(self._inside[endpoint]))

    async def empty(self, timeout_s: float) -> None:
        """Wait until nobody is inside, for ``timeout_s`` at most."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)


def _too_late(context: RequestContext) -> DeadlineExceeded:
    waited = 1000 * (time.monotonic() - context.received)
    return DeadlineExceeded(
        "deadline: received one that leaves no time for the iterations asked for, "
        f"expected a later one ({waited:.0f} ms have passed since the request arrived)"
    )
