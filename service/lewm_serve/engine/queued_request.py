"""A request in the queue: its order, the work that it still needs, and the client it belongs to.

There are two classes of requests. *Urgent* requests have a deadline and are within their client's
share of the engine. They are served first, the earliest deadline first, until they have the
iterations that they were guaranteed. All others are *best effort*: they share the time that urgent
requests leave, and their clients take turns.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from lewm_serve.engine.latency_model import NO_ROLLOUT, LatencyModel, RolloutShape
from lewm_serve.engine.shared_numbers import Row, SharedNumber

MAX_PART_STEPS = 2560
"""Candidates × horizon of one roll-out: 512 candidates over a horizon of 5. A larger iteration is
split into parts, so that other work waits only briefly. Where batching is faster, roll-outs may be
larger."""

PRIORITY_LEVEL_S = 1.0
"""A level of priority counts as much as an earlier deadline, or longer waiting, by this much."""

TURN_S = 0.05
"""How long a client's best-effort requests run before those of the next client."""

SMALL_USE = 0.1
BUSY_CLIENT_DELAY_S = 10.0
"""Best-effort requests of a client that used more than `SMALL_USE` of the engine's time lately
count as having waited less: by this much for all of the time. So a client with large plans gets the
time that the others leave. Nobody starves: without any time, `Client.use` decays in seconds."""

USE_DECAY_S = 1.0
"""The time constant of `Client.use`."""

MAX_EXCESS_S = 0.5
"""`Client.excess_s` is at most this. So a client that used much is soon within its share again."""

NEGLIGIBLE_USE = 1e-3
"""A `Client.use` that may be forgotten."""

MAX_URGENT_FRAMES = 4
"""A request that only encodes is urgent up to this many frames: a history of three and a goal."""


class Client:
    """What one client's requests share: its turn among the best-effort requests, and its use.

    The thread that admits writes ``requests``, ``priority`` and ``share``, and the engine all else.
    The engine may run in another process, with a `Client` of its own on the same row.

    Args:
        clock: gives the time in seconds.
        row: a new row for its shared numbers; None: only this process needs them.

    Attributes:
        requests: how many admitted requests it has.
        priority: the priority of its latest request.
        share: its share of the engine's time, 0 to 1; see `Admission`.
        served_at: when its latest turn ended; minus infinity if it had none.
    """

    share = SharedNumber(0, float)
    served_at = SharedNumber(1, float)
    _turn_s = SharedNumber(2, float)
    _use = SharedNumber(3, float)
    _excess_s = SharedNumber(4, float)
    _used_at = SharedNumber(5, float)

    def __init__(self, clock: Callable[[], float] = time.monotonic, row: Row | None = None) -> None:
        self._clock = clock
        self.row = Row() if row is None else row
        self.requests = 0
        self.priority = 0
        self.share = 1.0
        self.served_at = self._used_at = -math.inf

    @classmethod
    def on_row(cls, row: Row) -> Client:
        """The client whose shared numbers are on this row, for the engine."""
        client = cls.__new__(cls)
        client._clock, client.row = time.monotonic, row
        client.requests = client.priority = 0
        return client

    def __reduce__(self) -> tuple[Any, ...]:
        return Client.on_row, (self.row,)

    @property
    def use(self) -> float:
        """The share of the engine's time that it used lately, 0 to about 1."""
        return self._use * math.exp((self._used_at - self._clock()) / USE_DECAY_S)

    @property
    def is_active(self) -> bool:
        """Whether it has a request, or used the engine in the last seconds."""
        return self.requests > 0 or self.use > NEGLIGIBLE_USE

    @property
    def excess_s(self) -> float:
        """Seconds of the engine's time that it used beyond its share lately.

        A token bucket: what the client uses fills it, and it empties at the rate of the share.
        """
        return max(0.0, self._excess_s - self.share * (self._clock() - self._used_at))

    @property
    def delay_s(self) -> float:
        """By how much less its best-effort requests count as having waited."""
        return BUSY_CLIENT_DELAY_S * max(0.0, self.use - SMALL_USE)

    def observe_use(self, seconds: float, *, best_effort: bool) -> None:
        """The engine has worked for the client. Its turn ends if it is long enough."""
        now = self._clock()
        self._excess_s = min(MAX_EXCESS_S, self.excess_s + seconds)
        self._use, self._used_at = self.use + seconds / USE_DECAY_S, now
        if best_effort:
            self._turn_s += seconds
            if self._turn_s >= TURN_S:
                self._turn_s, self.served_at = 0.0, now


