"""Admission control: which requests the server takes, decided by a forecast of its queue.

A request with a deadline is urgent if it is within its client's share: an equal share of the
engine's time is enough for what the client used lately and for its waiting requests. An urgent
request is admitted if the queue does not cost it iterations that an idle server would do before its
deadline, and if it does not cost urgent requests of the same or a higher priority the iterations
that they were guaranteed.

A request beyond the share is best effort: it gets the time that urgent requests leave, so it makes
none of them late. It is admitted if this time is expected to be enough. A lone client has the whole
engine for its share. Requests without a deadline delay no urgent one, so they need no forecast.

All of this is arithmetic on expected seconds. It runs before any work is done for the request, on
the thread that admits (the event loop).
"""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

from lewm_serve.engine.queued_request import Client, QueuedRequest, RequestSnapshot
from lewm_serve.engine.shared_numbers import Row

MIN_MARGIN, MAX_MARGIN = 0.1, 1.0
"""The forecast adds this share to the expected waiting time; see `Admission`."""

MARGIN_AFTER_MISS, MARGIN_AFTER_SUCCESS = 0.1, 0.005
"""A missed guarantee adds the first to the margin, and a kept one subtracts the second. With these
values, about one guarantee in twenty is missed on a machine that has other work too."""

GUARANTEED_SHARE = 0.9
"""If the deadline cuts a plan short even on an idle server, this share of its iterations is
guaranteed. If all were guaranteed, one other frame to encode would cause a refusal."""

OVERDUE_SHARE = 0.1
"""The share of the engine's time that best-effort requests get for certain once they have waited
for long; see `Scheduler`."""

ROUNDING_S = 1e-6
"""Lateness of at most this long is a rounding error."""

RESERVED_SHARE = 16
"""One in so many places of the queue is free for urgent requests, and one for other clients."""

MAX_SEARCH_BYTES = 256 * 1024 * 1024
"""The most memory that all admitted searches take together."""

SMALL_SEARCH_BYTES = 1024 * 1024
"""Searches of at most this size are admitted in any case: `limit` bounds their number."""

MIN_CLIENT_S = 0.1
"""This much is within the share, even if the deadline is near; see `BURST_SHARE`."""

SHARE_WINDOW_S, BURST_SHARE, SINGLE_BURST_SHARE = 1.0, 0.25, 0.5
"""A client's excess and its waiting requests are within the share if they need at most the share,
or a quarter, of the time before the deadline or of one second, whichever is less. A request alone,
of a client without an excess, may need half of this time. So a client may send a plan as large as
that once in a while, and robots with such plans and enough time for all of them get them."""

MIN_CLIENT_SHARE = 0.1
"""A client's share of the engine's time is at least this, however many clients there are. Most of
them use little, for example many robots that plan once in a while."""

IDLE_CLIENTS_PAUSE_S = 0.2
"""Clients without a request and without use count as active for at most this long. To find them
takes microseconds for each client, and a fleet has hundreds."""

MAX_IDLE_CLIENTS = 64
"""Clients without a request that are remembered before those with little use are dropped."""


class DeadlinePassed(Exception):
    """The deadline leaves no time for the request, or came before the first iteration ended."""


