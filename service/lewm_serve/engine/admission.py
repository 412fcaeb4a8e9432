"""Admission control: which requests the server takes, decided by a forecast of its queue.

An urgent request is admitted if the queue does not cost it iterations that an idle server would do
before its deadline, and if it does not cost admitted requests of the same or a higher priority the
iterations that they were guaranteed. A best-effort request delays no urgent one, so it needs no
forecast. All of this is arithmetic on expected seconds. It runs before any work is done for the
request, on the thread that admits (the event loop).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lewm_serve.engine.queued_request import Client, QueuedRequest

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
"""Each client may be guaranteed this much of the engine's time, whatever the others use."""

MAX_IDLE_CLIENTS = 64
"""Clients without a request that are remembered before those with little use are dropped."""

NEGLIGIBLE_USE = 1e-3
"""A `Client.use` that may be forgotten."""


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
        self._requests: list[QueuedRequest] = []
        self._clients: dict[str, Client] = {}
        self._margin = MIN_MARGIN

    def __len__(self) -> int:
        return len(self._requests)

    def client(self, name: str) -> Client:
        """The client of this name: the same object while it has requests or used the engine."""
        client = self._clients.get(name)
        if client is None:
            if len(self._clients) >= MAX_IDLE_CLIENTS + len(self._requests):
                self._forget_idle_clients()
            client = self._clients[name] = Client(self._clock)
        return client

    def admit(self, queued: QueuedRequest) -> None:
        """Admit a request. The caller must call `leave` when the request ends.

        Raises:
            DeadlinePassed: even an idle server could not serve it in time.
            QueueTooLong: it may be admitted later.
        """
        now = self._clock()
        left_s = queued.deadline - now
        idle_iterations = queued.iterations_within(left_s - queued.frames_s)
        if idle_iterations < queued.min_iterations or left_s < queued.frames_s:
            raise DeadlinePassed
        self._check_room(queued, now)
        is_complete = idle_iterations == len(queued.candidates_per_iteration)
        queued.guarantee(
            idle_iterations if is_complete else math.ceil(GUARANTEED_SHARE * idle_iterations)
        )
        if queued.is_urgent:
            self._limit_share(queued, left_s)
            self._check_queue(queued, now)
        self._requests.append(queued)

    def leave(self, queued: QueuedRequest) -> None:
        """Remove a request, whatever its result, and learn whether its guarantee was kept."""
        self._requests.remove(queued)
        if queued.deadline == math.inf or not queued.candidates_per_iteration:
            return
        if queued.completed_iterations >= queued.guaranteed_iterations:
            self._margin = max(MIN_MARGIN, self._margin - MARGIN_AFTER_SUCCESS)
        elif not queued.in_time(self._clock()):  # a client that disconnects in time is no miss
            self._margin = min(MAX_MARGIN, self._margin + MARGIN_AFTER_MISS)

    def _forget_idle_clients(self) -> None:
        active = {id(queued.client) for queued in self._requests}
        self._clients = {
            name: client
            for name, client in self._clients.items()
            if id(client) in active or client.use > NEGLIGIBLE_USE
        }

    def _check_room(self, newcomer: QueuedRequest, now: float) -> None:
        """Refuse a request for which the queue or the memory has no room.

        Some places are kept for urgent requests and for other clients.
        """
        reserve = self._limit // RESERVED_SHARE
        limit = self._limit - (reserve if newcomer.deadline == math.inf else 0)
        of_client = sum(queued.client is newcomer.client for queued in self._requests)
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
        places = self._forecast(self._requests, now)
        return min((place.end_s for place in places), default=0.0)

    def _limit_share(self, newcomer: QueuedRequest, left_s: float) -> None:
        """Guarantee a client the time that the others do not use, or at least an equal share of it.

        A plan of which less is guaranteed may still become complete, in time that is left over.

        Raises:
            QueueTooLong: the share is not enough for the iterations that the request needs.
        """
        client = newcomer.client
        uses = [other.use for other in self._clients.values() if other is not client]
        active_clients = 1 + sum(use > NEGLIGIBLE_USE for use in uses)
        if active_clients == 1:
            return
        share = max(1 - sum(uses), 1 / active_clients)
        guaranteed_s = sum(
            queued.guaranteed_s for queued in self._requests if queued.client is client
        )
        search_s = max(share * left_s, MIN_CLIENT_S) - guaranteed_s - newcomer.encode_s
        iterations = newcomer.iterations_within(search_s)
        if iterations < newcomer.guaranteed_iterations:
            if newcomer.requested_iterations is not None:
                raise QueueTooLong(
                    "other clients need a part of the time before the deadline",
                    newcomer.guaranteed_s,
                )
            newcomer.guarantee(max(newcomer.min_iterations, iterations))

    def _check_queue(self, newcomer: QueuedRequest, now: float) -> None:
        forecast_with = self._forecast([*self._requests, newcomer], now, newcomer=newcomer)
        late_s = next(place.late_s for place in forecast_with if place.queued is newcomer)
        made_late = self._requests_made_late_by(newcomer, forecast_with, now)
        if made_late:
            wait_s = max(late_s, *(place.end_s for place in made_late))
            raise QueueTooLong("plans already admitted would not end in time", wait_s)
        if late_s > 0:
            raise QueueTooLong(
                "the requests in the queue leave too little time before the deadline", late_s
            )

    def _requests_made_late_by(
        self, newcomer: QueuedRequest, forecast_with: Sequence[QueuePlace], now: float
    ) -> list[QueuePlace]:
        """Admitted requests to which the newcomer would cost guaranteed iterations.

        ``forecast_with`` is the forecast with the newcomer.
        """
        places_with = {
            id(place.queued): place
            for place in forecast_with
            if place.late_s > 0 and place.queued.priority >= newcomer.priority
        }
        if not places_with or not newcomer.candidates_per_iteration:
            return []
        # A request may be late without the newcomer too. So both forecasts are compared.
        return [
            place
            for place in self._forecast(self._requests, now)
            if id(place.queued) in places_with
            and _loses_iterations(place, places_with[id(place.queued)])
        ]

    def _forecast(
        self, queue: Sequence[QueuedRequest], now: float, newcomer: QueuedRequest | None = None
    ) -> list[QueuePlace]:
        busy_s = max(0.0, self._free_at() - now)
        return forecast(queue, now, busy_s, newcomer=newcomer, margin=self._margin)