class QueuedRequest:
    """A request from its admission to its answer: its place in the queue and its expected work.

    Times are readings of the engine's clock in seconds. Of the attributes that change, the thread
    that admits writes ``frames_to_encode``, ``decode_s``, ``expected_iterations`` and
    ``within_share``; the engine writes ``frames_started``, ``started_iterations`` and
    ``completed_iterations``. Both read all of them. The engine may run in another process, with a
    `QueuedRequest` of its own on the same row.

    Args:
        latency: the latency model of the request's model.
        arrival: when the request arrived.
        client: who sent it; None: a client of its own.
        deadline: when the answer has to leave; infinity without a deadline.
        priority: 0 to 9; see `PRIORITY_LEVEL_S`.
        frames_to_encode: how many frames have to be encoded.
        decode_s: expected seconds until they are decoded. The engine does other work meanwhile.
        candidates_per_iteration: the number of candidates of each iteration; empty if the request
            has no roll-out.
        shape: the shape of its roll-outs.
        min_iterations: fewer iterations are of no use to the client; None: the client did not say.
        search_bytes: about how much memory its search takes.
        row: a new row for its shared numbers; None: only this process needs them.

    Attributes:
        requested_iterations: ``min_iterations`` as the client gave it.
        frames_started: how many frames the engine has started to encode, or has encoded.
        expected_iterations: how many iterations were expected when the request was admitted.
        within_share: whether its client asks for no more than its share of the engine; see
            `Admission`. If not, the request is best effort, and nothing is guaranteed.
        started_iterations: how many iterations have started or ended. An iteration that is rolled
            out in parts counts in part.
        completed_iterations: how many iterations have ended.
    """

    frames_to_encode = SharedNumber(0, int)
    decode_s = SharedNumber(1, float)
    expected_iterations = SharedNumber(2, int)
    within_share = SharedNumber(3, bool)
    frames_started = SharedNumber(4, int)
    started_iterations = SharedNumber(5, float)
    completed_iterations = SharedNumber(6, int)

    def __init__(
        self,
        latency: LatencyModel,
        arrival: float,
        *,
        client: Client | None = None,
        deadline: float = math.inf,
        priority: int = 5,
        frames_to_encode: int = 0,
        decode_s: float = 0.0,
        candidates_per_iteration: Sequence[int] = (),
        shape: RolloutShape = NO_ROLLOUT,
        min_iterations: int | None = None,
        search_bytes: int = 0,
        row: Row | None = None,
    ) -> None:
        self.row = Row() if row is None else row
        self.within_share = True
        self.frames_to_encode = frames_to_encode
        self.decode_s = decode_s
        self._set_up(
            latency,
            arrival,
            client=Client() if client is None else client,
            deadline=deadline,
            priority=priority,
            candidates_per_iteration=candidates_per_iteration,
            shape=shape,
            min_iterations=min_iterations,
            search_bytes=search_bytes,
        )

    def _set_up(
        self,
        latency: LatencyModel,
        arrival: float,
        *,
        client: Client,
        deadline: float,
        priority: int,
        candidates_per_iteration: Sequence[int],
        shape: RolloutShape,
        min_iterations: int | None,
        search_bytes: int,
    ) -> None:
        """Set all that never changes."""
        self.latency = latency
        self.arrival = arrival
        self.client = client
        self.deadline = deadline
        self.priority = priority
        self.candidates_per_iteration = candidates_per_iteration
        self.max_candidates = max(candidates_per_iteration, default=0)
        self.shape = shape
        if min_iterations is None:
            self.min_iterations = min(1, len(candidates_per_iteration))
        else:
            self.min_iterations = min_iterations
        self.search_bytes = search_bytes
        self.requested_iterations = min_iterations
        # Seconds as measured at the start: of one part, and up to the end of each iteration.
        iteration_s = {
            count: latency.measured_rollout_s(count, shape)
            for count in set(candidates_per_iteration)
        }
        self._part_s = latency.measured_rollout_s(
            min(self.max_candidates, self.max_part_size), shape
        )
        self._end_s = [0.0, *accumulate(iteration_s[count] for count in candidates_per_iteration)]

    @classmethod
    def on_row(cls, row: Row, latency: LatencyModel, arrival: float, **fixed: Any) -> QueuedRequest:
        """The request whose shared numbers are on this row, for the engine."""
        queued = cls.__new__(cls)
        queued.row = row
        queued._set_up(latency, arrival, **fixed)
        return queued

    def __reduce__(self) -> tuple[Any, ...]:
        fixed = {
            "client": self.client,
            "deadline": self.deadline,
            "priority": self.priority,
            "candidates_per_iteration": self.candidates_per_iteration,
            "shape": self.shape,
            "min_iterations": self.requested_iterations,
            "search_bytes": self.search_bytes,
        }
        correction = self.latency.share_correction(self.shape)
        return _on_row, (self.row, self.latency, correction, self.arrival, fixed)

    @property
    def key(self) -> tuple[str, int]:
        """The same for all objects that stand for this request, in whichever process."""
        index = self.row.index
        return ("row", index) if index is not None else ("object", id(self))

    @property
    def urgency(self) -> tuple[bool, float, float]:
        """A sort key; the smallest is the most urgent. It changes while the request is served."""
        return self._urgency(self.is_urgent)

    def _urgency(self, is_urgent: bool) -> tuple[bool, float, float]:
        time_s = self.deadline if is_urgent else self.waiting_since + self.client.delay_s
        return not is_urgent, time_s - PRIORITY_LEVEL_S * self.priority, self.arrival

    @property
    def is_urgent(self) -> bool:
        """Whether it has a deadline, is within its client's share, and needs guaranteed work."""
        if self.deadline == math.inf or not self.within_share:
            return False
        if not self.candidates_per_iteration:
            return self.frames_to_encode <= MAX_URGENT_FRAMES
        return self.completed_iterations < self.guaranteed_iterations

    @property
    def waiting_since(self) -> float:
        """When it arrived, or when its client had its latest turn."""
        return max(self.arrival, self.client.served_at)

    @property
    def started(self) -> bool:
        """Whether its first roll-out has started."""
        return self.started_iterations > 0

    @property
    def guaranteed_iterations(self) -> int:
        """How many iterations it gets by its deadline for certain, if durations are as expected."""
        return self.expected_iterations if self.within_share else 0

    @property
    def expected_s(self) -> float:
        """Expected seconds of the engine's time that its expected iterations still need."""
        snapshot = self.snapshot()
        return snapshot.encode_s + snapshot.search_s(self.expected_iterations)

    @property
    def max_part_size(self) -> int:
        """The most candidates of one roll-out. A larger iteration is rolled out in parts."""
        size = max(1, int(MAX_PART_STEPS / self.latency.cost(self.shape) / self.shape.horizon))
        return size if self.shape.gradients else max(size, self.latency.max_batched_rows)

    def mark_frames_ready(self) -> None:
        """Its latents are known, so no decoding and encoding is expected any more."""
        self.frames_to_encode, self.decode_s = 0, 0.0

    def expect(self, iterations: int) -> None:
        """Expect this many iterations, or fewer if the client asked for fewer."""
        requested = self.requested_iterations
        self.expected_iterations = iterations if requested is None else min(requested, iterations)

    def in_time(self, now: float, batched_plans: int = 1) -> bool:
        """Whether it gets its guaranteed iterations if they run without a break from now on."""
        search_s = self.snapshot().search_s(self.guaranteed_iterations, batched_plans)
        return now + search_s <= self.deadline

    def snapshot(self) -> RequestSnapshot:
        """The request at this moment."""
        is_urgent = self.is_urgent
        frames_to_encode = self.frames_to_encode
        encode_s = self.latency.encode_s(max(0, frames_to_encode - self.frames_started))
        correction = self.latency.correction(self.shape)
        return RequestSnapshot(
            queued=self,
            is_urgent=is_urgent,
            urgency=self._urgency(is_urgent),
            has_frames=frames_to_encode > 0,
            encode_s=encode_s,
            frames_s=self.decode_s + encode_s,
            guaranteed_iterations=self.guaranteed_iterations,
            completed_iterations=self.completed_iterations,
            started_s=self._started_s(),
            longest_part_s=self._part_s * correction,
            end_s=self._end_s,
            correction=correction,
        )

    def _started_s(self) -> float:
        """Seconds of the work that has started, as measured at the start."""
        started = self.started_iterations  # the engine may change it meanwhile
        complete = int(started)
        seconds = self._end_s[complete]
        if started > complete:
            seconds += (started - complete) * (self._end_s[complete + 1] - seconds)
        return seconds


