"""Writes lines to a file descriptor from a thread of its own, so that no reader blocks a caller.

The reader of a log may be slow, stopped or gone, and its disk may be full. None of these may delay
or end the server: lines that find no room are dropped and counted.
"""

from __future__ import annotations

import io
import os
import select
import threading
import time
from collections import deque

MAX_PENDING_BYTES = 4 * 1024 * 1024
"""About 10,000 lines of the access log."""

GATHERING_S = 0.005
"""Lines that arrive within this time are written together. Waking the thread costs more than a
write."""

MAX_WRITE_BYTES = 64 * 1024
"""The most bytes in one write: the size of a pipe."""


class LineWriter:
    """A bounded queue of text and the thread that writes it. Used from any thread.

    The lock is reentrant: the garbage collector may run while it is held, and what it collects may
    log a line.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0  # includes what is being written
        self._changed = threading.Condition(threading.RLock())
        self._line_is_open = False
        self.dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def write(self, text: str) -> None:
        """Queue whole lines. Without room for them they are dropped."""
        data = text.encode("utf-8", "backslashreplace")
        with self._changed:
            if self._pending_bytes + len(data) > MAX_PENDING_BYTES:
                self.dropped += _count_lines(data)
            else:
                self._pending.append(data)
                self._pending_bytes += len(data)
                self._changed.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything is written, for a limited time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending_bytes, timeout_s)

    def _run(self) -> None:
        while True:
            data = self._next()
            unwritten = self._write(data)
            with self._changed:
                self._pending_bytes -= len(data)
                self.dropped += _count_lines(unwritten)
                self._changed.notify_all()

    def _next(self) -> bytes:
        """Wait for lines, and take as many as one write holds, at least one."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending)
        time.sleep(GATHERING_S)
        with self._changed:
            taken = [self._pending.popleft()]
            size = len(taken[0])
            while self._pending and size + len(self._pending[0]) <= MAX_WRITE_BYTES:
                taken.append(self._pending.popleft())
                size += len(taken[-1])
        return b"".join(taken)

    def _write(self, data: bytes) -> bytes:
        """Write for as long as it takes. After an error the unwritten rest is returned."""
        # An error may have cut the line before.
        rest = memoryview(b"\n" + data if self._line_is_open else data)
        try:
            while rest:
                try:
                    written = os.write(self._descriptor, rest)
                except BlockingIOError:  # another process has made the descriptor non-blocking
                    select.select([], [self._descriptor], [])
                    continue
                self._line_is_open = rest[written - 1] != ord("\n")
                rest = rest[written:]
        except OSError:
            return bytes(rest)[-len(data) :]
        return b""


class LineStream(io.TextIOBase):
    """A text file over a `LineWriter`, for what writes to `sys.stderr`."""

    encoding = "utf-8"

    def __init__(self, writer: LineWriter, descriptor: int) -> None:
        self._writer = writer
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Queue the text. Parts of a line may be written one by one."""
        self._writer.write(text)
        return len(text)

    def writable(self) -> bool:
        """Always."""
        return True

    def isatty(self) -> bool:
        """Whether the text goes to a terminal."""
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        """The descriptor to which the text goes."""
        return self._descriptor


def _count_lines(data: bytes) -> int:
    return data.count(b"\n")
