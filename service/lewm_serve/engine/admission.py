"""Who may come in, by a forecast of the queue."""

from __future__ import annotations

import heapq
import math
import time
from bisect import insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lewm_serve.engine.jobs import DeadlinePassed
from lewm_serve.engine.ticket import Ticket

MARGIN = 0.1
"""What is ahead may take longer than expected by this share of it, and by more after surprises."""

BROKEN, KEPT, MOST = 0.1, 0.005, 1.0
"""How much a broken promise adds to the margin, how much a kept one takes away, and its limit: on
a machine that has more to do than it was measured with, about one promise in twenty is broken."""

CUT = 0.9
"""The share of its iterations that a plan which its deadline cuts short anyway insists on."""

ROUNDING_S = 1e-6


class Refused(Exception):
    """The queue is too long: ``retry_after_s`` is when it is expected to be short enough."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Admission:
    """The tickets inside, most urgent first, and the rule by which others join them.

    A plan is admitted if the queue does not cost it iterations that an idle server would give it
    before its deadline, and if it does not cost those inside, of the same or a higher priority,
    what they were promised. One that its deadline cuts short anyway may lose a tenth, or a moment's
    encode would have it refused. Frames are encoded as they come, and are refused only if they
    would come too late themselves. ``free_at`` says when what runs now is expected to end.
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        free_at: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._free_at = free_at
        self._tickets: list[Ticket] = []
        self._margin = MARGIN

    def __len__(self) -> int:
        return len(self._tickets)

    def admit(self, ticket: Ticket) -> None:
        """Let a ticket in; `leave` must follow.

        Raises:
            DeadlinePassed: even an idle server could not serve it in time.
            Refused: this one cannot now; it may later.
        """
        now = self._clock()
        left_s = ticket.deadline - now
        alone = ticket.within(left_s - ticket.prepare_s)
        if alone < ticket.least or left_s < ticket.prepare_s:
            raise DeadlinePassed
        if len(self._tickets) >= self._limit:
            exit_s = min(place.end_s for place in self._forecast(self._tickets, now))
            raise Refused("the queue is full", exit_s)
        ticket.promise(alone if alone == len(ticket.rows) else math.ceil(CUT * alone))
        self._check(ticket, now)
        insort(self._tickets, ticket, key=_urgency)

    def leave(self, ticket: Ticket) -> None:
        """A ticket is done with, whatever became of it."""
        self._tickets.remove(ticket)
        if ticket.deadline == math.inf or not ticket.rows:
            return
        if ticket.done >= ticket.need:
            self._margin = max(MARGIN, self._margin - KEPT)
        elif not ticket.in_time(self._clock()):  # nor did the client merely go away
            self._margin = min(MOST, self._margin + BROKEN)

    def _check(self, ticket: Ticket, now: float) -> None:
        if ticket.deadline == math.inf and all(one.deadline == math.inf for one in self._tickets):
            return
        together = self._tickets.copy()
        insort(together, ticket, key=_urgency)
        after = self._forecast(together, now, newcomer=ticket)
        late_s = next(place.late_s for place in after if place.ticket is ticket)
        harmed = self._harmed(ticket, after, now)
        if harmed:
            wait_s = max(late_s, *(place.end_s for place in harmed))
            raise Refused("plans already admitted would not end in time", wait_s)
        if late_s > 0:
            raise Refused("the queue ahead leaves too little time before the deadline", late_s)

    def _harmed(self, ticket: Ticket, after: Sequence[Place], now: float) -> list[Place]:
        """Those inside whom a newcomer would cost what they were promised."""
        granted = {
            id(place.ticket): place.granted
            for place in after
            if place.late_s > 0 and place.ticket.priority >= ticket.priority
        }
        if not granted or not ticket.rows:
            return []
        # Whom the queue as it is makes late already, the newcomer must not make later.
        return [
            place
            for place in self._forecast(self._tickets, now)
            if granted.get(id(place.ticket), math.inf) < min(place.granted, place.ticket.need)
        ]

    def _forecast(
        self, tickets: Sequence[Ticket], now: float, newcomer: Ticket | None = None
    ) -> list[Place]:
        busy_s = max(0.0, self._free_at() - now)
        return forecast(tickets, now, busy_s, newcomer, self._margin)


class Place(NamedTuple):
    """What the queue is expected to hold for a ticket, in seconds from now.

    It is begun at ``start_s`` at the latest and left at ``end_s``; ``granted`` iterations are done
    by its deadline, and what it was promised comes ``late_s`` after it (0 and less: in time).
    """

    ticket: Ticket
    start_s: float
    end_s: float
    granted: int
    late_s: float


def forecast(
    tickets: Sequence[Ticket],
    now: float,
    busy_s: float,
    newcomer: Ticket | None = None,
    margin: float = MARGIN,
) -> list[Place]:
    """What awaits tickets in the order of their urgency, if no others come.

    What runs now ends in ``busy_s`` seconds, and all waiting frames are encoded; plans then follow
    one another, as many abreast as a packed roll-out holds, each until it is done or its deadline
    passes. One whose frames are not yet encoded may find another's step under way when they are.
    Only a newcomer is to get all that it would be promised, even late: that is what it would cost
    the others when it comes again.
    """
    prepare_s = sum(ticket.prepare_s for ticket in tickets)
    abreast = _abreast(tickets)
    free = [busy_s + prepare_s] * abreast
    step_s = 0.0
    if any(ticket.frames for ticket in tickets):
        step_s = max((ticket.step_s for ticket in tickets if ticket is not newcomer), default=0.0)
    places = []
    for ticket in tickets:
        left_s = ticket.deadline - now
        start_s = heapq.heappop(free) if ticket.rows else busy_s + prepare_s
        end_s = min(start_s + ticket.solve_s(share=abreast), max(start_s, left_s))
        if ticket is newcomer:
            end_s = max(end_s, start_s + ticket.solve_s(ticket.need, abreast))
        if ticket.rows:
            heapq.heappush(free, end_s)
        if ticket.frames:
            start_s = max(start_s, busy_s + prepare_s + step_s)
        start_s += margin * (start_s - ticket.prepare_s)
        granted, late_s = len(ticket.rows), -math.inf
        if left_s < math.inf:
            granted = ticket.within(left_s - start_s, abreast)
            late_s = start_s + ticket.solve_s(ticket.need, abreast) - left_s - ROUNDING_S
        places.append(Place(ticket, start_s, end_s, granted, late_s))
    return places


def _abreast(tickets: Sequence[Ticket]) -> int:
    """How many of these plans a packed roll-out holds."""
    plans = [ticket for ticket in tickets if ticket.rows]
    if not plans:
        return 1
    knee = min(ticket.pace.knee for ticket in plans)
    mean = sum(ticket.largest for ticket in plans) / len(plans)
    return max(1, min(len(plans), int(knee / mean)))


def _urgency(ticket: Ticket) -> tuple[int, float, float]:
    return ticket.urgency
