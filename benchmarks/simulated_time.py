"""Simulated time for a robot's control loop, so that no machine is too slow for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

TOLERANCE_S = 1e-9
"""Rounding errors of sums of periods."""


class SimulatedTime(Executor):
    """A clock that advances only while somebody sleeps, and calls that take a latency of it.

    Args:
        latency_s: the latency of all calls that follow; it may be changed.
    """

    def __init__(self, latency_s: float = 0.0) -> None:
        self.latency_s = latency_s
        self._now = 0.0
        self._under_way: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        """Seconds since the start."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += seconds
        due = [end for end in self._under_way if end[0] <= self._now + TOLERANCE_S]
        for end in due:
            self._under_way.remove(end)
            end[1]()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call the function now. Its result is there after the latency."""
        future: Future[T] = Future()
        end: Callable[[], None]
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            end = _bind(future.set_exception, error)
        else:
            end = _bind(future.set_result, result)
        self._under_way.append((self._now + self.latency_s, end))
        self.sleep(0.0)
        return future


def _bind(function: Callable[[Any], None], value: Any) -> Callable[[], None]:
    return lambda: function(value)
