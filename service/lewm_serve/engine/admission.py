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

from lewm_serve.engine.latency_model import ONE_STEP, LatencyModel, RolloutShape

MAX_CANDIDATE_STEPS = 2560
"""Candidates × horizon of one roll-out: 512 candidates over a horizon of 5. Larger iterations are
done in parts, so that they do not hold up other work for long. Where batching pays, roll-outs may
be larger."""

DEFAULT_QUEUE_DEADLINE_S = 10.0
"""In the order of the queue, a request without a deadline counts as if it had this one."""

MIN_MARGIN, MAX_MARGIN = 0.1, 1.0
"""The forecast adds this share to the expected waiting time; see `Admission`."""

MARGIN_AFTER_MISS, MARGIN_AFTER_SUCCESS = 0.1, 0.005
"""What a missed guarantee adds to the margin, and what a kept one subtracts. On a machine that has
other work too, about one guarantee in twenty is missed with these."""

GUARANTEED_SHARE = 0.9
"""A plan that its deadline cuts short in any case is guaranteed this share of the iterations that
an idle server would do. Otherwise the encoding of one other frame would have it refused."""

ROUNDING_S = 1e-6


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
    that admits writes ``frames`` and ``guaranteed_iterations``; the engine's thread writes
    ``frames_started``, ``started_iterations`` and ``completed_iterations``. Both read all of them.

    Args:
        latency: the latency model of the request's model.
        arrival: when the request arrived.
        deadline: when the answer has to leave; infinity without a deadline.
        priority: 0 to 9; 9 is served first.
        queue_deadline_s: in the order of the queue, a later deadline, or none, counts as this many
            seconds after the arrival. Otherwise the request could wait for ever behind an endless
            series of earlier deadlines.
        frames: frames that still have to be decoded and encoded.
        candidates: the number of candidates of each iteration.
        shape: the shape of its roll-outs.
        min_iterations: fewer iterations are of no use to the client; None: the client did not say.

    Attributes:
        frames_started: frames whose encoding has started or ended.
        started_iterations: iterations whose roll-outs have started or ended. An iteration that is
            rolled out in parts counts in part.
        completed_iterations: iterations that have ended.
    """

    def __init__(
        self,
        latency: LatencyModel,
        arrival: float,
        *,
        deadline: float = math.inf,
        priority: int = 5,
        queue_deadline_s: float = DEFAULT_QUEUE_DEADLINE_S,
        frames: int = 0,
        candidates: Sequence[int] = (),
        shape: RolloutShape = ONE_STEP,
        min_iterations: int | None = None,
    ) -> None:
        self.latency = latency
        self.deadline = deadline
        self.priority = priority
        self.candidates = candidates
        self.max_candidates = max(candidates, default=0)
        self.shape = shape
        self.urgency = (-priority, min(deadline, arrival + queue_deadline_s), arrival)
        self.min_iterations = min(1, len(candidates)) if min_iterations is None else min_iterations
        self.frames = frames
        self.frames_started = 0
        self.guaranteed_iterations = 0
        self.started_iterations = 0.0
        self.completed_iterations = 0
        self._wanted_iterations = min_iterations
        # Seconds of one step, and up to the end of each iteration, as measured at the start.
        horizon = shape.horizon
        seconds = {count: latency.measured_rollout_s(count, horizon) for count in set(candidates)}
        self._step_s = latency.measured_rollout_s(min(self.max_candidates, self.step_rows), horizon)
        self._end_s = [0.0, *accumulate(seconds[count] for count in candidates)]

    @property
    def started(self) -> bool:
        """Whether its first roll-out has started."""
        return self.started_iterations > 0

    @property
    def preparation_s(self) -> float:
        """Expected seconds to decode and encode the frames that the engine has not started."""
        return max(0, self.frames - self.frames_started) * self.latency.frame_s

    @property
    def step_rows(self) -> int:
        """The most candidates of one roll-out."""
        return max(1, MAX_CANDIDATE_STEPS // self.shape.horizon, self.latency.max_batched_rows)

    @property
    def step_s(self) -> float:
        """Expected seconds of its longest roll-out."""
        return self._step_s * self.latency.correction(self.shape)

    def guarantee(self, iterations: int) -> None:
        """Guarantee this many iterations, or fewer if the client asked for fewer."""
        wanted = self._wanted_iterations
        self.guaranteed_iterations = iterations if wanted is None else min(wanted, iterations)

    def search_s(self, iterations: int | None = None, batched_plans: int = 1) -> float:
        """Expected seconds of the work that has not started, up to ``iterations`` (None: all).

        ``batched_plans`` is the number of plans that share each roll-out.
        """
        last = len(self.candidates) if iterations is None else iterations
        left_s = max(0.0, self._end_s[last] - self._started_s())
        return left_s * self._slowdown(batched_plans)

    def iterations_within(self, seconds: float, batched_plans: int = 1) -> int:
        """How many iterations are expected to be complete after this time.

        It counts from the end of the roll-out that runs now.
        """
        if seconds == math.inf:
            return len(self.candidates)
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
        """How many times longer an iteration takes than was measured for one plan alone."""
        slowdown = self.latency.correction(self.shape)
        if batched_plans > 1:
            horizon, rows = self.shape.horizon, self.max_candidates
            alone_s = self.latency.measured_rollout_s(rows, horizon)
            batched_s = self.latency.measured_rollout_s(batched_plans * rows, horizon)
            slowdown *= batched_s / alone_s if alone_s else 1.0
        return slowdown


class Admission:
    """The admitted requests, most urgent first, and the decision whether another may join them.

    The forecast multiplies expected waiting times by 1 + margin. The margin grows when a guarantee
    is missed and shrinks when one is kept.

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

    def admit(self, request: QueuedRequest) -> None:
        """Admit a request. The caller must call `leave` when it is done.

        Raises:
            DeadlinePassed: even an idle server could not serve it in time.
            QueueTooLong: it may be admitted later.
        """
        now = self._clock()
        left_s = request.deadline - now
        alone = request.iterations_within(left_s - request.preparation_s)
        if alone < request.min_iterations or left_s < request.preparation_s:
            raise DeadlinePassed
        if len(self._requests) >= self._limit:
            first_end_s = min(place.end_s for place in self._forecast(self._requests, now))
            raise QueueTooLong("the queue is full", first_end_s)
        is_whole = alone == len(request.candidates)
        request.guarantee(alone if is_whole else math.ceil(GUARANTEED_SHARE * alone))
        self._check_queue(request, now)
        insort(self._requests, request, key=_urgency)

    def leave(self, request: QueuedRequest) -> None:
        """Remove a request, whatever its result, and learn whether its guarantee was kept."""
        self._requests.remove(request)
        if request.deadline == math.inf or not request.candidates:
            return
        if request.completed_iterations >= request.guaranteed_iterations:
            self._margin = max(MIN_MARGIN, self._margin - MARGIN_AFTER_SUCCESS)
        elif not request.in_time(self._clock()):  # otherwise the client went away early
            self._margin = min(MAX_MARGIN, self._margin + MARGIN_AFTER_MISS)

    def _check_queue(self, request: QueuedRequest, now: float) -> None:
        if request.deadline == math.inf and all(
            other.deadline == math.inf for other in self._requests
        ):
            return
        queue = self._requests.copy()
        insort(queue, request, key=_urgency)
        forecast_with = self._forecast(queue, now, newcomer=request)
        late_s = next(place.late_s for place in forecast_with if place.request is request)
        harmed = self._harmed_by(request, forecast_with, now)
        if harmed:
            wait_s = max(late_s, *(place.end_s for place in harmed))
            raise QueueTooLong("plans already admitted would not end in time", wait_s)
        if late_s > 0:
            raise QueueTooLong("the queue ahead leaves too little time before the deadline", late_s)

    def _harmed_by(
        self, newcomer: QueuedRequest, forecast_with: Sequence[QueuePlace], now: float
    ) -> list[QueuePlace]:
        """Admitted requests to which the newcomer would cost guaranteed iterations."""
        places_with = {
            id(place.request): place
            for place in forecast_with
            if place.late_s > 0 and place.request.priority >= newcomer.priority
        }
        if not places_with or not newcomer.candidates:
            return []
        # Requests that are late already must not lose further iterations.
        return [
            place
            for place in self._forecast(self._requests, now)
            if id(place.request) in places_with
            and _loses_iterations(place, places_with[id(place.request)])
        ]

    def _forecast(
        self, queue: Sequence[QueuedRequest], now: float, newcomer: QueuedRequest | None = None
    ) -> list[QueuePlace]:
        busy_s = max(0.0, self._free_at() - now)
        return forecast(queue, now, busy_s, newcomer=newcomer, margin=self._margin)


