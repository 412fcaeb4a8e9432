"""What the console shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from lewm_serve.observability.recent_requests import RecentRequests
from lewm_serve.planner.history import PlanHistory


@dataclass(frozen=True)
class ConsoleData:
    """The last plans and the last requests. Both are bounded."""

    history: PlanHistory = field(default_factory=PlanHistory)
    recent: RecentRequests = field(default_factory=RecentRequests)
