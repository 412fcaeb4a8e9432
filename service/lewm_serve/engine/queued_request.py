"""A request in the queue: its order, the work that it still needs, and the client it belongs to.

There are two classes of requests. *Urgent* requests have a deadline and are served first, the
earliest deadline first, until they have the iterations that they were guaranteed. All others are
*best effort*: they share the time that urgent requests leave, and their clients take turns.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from lewm_serve.engine.latency_model import NO_ROLLOUT, LatencyModel, RolloutShape

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

MAX_URGENT_FRAMES = 4
"""A request that only encodes is urgent up to this many frames: a history of three and a goal."""


class Client:
    """What one client's requests share: its turn among the best-effort requests, and its use.

    The engine's thread writes to it. The thread that admits reads.

    Attributes:
        served_at: when its latest turn ended; minus infinity if it had none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.served_at = -math.inf
        self._turn_s = 0.0
        self._use, self._used_at = 0.0, -math.inf

    @property
    def use(self) -> float:
        """The share of the engine's time that it used lately, 0 to about 1."""
        return self._use * math.exp((self._used_at - self._clock()) / USE_DECAY_S)

    @property
    def delay_s(self) -> float:
        """By how much less its best-effort requests count as having waited."""
        return BUSY_CLIENT_DELAY_S * max(0.0, self.use - SMALL_USE)

    def observe_use(self, seconds: float, *, best_effort: bool) -> None:
        """The engine has worked for the client. Its turn ends if it is long enough."""
        use, now = self.use, self._clock()
        self._use, self._used_at = use + seconds / USE_DECAY_S, now
        if best_effort:
            self._turn_s += seconds
            if self._turn_s >= TURN_S:
                self._turn_s, self.served_at = 0.0, now


class QueuedRequest:
    """A request from its admission to its answer: its place in the queue and its expected work.

    Times are readings of the engine's clock in seconds. Of the attributes that change, the thread
    that admits writes ``frames_to_encode``, ``decode_s`` and ``guaranteed_iterations``; the
    engine's thread writes ``frames_started``, ``started_iterations`` and ``completed_iterations``.
    Both read all of them.

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

    Attributes:
        requested_iterations: ``min_iterations`` as the client gave it.
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
        client: Client | None = None,
        deadline: float = math.inf,
        priority: int = 5,
        frames_to_encode: int = 0,
        decode_s: float = 0.0,
        candidates_per_iteration: Sequence[int] = (),
        shape: RolloutShape = NO_ROLLOUT,
        min_iterations: int | None = None,
        search_bytes: int = 0,
    ) -> None:
        self.latency = latency
        self.arrival = arrival
        self.client = Client() if client is None else client
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
        self.frames_to_encode = frames_to_encode
        self.decode_s = decode_s
        self.frames_started = 0
        self.guaranteed_iterations = 0
        self.started_iterations = 0.0
        self.completed_iterations = 0
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

    @property
    def urgency(self) -> tuple[bool, float, float]:
        """A sort key; the smallest is the most urgent. It changes while the request is served."""
        is_urgent = self.is_urgent
        time_s = self.deadline if is_urgent else self.waiting_since + self.client.delay_s
        return not is_urgent, time_s - PRIORITY_LEVEL_S * self.priority, self.arrival

    @property
    def is_urgent(self) -> bool:
        """Whether it has a deadline, and not yet the iterations that it was guaranteed."""
        if self.deadline == math.inf:
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
    def encode_s(self) -> float:
        """Expected seconds to encode the frames that the engine has not started."""
        return self.latency.encode_s(max(0, self.frames_to_encode - self.frames_started))

    @property
    def frames_s(self) -> float:
        """Expected seconds to decode and encode its frames."""
        return self.decode_s + self.encode_s

    @property
    def guaranteed_s(self) -> float:
        """Expected seconds of the engine's time that it is guaranteed and has not had."""
        return self.encode_s + self.search_s(self.guaranteed_iterations)

    @property
    def max_part_size(self) -> int:
        """The most candidates of one roll-out. A larger iteration is rolled out in parts."""
        size = max(1, int(MAX_PART_STEPS / self.latency.cost(self.shape) / self.shape.horizon))
        return size if self.shape.gradients else max(size, self.latency.max_batched_rows)

    @property
    def longest_part_s(self) -> float:
        """Expected seconds of its longest roll-out."""
        return self._part_s * self.latency.correction(self.shape)

    def mark_frames_ready(self) -> None:
        """Its latents are known, so no decoding and encoding is expected any more."""
        self.frames_to_encode, self.decode_s = 0, 0.0

    def guarantee(self, iterations: int) -> None:
        """Guarantee this many iterations, or fewer if the client asked for fewer."""
        requested = self.requested_iterations
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
            rows = self.max_candidates
            alone_s = self.latency.measured_rollout_s(rows, self.shape)
            batched_s = self.latency.measured_rollout_s(batched_plans * rows, self.shape)
            slowdown *= batched_s / alone_s if alone_s else 1.0
        return slowdown
