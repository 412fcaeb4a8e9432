"""How many HTTP connections there may be, and which one makes room for a new one."""

from __future__ import annotations

import time
from typing import Protocol

from lewm_serve.transports.http.access import OPEN_PATHS

PROBE_CONNECTIONS = 32
"""Connections beyond the limit. They get answers from `PROBE_PATHS` alone, so that a server whose
connections are all in use does not seem to be dead."""

MIN_WAITING_S = 1.0
"""How long a connection must have waited before it is closed for a new one. A robot that plans
every second keeps its connection, however many others connect."""

PROBE_PATHS = tuple(path.encode() for path in (*OPEN_PATHS, "/metrics"))


class Connection(Protocol):
    """What the slots know of a connection."""

    def evict(self) -> None:
        """Close the connection, on which no request is in progress."""


class ConnectionSlots:
    """A limited number of connections.

    A connection waits while no request is in progress on it: before the first request, between two,
    and when a request has been answered whose body has not ended. If there are too many
    connections, the one that has waited longest is closed, if it has waited ``min_waiting_s``.
    """

    def __init__(self, limit: int, min_waiting_s: float) -> None:
        self._limit = limit
        self._min_waiting_s = min_waiting_s
        self._open: set[Connection] = set()
        self._waiting_since: dict[Connection, float] = {}  # those that have waited longest first

    def take(self, connection: Connection) -> bool:
        """Give a slot to a new connection. False: all slots are in use."""
        if len(self._open) >= self._limit:
            longest, since = next(iter(self._waiting_since.items()), (None, 0.0))
            if longest is None or time.monotonic() - since < self._min_waiting_s:
                return False
            self.release(longest)
            longest.evict()
        self._open.add(connection)
        self.set_waiting(connection)
        return True

    def set_busy(self, connection: Connection) -> None:
        """A request is in progress on the connection."""
        self._waiting_since.pop(connection, None)

    def set_waiting(self, connection: Connection) -> None:
        """No request is in progress on the connection from now on."""
        self._waiting_since.pop(connection, None)
        if connection in self._open:
            self._waiting_since[connection] = time.monotonic()

    def release(self, connection: Connection) -> None:
        """The connection is closed."""
        self._open.discard(connection)
        self._waiting_since.pop(connection, None)


class Connections:
    """All connections of the HTTP server.

    Attributes:
        slots: for all requests.
        probe_slots: for probes, when all other slots are in use.
        closing: whether each connection is closed after its next answer.
    """

    def __init__(self, limit: int) -> None:
        self.slots = ConnectionSlots(limit, MIN_WAITING_S)
        self.probe_slots = ConnectionSlots(PROBE_CONNECTIONS, 0.0)
        self.closing = False
