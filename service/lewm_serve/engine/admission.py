"""Admission control: which requests the server takes, decided by a forecast of its queue.

A request is admitted if the queue does not cost it iterations that an idle server would do before
its deadline, and if it does not cost admitted requests of the same or a higher priority the
iterations that they were guaranteed. All of this is arithmetic on expected seconds. It runs before
any work is done for the request, on the thread that admits (the event loop).
"""

from __future__ import annotations

import heapq
import math
import time
from bisect import bisect_right, insort
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from lewm_serve.engine.latency_model import NO_ROLLOUT, LatencyModel, RolloutShape

MAX_CANDIDATE_STEPS = 2560
"""Candidates × horizon of one roll-out: 512 candidates over a horizon of 5. A larger iteration is
split into parts, so that other work waits only briefly. Where batching is faster, roll-outs may be
larger."""

DEFAULT_QUEUE_DEADLINE_S = 10.0
"""A request without a deadline, or with a later one, is queued as if it had this deadline."""

MIN_MARGIN, MAX_MARGIN = 0.1, 1.0
"""The forecast adds this share to the expected waiting time; see `Admission`."""

MARGIN_AFTER_MISS, MARGIN_AFTER_SUCCESS = 0.1, 0.005
"""A missed guarantee adds the first to the margin, and a kept one subtracts the second. With these
values, about one guarantee in twenty is missed on a machine that has other work too."""

GUARANTEED_SHARE = 0.9
"""If the deadline cuts a plan short even on an idle server, this share of its iterations is
guaranteed. If all were guaranteed, one other frame to encode would cause a refusal."""

ROUNDING_S = 1e-6
"""Lateness of at most this long is a rounding error."""


class DeadlinePassed(Exception):
    """The deadline leaves no time for the request, or came before the first iteration ended."""