class QueueTooLong(Exception):
    """The request cannot be admitted now. ``retry_after_s`` says when it is expected to be."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Admission:
    """The admitted requests, and the decision whether another may join them.

    Use it only from the thread that admits. The forecast multiplies expected waiting times by
    1 + margin. The margin grows when a guarantee is missed and shrinks when one is kept.

    Args:
        limit: the most admitted requests at once.
        clock: the engine's clock.
        free_at: gives the time at which the work that runs now is expected to end.
        new_row: makes a row for the numbers that a client shares with the engine.
    """

    def __init__(
        self,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        free_at: Callable[[], float] = lambda: 0.0,
        new_row: Callable[[], Row] = Row,
    ) -> None:
        self._limit = limit
        self._new_row = new_row
        self._clock = clock
        self._free_at = free_at
        self._requests: list[QueuedRequest] = []
        self._clients: dict[str, Client] = {}
        self._active_clients: dict[Client, None] = {}
        self._drop_idle_at = -math.inf
        self._margin = MIN_MARGIN

    def __len__(self) -> int:
        return len(self._requests)

    def client(self, name: str) -> Client:
        """The client of this name: the same object while it has requests or used the engine."""
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) >= MAX_IDLE_CLIENTS + len(self._requests):
                self._forget_idle_clients()
            client = self._clients[name] = Client(self._clock, self._new_row())
        self._active_clients[client] = None
        return client

    def work_s(self) -> float:
        """Expected seconds until the engine has done all that is admitted."""
        now = self._clock()
        return self._busy_s(now) + sum(
            min(queued.expected_s, max(0.0, queued.deadline - now)) for queued in self._requests
        )

    def admit(self, queued: QueuedRequest) -> None:
        """Admit a request. The caller must call `leave` when the request ends.

        Raises:
            DeadlinePassed: even an idle server could not serve it in time.
            QueueTooLong: it may be admitted later.
        """
        now = self._clock()
        left_s = queued.deadline - now
        idle = queued.snapshot()
        idle_iterations = idle.iterations_within(left_s - idle.frames_s)
        if idle_iterations < queued.min_iterations or left_s < idle.frames_s:
            raise DeadlinePassed
        self._check_room(queued, now)
        is_complete = idle_iterations == len(queued.candidates_per_iteration)
        queued.expect(
            idle_iterations if is_complete else math.ceil(GUARANTEED_SHARE * idle_iterations)
        )
        no_longer_urgent = self._limit_to_shares(queued)
        try:
            if queued.is_urgent:
                self._check_queue(queued, now)
            elif not queued.within_share:
                self._check_time_left_by_others(queued, now)
        except QueueTooLong:
            for other in no_longer_urgent:
                other.within_share = True
            raise
        self._requests.append(queued)
        queued.client.requests += 1

    def leave(self, queued: QueuedRequest) -> None:
        """Remove a request, whatever its result, and learn whether its guarantee was kept."""
        self._requests.remove(queued)
        queued.client.requests -= 1
        if queued.deadline == math.inf or not queued.guaranteed_iterations:
            return
        if queued.completed_iterations >= queued.guaranteed_iterations:
            self._margin = max(MIN_MARGIN, self._margin - MARGIN_AFTER_SUCCESS)
        elif not queued.in_time(self._clock()):  # a client that disconnects in time is no miss
            self._margin = min(MAX_MARGIN, self._margin + MARGIN_AFTER_MISS)

    def _forget_idle_clients(self) -> None:
        self._clients = {name: client for name, client in self._clients.items() if client.is_active}

    def _check_room(self, newcomer: QueuedRequest, now: float) -> None:
        """Refuse a request for which the queue or the memory has no room.

        Some places are kept for urgent requests and for other clients.
        """
        reserve = self._limit // RESERVED_SHARE
        limit = self._limit - (reserve if newcomer.deadline == math.inf else 0)
        of_client = newcomer.client.requests
        if len(self._requests) >= limit or of_client >= self._limit - reserve:
            raise QueueTooLong("the queue is full", self._first_end_s(now))
        search_bytes = sum(queued.search_bytes for queued in self._requests)
        if (
            self._requests
            and newcomer.search_bytes > SMALL_SEARCH_BYTES
            and search_bytes + newcomer.search_bytes > MAX_SEARCH_BYTES
        ):
            reason = f"the searches in progress take {search_bytes} bytes of memory"
            raise QueueTooLong(reason, self._first_end_s(now))

    def _first_end_s(self, now: float) -> float:
        places = self._forecast([queued.snapshot() for queued in self._requests], now)
        return min((place.end_s for place in places), default=0.0)

    def _limit_to_shares(self, newcomer: QueuedRequest) -> list[QueuedRequest]:
        """Decide whether the newcomer is within its client's share.

        If its client becomes active, the shares of the others become smaller. Then it is decided
        for the admitted requests too. Clients of lower priority have no share. A lone client is
        always within its share. If all clients use too much, none of them exceeds its share by what
        all of them have exceeded it.

        Returns the admitted requests that are no longer within their share.
        """
        client = newcomer.client
        becomes_active = not client.is_active
        client.priority = newcomer.priority
        active = self._active_with(client)
        priorities = sorted(other.priority for other in active)
        least_excess_s = _least_excess_s(active)
        needed_s: defaultdict[int, float] = defaultdict(float)
        no_longer_urgent: list[QueuedRequest] = []
        for queued in (*self._requests, newcomer):
            if not queued.is_urgent or not (becomes_active or queued.client is client):
                continue
            expected_s = queued.expected_s
            if becomes_active or queued is newcomer:
                others = len(priorities) - bisect_left(priorities, queued.priority)
                others -= queued.client.priority >= queued.priority
                share = max(1 / (1 + max(0, others)), MIN_CLIENT_SHARE)
                queued.client.share = share
                excess_s = queued.client.excess_s - least_excess_s
                ahead_s = excess_s + needed_s[id(queued.client)]
                burst_s = _burst_s(queued, is_alone=ahead_s == 0)
                queued.within_share = share == 1 or ahead_s + expected_s <= burst_s
            if queued.within_share:
                needed_s[id(queued.client)] += expected_s
            elif queued is not newcomer:
                no_longer_urgent.append(queued)
        return no_longer_urgent

    def _active_with(self, client: Client) -> Iterable[Client]:
        """The clients that are active, and this one."""
        now = self._clock()
        if now >= self._drop_idle_at:
            self._drop_idle_at = now + IDLE_CLIENTS_PAUSE_S
            self._active_clients = {
                other: None for other in self._active_clients if other is client or other.is_active
            }
        return {**self._active_clients, client: None}

    def _check_time_left_by_others(self, newcomer: QueuedRequest, now: float) -> None:
        """Refuse a request for which the time that other clients leave is not enough.

        They leave what they did not use lately, or at least an equal share, but not the time of
        their urgent requests in the queue. A plan whose client did not say how many iterations it
        needs may get fewer in this time, but not because of other requests of its client.
        """
        client, left_s = newcomer.client, newcomer.deadline - now
        used = sum(other.use for other in self._clients.values() if other is not client)
        share = max(1 - used, client.share) / (1 + self._margin)
        urgent_s = sum(
            queued.expected_s
            for queued in self._requests
            if queued.is_urgent and queued.client is not client
        )
        available_s = min(share * left_s, left_s - self._busy_s(now) - urgent_s)
        if newcomer.requested_iterations is None:
            idle = newcomer.snapshot()
            fitting = idle.iterations_within(available_s - idle.encode_s)
            newcomer.expect(
                max(newcomer.min_iterations, min(newcomer.expected_iterations, fitting))
            )
        waiting_s = sum(
            min(queued.expected_s, queued.deadline - now)
            for queued in self._requests
            if queued.client is client and queued.deadline < math.inf
        )
        late_s = waiting_s + newcomer.expected_s - available_s
        if late_s > 0:
            raise QueueTooLong(
                "other clients need a part of the time before the deadline", late_s / share
            )

    def _check_queue(self, newcomer: QueuedRequest, now: float) -> None:
        admitted = [queued.snapshot() for queued in self._requests]
        forecast_with = self._forecast([*admitted, newcomer.snapshot()], now, newcomer=newcomer)
        late_s = next(place.late_s for place in forecast_with if place.request.queued is newcomer)
        made_late = self._requests_made_late_by(newcomer, admitted, forecast_with, now)
        if made_late:
            wait_s = max(late_s, *(place.end_s for place in made_late))
            raise QueueTooLong("plans already admitted would not end in time", wait_s)
        if late_s > 0:
            raise QueueTooLong(
                "the requests in the queue leave too little time before the deadline", late_s
            )

    def _requests_made_late_by(
        self,
        newcomer: QueuedRequest,
        admitted: Sequence[RequestSnapshot],
        forecast_with: Sequence[QueuePlace],
        now: float,
    ) -> list[QueuePlace]:
        """``admitted`` requests to which the newcomer would cost guaranteed iterations.

        ``forecast_with`` is the forecast with the newcomer.
        """
        places_with = {
            id(place.request): place
            for place in forecast_with
            if place.late_s > 0 and place.request.queued.priority >= newcomer.priority
        }
        if not places_with or not newcomer.candidates_per_iteration:
            return []
        # A request may be late without the newcomer too. So both forecasts are compared.
        return [
            place
            for place in self._forecast(admitted, now)
            if id(place.request) in places_with
            and _loses_iterations(place, places_with[id(place.request)])
        ]

    def _forecast(
        self, queue: Sequence[RequestSnapshot], now: float, newcomer: QueuedRequest | None = None
    ) -> list[QueuePlace]:
        return forecast(queue, now, self._busy_s(now), newcomer=newcomer, margin=self._margin)

    def _busy_s(self, now: float) -> float:
        return max(0.0, self._free_at() - now)


class QueuePlace(NamedTuple):
    """What the queue is expected to do for a request. Seconds count from now.

    Attributes:
        request: the request.
        start_s: when the engine starts its search, at worst.
        end_s: when it leaves the queue.
        iterations_at_worst: how many iterations are complete by its deadline, with the margin and
            with one roll-out of another request before its first.
        iterations_as_expected: the same without these two.
        late_s: how long after the deadline the guaranteed iterations end, at worst; 0 or less: in
            time.
    """

    request: RequestSnapshot
    start_s: float
    end_s: float
    iterations_at_worst: int
    iterations_as_expected: int
    late_s: float


def forecast(
    queue: Sequence[RequestSnapshot],
    now: float,
    busy_s: float,
    *,
    newcomer: QueuedRequest | None = None,
    margin: float = MIN_MARGIN,
) -> list[QueuePlace]:
    """What the queue is expected to do if no other requests come. Places are in order of urgency.

    The work that runs now ends in ``busy_s`` seconds. Then the frames of all urgent requests are
    encoded. Then their plans run one after another, or as many at once as one batch holds, each
    until it has its guaranteed iterations or its deadline passes. A request whose frames are not
    encoded yet may have to wait for one roll-out of another urgent request afterwards. Best-effort
    requests come last, but they may take `OVERDUE_SHARE` of the time before. The newcomer is
    counted with all its guaranteed iterations, even those after its deadline: that is what it costs
    the others if it is refused and the client sends it again.
    """
    ordered = sorted(queue, key=attrgetter("urgency"))
    urgent = [request for request in ordered if request.is_urgent]
    has_both_classes = 0 < len(urgent) < len(ordered)
    stretch = 1 / (1 - OVERDUE_SHARE) if has_both_classes else 1.0
    frames_encoded_s = busy_s + stretch * sum(request.encode_s for request in urgent)
    batched_plans = _plans_per_batch(ordered)
    # A heap: when each place in the batch is free for the next plan.
    places_free_at_s = [frames_encoded_s] * batched_plans
    slowest = sorted(urgent, key=attrgetter("longest_part_s"), reverse=True)[:2]
    places = []
    for request in ordered:
        queued = request.queued
        left_s = queued.deadline - now
        has_rollouts = bool(queued.candidates_per_iteration)
        guaranteed_s = stretch * request.search_s(request.guaranteed_iterations, batched_plans)
        rest_s = stretch * request.search_s(batched_plans=batched_plans)
        free_at_s = heapq.heappop(places_free_at_s) if has_rollouts else frames_encoded_s
        engine_s = min(rest_s, max(0.0, left_s - free_at_s))
        if queued is newcomer:
            engine_s = max(engine_s, guaranteed_s)
        if has_rollouts:
            urgent_s = min(engine_s, guaranteed_s) if request.is_urgent else engine_s
            heapq.heappush(places_free_at_s, free_at_s + urgent_s)
        # While its own frames are decoded, the engine does other work.
        expected_start_s = max(free_at_s, request.frames_s)
        start_s = expected_start_s
        if request.has_frames:
            other_part_s = next(
                (other.longest_part_s for other in slowest if other is not request), 0.0
            )
            start_s = max(start_s, frames_encoded_s + other_part_s)
        start_s += margin * (start_s - request.frames_s)
        late_s = -math.inf
        if request.is_urgent:
            late_s = start_s + guaranteed_s - left_s - ROUNDING_S
        places.append(
            QueuePlace(
                request=request,
                start_s=start_s,
                end_s=expected_start_s + engine_s,
                iterations_at_worst=request.iterations_within(left_s - start_s, batched_plans),
                iterations_as_expected=request.iterations_within(
                    left_s - expected_start_s, batched_plans
                ),
                late_s=late_s,
            )
        )
    return places


def _least_excess_s(clients: Iterable[Client]) -> float:
    """The least excess of all clients. Most have none."""
    least_s = math.inf
    for client in clients:
        least_s = min(least_s, client.excess_s)
        if least_s == 0:
            break
    return least_s


def _burst_s(queued: QueuedRequest, *, is_alone: bool) -> float:
    """How many seconds a client may need at once within its share; see `BURST_SHARE`."""
    window_s = min(queued.deadline - queued.arrival, SHARE_WINDOW_S)
    burst_share = SINGLE_BURST_SHARE if is_alone else BURST_SHARE
    return max(MIN_CLIENT_S, max(queued.client.share, burst_share) * window_s)


def _loses_iterations(without: QueuePlace, with_newcomer: QueuePlace) -> bool:
    """Whether a newcomer costs a request guaranteed iterations, at worst or as expected.

    Both have to be compared. At worst, a request that has just enough time is late even without the
    newcomer.
    """
    guaranteed = without.request.guaranteed_iterations
    return with_newcomer.iterations_at_worst < min(without.iterations_at_worst, guaranteed) or (
        with_newcomer.iterations_as_expected < min(without.iterations_as_expected, guaranteed)
    )


def _plans_per_batch(queue: Sequence[RequestSnapshot]) -> int:
    """How many of the waiting plans share one roll-out."""
    plans = [request.queued for request in queue if request.queued.candidates_per_iteration]
    if not plans:
        return 1
    max_rows = min(plan.latency.max_batched_rows for plan in plans)
    mean_candidates = sum(plan.max_candidates for plan in plans) / len(plans)
    return max(1, min(len(plans), int(max_rows / mean_candidates)))
