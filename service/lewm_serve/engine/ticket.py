"""What a request holds from its arrival until it leaves: its place in the queue, its work."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from lewm_serve.engine.pace import ONE_STEP, Pace, Shape

STEP_LIMIT = 2560
"""Candidates times steps of one roll-out, except below the knee: 512 over a horizon of 5."""

PATIENCE_S = 10.0
"""A deadline further away, or none, counts as this in the order of the queue."""


class Ticket:
    """A request's urgency, and the work that is expected of it.

    Times are readings of the engine's clock in seconds. ``frames`` are still to be decoded and
    encoded; ``rows`` are the candidates of each iteration, of which ``done`` have been scored.
    Fewer than ``least`` are of no use to the client, and ``need`` it was promised. The first
    step makes it ``begun``.

    Plans far from their deadline, or without one, are put in order as if it were ``patience_s``
    away, so that nothing starves behind an endless row of nearer deadlines; for all else a missing
    deadline is infinitely far.
    """

    def __init__(
        self,
        pace: Pace,
        arrival: float,
        *,
        deadline: float = math.inf,
        priority: int = 5,
        patience_s: float = PATIENCE_S,
        frames: int = 0,
        rows: Sequence[int] = (),
        shape: Shape = ONE_STEP,
        least: int | None = None,
    ) -> None:
        self.pace = pace
        self.deadline = deadline
        self.priority = priority
        self.frames = frames
        self.shape = shape
        self.rows = rows
        self.largest = max(rows, default=0)
        self.least = min(1, len(rows)) if least is None else least
        self._wanted = least
        self.need = 0
        self.done = 0
        self.begun = False
        self.urgency = (-priority, min(deadline, arrival + patience_s), arrival)
        # Seconds of a step, and up to the end of each iteration, as measured at warm-up.
        seconds = {count: pace.plain(count, shape.horizon) for count in set(rows)}
        self._step_s = pace.plain(min(self.largest, self.step_rows), shape.horizon)
        self._ends = [0.0, *accumulate(seconds[count] for count in rows)]

    @property
    def prepare_s(self) -> float:
        """Seconds until its frames are latents."""
        return self.frames * self.pace.frame_s

    @property
    def step_rows(self) -> int:
        """The most candidates of one step, which holds others up for a moment only."""
        return max(1, STEP_LIMIT // self.shape.horizon, self.pace.knee)

    @property
    def step_s(self) -> float:
        """Seconds of its longest step."""
        return self._step_s * self.pace.correction(self.shape)

    def promise(self, iterations: int) -> None:
        """Promise so many iterations, or the fewer that the client would be content with."""
        self.need = iterations if self._wanted is None else min(self._wanted, iterations)

    def solve_s(self, until: int | None = None, share: int = 1) -> float:
        """Seconds of the iterations not yet done, up to ``until`` (None: all).

        ``share`` plans packed into one roll-out take turns of one length.
        """
        last = len(self.rows) if until is None else until
        return max(0.0, self._ends[last] - self._ends[self.done]) * self._scale(share)

    def in_time(self, now: float, share: int = 1) -> bool:
        """Whether it gets what it was promised, if its iterations follow one another from now."""
        return now + self.solve_s(self.need, share) <= self.deadline

    def within(self, seconds: float, share: int = 1) -> int:
        """How many iterations, those done included, are expected to be done in so many seconds."""
        if seconds == math.inf:
            return len(self.rows)
        scale = self._scale(share)
        reach = self._ends[self.done] + max(0.0, seconds) / scale if scale else math.inf
        return max(self.done, bisect_right(self._ends, reach) - 1)

    def _scale(self, share: int) -> float:
        scale = self.pace.correction(self.shape)
        if share > 1:
            alone = self.pace.plain(self.largest, self.shape.horizon)
            packed = self.pace.plain(share * self.largest, self.shape.horizon)
            scale *= packed / alone if alone else 1.0
        return scale