class QueueTooLong(Exception):
    """The request cannot be admitted now. ``retry_after_s`` says when it is expected to be."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class QueuedRequest:
    """A request from its admission to its answer: its place in the queue and its expected work.

    Times are readings of the engine's clock in seconds. Of the attributes that change, the thread
    that admits writes ``frames_to_encode`` and ``guaranteed_iterations``; the engine's thread
    writes ``frames_started``, ``started_iterations`` and ``completed_iterations``. Both read all of
    them.

    Args:
        latency: the latency model of the request's model.
        arrival: when the request arrived.
        deadline: when the answer has to leave; infinity without a deadline.
        priority: 0 to 9; 9 is served first.
        queue_deadline_s: a request without a deadline, or with a later one, is queued as if its
            deadline were this many seconds after its arrival. Otherwise it could wait for ever
            behind an endless series of earlier deadlines.
        frames_to_encode: how many frames have to be decoded and encoded.
        candidates_per_iteration: the number of candidates of each iteration; empty if the request
            has no roll-out.
        shape: the shape of its roll-outs.
        min_iterations: fewer iterations are of no use to the client; None: the client did not say.

    Attributes:
        urgency: a sort key; the smallest is the most urgent.
        frames_started: how many frames the engine has started to encode, or has encoded.
        guaranteed_iterations: how many iterations the request was promised when it was admitted.
        started_iterations: how many iterations have started or ended. An iteration that is rolled
            out in parts counts in part.
        completed_iterations: how many iterations have ended.
    """

    def __init__(
        self,
        latency: LatencyModel,
        arrival: float,
        *,
        deadline: float = math.inf,
        priority: int = 5,
        queue_deadline_s: float = DEFAULT_QUEUE_DEADLINE_S,
        frames_to_encode: int = 0,
        candidates_per_iteration: Sequence[int] = (),
        shape: RolloutShape = NO_ROLLOUT,
        min_iterations: int | None = None,
    ) -> None:
        self.latency = latency
        self.deadline = deadline
        self.priority = priority
        self.candidates_per_iteration = candidates_per_iteration
        self.max_candidates = max(candidates_per_iteration, default=0)
        self.shape = shape
        self.urgency = (-priority, min(deadline, arrival + queue_deadline_s), arrival)
        if min_iterations is None:
            self.min_iterations = min(1, len(candidates_per_iteration))
        else:
            self.min_iterations = min_iterations
        self.frames_to_encode = frames_to_encode
        self.frames_started = 0
        self.guaranteed_iterations = 0
        self.started_iterations = 0.0
        self.completed_iterations = 0
        self._requested_iterations = min_iterations
        # Seconds as measured at the start: of one part, and up to the end of each iteration.
        horizon = shape.horizon
        iteration_s = {
            count: latency.measured_rollout_s(count, horizon)
            for count in set(candidates_per_iteration)
        }
        self._part_s = latency.measured_rollout_s(
            min(self.max_candidates, self.max_part_size), horizon
        )
        self._end_s = [0.0, *accumulate(iteration_s[count] for count in candidates_per_iteration)]

    @property
    def started(self) -> bool:
        """Whether its first roll-out has started."""
        return self.started_iterations > 0

    @property
    def frames_s(self) -> float:
        """Expected seconds to decode and encode the frames that the engine has not started."""
        return max(0, self.frames_to_encode - self.frames_started) * self.latency.frame_s

    @property
    def max_part_size(self) -> int:
        """The most candidates of one roll-out. A larger iteration is rolled out in parts."""
        return max(1, MAX_CANDIDATE_STEPS // self.shape.horizon, self.latency.max_batched_rows)

    @property
    def longest_part_s(self) -> float:
        """Expected seconds of its longest roll-out."""
        return self._part_s * self.latency.correction(self.shape)

    def guarantee(self, iterations: int) -> None:
        """Guarantee this many iterations, or fewer if the client asked for fewer."""
        requested = self._requested_iterations
        self.guaranteed_iterations = iterations if requested is None else min(requested, iterations)

    def search_s(self, iterations: int | None = None, batched_plans: int = 1) -> float:
        """Expected seconds of the work that has not started, up to ``iterations`` (None: all).

        ``batched_plans`` is the number of plans that share each roll-out.
        """
        last = len(self.candidates_per_iteration) if iterations is None else iterations
        left_s = max(0.0, self._end_s[last] - self._started_s())
        return left_s * self._slowdown(batched_plans)

    def iterations_within(self, seconds: float, batched_plans: int = 1) -> int:
        """How many iterations are expected to be complete after this time.

        It counts from the end of the roll-out that runs now.
        """
        if seconds == math.inf:
            return len(self.candidates_per_iteration)
        slowdown = self._slowdown(batched_plans)
        reached_s = math.inf
        if slowdown:
            reached_s = self._started_s() + max(0.0, seconds) / slowdown
        return max(self.completed_iterations, bisect_right(self._end_s, reached_s) - 1)

    def in_time(self, now: float, batched_plans: int = 1) -> bool:
        """Whether it gets its guaranteed iterations if they run without a break from now on."""
        return now + self.search_s(self.guaranteed_iterations, batched_plans) <= self.deadline

    def _started_s(self) -> float:
        """Seconds of the work that has started, as measured at the start."""
        started = self.started_iterations  # the engine's thread may change it meanwhile
        complete = int(started)
        seconds = self._end_s[complete]
        if started > complete:
            seconds += (started - complete) * (self._end_s[complete + 1] - seconds)
        return seconds

    def _slowdown(self, batched_plans: int) -> float:
        """The time of an iteration divided by the time that was measured for one plan alone."""
        slowdown = self.latency.correction(self.shape)
        if batched_plans > 1:
            horizon, rows = self.shape.horizon, self.max_candidates
            alone_s = self.latency.measured_rollout_s(rows, horizon)
            batched_s = self.latency.measured_rollout_s(batched_plans * rows, horizon)
            slowdown *= batched_s / alone_s if alone_s else 1.0
        return slowdown


class Admission:
    """The admitted requests, most urgent first, and the decision whether another may join them.

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
        self._margin = MIN_MARGIN

    def __len__(self) -> int:
        return len(self._requests)

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
        if len(self._requests) >= self._limit:
            first_end_s = min(place.end_s for place in self._forecast(self._requests, now))
            raise QueueTooLong("the queue is full", first_end_s)
        is_complete = idle_iterations == len(queued.candidates_per_iteration)
        queued.guarantee(
            idle_iterations if is_complete else math.ceil(GUARANTEED_SHARE * idle_iterations)
        )
        self._check_queue(queued, now)
        insort(self._requests, queued, key=_urgency)

    def leave(self, queued: QueuedRequest) -> None:
        """Remove a request, whatever its result, and learn whether its guarantee was kept."""
        self._requests.remove(queued)
        if queued.deadline == math.inf or not queued.candidates_per_iteration:
            return
        if queued.completed_iterations >= queued.guaranteed_iterations:
            self._margin = max(MIN_MARGIN, self._margin - MARGIN_AFTER_SUCCESS)
        elif not queued.in_time(self._clock()):  # a client that disconnects in time is no miss
            self._margin = min(MAX_MARGIN, self._margin + MARGIN_AFTER_MISS)

    def _check_queue(self, newcomer: QueuedRequest, now: float) -> None:
        if newcomer.deadline == math.inf and all(
            other.deadline == math.inf for other in self._requests
        ):
            return
        queue = self._requests.copy()
        insort(queue, newcomer, key=_urgency)
        forecast_with = self._forecast(queue, now, newcomer=newcomer)
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
    """What the queue, in order of urgency, is expected to do if no other requests come.

    The work that runs now ends in ``busy_s`` seconds. Then all waiting frames are encoded. Then
    plans run one after another, or as many at once as one batch holds, each until it is complete
    or its deadline passes. A request whose frames are not encoded yet may have to wait for one
    roll-out of another request afterwards. The newcomer is counted with all its guaranteed
    iterations, even those after its deadline: that is what it costs the others if it is refused and
    the client sends it again.
    """
    frames_encoded_s = busy_s + sum(queued.frames_s for queued in queue)
    batched_plans = _plans_per_batch(queue)
    # A heap: when each place in the batch is free for the next plan.
    places_free_at_s = [frames_encoded_s] * batched_plans
    slowest_requests = heapq.nlargest(2, queue, key=lambda queued: queued.longest_part_s)
    places = []
    for queued in queue:
        left_s = queued.deadline - now
        has_rollouts = bool(queued.candidates_per_iteration)
        guaranteed_s = queued.search_s(queued.guaranteed_iterations, batched_plans)
        expected_start_s = heapq.heappop(places_free_at_s) if has_rollouts else frames_encoded_s
        rest_s = queued.search_s(batched_plans=batched_plans)
        end_s = min(expected_start_s + rest_s, max(expected_start_s, left_s))
        if queued is newcomer:
            end_s = max(end_s, expected_start_s + guaranteed_s)
        if has_rollouts:
            heapq.heappush(places_free_at_s, end_s)
        start_s = expected_start_s
        if queued.frames_to_encode:
            other_part_s = next(
                (other.longest_part_s for other in slowest_requests if other is not queued), 0.0
            )
            start_s = max(start_s, frames_encoded_s + other_part_s)
        start_s += margin * (start_s - queued.frames_s)
        late_s = -math.inf
        if left_s < math.inf:
            late_s = start_s + guaranteed_s - left_s - ROUNDING_S
        places.append(
            QueuePlace(
                queued=queued,
                start_s=start_s,
                end_s=end_s,
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


def _urgency(queued: QueuedRequest) -> tuple[int, float, float]:
    return queued.urgency