class QueuePlace(NamedTuple):
    """What the queue is expected to do for a request. Seconds count from now.

    Attributes:
        queued: the request.
        start_s: when the engine starts its search, at worst.
        end_s: when it leaves the queue.
        iterations_at_worst: how many iterations are complete by its deadline, with the margin and
            with one roll-out of another request before its first.
        iterations_as_expected: the same without these two.
        late_s: how long after the deadline the guaranteed iterations end, at worst; 0 or less: in
            time.
    """

    queued: QueuedRequest
    start_s: float
    end_s: float
    iterations_at_worst: int
    iterations_as_expected: int
    late_s: float


def forecast(
    queue: Sequence[QueuedRequest],
    now: float,
    busy_s: float,
    *,
    newcomer: QueuedRequest | None = None,
    margin: float = MIN_MARGIN,
) -> list[QueuePlace]:
    """What the queue is expected to do if no other requests come. Places are in order of urgency.

    The work that runs now ends in ``busy_s`` seconds. Then the frames of all urgent requests are
    encoded. Then their plans run one after another, or as many at once as one batch holds, each
    until it is complete or its deadline passes. A request whose frames are not encoded yet may have
    to wait for one roll-out of another urgent request afterwards. Best-effort requests come last,
    but they may take `OVERDUE_SHARE` of the time before. The newcomer is counted with all its
    guaranteed iterations, even those after its deadline: that is what it costs the others if it is
    refused and the client sends it again.
    """
    ordered = sorted(queue, key=lambda queued: queued.urgency)
    urgent = [queued for queued in ordered if queued.is_urgent]
    has_both_classes = 0 < len(urgent) < len(ordered)
    stretch = 1 / (1 - OVERDUE_SHARE) if has_both_classes else 1.0
    frames_encoded_s = busy_s + stretch * sum(queued.encode_s for queued in urgent)
    batched_plans = _plans_per_batch(ordered)
    # A heap: when each place in the batch is free for the next plan.
    places_free_at_s = [frames_encoded_s] * batched_plans
    slowest_requests = heapq.nlargest(2, urgent, key=lambda queued: queued.longest_part_s)
    places = []
    for queued in ordered:
        left_s = queued.deadline - now
        has_rollouts = bool(queued.candidates_per_iteration)
        guaranteed_s = stretch * queued.search_s(queued.guaranteed_iterations, batched_plans)
        rest_s = stretch * queued.search_s(batched_plans=batched_plans)
        free_at_s = heapq.heappop(places_free_at_s) if has_rollouts else frames_encoded_s
        engine_s = min(rest_s, max(0.0, left_s - free_at_s))
        if queued is newcomer:
            engine_s = max(engine_s, guaranteed_s)
        if has_rollouts:
            heapq.heappush(places_free_at_s, free_at_s + engine_s)
        # While its own frames are decoded, the engine does other work.
        expected_start_s = max(free_at_s, queued.frames_s)
        start_s = expected_start_s
        if queued.frames_to_encode:
            other_part_s = next(
                (other.longest_part_s for other in slowest_requests if other is not queued), 0.0
            )
            start_s = max(start_s, frames_encoded_s + other_part_s)
        start_s += margin * (start_s - queued.frames_s)
        late_s = -math.inf
        if queued.is_urgent:
            late_s = start_s + guaranteed_s - left_s - ROUNDING_S
        places.append(
            QueuePlace(
                queued=queued,
                start_s=start_s,
                end_s=expected_start_s + engine_s,
                iterations_at_worst=queued.iterations_within(left_s - start_s, batched_plans),
                iterations_as_expected=queued.iterations_within(
                    left_s - expected_start_s, batched_plans
                ),
                late_s=late_s,
            )
        )
    return places


def _loses_iterations(without: QueuePlace, with_newcomer: QueuePlace) -> bool:
    """Whether a newcomer costs a request guaranteed iterations, at worst or as expected.

    Both have to be compared. At worst, a request that has just enough time is late even without the
    newcomer.
    """
    guaranteed = without.queued.guaranteed_iterations
    return with_newcomer.iterations_at_worst < min(without.iterations_at_worst, guaranteed) or (
        with_newcomer.iterations_as_expected < min(without.iterations_as_expected, guaranteed)
    )


def _plans_per_batch(queue: Sequence[QueuedRequest]) -> int:
    """How many of the waiting plans share one roll-out."""
    plans = [queued for queued in queue if queued.candidates_per_iteration]
    if not plans:
        return 1
    max_rows = min(plan.latency.max_batched_rows for plan in plans)
    mean_candidates = sum(plan.max_candidates for plan in plans) / len(plans)
    return max(1, min(len(plans), int(max_rows / mean_candidates)))
