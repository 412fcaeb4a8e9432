"""Log lines on standard error: for a console, or one JSON object a line."""

import logging
import sys
from typing import Any

import orjson
import structlog

from lewm_serve.settings import Settings

log: structlog.typing.FilteringBoundLogger = structlog.get_logger("lewm")


def configure_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's lines the same way, to standard error.

    structlog writes its own lines: a request's would take twice as long through the library.
    """
    shared: list[Any] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(_json)
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
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


def _json(line: dict[str, Any], **_options: object) -> str:
    return orjson.dumps(line, repr).decode()
