"""When a fallback answers: the planner failed, had no time, or looked at what it does not know.

Never when the server is overloaded, which the client has to know, nor for a request that is wrong.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

from service.engine.ticket import Ticket
from service.errors import DeadlineExceeded, Failed, ServiceError
from service.logs import log

Reason = Literal["anomalous", "deadline", "engine_failure"]
REASONS: tuple[Reason, ...] = ("anomalous", "deadline", "engine_failure")
"""Closed, since each is a label of a metric."""

RESERVE_S = 0.02
RESERVE_SHARE = 0.1
"""How long before the deadline a search without an iteration is given up, for the way back: so many
seconds, or this share of the time there was, where that is less."""


class Anomalous(Exception):
    """What the request shows lies beyond a limit of its model's: no plan of it would be used."""


async def failure_of(
    search: Coroutine[Any, Any, None], ticket: Ticket, request_id: str
) -> Reason | None:
    """Await a search; why it came to nothing, None where it did not.

    Just before the ticket's deadline, a search that has no iteration yet is given up, whatever it
    waits for; one that has is waited for, as without a fallback.

    Raises:
        ServiceError: the request is wrong, or refused for what is not this request's failure.
    """
    working = asyncio.ensure_future(search)
    try:
        await asyncio.wait({working}, timeout=_patience(ticket))
        if not working.done() and not ticket.done:
            return "deadline"
        await working
    except Anomalous:
        return "anomalous"
    except DeadlineExceeded:
        return "deadline"
    except Failed:
        return "engine_failure"
    except ServiceError:
        raise
    except Exception:
        log.exception("the search failed, its fallback answers", request_id=request_id)
        return "engine_failure"
    finally:
        if not working.done():
            working.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await working
    return None


def _patience(ticket: Ticket) -> float | None:
    """Seconds until the search is given up, None where it has all the time in the world."""
    if ticket.deadline == math.inf:
        return None
    left = ticket.deadline - time.monotonic()
    return max(0.0, left - min(RESERVE_S, RESERVE_SHARE * left))
