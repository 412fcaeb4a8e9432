"""Log lines on standard error, as text for a console or as one JSON object per line.

A thread writes the lines, so that no reader blocks a caller. The reader of a log may be slow,
stopped or gone, and its disk may be full. None of these may delay or end the server: lines that
find no room are dropped and counted.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from lewm_serve.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("lewm")

STDERR = 2

EXIT_FLUSH_S = 1.0
"""The longest time that the end of the process waits for the reader of the log."""

MAX_PENDING_BYTES = 4 * 1024 * 1024
"""About 10,000 lines of the access log."""

GATHERING_S = 0.005
"""Lines that arrive within this time are written together. Waking the thread costs more than a
write."""

MAX_WRITE_BYTES = 64 * 1024
"""The most bytes in one write: the size of a pipe."""

_writer: LineWriter | None = None


def configure_logs(settings: Settings) -> None:
    """Write the lines of structlog and of the standard library in one format to standard error.

    Whatever else writes to `sys.stderr` (tracebacks of threads, for example) takes the same way.
    structlog passes its lines on itself: through the standard library, the line of a request takes
    twice as long.
    """
    global _writer
    _writer = _writer or LineWriter(STDERR)
    stream = LineStream(_writer, STDERR)
    sys.stderr = stream
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer = _robust(
        structlog.processors.JSONRenderer(_to_json)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Logger(stream),
        cache_logger_on_first_use=True,
    )
    handler = _Handler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    atexit.register(flush_logs)


def flush_logs(timeout_s: float = EXIT_FLUSH_S) -> None:
    """Wait until all lines are written, for a limited time."""
    if _writer is not None:
        _writer.flush(timeout_s)


def restart_log_thread() -> None:
    """Write log lines in this forked process, too."""
    if _writer is not None:
        _writer.restart()


def dropped_log_lines() -> int:
    """The lines that could not be written since the start."""
    return 0 if _writer is None else _writer.dropped


class _Logger:
    """Takes the lines of structlog. Unlike structlog's own, it has no lock, so that a handler of a
    signal may log too."""

    def __init__(self, stream: LineStream) -> None:
        self._stream = stream

    def info(self, line: str) -> None:
        """Write a line."""
        self._stream.write(line + "\n")

    debug = warning = error = critical = exception = info


class _Handler(logging.StreamHandler["LineStream"]):
    """Writes a record whose message does not fit its arguments too, without the arguments."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            return super().format(record)
        except Exception as error:
            record.msg, record.args = f"{record.msg} (unreadable: {error!r})", ()
            return super().format(record)


def _robust(render: Processor) -> Processor:
    """A renderer that also takes what the format cannot express: it gets text instead."""

    def render_anything(logger: Any, method: str, line: EventDict) -> Any:
        try:
            return render(logger, method, dict(line))
        except Exception:
            return render(logger, method, {name: _to_plain(line[name]) for name in line})

    return render_anything


def _to_json(line: EventDict, **_options: object) -> str:
    return orjson.dumps(line, repr).decode()


def _to_plain(value: object) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:
        text = f"an unreadable {type(value).__name__}: {error!r}"
    return text.encode("utf-8", "backslashreplace").decode()


class LineWriter:
    """A bounded queue of text and the thread that writes it. Used from any thread.

    The lock is reentrant: the garbage collector may run while it is held, and what it collects may
    log a line.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._line_is_open = False
        self.dropped = 0
        self.restart()

    def restart(self) -> None:
        """Start with an empty queue and a new thread: a forked process has no threads."""
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0  # includes what is being written
        self._changed = threading.Condition(threading.RLock())
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