class QueuePlace(NamedTuple):
    """What the queue is expected to do for a request. Seconds count from now.

    Attributes:
        request: the request.
        start_s: when the engine starts its search, at the latest.
        end_s: when it leaves the queue.
        iterations: the iterations that are complete by its deadline.
        expected_iterations: the same without the margin, and if no roll-out of another request
            comes first once its frames are encoded.
        late_s: how long after the deadline the guaranteed iterations end; 0 or less: in time.
    """

    request: QueuedRequest
    start_s: float
    end_s: float
    iterations: int
    expected_iterations: int
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
    iterations, even those after its deadline: that is what it would cost the others when it comes
    again.
    """
    preparation_s = sum(request.preparation_s for request in queue)
    batched_plans = _plans_per_batch(queue)
    free_s = [busy_s + preparation_s] * batched_plans
    longest_steps = heapq.nlargest(2, queue, key=lambda request: request.step_s)
    places = []
    for request in queue:
        left_s = request.deadline - now
        guaranteed_s = request.search_s(request.guaranteed_iterations, batched_plans)
        start_s = heapq.heappop(free_s) if request.candidates else busy_s + preparation_s
        all_s = request.search_s(batched_plans=batched_plans)
        end_s = min(start_s + all_s, max(start_s, left_s))
        if request is newcomer:
            end_s = max(end_s, start_s + guaranteed_s)
        if request.candidates:
            heapq.heappush(free_s, end_s)
        expected_start_s = start_s
        if request.frames:
            other_step_s = next((one.step_s for one in longest_steps if one is not request), 0.0)
            start_s = max(start_s, busy_s + preparation_s + other_step_s)
        start_s += margin * (start_s - request.preparation_s)
        late_s = -math.inf
        if left_s < math.inf:
            late_s = start_s + guaranteed_s - left_s - ROUNDING_S
        places.append(
            QueuePlace(
                request=request,
                start_s=start_s,
                end_s=end_s,
                iterations=request.iterations_within(left_s - start_s, batched_plans),
                expected_iterations=request.iterations_within(
                    left_s - expected_start_s, batched_plans
                ),
                late_s=late_s,
            )
        )
    return places


def _loses_iterations(without: QueuePlace, with_newcomer: QueuePlace) -> bool:
    """Whether a newcomer costs a request guaranteed iterations, at the latest or as expected.

    The latest start alone does not tell: by it, a request that has just enough time is late
    already.
    """
    guaranteed = without.request.guaranteed_iterations
    return with_newcomer.iterations < min(without.iterations, guaranteed) or (
        with_newcomer.expected_iterations < min(without.expected_iterations, guaranteed)
    )


def _plans_per_batch(queue: Sequence[QueuedRequest]) -> int:
    """How many of the waiting plans share one roll-out."""
    plans = [request for request in queue if request.candidates]
    if not plans:
        return 1
    max_rows = min(plan.latency.max_batched_rows for plan in plans)
    mean_candidates = sum(plan.max_candidates for plan in plans) / len(plans)
    return max(1, min(len(plans), int(max_rows / mean_candidates)))


def _urgency(request: QueuedRequest) -> tuple[int, float, float]:
    return request.urgency
