"""The last requests of all robots, and what they say about each robot."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_REQUESTS = 4096
"""The most requests that are kept."""

WINDOW_S = 300.0
"""Older requests do not count. A full table may reach less far back."""

RATE_WINDOW_S = 60.0
"""Rates are those of this time, or since the first request that is kept."""

MAX_SOURCES = 200
"""The most robots that are listed."""


class RecentRequest(NamedTuple):
    """A request that has ended. ``at`` is a reading of `time.monotonic()` in seconds."""

    at: float
    endpoint: str
    protocol: str
    code: str
    duration_s: float
    robot: str | None
    key: str | None
    model: str | None
    health: str | None
    plan_status: str | None


class RecentRequests:
    """A bounded table of the last requests."""

    def __init__(self, most: int = MAX_REQUESTS) -> None:
        self._requests: deque[RecentRequest] = deque(maxlen=most)

    def add(self, line: Mapping[str, Any], ended: float) -> None:
        """Keep a request, given by its line of the access log."""
        self._requests.append(
            RecentRequest(
                at=ended,
                endpoint=line["endpoint"],
                protocol=line["protocol"],
                code=line["code"],
                duration_s=line["duration_ms"] / 1000,
                robot=line.get("robot"),
                key=line.get("key"),
                model=line.get("model"),
                health=line.get("health"),
                plan_status=line.get("plan_status"),
            )
        )

    def newest(self) -> list[RecentRequest]:
        """The requests of the last minutes, the oldest first."""
        since = time.monotonic() - WINDOW_S
        return [request for request in tuple(self._requests) if request.at >= since]


@dataclass
class SourceSummary:
    """What the requests of one robot say.

    Attributes:
        requests: how many it sent.
        recent: how many of them in the last `RATE_WINDOW_S`.
        durations: of those that were answered, in seconds.
        errors: its errors by code.
        health: its answers by health.
        plan_statuses: its plans by status.
        protocols: what it speaks.
        last_at: when its newest request ended.
    """

    requests: int = 0
    recent: int = 0
    durations: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    health: Counter[str] = field(default_factory=Counter)
    plan_statuses: Counter[str] = field(default_factory=Counter)
    protocols: set[str] = field(default_factory=set)
    last_at: float = 0.0

    def add(self, request: RecentRequest, now: float) -> None:
        """Count a request."""
        self.requests += 1
        self.recent += request.at >= now - RATE_WINDOW_S
        self.protocols.add(request.protocol)
        self.last_at = max(self.last_at, request.at)
        if request.code == "ok":
            self.durations.append(request.duration_s)
        else:
            self.errors[request.code] += 1
        if request.health is not None:
            self.health[request.health] += 1
        if request.plan_status is not None:
            self.plan_statuses[request.plan_status] += 1

    def to_json(self, now: float, rate_window_s: float) -> dict[str, Any]:
        """The summary for a page. Rates are those of the last ``rate_window_s``."""
        return {
            "requests": self.requests,
            "per_s": round(self.recent / rate_window_s, 2),
            "p50_ms": _quantile_ms(self.durations, 0.5),
            "p95_ms": _quantile_ms(self.durations, 0.95),
            "errors": dict(self.errors),
            "health": dict(self.health),
            "plans": dict(self.plan_statuses),
            "protocols": sorted(self.protocols),
            "seen_s_ago": round(now - self.last_at, 1),
        }


def summarise(requests: Sequence[RecentRequest]) -> dict[str, Any]:
    """All requests together, and those of each robot, the busiest first.

    A request without a robot's name belongs to its key, and without a key to all such requests.
    """
    now = time.monotonic()
    total = SourceSummary()
    sources: dict[tuple[str, str], SourceSummary] = {}
    for request in requests:
        total.add(request, now)
        source = ("robot", request.robot) if request.robot else ("key", request.key or "")
        sources.setdefault(source, SourceSummary()).add(request, now)
    first_at = min((request.at for request in requests), default=now)
    kept_s = max(1.0, now - first_at)
    rate_window_s = min(RATE_WINDOW_S, kept_s)
    busiest = sorted(sources.items(), key=lambda item: -item[1].requests)
    return {
        "window_s": round(min(WINDOW_S, kept_s), 1) if len(requests) == MAX_REQUESTS else WINDOW_S,
        "rate_window_s": round(rate_window_s, 1),
        "total": total.to_json(now, rate_window_s),
        "robots": [
            {"kind": kind, "name": name, **summary.to_json(now, rate_window_s)}
            for (kind, name), summary in busiest[:MAX_SOURCES]
        ],
        "unlisted": max(0, len(busiest) - MAX_SOURCES),
    }


def _quantile_ms(durations: list[float], level: float) -> float | None:
    if not durations:
        return None
    # The least of the durations that this share of them does not exceed.
    rank = max(1, math.ceil(level * len(durations)))
    return round(1000 * sorted(durations)[rank - 1], 2)
