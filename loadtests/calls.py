"""The calls of a load: what each asked for, how it ended, how long it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

REFUSALS = frozenset({"overloaded", "deadline_exceeded"})
"""Codes with which the server refuses a good request because it has no time for it."""


class Call(NamedTuple):
    """One call. Times are measured by the client.

    Attributes:
        kind: protocol and request, such as ``rest plan``.
        ended_s: when it ended, in seconds since the load began.
        latency_ms: from the moment at which it was due to its end.
        late_ms: from the moment at which it was due until it was sent.
        code: ``ok``, the server's error code, or what the client saw (`connection_lost`, …).
        is_expected: whether the request had to end with this code.
        missed_deadline: whether it is a plan that came later than its deadline.
    """

    kind: str
    ended_s: float
    latency_ms: float
    late_ms: float
    code: str
    is_expected: bool
    missed_deadline: bool

    @property
    def is_refused(self) -> bool:
        """Whether the server had no time for a good request."""
        return not self.is_expected and self.code in REFUSALS

    @property
    def is_failed(self) -> bool:
        """Whether it ended in a way in which no call of this kind may end."""
        return not self.is_expected and not self.is_refused


class LoadResult(NamedTuple):
    """All calls of a load, in the order of their ends, and the seconds it took."""

    calls: list[Call]
    seconds: float

    @property
    def failures(self) -> list[Call]:
        """The calls that failed."""
        return [call for call in self.calls if call.is_failed]

    def write(self, path: Path) -> None:
        """Write it to a file for `read_result`: a list of values for each field of the calls."""
        columns: dict[str, Any] = dict.fromkeys(Call._fields, ())
        if self.calls:
            columns = dict(zip(Call._fields, zip(*self.calls, strict=True), strict=True))
        path.write_text(json.dumps({"seconds": self.seconds, "calls": columns}))


def read_result(path: Path) -> LoadResult:
    """Read what `LoadResult.write` wrote."""
    document = json.loads(path.read_text())
    columns = (document["calls"][name] for name in Call._fields)
    return LoadResult([Call(*values) for values in zip(*columns, strict=True)], document["seconds"])
