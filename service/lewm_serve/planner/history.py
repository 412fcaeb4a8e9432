"""The last plans, kept for people who look at them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lewm_serve.api.requests import Frame, PlanRequest, RequestContext
from lewm_serve.api.responses import PlanResponse
from lewm_serve.engine.trace import SearchTrace

MAX_PLANS, MAX_BYTES = 600, 64 << 20
"""The most plans that are kept, and the most bytes of what they hold."""

TRACES_PER_S, BURST = 2.0, 4.0
"""How many plans a second are recorded with their trace, and how many after a pause."""

RECORD_BYTES = 4096
"""About what a plan takes beside its frames, its latents and its trace."""


@dataclass
class PlanRecord:
    """A plan that was answered.

    Attributes:
        number: counts the plans of this server, from 1 on.
        answered_at: the time of the answer, seconds since 1970.
        request: what the client asked for, with its frames as they were sent.
        context: where the request came from.
        response: the answer.
        latents: (N, D) of the `encoded_frames`; None if a fallback answered before.
        trace: what the search did; None: it was not recorded.
        replay_of: the number of the plan that this one repeats; None: it repeats none.
    """

    number: int
    answered_at: float
    request: PlanRequest
    context: RequestContext
    response: PlanResponse
    latents: Tensor | None
    trace: SearchTrace | None
    replay_of: int | None = None
    size_in_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        frames = (*self.request.frames, self.request.goal)
        self.size_in_bytes = RECORD_BYTES + sum(map(_size_in_bytes, frames))
        if self.latents is not None:
            self.size_in_bytes += 4 * self.latents.numel()
        if self.trace is not None:
            self.size_in_bytes += self.trace.size_in_bytes

    @property
    def encoded_frames(self) -> tuple[Frame, ...]:
        """The frames and, last, the goal, unless it is given by states."""
        frames, goal = self.request.frames, self.request.goal
        return (*frames, goal) if goal.state is None else frames


class PlanHistory:
    """Keeps the last plans, bounded in number and bytes. Used only from the event loop.

    A plan without a trace can be made again with the same seed.

    Args:
        max_plans: the most plans.
        max_bytes: the most bytes; the newest plan is kept even if it is larger.
    """

    def __init__(self, max_plans: int = MAX_PLANS, max_bytes: int = MAX_BYTES) -> None:
        self._max_plans, self._max_bytes = max_plans, max_bytes
        self._plans: OrderedDict[int, PlanRecord] = OrderedDict()
        self._bytes = 0
        self._traces_left = BURST
        self._counted_at = time.monotonic()
        self._replays: dict[str, int | None] = {}
        self.newest = 0

    def takes_trace(self, context: RequestContext) -> bool:
        """Whether the trace of this plan is to be recorded."""
        if context.request_id in self._replays:
            return True
        now = time.monotonic()
        earned = TRACES_PER_S * (now - self._counted_at)
        self._traces_left, self._counted_at = min(BURST, self._traces_left + earned), now
        if self._traces_left < 1:
            return False
        self._traces_left -= 1
        return True

    def expect(self, request_id: str, replay_of: int | None) -> None:
        """A request with this id comes next, whose trace is wanted."""
        self._replays[request_id] = replay_of

    def forget(self, request_id: str) -> None:
        """The request that was expected has ended."""
        self._replays.pop(request_id, None)

    def add(
        self,
        request: PlanRequest,
        context: RequestContext,
        response: PlanResponse,
        *,
        latents: Tensor | None,
        trace: SearchTrace | None,
    ) -> None:
        """Keep a plan, and drop the oldest ones."""
        self.newest += 1
        record = PlanRecord(
            number=self.newest,
            answered_at=time.time(),
            request=_by_itself(request),
            context=context,
            response=response,
            latents=latents,
            trace=trace,
            replay_of=self._replays.get(context.request_id),
        )
        self._plans[record.number] = record
        self._bytes += record.size_in_bytes
        while len(self._plans) > 1 and (
            len(self._plans) > self._max_plans or self._bytes > self._max_bytes
        ):
            _, oldest = self._plans.popitem(last=False)
            self._bytes -= oldest.size_in_bytes

    def get(self, number: int) -> PlanRecord | None:
        """The plan of this number, if it is still kept."""
        return self._plans.get(number)

    def find(self, request_id: str) -> PlanRecord | None:
        """The newest plan with this request id, if it is still kept."""
        for record in reversed(self._plans.values()):
            if record.context.request_id == request_id:
                return record
        return None

    def after(self, number: int, most: int) -> Sequence[PlanRecord]:
        """At most so many of the newest plans with higher numbers, the oldest first."""
        found: list[PlanRecord] = []
        for record in reversed(self._plans.values()):
            if record.number <= number or len(found) == most:
                break
            found.append(record)
        return found[::-1]


def _by_itself(request: PlanRequest) -> PlanRequest:
    """The request without the rest of a message that holds more than its frames.

    The arrays of a batch of requests are views of one array.
    """
    frames = [_frame_by_itself(frame) for frame in (*request.frames, request.goal)]
    if all(new is old for new, old in zip(frames, (*request.frames, request.goal), strict=True)):
        return request
    return request.model_copy(update={"frames": tuple(frames[:-1]), "goal": frames[-1]})


def _frame_by_itself(frame: Frame) -> Frame:
    copies = {
        name: array.copy() for name, array in _arrays(frame).items() if _is_part_of_another(array)
    }
    return frame.model_copy(update=copies) if copies else frame


def _is_part_of_another(array: NDArray[Any]) -> bool:
    whole = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    return whole.nbytes > array.nbytes


def _size_in_bytes(frame: Frame) -> int:
    """The bytes of what a frame holds."""
    return len(frame.image or b"") + sum(array.nbytes for array in _arrays(frame).values())


def _arrays(frame: Frame) -> dict[str, NDArray[Any]]:
    arrays = {"pixels": frame.pixels, "latent": frame.latent, "vector": frame.vector}
    return {name: array for name, array in arrays.items() if array is not None}
