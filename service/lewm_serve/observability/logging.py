"""Log lines on standard error, as text for a console or as one JSON object per line.

A thread writes the lines: see `line_writer`. A slow or dead reader costs lines, nothing else.
"""

import atexit
import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from lewm_serve.observability.line_writer import LineStream, LineWriter
from lewm_serve.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("lewm")

STDERR = 2

EXIT_FLUSH_S = 1.0
"""The longest time that the end of the process waits for the reader of the log."""

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


class _Handler(logging.StreamHandler[LineStream]):
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
