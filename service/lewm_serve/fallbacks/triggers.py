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

from lewm_serve.engine.ticket import Ticket
from lewm_serve.errors import DeadlineExceeded, Failed, ServiceError
from lewm_serve.logs import log

Reason = Literal["anomalous", "deadline", "engine_failure"]
REASONS: tuple[Reason, ...] = ("anomalous", "deadline", "engine_failure")
"""Closed, since each is a label of a metric."""

RESERVE_S = 0.02
RESERVE_SHARE = 0.1
"""How long before the request's deadline that of its search lies, for the way back: so many
seconds, or this share of the time there was, where that is less."""


class Anomalous(Exception):
    """What the request shows lies beyond a limit of its model's: no plan of it would be used."""


def search_deadline(deadline: float) -> float:
    """When the search of a request with a fallback is to end; readings of ``time.monotonic()``."""
    if deadline == math.inf:
        return deadline
    left = max(0.0, deadline - time.monotonic())
    return deadline - min(RESERVE_S, RESERVE_SHARE * left)


async def failure_of(
    search: Coroutine[Any, Any, None], ticket: Ticket, deadline: float, request_id: str
) -> Reason | None:
    """Await a search; why it came to nothing, None where it did not.

    At the ticket's deadline, which is `search_deadline`, a search that has no iteration yet is
    given up, whatever it waits for. One that has is about to answer, unless the engine is stuck:
    it is waited for until half of the time from there to the request's ``deadline`` is over.

    Raises:
        ServiceError: the request is wrong, or refused for what is not this request's failure.
    """
    working = asyncio.ensure_future(search)
    try:
        await _wait(working, ticket.deadline)
        if not working.done() and ticket.done:
            await _wait(working, (ticket.deadline + deadline) / 2)
        if not working.done():
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


async def _wait(working: asyncio.Future[None], until: float) -> None:
    """Wait for the end, or until a reading of ``time.monotonic()``."""
    timeout = None if until == math.inf else max(0.0, until - time.monotonic())
    await asyncio.wait({working}, timeout=timeout)