class RequestSnapshot(NamedTuple):
    """A queued request at one moment. A forecast reads each of these numbers several times, and it
    takes long to read a shared one.

    Attributes:
        queued: the request.
        is_urgent: see `QueuedRequest.is_urgent`.
        urgency: see `QueuedRequest.urgency`.
        has_frames: whether it had frames to encode that are not known to be ready.
        encode_s: expected seconds to encode the frames that the engine has not started.
        frames_s: expected seconds to decode and encode its frames.
        guaranteed_iterations: see `QueuedRequest.guaranteed_iterations`.
        completed_iterations: see `QueuedRequest`.
        started_s: seconds of its search that have started, as measured at the start.
        longest_part_s: expected seconds of its longest roll-out.
        end_s: seconds of its search up to the end of each iteration, as measured at the start.
        correction: how many times longer its roll-outs take now.
    """

    queued: QueuedRequest
    is_urgent: bool
    urgency: tuple[bool, float, float]
    has_frames: bool
    encode_s: float
    frames_s: float
    guaranteed_iterations: int
    completed_iterations: int
    started_s: float
    longest_part_s: float
    end_s: Sequence[float]
    correction: float

    def search_s(self, iterations: int | None = None, batched_plans: int = 1) -> float:
        """Expected seconds of the work that has not started, up to ``iterations`` (None: all).

        ``batched_plans`` is the number of plans that share each roll-out.
        """
        left_s = max(0.0, self.end_s[-1 if iterations is None else iterations] - self.started_s)
        return left_s * self._slowdown(batched_plans)

    def iterations_within(self, seconds: float, batched_plans: int = 1) -> int:
        """How many iterations are expected to be complete after this time.

        It counts from the end of the roll-out that runs now.
        """
        if seconds == math.inf:
            return len(self.end_s) - 1
        slowdown = self._slowdown(batched_plans)
        reached_s = math.inf
        if slowdown:
            reached_s = self.started_s + max(0.0, seconds) / slowdown
        return max(self.completed_iterations, bisect_right(self.end_s, reached_s) - 1)

    def _slowdown(self, batched_plans: int) -> float:
        """The time of an iteration divided by the time that was measured for one plan alone."""
        if batched_plans == 1:
            return self.correction
        rows, shape, latency = self.queued.max_candidates, self.queued.shape, self.queued.latency
        alone_s = latency.measured_rollout_s(rows, shape)
        batched_s = latency.measured_rollout_s(batched_plans * rows, shape)
        return self.correction * (batched_s / alone_s if alone_s else 1.0)


def _on_row(
    row: Row, latency: LatencyModel, correction: Row, arrival: float, fixed: dict[str, Any]
) -> QueuedRequest:
    latency.see_correction(fixed["shape"], correction)
    return QueuedRequest.on_row(row, latency, arrival, **fixed)
